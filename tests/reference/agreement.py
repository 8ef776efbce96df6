"""Predicted against given tags, calibration and uncertainty, as the definitions read, in loops."""

from __future__ import annotations

import math
from collections.abc import Sequence


def scores_of_class(said: Sequence[set[int]], tagged: Sequence[set[int]], index: int
                    ) -> tuple[float, float, float]:
    """Precision, recall and F1 of a class over photos; all NaN if no photo is tagged with it."""
    right = sum(index in one and index in other for one, other in zip(said, tagged, strict=True))
    named, given = sum(index in one for one in said), sum(index in one for one in tagged)
    if not given:
        return math.nan, math.nan, math.nan
    precision = right / named if named else math.nan
    recall = right / given
    if not right:
        return precision, recall, 0.0
    return precision, recall, 2 / (1 / precision + 1 / recall)


def jaccard(one: set[int], other: set[int]) -> float:
    """Size of the intersection by that of the union; 1 for two empty sets."""
    return len(one & other) / len(one | other) if one | other else 1.0


def calibration_error(values: Sequence[float], truth: Sequence[bool], bins: int) -> float:
    """Sum over bins of their share of the values times |mean value - share of the true|."""
    error = 0.0
    for number in range(bins):
        last = number == bins - 1
        inside = [index for index, value in enumerate(values)
                  if number / bins <= value < (number + 1) / bins or (last and value == 1)]
        if inside:
            said = sum(values[index] for index in inside) / len(inside)
            true = sum(truth[index] for index in inside) / len(inside)
            error += len(inside) / len(values) * abs(said - true)
    return error


def top_mean(pixels: Sequence[float], share: float) -> float:
    """Mean of the largest share of some numbers, one at least."""
    count = max(1, round(share * len(pixels)))
    return sum(sorted(pixels, reverse=True)[:count]) / count


def entropy(pixels: Sequence[Sequence[float]]) -> float:
    """Mean over pixels of -sum p log p, of probabilities that are made to sum to 1."""
    total = 0.0
    for pixel in pixels:
        shares = [value / sum(pixel) for value in pixel]
        total -= sum(share * math.log(share) for share in shares if share > 0)
    return total / len(pixels)


def margin(pixels: Sequence[Sequence[float]]) -> float:
    """Mean over pixels of 1 - (first - second probability)."""
    total = 0.0
    for pixel in pixels:
        first, second = sorted((value / sum(pixel) for value in pixel), reverse=True)[:2]
        total += 1 - (first - second)
    return total / len(pixels)
