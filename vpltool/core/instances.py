"""Instances as COCO has them (polygons, run lengths) and label maps, by pycocotools.

pycocotools is an optional dependency: `pip install 'vpltool[coco]'`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vpltool.errors import VplError

OVERLAPS = ("smallest", "ignore")
"""What wins where instances overlap: the smallest (coco2voc, which the peers take their masks
from), or nothing: such pixels are not scored (torchvision's references)."""

CROWDS = ("class", "ignore")
"""What a crowd region is: pixels of its class (coco2voc), or not scored where no single instance
lies over it."""


def check_pycocotools() -> None:
    """Check that pycocotools is installed.

    Raises:
        VplError: it is not.
    """
    import importlib.util

    if importlib.util.find_spec("pycocotools") is None:
        raise VplError("pycocotools is not installed", "pip install 'vpltool[coco]'")


def label_map(
    instances: Sequence[Mapping[str, Any]], labels: Mapping[int, int], size: tuple[int, int], *,
    overlap: str = "smallest", crowd: str = "class", ignore: int = 255,
) -> npt.NDArray[np.uint8]:
    """Paint a photo's instances into one label map.

    Args:
        instances: COCO's annotations of the photo: `category_id`, `segmentation`, `area`,
            `iscrowd`.
        labels: category id to label.
        size: (height, width).
        overlap: one of `OVERLAPS`. Under `ignore`, pixels that two classes claim.
        crowd: one of `CROWDS`.
        ignore: label that is not scored.

    Returns:
        labels (height, width), 0 where no instance is.

    Raises:
        ValueError: an outline is of another size, or is none.
    """
    from pycocotools import mask as rle_of

    claimed = np.zeros(size, np.uint8)
    clash, crowded = np.zeros(size, bool), np.zeros(size, bool)
    outlines = [(_to_rle(entry["segmentation"], size), entry) for entry in instances]
    # The largest first, so that smaller ones lie on top; of equals the first lies on top.
    for place in sorted(range(len(outlines)), key=lambda place: (-_area(instances[place]), -place)):
        outline, entry = outlines[place]
        if outline is None:
            continue
        inside = rle_of.decode(outline).astype(bool)
        if entry.get("iscrowd") and crowd == "ignore":
            crowded |= inside
            continue
        label = labels[entry["category_id"]]
        if overlap == "ignore":
            clash |= inside & (claimed > 0) & (claimed != label)
        claimed[inside] = label
    claimed[clash] = ignore
    claimed[crowded & (claimed == 0)] = ignore
    return claimed


def _area(entry: Mapping[str, Any]) -> float:
    return float(entry.get("area", 0))


def _to_rle(outline: Any, size: tuple[int, int]) -> Any:
    """COCO's three ways to spell an outline, as compressed run lengths; None if it is empty."""
    from pycocotools import mask as rle_of

    if isinstance(outline, dict):
        if tuple(outline["size"]) != size:
            raise ValueError(f"an outline is of {outline['size']} pixels, the photo of {size}")
        if isinstance(outline["counts"], list):
            return rle_of.frPyObjects(outline, *size)
        return outline
    # Four numbers would be taken for a box, fewer than six are no area.
    polygons = [polygon for polygon in outline if len(polygon) >= 6]
    return rle_of.merge(rle_of.frPyObjects(polygons, *size)) if polygons else None


def run_lengths(inside: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's compressed run lengths of a region (height, width), as JSON can hold them."""
    from pycocotools import mask as rle_of

    encoded = rle_of.encode(np.asfortranarray(inside, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]],
            "counts": encoded["counts"].decode("ascii")}
