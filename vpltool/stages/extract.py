"""`vpltool extract`: from photos to frozen features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vpltool import console
from vpltool.errors import VplError, check_choice, near_name
from vpltool.formats import Header, open_output, open_workspace, write_tensors
from vpltool.options import (
    STORES,
    BatchSize,
    Device,
    Limit,
    Out,
    Overwrite,
    Precision,
    Quiet,
    Split,
    Store,
    Workers,
)
from vpltool.parallel.threads import write_behind
from vpltool.stage import Stage

if TYPE_CHECKING:
    from torch import Tensor

    from vpltool.parallel.photos import Batch

STAGE = Stage(order=30, panel="1. Begin", reads=("workspace", "images"),
              writes=("features", "head"))

KEPT = ("tokens", "patches", "attention", "layers")


def extract(
    ctx: typer.Context,
    split: Split = "train",
    scale: Annotated[float, typer.Option(
        min=0.05, max=8, help="Factor on the photo's sides before the network.")] = 1.0,
    max_side: Annotated[int, typer.Option(
        min=0, help="Scale longer photos down to this first; 0: never.", metavar="PIXELS")] = 1024,
    keep: Annotated[str, typer.Option(
        metavar="LIST", help="What to store: tokens (for gradcam), patches (for dense and "
                             "learn-prototypes), attention (for refine), layers (for "
                             "train-decoder).")] = "tokens,patches,attention",
    patches: Annotated[str, typer.Option(
        help="Patch embeddings: block (the last block's output, projected), or value (its value "
             "path alone, as MaskCLIP).")] = "block",
    layers: Annotated[str, typer.Option(
        metavar="LIST", help="Blocks whose output `layers` holds, 0 is the first; "
                             "default: all but the last.")] = "",
    store: Store = "fp16",
    device: Device = "auto",
    precision: Precision = "fp32",
    batch_size: BatchSize = 8,
    workers: Workers = -1,
    limit: Limit = 0,
    out: Out = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Run the frozen CLIP over photos once, and store what the later commands need.

    Photos are resized to multiples of the patch, each side on its own, without crop (CLIP-ES).

    Example: vpltool extract --split train

    Next: vpltool cam --prototypes text
    """
    console.set_quiet(quiet)
    workspace = open_workspace(ctx.obj)
    photos = workspace.photos(split, limit)
    kept = _kept(keep)
    check_choice("store", store, STORES)
    if patches not in ("block", "value"):
        raise VplError(f"--patches {patches}: no such path", near_name(patches, ("block", "value")))

    from vpltool.clip.load import load_clip
    from vpltool.core.photos import PhotoSettings
    from vpltool.parallel.device import PRECISIONS, find_device, find_precision, worker_count
    from vpltool.parallel.memory import run_within_memory
    from vpltool.parallel.photos import load_batches

    place = find_device(device)
    dtype = find_precision(precision, place)
    clip = load_clip(workspace.model, workspace.pretrained, place, base=ctx.obj,
                     normalise=workspace.normalise)
    chosen = parse_layers(layers, clip.vision.depth) if "layers" in kept else []
    folder = out or ctx.obj / "features" / split
    header = Header(kind="features", command="extract", model=clip.identity, options={
        "split": split, "scale": scale, "max_side": max_side, "keep": list(kept),
        "layers": chosen, "precision": precision,
        **({"patches": patches} if patches != "block" else {}),
        **({"store": store} if store != "fp16" else {})})
    output = open_output(folder, header, [photo.id for photo in photos], overwrite=overwrite)
    if output.todo or not head_path(folder).exists():
        write_tensors(head_path(folder), Header(
            kind="head", command="extract", model=clip.identity,
            facts={"config": clip.vision.head.config}), clip.vision.head.state_dict())

    import torch

    vision = clip.vision.to(dtype)
    paths = {photo.id: workspace.image_path(photo) for photo in photos}
    settings = PhotoSettings(vision.patch, clip.mean, clip.std, scale, max_side)

    def encode(batch: Batch) -> dict[str, Tensor]:
        if not batch.ids:
            return {}
        pixels = batch.pixels.to(place, non_blocking=True).to(dtype)
        features = vision(pixels, patches=patches if "patches" in kept else "none",
                          attention="attention" in kept, layers=chosen)
        return {name: getattr(features, name).to(PRECISIONS[store]).cpu() for name in kept}

    batches = load_batches([(key, paths[key]) for key in output.todo], settings, device=place,
                           batch_size=batch_size, workers=worker_count(workers))
    with (console.progress(f"extract {split}", len(output.todo)) as advance,
          write_behind(output.write_tensors, batch_size if place.type == "cuda" else 0) as write):
        for batch, fields in run_within_memory(batches, encode, warn=console.warn, lower=smaller_photos):
            for key, reason in batch.failed.items():
                output.fail(key, reason)
            for index, key in enumerate(batch.ids):
                grid = torch.tensor([side // vision.patch for side in batch.pixels.shape[2:]])
                tensors = {name: field[index] for name, field in fields.items()}
                if chosen:
                    tensors["layer_index"] = torch.tensor(chosen)
                write(key, {"grid": grid, **tensors})
            advance(len(batch.ids) + len(batch.failed))
    output.finish()


def head_path(features: Path) -> Path:
    """Where `extract` puts CLIP's head: beside the features of the same split."""
    return features.parent / f"{features.name}.head.safetensors"


def smaller_photos(batch: Batch) -> str:
    """What to do where one photo does not fit into memory: a hint."""
    return f"--max-side {max(batch.pixels.shape[2:]) // 2} --overwrite, or --device cpu"


def _kept(keep: str) -> tuple[str, ...]:
    names = [name.strip() for name in keep.split(",") if name.strip()]
    for name in names:
        if name not in KEPT:
            raise VplError(f"--keep {keep}: `{name}` is nothing that can be kept",
                           near_name(name, KEPT))
    if not names:
        raise VplError("--keep is empty", f"one or more of {', '.join(KEPT)}")
    return tuple(name for name in KEPT if name in names)


def parse_layers(choice: str, depth: int) -> list[int]:
    """Read a list of block numbers, `2,5,8`; empty: all but the last.

    Raises:
        VplError: it is no such list, or the model has fewer blocks.
    """
    if not choice:
        return list(range(depth - 1))
    layers = parse_numbers(choice)
    if layers[0] < 0 or layers[-1] >= depth:
        raise VplError(f"--layers {choice}: this model has the blocks 0 to {depth - 1}",
                       "for example --layers 2,5,8,11")
    return layers


def parse_numbers(choice: str) -> list[int]:
    """Read `2,5,8`: ascending, each once.

    Raises:
        VplError: it is no list of whole numbers.
    """
    try:
        return sorted({int(part) for part in choice.split(",")})
    except ValueError:
        raise VplError(f"--layers {choice}: no list of block numbers",
                       "for example --layers 2,5,8,11") from None
