"""`cam`: from features and prototypes to class activation maps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vpltool import options
from vpltool.engine.given import open_given
from vpltool.engine.photo_work import Made
from vpltool.engine.photos import tag_tensors
from vpltool.formats import Workspace
from vpltool.formats.kinds import place
from vpltool.lazy import Tensor
from vpltool.methods import KINDS, load_method
from vpltool.methods.inputs import CamBatch
from vpltool.methods.interfaces import CamMethod
from vpltool.parallel.batches import FeatureBatch
from vpltool.parallel.device import dtype_of
from vpltool.settings import setting
from vpltool.stage import Stage


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


def run(workspace: Workspace, settings: CamSettings) -> list[Path]:
    """Make a class activation map for each class that a photo is tagged with.

    At most the encoder's last block is run; the encoder is not run again. Text and vision
    prototypes are treated alike.

    Example: vpltool cam --prototypes vision --split train

    Next: vpltool refine, or vpltool learn-prototypes, or vpltool eval

    Args:
        workspace: where inputs are found and outputs go.
        settings: which prototypes, which method, which photos.

    Returns:
        the folder of maps.

    Raises:
        VplError: an input is missing or of another model.
        PhotosFailed: some photos failed.
    """
    split, method = settings.split, load_method(CamMethod, settings.method)
    given = open_given(workspace, settings, method.READS, ("features", "prototypes"))
    assert given.prototypes is not None
    stem = given.prototypes.path.stem
    name = settings.name or (stem if settings.method == "gradcam" else f"{stem}-{settings.method}")

    def start(todo: list[str]) -> Iterator[Made]:
        loaded = given.load(settings.precision)
        assert loaded.rows is not None and loaded.class_index is not None
        rows, index = loaded.rows, loaded.class_index
        tags = tag_tensors(workspace, (loaded.photos[key] for key in todo))

        def draw(batch: FeatureBatch, tensors: dict[str, Tensor]) -> Iterator[Made]:
            maps = method.make_cams(CamBatch(
                batch.ids, batch.grid, tensors, [tags[key] for key in batch.ids], rows, index,
                loaded.of_rows, loaded.row_photos, loaded.head, loaded.rgb(batch.ids),
                loaded.captions(batch.ids)), settings.of_method)
            for key, cams in zip(batch.ids, maps, strict=True):
                yield key, {"cam": cams.to(dtype_of(settings.store)).cpu(), "classes": tags[key]}

        return loaded.run(todo, draw)

    return given.make(f"cam {name} {split}", {
        settings.out or place(workspace.path, "cams", name, split):
        given.header("cams", "cam", options={"prototypes": stem})}, start)
