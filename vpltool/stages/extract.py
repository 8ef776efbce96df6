"""`extract`: from photos to frozen features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vpltool import console, options
from vpltool.core.photos import PhotoSettings
from vpltool.engine.features import SECOND, FoundEncoder, head_path, load_second, smaller_side_hint
from vpltool.engine.headers import make_header
from vpltool.engine.models import WORDS, load_clip_vision, load_main
from vpltool.engine.photo_work import (
    Failed,
    Made,
    count_sizes,
    make_photos,
    open_outputs,
    run_batches,
)
from vpltool.engine.photos import Photos, assigned, chosen_shard
from vpltool.engine.running import too_many_patches
from vpltool.errors import VplError, near_name
from vpltool.formats import Header, Workspace, write_tensors
from vpltool.formats.kinds import FEATURE_TENSORS, SECOND_FOLDER
from vpltool.lazy import torch
from vpltool.parallel.device import dtype_of, find_device, find_precision, worker_count
from vpltool.settings import NoEffect, setting, warn_without_effect
from vpltool.stage import Stage

if TYPE_CHECKING:
    from vpltool.clip.encoders import Encoder
    from vpltool.parallel.photos import Batch

OF_CLIP = ("patches", "calibrated_blocks", "calibrated_heads", "layers")
"""Settings without effect on a second encoder."""

WHOLE = ("tokens", "attention", "attentions")
"""What a photo that is encoded in windows does not have: it belongs to all patches together."""

_UNCALIBRATED = NoEffect({"patches": ("block", "value")}, "no path goes beside the blocks")


@dataclass(frozen=True, kw_only=True)
class ExtractSettings(options.PerPhoto):
    """Settings of `extract`."""

    split: str = options.split("train")
    encoder: str = setting(
        "", "Run a second encoder instead; for methods that read one: a file of DINO's or "
            "DINOv2's weights, timm:MODEL, or a CLIP, MODEL:PRETRAINED; words: the CLIP beside "
            "the workspace's encoder.",
        metavar="NAME-OR-FILE", record="never")
    scale: float = setting(1.0, "Factor by which photos are scaled first.", low=0.05, high=8)
    max_side: int = setting(1024, "Scale longer photos down to this first; 0: never.", low=0,
                            metavar="PIXELS")
    window: int = setting(
        0, "Encode larger photos in windows of this side, and join their patches; memory is that "
           "of one window. 0: whole photos.", low=0, metavar="PIXELS",
        record="changed",
        brief=False)
    overlap: float = setting(
        0.25, "Overlap of neighbouring windows, as a share of a window.", low=0, high=0.9,
        record="changed", brief=False,
        no_effect=[NoEffect({"window": (0,)}, "photos are encoded whole")])
    keep: str = setting(
        "tokens,patches,attention",
        "Tensors to store; tokens for gradcam, patches for dense and learn-prototypes, attention "
        "for refine, attentions of each block for methods that read them, layers for "
        "train-decoder.",
        metavar="LIST")
    attention_blocks: int = setting(8, "Number of last blocks whose attention is kept.", low=1,
                                    record="changed", source="CLIP-ES, official code")
    patches: str = setting(
        "block", "Kind of patch embeddings; block: the last block's output, projected; value: only "
                 "its value path (MaskCLIP); calibrated: a path parallel to the last blocks "
                 "(ExCEL).",
        choices=("block", "value", "calibrated"), record="changed")
    calibrated_blocks: int = setting(
        5, "With calibrated patches: number of last blocks that the path runs beside.", low=1,
        record="changed", source="ExCEL, official code", brief=False, no_effect=[_UNCALIBRATED])
    calibrated_heads: str = setting(
        "sum", "With calibrated patches: how the attention of the heads is combined: sum or mean.",
        choices=("sum", "mean"), record="changed", brief=False,
        source="ExCEL, official code", no_effect=[_UNCALIBRATED])
    layers: str = setting("", "Blocks whose output is stored as `layers`; 0 is the first; spread: "
                              "four, evenly spaced; default: all but the last.", metavar="LIST")
    store: str = options.store()
    precision: str = options.precision()
    workers: int = options.workers()


STAGE = Stage(order=30, panel="1. Begin", reads=("workspace", "images"),
              writes=("features", "head"), settings=ExtractSettings)


def run(workspace: Workspace, settings: ExtractSettings) -> list[Path]:
    """Run the frozen encoder over photos once, and store what later commands need.

    Photos are resized to multiples of the patch, each side separately, without a crop (CLIP-ES).
    A CPU encodes no photo of more than 16,384 patches whole: it is named, with the side that would
    do.
    --encoder runs another frozen vision transformer and writes to features-second/SPLIT. With
    --window, photos of any size fit into memory; tensors that span all patches are then not stored.

    Example: vpltool extract --split train

    Next: vpltool cam --prototypes text

    Args:
        workspace: where photos are found and features go.
        settings: which photos, at what size, and what to keep.

    Returns:
        the folder of features.

    Raises:
        VplError: the model cannot be had, or a setting does not fit it.
        PhotosFailed: some photos cannot be read.
    """
    second = settings.encoder not in ("", WORDS)
    kept = _kept_of_second(settings) if second else _kept(settings.keep)
    kept = _kept_of_windows(settings, kept) if settings.window else kept
    shard = chosen_shard(settings.shard)
    photos = assigned(workspace.photos(settings.split, settings.limit), shard,
                      lambda photo: photo.id)

    device = find_device(settings.device)
    dtype = find_precision(settings.precision, device, console.warn)
    encoder, source = _load(workspace, settings, device)
    kept = _kept_of_encoder(encoder, settings, kept)
    layers = parse_layers(settings.layers, encoder.vision.depth) if "layers" in kept else []
    header = make_header(
        workspace, "features", "extract", settings, model=encoder.identity,
        inputs=source.inputs if source else {}, skip=OF_CLIP if second else (),
        options={"keep": list(kept), "layers": layers, "precision": settings.precision,
                 **({"encoder": encoder.identity["name"]} if settings.encoder else {})})
    if source:
        header = replace(header, call=header.call | {"encoder": source.setting})
    parent = SECOND_FOLDER if settings.encoder else "features"
    folder = settings.out or workspace.path / parent / settings.split
    outputs = open_outputs(
        {folder: header}, Photos(
            [photo.id for photo in photos], {}, {}, not settings.limit, shard,
            workspace.hashes_of(photos)), settings)
    paths = {photo.id: workspace.image_path(photo) for photo in photos}

    def write_head() -> None:
        # An encoder that runs by its own code has none.
        head = getattr(encoder.vision, "head", None)
        if head is not None and (outputs[0].todo or not head_path(folder).exists()):
            write_tensors(head_path(folder), Header(
                kind="head", command="extract", model=encoder.identity,
                facts={"config": head.config}), head.state_dict())

    return make_photos(
        f"extract {settings.split}", outputs,
        lambda todo: _start(encoder, settings, kept, layers, {key: paths[key] for key in todo},
                            device, dtype),
        lambda output, key, tensors: output.write_tensors(key, tensors), settings,
        on_start=None if second else write_head, reads=paths)


def _load(workspace: Workspace, settings: ExtractSettings, device: torch.device
          ) -> tuple[Encoder, FoundEncoder | None]:
    """Load the workspace's encoder, or the one that is named, and where that was found."""
    if settings.encoder not in ("", WORDS):
        warn_without_effect(settings, without=dict.fromkeys(
            OF_CLIP, "a second encoder has no joint space, and its layers are not kept"))
        return load_second(workspace, settings.encoder, device)
    warn_without_effect(settings)
    load = load_clip_vision if settings.encoder else load_main
    return load(workspace, device), None


