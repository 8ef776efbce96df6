"""Boundary F against a slow reference, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest

from vpltool.core.metrics import boundary_counts, boundary_f


def edges(labels: np.ndarray, label: int) -> list[tuple[int, int]]:
    height, width = labels.shape
    return [(y, x) for y in range(height) for x in range(width) if labels[y, x] == label and any(
        0 <= y + dy < height and 0 <= x + dx < width and labels[y + dy, x + dx] != label
        for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)))]


def near(some: list[tuple[int, int]], others: list[tuple[int, int]], reach: float
         ) -> list[tuple[int, int]]:
    return [(row, column) for row, column in some
            if any(np.hypot(row - y, column - x) <= reach for y, x in others)]


def test_counts_are_those_of_a_slow_reference() -> None:
    draw = np.random.default_rng(0)
    for _ in range(5):
        coarse = draw.integers(0, 3, (2, 5, 6)).repeat(3, axis=1).repeat(3, axis=2).astype(np.uint8)
        truth, said = coarse
        truth[4:7, 3:12] = 255
        reach = 0.1 * np.hypot(*truth.shape)
        counts = boundary_counts(truth, said, 3, 0.1)
        assert not counts[0].any()
        for label in (1, 2):
            ours, theirs = edges(said, label), edges(truth, label)

            found = near(ours, theirs, reach)
            counted = [pixel for pixel in ours if pixel in found or truth[pixel] != 255]
            met = near(theirs, ours, reach)
            assert counts[label].tolist() == [len(found), len(counted), len(met), len(theirs)]


def test_f_of_what_is_right_moved_and_missing() -> None:
    truth = np.zeros((100, 100), np.uint8)
    truth[20:60, 20:60] = 1
    moved = np.roll(truth, 4, axis=1)
    assert boundary_f(boundary_counts(truth, truth, 2, 0.02)) == 1
    assert boundary_f(boundary_counts(truth, moved, 2, 0.05)) == 1
    assert 0 < boundary_f(boundary_counts(truth, moved, 2, 0.02)) < 1
    assert boundary_f(boundary_counts(truth, truth * 0, 2, 0.02)) == 0
    assert np.isnan(boundary_f(boundary_counts(truth * 0, truth, 2, 0.02)))
    half = boundary_counts(truth, truth, 3, 0.02) + boundary_counts(truth * 2, truth, 3, 0.02)
    assert boundary_f(half) == pytest.approx((2 * 0.5 / 1.5 + 0) / 2)
