"""Write a data set for Ultralytics' semantic segmentation: photos, label images, data.yaml.

masks/SPLIT/NAME.png belongs to images/SPLIT/NAME.jpg; a pixel's value is its class, 0 the
background, 255 ignored.

Example: vpltool export yolo-semantic --split train

Source: Ultralytics, "Semantic Segmentation Datasets Overview"
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vpltool.methods import labels as reading
from vpltool.methods.exports import _folders
from vpltool.methods.exports.yolo import DESCRIPTION, TAKEN, describe, described
from vpltool.names import leads_out

SUFFIX = "-yolo-semantic"
NEEDS = ("yaml",)

Settings = _folders.LabellingSettings


def _members(files: _folders.PhotoFiles, settings: Settings) -> _folders.Members:
    yield describe(("background", *files.classes), files.splits, masks_dir="masks")
    yield from files.label_images(f"masks/{settings.split}")
    yield from files.photos(f"images/{settings.split}")


export = _folders.exporter("yolo-semantic", TAKEN, _members, "yaml", splits="masks")


def files(path: Path) -> list[Path]:
    """Return the label images; none if it is another layout."""
    folder = described(path).get("masks_dir")
    if not isinstance(folder, str) or leads_out(folder):
        return []
    return sorted((path / folder).rglob("*.png"))


def read(path: Path, request: reading.LabellingRequest) -> Iterator[reading.Labelled]:
    """Read label images in Ultralytics' layout: masks/SPLIT/NAME.png, with data.yaml."""
    labels = reading.labels_of_names(described(path).get("names"), request, path / DESCRIPTION)
    return reading.read_label_images(((file.stem, file) for file in files(path)), labels, request)
