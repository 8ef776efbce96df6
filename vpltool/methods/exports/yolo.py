"""Write a data set for YOLO segmentation: photos, polygons in text files, and data.yaml.

A line is a class, from 0 without the background, and a polygon: `2 0.31 0.42 …`, as shares of the
width and height. Each connected region is a line. A line cannot hold a hole: the polygon runs to
the hole, around it and back the same way. With --tolerance 0, what Ultralytics fills is the same
mask. Needs OpenCV.

Example: vpltool export yolo --split train

Source: Ultralytics, "Instance Segmentation Datasets Overview"
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vpltool.formats.trees import Member, splits_in, write_tree
from vpltool.methods.exports._regions import (
    POLYGON_AREA,
    LabellingSettings,
    PhotoFiles,
    check_labelling,
    classes_in,
    cleaned_predictions,
    data_yaml,
    min_area_setting,
    small_setting,
)
from vpltool.methods.inputs import Predictions
from vpltool.settings import setting

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

READS = ()
SUFFIX = "-yolo"
FULL = True

TAKEN = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""Suffixes of photos that Ultralytics and we both take."""


@dataclass(frozen=True, kw_only=True)
class Settings(LabellingSettings):
    """Settings of YOLO's polygons."""

    min_area: int = min_area_setting(POLYGON_AREA)
    small: str = small_setting("merge")
    tolerance: float = setting(0.0, "Drop polygon points that are this close to the line, in "
                                    "pixels; 0: the exact mask.", low=0, metavar="PIXELS")


def export(predictions: Predictions, path: Path, settings: Settings) -> list[Path]:
    """Write the folder."""
    check_labelling(settings, "cv2", "yaml")
    splits = {*splits_in(path, "yolo", "labels"), settings.split}
    write_tree(path, _members(predictions, settings, splits), "yolo", splits)
    return [path]


def _members(predictions: Predictions, settings: Settings, splits: set[str]
             ) -> Iterator[Member]:
    files = PhotoFiles(predictions, settings, TAKEN)
    yield "data.yaml", data_yaml(predictions.workspace.classes, splits)
    for photo, labels in cleaned_predictions(predictions, settings, keeps_ignored=False):
        yield (f"labels/{settings.split}/{files.names[photo.id]}.txt",
               "".join(_lines(labels, settings.tolerance)).encode())
    yield from files.members(f"images/{settings.split}")


def _lines(labels: npt.NDArray[np.uint8], tolerance: float) -> Iterator[str]:
    from vpltool.core.outlines import outlines_of

    height, width = labels.shape
    for label in classes_in(labels):
        for polygon in outlines_of(labels == label, corners=False, tolerance=tolerance):
            shares = " ".join(f"{(x + 0.5) / width:.6f} {(y + 0.5) / height:.6f}"
                              for x, y in _three_points(polygon))
            yield f"{label - 1} {shares}\n"


def _three_points(polygon: npt.NDArray[np.float64]) -> Sequence[npt.NDArray[np.float64]]:
    """The points of a polygon, three distinct ones at least, even for a pixel or a line of them.

    Points within a pixel mean that pixel, so the region is the same.
    """
    import numpy as np

    distinct = np.unique(polygon, axis=0)
    if len(distinct) > 2:
        return list(polygon)
    first, last = distinct[0], distinct[-1]
    return [first + (-0.25, -0.25), first + (0.25, -0.25), last + (0.0, 0.25)]
