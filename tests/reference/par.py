"""PAR (AFA, CVPR 2022; constants of WeCLIP, CVPR 2024), pixel by pixel, in double precision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

ITERATIONS = 20
DILATIONS = (1, 2, 4, 8, 12, 24)
W1, W2 = 0.3, 0.01
AROUND = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))

Array = np.ndarray[Any, Any]


def deviation(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    powers = [math.exp(value - top) for value in values]
    return [power / sum(powers) for power in powers]


def neighbours(y: int, x: int, size: tuple[int, int], dilations: tuple[int, ...]
               ) -> list[tuple[int, int]]:
    """The neighbours of a pixel; those beyond the border are the nearest pixels inside."""
    return [(min(max(y + step * dy, 0), size[0] - 1), min(max(x + step * dx, 0), size[1] - 1))
            for step in dilations for dy, dx in AROUND]


def weights_at(photo: Array, y: int, x: int, dilations: tuple[int, ...]) -> list[float]:
    near = neighbours(y, x, (photo.shape[0], photo.shape[1]), dilations)
    energies = [0.0] * len(near)
    for channel in range(3):
        values = [float(photo[place][channel]) for place in near]
        spread = deviation(values)
        if spread == 0:
            continue  # The same term for all of them: the softmax does not see it.
        for number, value in enumerate(values):
            difference = abs(value - float(photo[y, x, channel]))
            energies[number] -= (difference / (W1 * spread)) ** 2 / 3
    distances = [step * math.hypot(dy, dx) for step in dilations for dy, dx in AROUND]
    spread = deviation(distances)
    places = softmax([-((distance / (W1 * spread)) ** 2) for distance in distances])
    return [colour + W2 * place for colour, place in zip(softmax(energies), places, strict=True)]


def refine(photo: Array, scores: Array, iterations: int = ITERATIONS,
           dilations: tuple[int, ...] = DILATIONS) -> Array:
    """Scores (L, H, W) of a photo (H, W, 3), with weights that sum to 1.01 as in the code."""
    height, width = photo.shape[:2]
    size = (height, width)
    weights = {(y, x): weights_at(photo, y, x, dilations)
               for y in range(height) for x in range(width)}
    current = scores.astype(float)
    for _ in range(iterations):
        refined = np.zeros_like(current)
        for (y, x), own in weights.items():
            for weight, (row, column) in zip(own, neighbours(y, x, size, dilations), strict=True):
                refined[:, y, x] += weight * current[:, row, column]
        current = refined
    return current
