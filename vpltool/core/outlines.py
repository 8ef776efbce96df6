"""Regions as polygons and as COCO's run lengths, and back; regions that are too small.

OpenCV and pycocotools, of which COCO's forms need only the second, are optional dependencies:
`pip install 'vpltool[labelling]'`, `pip install 'vpltool[coco]'`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from vpltool.core.classes import IGNORE
from vpltool.errors import VplError
from vpltool.lazy import cv2, np, npt, pycocotools

Ring: TypeAlias = "npt.NDArray[np.int64]"
"""Points (N, 2) of a closed line, (x, y); the last is joined to the first."""


def outlines_of(inside: npt.NDArray[np.bool_], *, corners: bool, tolerance: float = 0.0
                ) -> list[npt.NDArray[np.float64]]:
    """Return a polygon (N, 2) of each connected part of a region (H, W), (x, y) in pixels.

    Pixels that touch at a corner are connected. Holes are joined to the outline by a bridge: the
    polygon runs from its outer line to the hole, around it, and back the same way, on a row of the
    region, so that it costs no pixel. With `corners`, points are corners of pixels, as in COCO:
    pixel (0, 0) is the square from (0, 0) to (1, 1). Otherwise they are the centres of the
    outermost pixels, as OpenCV's `fillPoly` takes them. `tolerance` is the largest distance, in
    pixels, of a point that is left out from the simplified line.
    """
    pixels = np.ascontiguousarray(inside, np.uint8)
    if corners:
        # On a grid twice as fine, each outermost pixel stands for one corner.
        pixels = pixels.repeat(2, axis=0).repeat(2, axis=1)
    lines, tree = cv2.findContours(pixels, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    rings = [_ring(line, corners) for line in lines]
    found = []
    for index, ring in enumerate(rings):
        if tree[0][index][3] < 0:
            holes = [rings[hole] for hole in np.flatnonzero(tree[0][:, 3] == index)]
            joined = _straightened(_bridged(ring, holes))
            if tolerance:
                line = joined.astype(np.int32).reshape(-1, 1, 2)
                fewer = cv2.approxPolyDP(line, tolerance, True).reshape(-1, 2).astype(np.int64)
                # Between corners, two points enclose nothing.
                flat = corners and len(np.unique(fewer, axis=0)) < 3
                joined = joined if flat else fewer
            found.append(joined.astype(np.float64))
    return found


def _ring(line: npt.NDArray[np.generic], corners: bool) -> Ring:
    ring: Ring = line.reshape(-1, 2).astype(np.int64)
    if not corners:
        return ring
    ring = (ring + 1) // 2
    return ring[(ring != np.roll(ring, 1, axis=0)).any(axis=1)]


def _bridged(outer: Ring, holes: Iterable[Ring]) -> Ring:
    """Join holes to a line, the leftmost first: its left neighbour is then in the line already."""
    for hole in sorted(holes, key=lambda ring: int(ring[:, 0].min())):
        at = int(np.lexsort((hole[:, 1], hole[:, 0]))[0])
        x, y = hole[at]
        on_row = np.flatnonzero((outer[:, 1] == y) & (outer[:, 0] <= x))
        left = int(on_row[outer[on_row, 0].argmax()])
        around = np.concatenate([hole[at:], hole[: at + 1]])
        outer = np.concatenate([outer[: left + 1], around, outer[left:]])
    return outer


def _straightened(ring: Ring) -> Ring:
    """Return a line without the points within straight parts; points where it turns back stay."""
    before, behind = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    cross = before[:, 0] * behind[:, 1] - before[:, 1] * behind[:, 0]
    straight = (cross == 0) & ((before * behind).sum(axis=1) > 0)
    return ring[~straight]


def three_points(polygon: npt.NDArray[np.float64]) -> Sequence[npt.NDArray[np.float64]]:
    """Return the points of a polygon of pixel centres, at least three, even of a pixel or a line.

    Readers refuse fewer.
    """
    distinct = np.unique(polygon, axis=0)
    if len(distinct) > 2:
        return list(polygon)
    # Points within a pixel mean that pixel, so the region is the same.
    first, last = distinct[0], distinct[-1]
    return [first, first + (0.25, 0.0), last + (0.0, 0.25)]


def fill(polygons: Sequence[npt.NDArray[np.float64]], size: tuple[int, int]
         ) -> npt.NDArray[np.bool_]:
    """Fill polygons of pixel centres (N, 2), (x, y), as Ultralytics does: outlines included.

    Coordinates are truncated to whole pixels. The size is (H, W).
    """
    filled = np.zeros(size, np.uint8)
    for polygon in polygons:
        cv2.fillPoly(filled, [polygon.astype(np.int32)], 1)
    return filled.astype(bool)


def connected_parts(inside: npt.NDArray[np.bool_]) -> Iterator[npt.NDArray[np.bool_]]:
    """Yield the 8-connected parts of a region (H, W) as regions."""
    count, numbers = cv2.connectedComponents(inside.astype(np.uint8), connectivity=8)
    for number in range(1, count):
        yield numbers == number


def remove_small_regions(labels: npt.NDArray[np.uint8], least: int, *, merge: bool
                         ) -> npt.NDArray[np.uint8]:
    """Return labels (H, W) without connected regions of fewer than `least` pixels.

    The background is 0; 255 is kept as it is, and no region takes it. With `merge`, a small region,
    of the background too, takes the label that most pixels around it have, the lowest of several;
    the smallest region first. Otherwise small regions of classes become background.
    """
    small: list[tuple[int, int, npt.NDArray[np.bool_], tuple[slice, slice]]] = []
    for label in np.unique(labels):
        if label == IGNORE or (label == 0 and not merge):
            continue
        # A region's outside connects where the region does not: through sides alone.
        _, numbers, boxes, _ = cv2.connectedComponentsWithStats(
            (labels == label).astype(np.uint8), connectivity=4 if label == 0 else 8)
        for number in np.flatnonzero(boxes[:, cv2.CC_STAT_AREA] < least):
            if number:
                left, top, width, height, area = map(int, boxes[number])
                crop = (slice(max(top - 1, 0), top + height + 1),
                        slice(max(left - 1, 0), left + width + 1))
                small.append((area, len(small), numbers[crop] == number, crop))
    made = labels.copy()
    for _, _, region, crop in sorted(small, key=lambda found: found[:2]):
        view = made[crop]
        view[region] = _most_around(view, region) if merge else 0
    return made


def _most_around(view: npt.NDArray[np.uint8], region: npt.NDArray[np.bool_]) -> int:
    """Return the most frequent label around a region; its own if all neighbours are ignored."""
    ring = cv2.dilate(region.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) & ~region
    counts = np.bincount(view[ring], minlength=256)
    counts[IGNORE] = 0
    return int(counts.argmax()) if counts.any() else int(view[region][0])


def has_holes(inside: npt.NDArray[np.bool_]) -> bool:
    """Tell whether a region (H, W) encloses pixels that are not its own."""
    _, tree = cv2.findContours(inside.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return tree is not None and bool((tree[0][:, 3] >= 0).any())


def check_pycocotools() -> None:
    """Check that pycocotools is installed; otherwise raise a VplError."""
    if importlib.util.find_spec("pycocotools") is None:
        raise VplError("pycocotools is not installed", "pip install 'vpltool[coco]'")


def label_map(
    instances: Sequence[Mapping[str, Any]], labels: Mapping[int, int], size: tuple[int, int], *,
    overlap: str, crowd: str,
) -> npt.NDArray[np.uint8]:
    """Paint a photo's instances into labels (height, width), 0 where there is no instance.

    Args:
        instances: with `category_id`, `segmentation`, `area` and `iscrowd`.
        labels: category id to label.
        size: (height, width).
        overlap: `smallest`: pixels where instances overlap have the label of the smallest one, as
            in coco2voc, which made the peers' masks; `ignore`: pixels of two classes are 255, as in
            torchvision's references.
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
    _check_outline(outline, size)
    if isinstance(outline, dict):
        if isinstance(outline["counts"], list):
            return pycocotools.mask.frPyObjects(outline, *size)
        return outline
    # Four numbers would be read as a box, and fewer than six enclose no area.
    polygons = [polygon for polygon in outline if len(polygon) >= 6]
    if not polygons:
        return None
    return pycocotools.mask.merge(pycocotools.mask.frPyObjects(polygons, *size))


def _check_outline(outline: Any, size: tuple[int, int]) -> None:
    """Raise a ValueError if an outline is of another size, or does not lie within the photo.

    pycocotools does not check this, and writes past its memory where run lengths are too long.
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
    """Unpack COCO's compressed run lengths: 5 bits a character, differences from the third on."""
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
    """Return the region (height, width) of an outline in any of COCO's forms.

    Raises a ValueError if it is of another size, or whatever pycocotools raises.
    """
    lengths = _to_rle(outline, size)
    return (np.zeros(size, bool) if lengths is None
            else np.asarray(pycocotools.mask.decode(lengths), bool))


def run_lengths(inside: npt.NDArray[np.bool_]) -> dict[str, object]:
    """Return COCO's compressed run lengths of a region (height, width), as values for JSON."""
    encoded = pycocotools.mask.encode(np.asfortranarray(inside, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]],
            "counts": encoded["counts"].decode("ascii")}
