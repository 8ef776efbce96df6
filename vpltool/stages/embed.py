"""`embed`: other patch embeddings from stored features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vpltool import options
from vpltool.engine import opening, photo_work
from vpltool.engine.features import head_path, parse_kept
from vpltool.errors import VplError
from vpltool.formats import Workspace, read_tensors
from vpltool.lazy import Tensor, torch
from vpltool.methods import KINDS, EmbeddingMethod, load_method
from vpltool.methods.inputs import EmbeddingBatch
from vpltool.parallel import batches, device
from vpltool.settings import Stage, setting


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

    Returns:
        the folder of features.

    Raises:
        VplError: an input is missing, or the features do not hold what the method reads.
        PhotosFailed: some photos failed.
    """
    split, method = settings.split, load_method(EmbeddingMethod, settings.method)
    carried = parse_kept("carry", settings.carry)
    if "patches" in carried:
        raise VplError(f"`carry={settings.carry!r}`: patches are what is made", "leave them out")
    opened = opening.open_inputs(workspace, settings, method.READS, ("features",), kept=carried)
    features, held = opened.features, opened.features.header.options
    header = opened.header(
        "features", "embed", skip={"carry"},
        # Later commands read these options of any features.
        options={"keep": ["patches", *carried], "patches": settings.method,
                 "layers": held.get("layers", []) if "layers" in carried else [],
                 "scale": held["scale"], "max_side": held["max_side"]})
    folder = settings.out or workspace.path / f"features-{settings.name or settings.method}" / split
    if folder.resolve() == features.path.resolve():
        raise VplError(f"{folder} would replace the features that are read",
                       "`name='NAME'`, or `out='DIR'`, puts it elsewhere")
    copied = [*carried, *(["layer_index"] if "layers" in carried else [])]

    def start(todo: list[str]) -> Iterator[photo_work.Made]:
        loaded = opened.load(settings.precision)

        def embed(batch: batches.FeatureBatch, tensors: dict[str, Tensor]
                  ) -> Iterator[photo_work.Made]:
            made = method.make_patches(
                EmbeddingBatch(batch.ids, batch.grid, tensors, loaded.head), settings.of_method)
            patches = made.to(device.dtype_of(settings.store)).cpu()
            for number, key in enumerate(batch.ids):
                yield key, {"grid": torch.tensor(batch.grid), "patches": patches[number],
                            **{name: batch.tensors[name][number] for name in copied}}

        return loaded.run(todo, embed, copied)

    beside = ({head_path(folder): read_tensors(head_path(features.path), "head")}
              if "tokens" in carried else {})
    return opened.make(f"embed {settings.method} {split}", {folder: header}, start, beside=beside)
