"""Pack predictions in COCO's panoptic format: NAME.json, and NAME/NUMBER.png.

A semantic segmenter knows no instances: each class of a photo is one segment.

Example: vpltool export coco-panoptic --split val
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vpltool import options, settings
from vpltool.datasets.words import COCO, COCO_IDS
from vpltool.errors import VplError
from vpltool.formats import JsonObject, Photo, archives
from vpltool.formats.labels import png_bytes
from vpltool.lazy import np
from vpltool.methods.exports._folders import classes_in
from vpltool.methods.inputs import Predictions

CLASSES = COCO.classes
SUFFIX = "-panoptic.zip"


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of COCO's panoptic format."""

    split: str = options.split("val")


def export(predictions: Predictions, path: Path, settings: Settings) -> list[Path]:
    """Write the archive."""
    numbers = {photo.id: number_of(photo) for photo in predictions.photos}
    archives.write_zip(path, _members(predictions, numbers, path.stem))
    return [path]


def _members(predictions: Predictions, numbers: dict[str, int], name: str
             ) -> Iterator[tuple[str, bytes]]:
    entries: list[JsonObject] = []
    # A segment's id is red + 256 green + 65536 blue: category ids fit into red; 0 is nothing.
    ids = np.zeros(256, np.uint8)
    ids[1 : len(COCO_IDS) + 1] = COCO_IDS
    for photo, labels in predictions.each():
        segments = np.zeros((*labels.shape, 3), np.uint8)
        segments[..., 0] = ids[labels]
        file = f"{numbers[photo.id]:012}.png"
        entries.append({"image_id": numbers[photo.id], "file_name": file, "segments_info": [
            {"id": COCO_IDS[label - 1], "category_id": COCO_IDS[label - 1]}
            for label in classes_in(labels)]})
        yield f"{name}/{file}", png_bytes(segments)
    yield f"{name}.json", json.dumps({"annotations": entries}).encode()


def number_of(photo: Photo) -> int:
    """Return COCO's number of a photo, the digits at the end of its id, or raise a VplError."""
    digits = re.search(r"\d+$", photo.id)
    if digits is None:
        raise VplError(f"photo {photo.id} has no number, as COCO's have at the end of their names",
                       "`prepare('coco', root='FOLDER')` takes COCO's photos; `export('masks')` "
                       "takes any")
    return int(digits[0])
