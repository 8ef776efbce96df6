"""Write a data set for Ultralytics' semantic segmentation: photos, label images, data.yaml.

masks/SPLIT/NAME.png belongs to images/SPLIT/NAME.jpg; a pixel's value is its class, 0 the
background, 255 ignored.

Example: vpltool export yolo-semantic --split train

Source: Ultralytics, "Semantic Segmentation Datasets Overview"
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vpltool.formats.archives import Member, splits_in, write_tree
from vpltool.methods import labels as reading
from vpltool.methods.exports import _regions
from vpltool.methods.exports.yolo import DESCRIPTION, TAKEN, describe, described
from vpltool.methods.inputs import Predictions
from vpltool.names import leads_out

SUFFIX = "-yolo-semantic"
NEEDS = ("yaml",)

Settings = _regions.LabellingSettings


def export(predictions: Predictions, path: Path, settings: Settings) -> list[Path]:
    """Write the folder."""
    _regions.check_labelling(settings, "yaml")
    splits = {*splits_in(path, "yolo-semantic", "masks"), settings.split}
    write_tree(path, _members(predictions, settings, splits), "yolo-semantic", splits)
    return [path]


def _members(predictions: Predictions, settings: Settings, splits: set[str]
             ) -> Iterator[Member]:
    files = _regions.PhotoFiles(predictions, settings, TAKEN)
    names = ("background", *predictions.workspace.classes)
    yield describe(names, splits, masks_dir="masks")
    for photo, labels in files.labels(keeps_ignored=True):
        yield f"masks/{settings.split}/{files.names[photo.id]}.png", _regions.grey_png(labels)
    yield from files.members(f"images/{settings.split}")


def files(path: Path) -> list[Path]:
    """The label images; none if it is another layout."""
    folder = described(path).get("masks_dir")
    if not isinstance(folder, str) or leads_out(folder):
        return []
    return sorted((path / folder).rglob("*.png"))


def read(path: Path, request: reading.LabellingRequest) -> Iterator[reading.Labelled]:
    """Read label images in Ultralytics' layout: masks/SPLIT/NAME.png, with data.yaml."""
    labels = reading.labels_of_names(described(path).get("names"), request, path / DESCRIPTION)
    return reading.read_label_images(((file.stem, file) for file in files(path)), labels, request)
