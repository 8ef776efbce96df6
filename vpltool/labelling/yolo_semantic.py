"""Take label images in Ultralytics' layout: masks/SPLIT/NAME.png, with data.yaml."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vpltool.labelling.reading import labels_of_names, parse_yaml, read_label_images
from vpltool.labelling.request import Labelled, LabellingRequest
from vpltool.names import leads_out

NEEDS = ("yaml",)


def files(path: Path) -> list[Path]:
    """The label images; none if it is another layout."""
    if not (path / "data.yaml").exists():
        return []
    folder = parse_yaml(path / "data.yaml").get("masks_dir")
    if not isinstance(folder, str) or leads_out(folder):
        return []
    return sorted((path / folder).rglob("*.png"))


def read(path: Path, request: LabellingRequest) -> Iterator[Labelled]:
    """Read the label images."""
    description = path / "data.yaml"
    labels = labels_of_names(parse_yaml(description).get("names"), request, description)
    return read_label_images(((file.stem, file) for file in files(path)), labels, request)
