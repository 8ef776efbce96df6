"""COCO's instances (polygons, run lengths) as label maps, painted with pycocotools.

pycocotools is an optional dependency: `pip install 'vpltool[coco]'`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from vpltool.core.classes import IGNORE
from vpltool.errors import VplError
from vpltool.lazy import np, npt, pycocotools


def check_pycocotools() -> None:
    """Check that pycocotools is installed.

    Raises:
        VplError: it is not installed.
    """
    if importlib.util.find_spec("pycocotools") is None:
        raise VplError("pycocotools is not installed", "pip install 'vpltool[coco]'")


def label_map(
    instances: Sequence[Mapping[str, Any]], labels: Mapping[int, int], size: tuple[int, int], *,
    overlap: str, crowd: str,
) -> npt.NDArray[np.uint8]:
    """Paint a photo's instances into labels (height, width), 0 where there is no instance.

    Args:
        instances: COCO's annotations of the photo: `category_id`, `segmentation`, `area`,
            `iscrowd`.
        labels: category id to label.
        size: (height, width).
        overlap: `smallest`: pixels where instances overlap have the label of the smallest one, as
            in coco2voc, from which the peers have their masks; `ignore`: those of two classes are
            255, as in torchvision's references.
        crowd: `class`: a crowd region has the label of its class, as in coco2voc; `ignore`: 255,
            except under an instance.

    Raises:
        ValueError: an outline is of another size, or is not valid.
    """
    claimed = np.zeros(size, np.uint8)
    clash, crowded = np.zeros(size, bool), np.zeros(size, bool)
    outlines = [(_to_rle(entry["segmentation"], size), entry) for entry in instances][::-1]
    # The largest first, so that smaller ones are on top; among equals the first is on top.
    for outline, entry in sorted(outlines, key=lambda pair: -float(pair[1].get("area", 0))):
        if outline is None:
            continue
        inside = pycocotools.mask.decode(outline).astype(bool)
        if entry.get("iscrowd") and crowd == "ignore":
            crowded |= inside
            continue
        label = labels[entry["category_id"]]
        if overlap == "ignore":
            clash |= inside & (claimed > 0) & (claimed != label)
        claimed[inside] = label
    claimed[clash] = IGNORE
    claimed[crowded & (claimed == 0)] = IGNORE
    return claimed


def _to_rle(outline: Any, size: tuple[int, int]) -> Any:
    """Convert COCO's three forms of outlines to compressed run lengths; None if it is empty."""
    check_outline(outline, size)
    if isinstance(outline, dict):
        if isinstance(outline["counts"], list):
            return pycocotools.mask.frPyObjects(outline, *size)
        return outline
    # Four numbers would be read as a box, and fewer than six enclose no area.
    polygons = [polygon for polygon in outline if len(polygon) >= 6]
    if not polygons:
        return None
    return pycocotools.mask.merge(pycocotools.mask.frPyObjects(polygons, *size))


def check_outline(outline: Any, size: tuple[int, int]) -> None:
    """Check what pycocotools does not: it writes past its memory where run lengths are too long.

    Raises:
        ValueError: it is of another size, or run lengths or points are not within the photo.
    """
    if isinstance(outline, dict):
        if tuple(outline["size"]) != size:
            raise ValueError(f"an outline has {outline['size']} pixels, the photo has {size}")
        counts = outline["counts"]
        lengths = counts if isinstance(counts, list) else _unpacked(counts)
        if not all(isinstance(length, int) and length >= 0 for length in lengths) or (
                sum(lengths) != size[0] * size[1]):
            raise ValueError(f"its run lengths do not add up to {size[0]}×{size[1]}")
        return
    farthest = 2 * max(size)
    for polygon in outline:
        points = np.asarray(polygon, dtype=np.float64)
        if points.ndim != 1 or len(points) % 2 or not (np.abs(points) <= farthest).all():
            raise ValueError("its points are not x, y pairs within the photo")


def _unpacked(counts: str | bytes) -> list[int]:
    """Unpack COCO's compressed run lengths: five bits a character, differences from the third on.

    Raises:
        ValueError: it ends within a number, or has other characters.
    """
    lengths: list[int] = []
    value = shift = 0
    for code in counts.encode("ascii") if isinstance(counts, str) else bytes(counts):
        bits = code - 48
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError("its run lengths are damaged")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4) if bits & 16 else 0
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("its run lengths end too early")
    return lengths


def region(outline: Any, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the region (height, width) of an instance: polygons or run lengths, as COCO has them.

    Raises:
        Exception: pycocotools cannot read it; ValueError: it is of another size.
    """
    lengths = _to_rle(outline, size)
    if lengths is None:
        return np.zeros(size, bool)
    return pycocotools.mask.decode(lengths).astype(bool)


def run_lengths(inside: npt.NDArray[np.bool_]) -> dict[str, object]:
    """Return COCO's compressed run lengths of a region (height, width), as values for JSON."""
    encoded = pycocotools.mask.encode(np.asfortranarray(inside, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]],
            "counts": encoded["counts"].decode("ascii")}
