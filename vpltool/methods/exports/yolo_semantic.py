"""Write a data set for Ultralytics' semantic segmentation: photos, label images, data.yaml.

masks/SPLIT/NAME.png belongs to images/SPLIT/NAME.jpg; a pixel's value is its class, 0 the
background, 255 ignored.

Example: vpltool export yolo-semantic --split train

Source: Ultralytics, "Semantic Segmentation Datasets Overview"
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vpltool.formats.archives import Member, splits_in, write_tree
from vpltool.methods.exports._regions import (
    LabellingSettings,
    PhotoFiles,
    check_labelling,
    cleaned_predictions,
    grey_png,
)
from vpltool.methods.exports.yolo import DESCRIPTION, TAKEN, describe, described
from vpltool.methods.inputs import Predictions
from vpltool.methods.labels import (
    Labelled,
    LabellingRequest,
    labels_of_names,
    read_label_images,
)
from vpltool.names import leads_out

READS = ()
SUFFIX = "-yolo-semantic"
NEEDS = ("yaml",)


@dataclass(frozen=True, kw_only=True)
class Settings(LabellingSettings):
    """Settings of Ultralytics' semantic layout."""


def export(predictions: Predictions, path: Path, settings: Settings) -> list[Path]:
    """Write the folder."""
    check_labelling(settings, "yaml")
    splits = {*splits_in(path, "yolo-semantic", "masks"), settings.split}
    write_tree(path, _members(predictions, settings, splits), "yolo-semantic", splits)
    return [path]


def _members(predictions: Predictions, settings: Settings, splits: set[str]
             ) -> Iterator[Member]:
    files = PhotoFiles(predictions, settings, TAKEN)
    names = ("background", *predictions.workspace.classes)
    yield describe(names, splits, masks_dir="masks")
    for photo, labels in cleaned_predictions(predictions, settings, keeps_ignored=True):
        yield f"masks/{settings.split}/{files.names[photo.id]}.png", grey_png(labels)
    yield from files.members(f"images/{settings.split}")


def files(path: Path) -> list[Path]:
    """The label images; none if it is another layout."""
    folder = described(path).get("masks_dir")
    if not isinstance(folder, str) or leads_out(folder):
        return []
    return sorted((path / folder).rglob("*.png"))


def read(path: Path, request: LabellingRequest) -> Iterator[Labelled]:
    """Read label images in Ultralytics' layout: masks/SPLIT/NAME.png, with data.yaml."""
    labels = labels_of_names(described(path).get("names"), request, path / DESCRIPTION)
    return read_label_images(((file.stem, file) for file in files(path)), labels, request)
