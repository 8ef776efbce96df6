"""Import photos, splits and tags from a COCO 2014 folder.

Tags are the categories of a photo's instances, or those of labels.csv in the folder.

True masks go to ground-truth/ in the workspace; the same command continues an interrupted run.

Example: vpltool prepare coco COCO2014

Next: vpltool text-prototypes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vpltool import console, options, settings
from vpltool.datasets.coco import Outlines, read_coco
from vpltool.datasets.words import COCO
from vpltool.errors import VplError
from vpltool.formats import OutputFolder, Photo, Workspace
from vpltool.methods.inputs import Source, SourceRequest
from vpltool.parallel.device import worker_count
from vpltool.settings import NoEffect, setting, warn_without_effect

READS = ()

_NO_MASKS = NoEffect({"truth": (False,)}, "no true masks are made")


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of a COCO 2014 folder."""

    root: Path = setting(help="The folder that holds train2014, val2014 and annotations.",
                         metavar="ROOT", positional=True)
    truth: bool = setting(True, "Make true masks from the instances, for eval, show and report "
                                "only. Needs pycocotools.")
    overlap: str = setting(
        "smallest", "In true masks, where instances overlap: the smallest wins, or pixels of two "
                    "classes are not scored.", choices=("smallest", "ignore"), source="coco2voc",
        no_effect=[_NO_MASKS])
    crowd: str = setting(
        "class", "In true masks, pixels of a crowd: its class, or not scored.",
        choices=("class", "ignore"), source="coco2voc", no_effect=[_NO_MASKS])
    empty: bool = setting(False, "Keep photos without any instance.")
    workers: int = options.workers()


def read(workspace_path: Path, settings: Settings, shared: SourceRequest) -> Source:
    """Read the annotations; the true masks are painted later, from what is noted here."""
    if settings.truth:
        _check_pycocotools()
    warn_without_effect(settings)
    annotations = settings.root / "annotations"
    if annotations.is_dir():
        console.note(f"reading {annotations}")
    classes = shared.classes or COCO.classes
    photos, remarks, outlines = read_coco(settings.root, classes, empty=settings.empty)
    if settings.truth and not outlines:
        raise VplError(f"{annotations} has no instances to make true masks from", "`truth=False`")

    def paint(workspace: Workspace, photos: Sequence[Photo]
              ) -> tuple[list[Photo], list[OutputFolder]]:
        return _paint(workspace, photos, settings, outlines, shared.overwrite)

    return Source(settings.root.resolve().name if shared.classes else "coco", settings.root,
                  photos, classes, COCO.background, remarks=remarks,
                  paint=paint if settings.truth else None)


def _check_pycocotools() -> None:
    from vpltool.core.instances import check_pycocotools

    try:
        check_pycocotools()
    except VplError as error:
        raise VplError(f"{error.message}; it makes the true masks",
                       f"{error.hint}, or `truth=False` to do without them") from error


def _paint(workspace: Workspace, photos: Sequence[Photo], settings: Settings,
           outlines: Mapping[str, Outlines], overwrite: bool
           ) -> tuple[list[Photo], list[OutputFolder]]:
    from vpltool.methods.sources._instances import make_masks

    # The main process only waits for the workers.
    count = (settings.workers if settings.workers >= 0
             else worker_count(settings.workers) + 1)
    known, made = {photo.id: photo for photo in photos}, []
    for split in outlines:
        output, masked = make_masks(
            workspace, [photo for photo in photos if split in photo.splits], split,
            outlines[split], overlap=settings.overlap, crowd=settings.crowd, workers=count,
            overwrite=overwrite)
        known |= {photo.id: photo for photo in masked}
        made.append(output)
    return [known[photo.id] for photo in photos], made
