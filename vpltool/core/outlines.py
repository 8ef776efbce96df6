"""Regions as polygons and back, and regions that are too small; with OpenCV.

OpenCV is an optional dependency: `pip install 'vpltool[labelling]'`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from vpltool.core.classes import IGNORE
from vpltool.lazy import cv2, np, npt

Ring: TypeAlias = "npt.NDArray[np.int64]"
"""Points (N, 2) of a closed line, (x, y); the last is joined to the first."""


def outlines_of(inside: npt.NDArray[np.bool_], *, corners: bool, tolerance: float = 0.0
                ) -> list[npt.NDArray[np.float64]]:
    """Return a polygon (N, 2) of each connected part of a region, (x, y) in pixels.

    Pixels that touch at a corner are connected. Holes are cut in by a bridge: the polygon runs from
    its outer line to the hole, around it, and back on the same way. The bridge lies on a row of the
    region, so that it costs no pixel.

    Args:
        inside: the region (H, W).
        corners: whether points are corners of pixels, as in COCO: pixel (0, 0) is the square from
            (0, 0) to (1, 1). Otherwise they are the outermost pixels themselves, by their centres:
            that is what OpenCV's `fillPoly` fills.
        tolerance: how far from the true line a point may be left out, in pixels.
    """
    pixels = np.ascontiguousarray(inside, np.uint8)
    if corners:
        # On a grid twice as fine, an outermost pixel says which of its corners is meant.
        pixels = pixels.repeat(2, axis=0).repeat(2, axis=1)
    lines, tree = cv2.findContours(pixels, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    rings = [_ring(line, corners) for line in lines]
    found = []
    for index, ring in enumerate(rings):
        if tree[0][index][3] < 0:
            joined = _straightened(_bridged(ring, [rings[hole] for hole in _holes(tree[0], index)]))
            if tolerance:
                line = joined.astype(np.int32).reshape(-1, 1, 2)
                fewer = cv2.approxPolyDP(line, tolerance, True).reshape(-1, 2).astype(np.int64)
                # Between corners, two points enclose nothing.
                flat = corners and len(np.unique(fewer, axis=0)) < 3
                joined = joined if flat else fewer
            found.append(joined.astype(np.float64))
    return found


def _holes(tree: npt.NDArray[np.int32], index: int) -> Iterator[int]:
    hole = tree[index][2]
    while hole >= 0:
        yield int(hole)
        hole = tree[hole][0]


def _ring(line: npt.NDArray[np.generic], corners: bool) -> Ring:
    ring: Ring = line.reshape(-1, 2).astype(np.int64)
    if not corners:
        return ring
    ring = (ring + 1) // 2
    return ring[(ring != np.roll(ring, 1, axis=0)).any(axis=1)]


def _bridged(outer: Ring, holes: Iterable[Ring]) -> Ring:
    """Cut holes into a line, from the left: what a hole sees on its left is in the line already."""
    for hole in sorted(holes, key=lambda ring: int(ring[:, 0].min())):
        at = int(np.lexsort((hole[:, 1], hole[:, 0]))[0])
        x, y = hole[at]
        on_row = np.flatnonzero((outer[:, 1] == y) & (outer[:, 0] <= x))
        left = int(on_row[outer[on_row, 0].argmax()])
        around = np.concatenate([hole[at:], hole[: at + 1]])
        outer = np.concatenate([outer[: left + 1], around, outer[left:]])
    return outer


def _straightened(ring: Ring) -> Ring:
    """Leave out the points within straight lines; those where the line turns back stay."""
    before, behind = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    cross = before[:, 0] * behind[:, 1] - before[:, 1] * behind[:, 0]
    straight = (cross == 0) & ((before * behind).sum(axis=1) > 0)
    return ring[~straight]


def fill(polygons: Sequence[npt.NDArray[np.float64]], size: tuple[int, int]
         ) -> npt.NDArray[np.bool_]:
    """Fill polygons of pixel centres (N, 2), as Ultralytics does: whole pixels, with the line.

    Points are (x, y) in pixels; what is after the decimal point is cut off. Size is (H, W).
    """
    filled = np.zeros(size, np.uint8)
    for polygon in polygons:
        cv2.fillPoly(filled, [polygon.astype(np.int32)], 1)
    return filled.astype(bool)


def connected_parts(inside: npt.NDArray[np.bool_]) -> Iterator[npt.NDArray[np.bool_]]:
    """Yield the connected parts of a region (H, W), as regions; corners connect."""
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
