"""Import photos, splits and tags from a VOC2012 folder.

Splits are the lists in ImageSets/Segmentation, including train_aug or trainaug. Tags come from
labels.csv beside JPEGImages if there is one, else from the XML, never from masks.

Example: vpltool prepare voc VOCdevkit/VOC2012

Next: vpltool text-prototypes
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vpltool import settings
from vpltool.datasets.voc import read_voc
from vpltool.datasets.words import VOC
from vpltool.methods.inputs import Source, SourceRequest
from vpltool.settings import setting

READS = ()


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of a VOC2012 folder."""

    root: Path = setting(help="The folder that holds JPEGImages.", metavar="ROOT",
                         positional=True)
    lists: tuple[Path, ...] = setting(
        (), "Another list of photos, such as voc12/train_aug.txt; its name becomes a split. "
            "Repeatable.", flag="--list", metavar="FILE")


def read(workspace_path: Path, settings: Settings, shared: SourceRequest) -> Source:
    """Read the lists and the tags."""
    classes = shared.classes or VOC.classes
    photos, remarks = read_voc(settings.root, classes, settings.lists)
    if not any(photo.mask for photo in photos):
        remarks.append("no photo has a true mask (SegmentationClass): eval will have nothing to "
                       "score with")
    name = settings.root.resolve().name if shared.classes else "voc"
    return Source(name, settings.root, photos, classes, VOC.background, remarks=remarks)