def _start(encoder: Encoder, settings: ExtractSettings, kept: tuple[str, ...],
           layers: list[int], paths: dict[str, Path], device: torch.device, dtype: torch.dtype
           ) -> Iterator[Made]:
    """Move the tower to the device; the result yields each photo's features."""
    from vpltool.core.calibration import Calibration
    from vpltool.core.tiles import encode_windows
    from vpltool.parallel.photos import load_batches

    vision = encoder.vision.to(dtype)
    patches = settings.patches if settings.encoder in ("", WORDS) else "last"
    calibration = Calibration(settings.calibrated_blocks, settings.calibrated_heads)
    window = settings.window // vision.patch
    if settings.window and not window:
        raise VplError(f"`window={settings.window}` is less than a patch, {vision.patch} pixels",
                       f"for example `window={32 * vision.patch}`")

    def encode(batch: Batch) -> Iterator[Made]:
        pixels = batch.pixels.to(device, non_blocking=True).to(dtype)
        grid = torch.tensor([side // vision.patch for side in pixels.shape[2:]])
        index = {"layer_index": torch.tensor(layers)} if layers else {}
        if window and max(grid.tolist()) > window:
            found = encode_windows(
                vision, pixels, window, settings.overlap, at_once=settings.batch_size,
                patches=patches if "patches" in kept else "none", layers=layers,
                calibration=calibration, store=dtype_of(settings.store))
            yield batch.ids[0], {"grid": grid, **index,
                                 **{name: field[0] for name, field in found.items()}}
            return
        pieces = f"window={max(512 // vision.patch, 1) * vision.patch}"
        if reason := too_many_patches(pixels, vision.patch, device, pieces, settings.scale):
            yield from ((key, Failed(reason)) for key in batch.ids)
            return
        features = vision(pixels, patches=patches if "patches" in kept else "none",
                          attention="attention" in kept, attentions="attentions" in kept,
                          attention_blocks=settings.attention_blocks, layers=layers,
                          calibration=calibration)
        fields = {name: getattr(features, name).to(dtype_of(settings.store)).cpu()
                  for name in kept}
        for number, key in enumerate(batch.ids):
            yield key, {"grid": grid, **index,
                        **{name: field[number] for name, field in fields.items()}}

    batches = load_batches(
        list(paths.items()),
        PhotoSettings(vision.patch, encoder.mean, encoder.std, settings.scale, settings.max_side),
        device=device, batch_size=1 if window else settings.batch_size,
        workers=worker_count(settings.workers), sized=count_sizes(len(paths)))
    return run_batches(batches, encode, smaller_side_hint)


def _kept(keep: str) -> tuple[str, ...]:
    kept = parse_kept("keep", keep)
    if not kept:
        raise VplError("`keep=''` is empty", f"one or more of {', '.join(FEATURE_TENSORS)}")
    return kept


def parse_kept(setting_name: str, choice: str) -> tuple[str, ...]:
    """Read a list of the tensors of features, `tokens,patches`, in the order of `FEATURE_TENSORS`.

    Raises:
        VplError: features have no such tensor.
    """
    names = [name.strip() for name in choice.split(",") if name.strip()]
    for name in names:
        if name not in FEATURE_TENSORS:
            raise VplError(f"`{setting_name}={choice!r}`: features have no `{name}`",
                           near_name(name, FEATURE_TENSORS))
    return tuple(name for name in FEATURE_TENSORS if name in names)


def _kept_of_second(settings: ExtractSettings) -> tuple[str, ...]:
    """What is kept of a second encoder: of what is asked for, what methods may read."""
    kept = _kept(settings.keep)
    readable = tuple(SECOND.values())
    missing = [name for name in kept if name not in readable]
    if missing and ("keep" in settings.given or len(missing) == len(kept)):
        raise VplError(f"`keep={settings.keep!r}`: nothing reads {missing[0]} of a second encoder",
                       f"`keep={','.join(readable)!r}`, the default with `encoder`")
    return tuple(name for name in kept if name in readable)


def _kept_of_encoder(encoder: Encoder, settings: ExtractSettings, kept: tuple[str, ...]
                     ) -> tuple[str, ...]:
    """What is kept of an encoder: of what is asked for, what it gives."""
    from vpltool.clip.encoders import with_head

    if settings.patches != "block" and not settings.encoder:
        with_head(encoder, f"`patches={settings.patches!r}`")
    able, name = encoder.vision.able, encoder.identity["name"]
    if "keep" in settings.given or able.isdisjoint(kept):
        encoder.vision.check_able(kept, name)
    missing = [tensor for tensor in kept if tensor not in able]
    if missing:
        console.note(f"{name} gives no {' and no '.join(missing)}")
    return tuple(tensor for tensor in kept if tensor in able)


def _kept_of_windows(settings: ExtractSettings, kept: tuple[str, ...]) -> tuple[str, ...]:
    """What is kept of photos in windows: of what is asked for, what a window has by itself."""
    if 0 < settings.max_side <= settings.window:
        raise VplError(f"`window={settings.window}`: photos are scaled down to "
                       f"`max_side={settings.max_side}` first, so that none is larger than that",
                       f"`window={settings.window}, max_side=0`")
    able = tuple(name for name in kept if name not in WHOLE)
    missing = [name for name in kept if name in WHOLE]
    if missing and ("keep" in settings.given or not able):
        raise VplError(f"`keep={settings.keep!r}`: photos in windows have no {missing[0]}, which "
                       "all patches share", "`keep='patches'`, the default with `window`")
    return able


def parse_layers(choice: str, depth: int) -> list[int]:
    """Read a list of block numbers, `2,5,8`; empty: all but the last; `spread`: four, evenly.

    Raises:
        VplError: it is not such a list, or the model has fewer blocks.
    """
    if not choice:
        return list(range(depth - 1))
    if choice == "spread":
        return sorted({round(quarter * depth / 4) - 1 for quarter in range(1, 5)} - {-1})
    layers = parse_numbers(choice)
    if layers[0] < 0 or layers[-1] >= depth:
        raise VplError(f"`layers={choice!r}`: this model has the blocks 0 to {depth - 1}",
                       "for example `layers='2,5,8,11'`")
    return layers


def parse_numbers(choice: str) -> list[int]:
    """Read `2,5,8`: ascending, each once.

    Raises:
        VplError: it is not a list of whole numbers.
    """
    try:
        return sorted({int(part) for part in choice.split(",")})
    except ValueError:
        raise VplError(f"`layers={choice!r}` is not a list of block numbers",
                       "for example `layers='2,5,8,11'`") from None
