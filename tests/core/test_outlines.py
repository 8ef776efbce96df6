"""Outlines: filled by the even-odd rule pixel by pixel, they are the region again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from reference.small_regions import flood, without_small_regions

pytest.importorskip("cv2")

from vpltool.core.outlines import (  # noqa: E402
    connected_parts,
    fill,
    has_holes,
    outlines_of,
    remove_small_regions,
)


def regions() -> list[Any]:
    rng = np.random.default_rng(0)
    ring = np.zeros((11, 12), bool)
    ring[1:10, 1:11] = True
    ring[3:8, 3:9] = False
    ring[5, 5] = True
    noise = [rng.random((9, 14)) < share for share in (0.1, 0.4, 0.6, 0.8, 0.95)]
    return [ring, np.ones((3, 4), bool), np.eye(5, dtype=bool), ~np.eye(6, dtype=bool), *noise]


def is_inside(polygon: Any, x: float, y: float) -> bool:
    """A ray to the right crosses the line an odd number of times."""
    crossings = 0
    for (x1, y1), (x2, y2) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if (y1 > y) != (y2 > y):
            crossings += x < x1 + (y - y1) / (y2 - y1) * (x2 - x1)
    return crossings % 2 == 1


@pytest.mark.parametrize("region", regions())
def test_corner_polygons_hold_the_centres_of_their_pixels(region: Any) -> None:
    polygons = outlines_of(region, corners=True)
    found = [[any(is_inside(polygon, x + 0.5, y + 0.5) for polygon in polygons)
              for x in range(region.shape[1])] for y in range(region.shape[0])]
    assert (np.array(found) == region).all()
    assert len(polygons) == len(list(connected_parts(region)))


@pytest.mark.parametrize("region", regions())
def test_polygons_of_centres_fill_to_the_region(region: Any) -> None:
    assert (fill(outlines_of(region, corners=False), region.shape) == region).all()


@pytest.mark.parametrize("region", regions())
def test_straight_lines_have_two_points(region: Any) -> None:
    for polygon in outlines_of(region, corners=True):
        behind = np.roll(polygon, -1, axis=0) - polygon
        before = np.roll(behind, 1, axis=0)
        straight = (np.sign(before) == np.sign(behind)).all(axis=1)
        assert not (straight & ((before == 0).any(axis=1))).any()


def test_parts_and_holes() -> None:
    for region in regions():
        parts = list(connected_parts(region))
        assert (sum(part.astype(int) for part in parts) == region).all()
        for part in parts:
            start = tuple(np.argwhere(part)[0].tolist())
            pixels = {tuple(at) for at in np.argwhere(part).tolist()}
            assert flood(part.astype(int), start) == pixels
            # A hole is background that does not reach the border, by sides.
            outside = np.pad(part, 1).astype(int)
            around = flood(outside, (0, 0))
            assert has_holes(part) == (len(around) < int((outside == 0).sum()))


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_small_regions(seed: int, merge: bool) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.array([0, 0, 0, 1, 1, 2, 255], np.uint8), (12, 15))
    found = remove_small_regions(labels, 5, merge=merge)
    assert (found == without_small_regions(labels, 5, merge=merge)).all()
    assert (found != labels).any()
    assert ((found == 255) == (labels == 255)).all()


def test_all_regions_may_be_small() -> None:
    labels = np.full((2, 2), 3, np.uint8)
    assert (remove_small_regions(labels, 9, merge=True) == 3).all()
    assert not remove_small_regions(labels, 9, merge=False).any()
