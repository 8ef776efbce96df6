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


def choose_instances(
    pixels: Array, labels: list[int], photo_of: list[int], tags: list[list[int]], classes: int,
    share: float, shrinkage: float, choices: int,
) -> list[int]:
    """For each tag, the pixels of its photos that photos without the tag lack; 0: background."""
    width = pixels.shape[1]
    mean = pixels.mean(axis=0)
    covariance = sum(np.outer(pixel - mean, pixel - mean) for pixel in pixels) / len(pixels)
    inverse = np.linalg.inv((1 - shrinkage) * covariance
                            + shrinkage * np.trace(covariance) / width * np.eye(width))
    own = [[number for number, photo in enumerate(photo_of) if photo == index]
           for index in range(len(tags))]
    photo_means = [pixels[numbers].mean(axis=0) for numbers in own]

    def score(tag: int, seen: list[list[int]]) -> list[float]:
        shown = [index for index in range(len(tags)) if tag in tags[index] and seen[index]]
        lacking = [photo_means[index] for index in range(len(tags)) if tag not in tags[index]]
        positive = np.mean([pixels[seen[index]].mean(axis=0) for index in shown], axis=0)
        negative = np.mean(lacking or photo_means, axis=0)
        return [(positive - negative) @ inverse @ (pixel - (positive + negative) / 2)
                for pixel in pixels]

    chosen = {tag: [[number for number in numbers if labels[number] > 0] for numbers in own]
              for tag in range(1, classes)}
    scores = {}
    for step in range(choices + 1):
        scores = {tag: score(tag, seen) for tag, seen in chosen.items()}
        for tag, seen in chosen.items():
            for index, numbers in enumerate(own):
                def gain(number: int, tag: int = tag, index: int = index, step: int = step,
                         scores: dict[int, list[float]] = scores) -> float:
                    others = [scores[other][number] for other in tags[index] if other != tag]
                    return scores[tag][number] - (
                        max(0.0, *others) if step == choices and others else 0.0)

                possible = sorted((number for number in numbers if labels[number] != 0), key=gain,
                                  reverse=True)
                seen[index] = (possible[:max(1, int(share * len(numbers)))]
                               if tag in tags[index] else [])
    found = [0 if label == 0 else -1 for label in labels]
    for index, shown in enumerate(tags):
        for tag in shown:
            for number in chosen[tag][index]:
                found[number] = tag
    return found
