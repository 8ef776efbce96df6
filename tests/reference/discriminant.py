"""Fisher's linear discriminant of weighted points, written out point by point."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def discriminant(tokens: Array, shares: Array, shrinkage: float, prior: float
                 ) -> tuple[Array, list[float]]:
    """Weight [class][channel] and bias [class] from tokens [patch] and shares [patch][class]."""
    classes, width = shares.shape[1], tokens.shape[1]
    counts = [sum(row[k] for row in shares) for k in range(classes)]
    means = [sum(row[k] * token for row, token in zip(shares, tokens, strict=True))
             / max(counts[k], 1) for k in range(classes)]
    within = np.zeros((width, width))
    for row, token in zip(shares, tokens, strict=True):
        for k in range(classes):
            difference = token - means[k]
            within += row[k] * np.outer(difference, difference)
    within /= sum(counts)
    within = (1 - shrinkage) * within + shrinkage * np.trace(within) / width * np.eye(width)
    weight = np.stack([np.linalg.inv(within) @ mean for mean in means])
    bias = [-mean @ row / 2 + prior * math.log(count / sum(counts)) if count else -1e4
            for mean, row, count in zip(means, weight, counts, strict=True)]
    return weight, bias


def shares_of(labels: npt.NDArray[np.uint8], classes: int) -> Array:
    """Share of each class in each 4×4 tile of labels (4h, 4w), in reading order."""
    found = []
    for top in range(0, labels.shape[0], 4):
        for left in range(0, labels.shape[1], 4):
            tile = labels[top : top + 4, left : left + 4].ravel().tolist()
            found.append([sum(value == k for value in tile) / 16 for k in range(classes)])
    return np.array(found)


def tagged_discriminant(
    pixels: Array, labels: list[int], photo_of: list[int], tags: list[list[int]], classes: int,
    rounds: int, confidence: float, shrinkage: float, prior: float,
) -> tuple[Array, list[float]]:
    """Fit to the seeds; then label each pixel among its photo's tags, and fit again."""
    def fit(labels: list[int]) -> tuple[Array, list[float]]:
        known = [number for number, label in enumerate(labels) if label >= 0]
        shares = np.zeros((len(known), classes))
        for row, number in enumerate(known):
            shares[row, labels[number]] = 1
        return discriminant(pixels[known], shares, shrinkage, prior)

    weight, bias = fit(labels)
    for _ in range(rounds):
        labels = []
        for pixel, photo in zip(pixels, photo_of, strict=True):
            shown = [0, *tags[photo]]
            scores = np.array([pixel @ weight[k] + bias[k] for k in shown])
            likely = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
            labels.append(shown[likely.argmax()] if likely.max() >= confidence else -1)
        weight, bias = fit(labels)
    return weight, bias
