"""`embed`: other patch embeddings from stored features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from vpltool import console, options
from vpltool.engine.features import (
    check_kept,
    head_path,
    open_features,
    open_second,
    read_batch,
    read_head,
    smaller_photos_hint,
)
from vpltool.engine.headers import make_header
from vpltool.engine.photo_work import Made, make_photos, open_outputs, run_batches
from vpltool.engine.photos import chosen_shard, photos_with
from vpltool.errors import VplError
from vpltool.formats import InputFolder, Workspace, read_tensors, write_tensors
from vpltool.formats.kinds import FEATURE_TENSORS
from vpltool.lazy import torch
from vpltool.methods import KINDS, load_method
from vpltool.methods.inputs import EmbeddingBatch
from vpltool.methods.interfaces import EmbeddingMethod
from vpltool.parallel.batches import FeatureBatch, feature_batches, to_device
from vpltool.parallel.device import dtype_of, find_device, find_precision
from vpltool.settings import setting, warn_without_effect
from vpltool.stage import Stage
from vpltool.stages.extract import parse_kept


@dataclass(frozen=True, kw_only=True)
class EmbedSettings(options.PerPhoto):
    """Settings of `embed`."""

    method: str = setting(KINDS["embeddings"].default, "Method that embeds the patches.",
                          metavar="NAME")
    name: str = setting("", "Name of the result, features-NAME/SPLIT; default: the method.",
                        record="never", inside=True)
    carry: str = setting(
        "", "Tensors to copy from the input features; tokens for cam --method surgery, attention, "
            "attentions, layers for train-decoder.", metavar="LIST")
    features: Path | None = options.features()
    second: Path | None = options.second()
    store: str = options.store()
    precision: str = options.precision()


STAGE = Stage(order=35, panel="1. Begin", reads=("features", "head"), writes=("features", "head"),
              settings=EmbedSettings, methods="embeddings")


def run(workspace: Workspace, settings: EmbedSettings) -> list[Path]:
    """Compute other patch embeddings from stored features, without running the encoder.

    At most CLIP's last block is run, on the stored tokens. The result is a folder of features,
    which later commands read with --features.

    Example: vpltool embed --method naclip --split train

    Next: vpltool cam --method dense --features features-naclip/train --name text-naclip

    Args:
        workspace: where features are found and go.
        settings: which method, which photos, and what is copied.

    Returns:
        the folder of features.

    Raises:
        VplError: an input is missing, or the features do not hold what the method reads.
        PhotosFailed: some photos failed.
    """
    split, method = settings.split, load_method(EmbeddingMethod, settings.method)
    carried = _carried(settings.carry)
    features = open_features(workspace, settings.features, split)
    check_kept(features, [*(name for name in FEATURE_TENSORS if name in method.READS), *carried])
    second = open_second(workspace, settings.second, split, method.READS)
    no_network = "head" not in method.READS
    warn_without_effect(settings, without={
        **({"precision": "no network is run"} if no_network else {}),
        **({} if second else {"second": f"`{settings.method}` reads no second encoder"})})
    photos = photos_with(workspace, split, settings.limit, features,
                         *([second] if second else []),
                         shard=chosen_shard(settings.shard))
    held = features.header.options
    header = make_header(
        workspace, "features", "embed", settings, model=features.header.model,
        inputs={"features": features, **({"second": second} if second else {})},
        # What later commands ask of features, whoever made them.
        options={"keep": ["patches", *carried], "patches": settings.method,
                 "layers": held.get("layers", []) if "layers" in carried else [],
                 "scale": held["scale"], "max_side": held["max_side"]},
        skip={"carry", *({"precision"} if no_network else ())})
    folder = settings.out or workspace.path / f"features-{settings.name or settings.method}" / split
    if folder.resolve() == features.path.resolve():
        raise VplError(f"{folder} would replace the features that are read",
                       "`name='NAME'`, or `out='DIR'`, puts it elsewhere")
    outputs = open_outputs({folder: header}, replace(photos, own={}), settings)

    def copy_head() -> None:
        if "tokens" in carried:
            own = read_tensors(head_path(features.path), "head")
            write_tensors(head_path(folder), *own)

    return make_photos(
        f"embed {settings.method} {split}", outputs,
        lambda todo: _start(settings, method, features, second, carried, todo),
        lambda output, key, tensors: output.write_tensors(key, tensors), settings,
        on_start=copy_head)


def _carried(choice: str) -> tuple[str, ...]:
    carried = parse_kept("carry", choice)
    if "patches" in carried:
        raise VplError(f"`carry={choice!r}`: patches are what is made", "leave them out")
    return carried


def _start(settings: EmbedSettings, method: EmbeddingMethod, features: InputFolder,
           second: InputFolder | None, carried: tuple[str, ...], todo: list[str]
           ) -> Iterator[Made]:
    """Load what the method reads; the result yields each photo's features."""
    device, store = find_device(settings.device), dtype_of(settings.store)
    reads_head = "head" in method.READS
    dtype = find_precision(settings.precision if reads_head else "fp32", device, console.warn)
    head = read_head(features).to(device, dtype) if reads_head else None
    read = [name for name in FEATURE_TENSORS if name in method.READS]
    copied = [*carried, *(["layer_index"] if "layers" in carried else [])]

    def embed(batch: FeatureBatch) -> Iterator[Made]:
        tensors = ({name: batch.tensors[name] for name in read}
                   | read_batch(second, batch, method.READS))
        made = method.make_patches(EmbeddingBatch(
            batch.ids, batch.grid, to_device(tensors, device, dtype), head), settings.of_method)
        patches = made.to(store).cpu()
        for number, key in enumerate(batch.ids):
            yield key, {"grid": torch.tensor(batch.grid), "patches": patches[number],
                        **{name: batch.tensors[name][number] for name in copied}}

    batches = feature_batches(features, todo, list(dict.fromkeys([*read, *copied])),
                              settings.batch_size, device=device)
    return run_batches(batches, embed,
                       lambda _: smaller_photos_hint(features.header))
