"""Write annotations for CVAT: its XML 1.1, and the photos.

Each connected region is its own mask, holes included, so that the import neither breaks on
disconnected regions nor loses what lies in a hole. --shape polygon writes polygons, which can be
dragged; holes are connected with a bridge. Needs OpenCV.

Example: vpltool export cvat --split train

Source: CVAT, "XML annotation format", version 1.1
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

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
from vpltool.settings import NoEffect, setting

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

READS = ()
SUFFIX = "-cvat"
FULL = True

_TAKEN = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True, kw_only=True)
class Settings(LabellingSettings):
    """Settings of CVAT's XML."""

    shape: str = setting("mask", "Shape of the regions: mask (exact) or polygon.",
                         choices=("mask", "polygon"))
    tolerance: float = setting(
        0.0, "Drop polygon points that are this close to the line, in pixels; 0: the exact mask.",
        low=0, metavar="PIXELS",
        no_effect=[NoEffect({"shape": ("mask",)}, "masks have no points")])


def export(predictions: Predictions, path: Path, settings: Settings) -> list[Path]:
    """Write the folder."""
    check_labelling(settings, "cv2")
    write_tree(path, _members(predictions, settings), "cvat")
    return [path]


def _members(predictions: Predictions, settings: Settings) -> Iterator[Member]:
    files, classes = PhotoFiles(predictions, settings, _TAKEN), predictions.workspace.classes
    text = [_head(predictions.name, classes)]
    cleaned = cleaned_predictions(predictions, settings, keeps_ignored=False)
    for number, (photo, labels) in enumerate(cleaned):
        height, width = labels.shape
        text.append(f'  <image id="{number}" name={quoteattr(files.name(photo))} '
                    f'width="{width}" height="{height}">\n')
        for label in classes_in(labels):
            text += _shapes(labels == label, quoteattr(classes[label - 1]), settings)
        text.append("  </image>\n")
    yield "annotations.xml", "".join([*text, "</annotations>\n"]).encode()
    yield from files.members("images")


def _head(name: str, classes: tuple[str, ...]) -> str:
    labels = "".join(
        f"<label><name>{escape(label)}</name><color>{hex_colour(index)}</color>"
        "<type>any</type><attributes></attributes></label>"
        for index, label in enumerate(classes, 1))
    return ('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
            f"  <meta><task><name>{escape(name)}</name><mode>annotation</mode>"
            f"<labels>{labels}</labels></task></meta>\n")


def _shapes(inside: npt.NDArray[np.bool_], label: str, settings: Settings) -> Iterator[str]:
    from vpltool.core.outlines import connected_parts, outlines_of

    if settings.shape == "polygon":
        for polygon in outlines_of(inside, corners=True, tolerance=settings.tolerance):
            points = ";".join(f"{x:g},{y:g}" for x, y in polygon)
            yield (f'    <polygon label={label} source="auto" occluded="0" points="{points}" '
                   'z_order="0"></polygon>\n')
        return
    for part in connected_parts(inside):
        yield _mask(part, label)


def _mask(part: npt.NDArray[np.bool_], label: str) -> str:
    """A part as CVAT's run lengths: row by row in its box, outside first."""
    import numpy as np

    rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
    box = part[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    changes = np.flatnonzero(np.diff(box.ravel(), prepend=False, append=False))
    # Inside the last run may end with the box; the run after it is then left out.
    ends = np.append(changes, box.size) if changes[-1] < box.size else changes
    lengths = ", ".join(map(str, np.diff(ends, prepend=0)))
    return (f'    <mask label={label} source="auto" occluded="0" rle="{lengths}" '
            f'left="{columns[0]}" top="{rows[0]}" width="{box.shape[1]}" '
            f'height="{box.shape[0]}" z_order="0"></mask>\n')
