"""Write tasks for Label Studio: brush strokes, the labelling configuration, and the photos.

tasks.json has one task per photo, with a stroke for each connected region; config.xml is the
labelling configuration that shows them. Label Studio serves the photos as local files, below /data;
--address sets another address. Strokes are predictions, which count once a person has corrected and
submitted them, or annotations, which count as they are.

Example: vpltool export label-studio --split train

Source: Label Studio, "BrushLabels" and "Import pre-annotated data"
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

from vpltool.formats.trees import Member, write_tree
from vpltool.methods.exports._regions import (
    LabellingSettings,
    PhotoFiles,
    check_labelling,
    classes_in,
    cleaned_predictions,
    hex_colour,
)
from vpltool.methods.inputs import Predictions
from vpltool.settings import setting

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

READS = ()
SUFFIX = "-label-studio"
FULL = True

_TAKEN = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif")
"""Suffixes of photos that browsers show."""

_TOOL, _IMAGE = "tag", "image"
"""Names in the configuration; a stroke names both, and is not shown if they differ."""


@dataclass(frozen=True, kw_only=True)
class Settings(LabellingSettings):
    """Settings of Label Studio's tasks."""

    kind: str = setting("predictions", "What the strokes are to Label Studio.",
                        choices=("predictions", "annotations"))
    address: str = setting("/data/local-files/?d=images/", "Prefix of a photo's address, before "
                                                           "its name.", metavar="URL")


def export(predictions: Predictions, path: Path, settings: Settings) -> list[Path]:
    """Write the folder."""
    check_labelling(settings, "cv2")
    write_tree(path, _members(predictions, settings), "label-studio")
    return [path]


def _members(predictions: Predictions, settings: Settings) -> Iterator[Member]:
    files = PhotoFiles(predictions, settings, _TAKEN)
    classes = predictions.workspace.classes
    yield "config.xml", _configuration(classes).encode()
    tasks = []
    for photo, labels in cleaned_predictions(predictions, settings, keeps_ignored=False):
        strokes = list(_strokes(labels, classes))
        result: dict[str, Any] = {"result": strokes}
        if settings.kind == "predictions":
            result["model_version"] = predictions.name
        tasks.append({"data": {_IMAGE: settings.address + files.name(photo), "photo": photo.id},
                      settings.kind: [result]})
    yield "tasks.json", json.dumps(tasks).encode()
    yield from files.members("images")


def _configuration(classes: tuple[str, ...]) -> str:
    """The labelling configuration: a photo, and a brush for each class."""
    labels = "".join(f'    <Label value={quoteattr(name)} background="{hex_colour(index)}"/>\n'
                     for index, name in enumerate(classes, 1))
    return (f'<View>\n  <Image name="{_IMAGE}" value="${_IMAGE}" zoom="true"/>\n'
            f'  <BrushLabels name="{_TOOL}" toName="{_IMAGE}">\n{labels}'
            "  </BrushLabels>\n</View>\n")


def _strokes(labels: npt.NDArray[np.uint8], classes: tuple[str, ...]
             ) -> Iterator[dict[str, Any]]:
    from vpltool.core.brush import brush_lengths
    from vpltool.core.outlines import connected_parts

    height, width = labels.shape
    for label in classes_in(labels):
        for number, part in enumerate(connected_parts(labels == label), 1):
            yield {"id": f"r{label}-{number}", "type": "brushlabels", "from_name": _TOOL,
                   "to_name": _IMAGE, "original_width": width, "original_height": height,
                   "image_rotation": 0,
                   "value": {"format": "rle", "rle": brush_lengths(part),
                             "brushlabels": [classes[label - 1]]}}
