"""`cam`: from features and prototypes to class activation maps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vpltool import formats, options
from vpltool.engine import opening, photo_work
from vpltool.formats.kinds import result_path
from vpltool.lazy import Tensor, torch
from vpltool.methods import KINDS, CamMethod, inputs, load_method
from vpltool.parallel import batches, device
from vpltool.settings import Stage, setting


@dataclass(frozen=True, kw_only=True)
class CamSettings(options.PerPhoto):
    """Settings of `cam`."""

    prototypes: str = setting(
        "text", "text, vision, or a file of prototypes; the default without words is tags.",
        metavar="NAME-OR-PATH", reads="prototypes")
    method: str = setting(KINDS["cams"].default, "Method that makes the maps.", metavar="NAME")
    name: str = setting("", "Name of the result; default: the prototypes, plus the method unless "
                            "it is gradcam.", record="never", inside=True)
    features: Path | None = options.features()
    second: Path | None = options.second()
    store: str = options.store()
    precision: str = options.precision()


STAGE = Stage(order=40, panel="2. Maps and prototypes", reads=("features", "head", "prototypes"),
              writes=("cams",), settings=CamSettings, methods="cams")


def run(workspace: formats.Workspace, settings: CamSettings) -> list[Path]:
    """Make a class activation map for each class that a photo is tagged with.

    At most the encoder's last block is run; the encoder is not run again. Text and vision
    prototypes are treated alike.

    Example: vpltool cam --prototypes vision --split train

    Next: vpltool refine, or vpltool learn-prototypes, or vpltool eval

    Returns:
        the folder of maps.

    Raises:
        VplError: an input is missing or of another model.
        PhotosFailed: some photos failed.
    """
    split, method = settings.split, load_method(CamMethod, settings.method)
    opened = opening.open_inputs(workspace, settings, method.READS, ("features", "prototypes"))
    assert opened.prototypes is not None
    stem = opened.prototypes.path.stem
    name = settings.name or (stem if settings.method == "gradcam" else f"{stem}-{settings.method}")

    def start(todo: list[str]) -> Iterator[photo_work.Made]:
        loaded = opened.load(settings.precision)
        prototypes, dtype = loaded.prototypes, device.dtype_of(settings.store)
        assert prototypes is not None
        # On the host, so that reading them never waits for a GPU.
        tags = {key: torch.tensor(workspace.indices_of(loaded.photos[key]), dtype=torch.long)
                for key in todo}

        def draw(batch: batches.FeatureBatch, tensors: dict[str, Tensor]
                 ) -> Iterator[photo_work.Made]:
            maps = method.make_cams(inputs.CamBatch(
                batch.ids, batch.grid, tensors, [tags[key] for key in batch.ids], prototypes.rows,
                prototypes.class_index, prototypes.of_rows, prototypes.photos, loaded.head,
                loaded.rgb(batch.ids), loaded.captions(batch.ids)), settings.of_method)
            for key, cams in zip(batch.ids, maps, strict=True):
                yield key, {"cam": cams.to(dtype).cpu(), "classes": tags[key]}

        return loaded.run(todo, draw)

    return opened.make(f"cam {name} {split}", {
        settings.out or result_path(workspace.path, "cams", name, split):
        opened.header("cams", "cam", options={"prototypes": stem})}, start)
