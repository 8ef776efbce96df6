"""SSR's Superpixel-Guided Correction, written out patch by patch and matrix by matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]


def doubly_stochastic(attention: Tensor, rounds: int = 3) -> Tensor:
    """Divide by column sums, then by row sums, `rounds` times; then the symmetric part."""
    matrix = attention.double().clone()
    for _ in range(rounds):
        matrix = matrix / matrix.sum(0, keepdim=True)
        matrix = matrix / matrix.sum(1, keepdim=True)
    return (matrix + matrix.T) / 2


def correct(cam: Tensor, attentions: Sequence[Tensor], shares: Sequence[float], mask: Tensor
            ) -> Tensor:
    """Eq. 9 to 11 for one class: fuse, square, mask columns, multiply; min-max (h, w)."""
    fused = sum(share * doubly_stochastic(matrix)
                for share, matrix in zip(shares, attentions, strict=True))
    assert isinstance(fused, Tensor)
    affinity = fused @ fused
    for column, kept in enumerate(mask.flatten().tolist()):
        if not kept:
            affinity[:, column] = 0
    spread = (affinity @ cam.double().flatten()).view_as(cam)
    spread = spread - spread.min()
    return spread / (spread.max() + 1e-7)


def target_mask(cam: Tensor, labels: Array, detail: int, *, confident: float, share: float,
                total: str, coverage: float) -> Tensor:
    """Eq. 7 and the text about it, pixel by pixel, for one class: bool (h, w).

    Args:
        cam: map (h, w).
        labels: region of each pixel (h·detail, w·detail).
        detail: pixels a patch's side has.
        confident: share of the map's maximum above which activation is sure.
        share: of the total, above which a region is a target.
        total: `map` or `region`.
        coverage: share of a patch that targets must exceed.
    """
    height, width = cam.shape
    regions = sorted(set(labels.ravel().tolist()))
    sure = dict.fromkeys(regions, 0.0)
    all_of = dict.fromkeys(regions, 0.0)
    for y in range(height * detail):
        for x in range(width * detail):
            value = float(cam[y // detail, x // detail])
            all_of[labels[y, x]] += value
            if value > confident * float(cam.max()):
                sure[labels[y, x]] += value
    whole = sum(all_of.values())
    targets = {region for region in regions
               if sure[region] > share * (all_of[region] if total == "region" else whole)}
    best = max(sure.values())
    targets |= {region for region in regions if best > 0 and sure[region] > best * (1 - 1e-6)}
    mask = torch.zeros(height, width, dtype=torch.bool)
    for y in range(height):
        for x in range(width):
            cell = labels[y * detail:(y + 1) * detail, x * detail:(x + 1) * detail]
            inside = sum(label in targets for label in cell.ravel().tolist())
            mask[y, x] = inside > coverage * detail**2
    return mask


def cluster(points: Array, count: int) -> list[int]:
    """K-means that begins nearest to the mean, then farthest from what it has."""
    def apart(one: Array, other: Array) -> float:
        return float(sum((a - b) ** 2 for a, b in zip(one, other, strict=True)))

    mean = points.mean(0)
    chosen = [min(range(len(points)), key=lambda i: apart(points[i], mean))]
    while len(chosen) < count:
        gaps = [min(apart(point, points[i]) for i in chosen) for point in points]
        if max(gaps) == 0:
            break
        chosen.append(gaps.index(max(gaps)))
    centres = [points[i] for i in chosen]
    owners: list[int] = []
    for _ in range(50):
        found = [min(range(len(centres)), key=lambda c: apart(point, centres[c]))
                 for point in points]
        if found == owners:
            break
        owners = found
        for number in set(owners):
            members = [point for point, owner in zip(points, owners, strict=True)
                       if owner == number]
            centres[number] = sum(members) / len(members)
    return owners


def lab(colour: Sequence[float]) -> list[float]:
    """CIELAB (D65, 2°) of an sRGB colour in [0, 1]."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
              for value in colour]
    matrix = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169),
              (0.019334, 0.119193, 0.950227))
    white = (0.95047, 1.0, 1.08883)
    scaled = [sum(weight * part for weight, part in zip(row, linear, strict=True)) / level
              for row, level in zip(matrix, white, strict=True)]
    bent = [value ** (1 / 3) if value > 0.008856 else 7.787 * value + 16 / 116 for value in scaled]
    return [116 * bent[1] - 16, 500 * (bent[0] - bent[1]), 200 * (bent[1] - bent[2])]


def regions_of(scaled: Array, superpixels: Array, count: int, *, in_lab: bool) -> Array:
    """Eq. 8: the colour cluster of each pixel's superpixel (H, W)."""
    numbers = sorted(set(superpixels.ravel().tolist()))
    means = []
    for number in numbers:
        pixels = [scaled[y, x] / 255 for y, x in zip(*np.nonzero(superpixels == number),
                                                     strict=True)]
        mean = sum(pixels) / len(pixels)
        means.append(np.array(lab(mean) if in_lab else mean))
    owners = cluster(np.stack(means), count)
    found = np.zeros(superpixels.shape, dtype=int)
    for number, owner in zip(numbers, owners, strict=True):
        found[superpixels == number] = owner
    return found
