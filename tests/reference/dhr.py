"""DHR's optimal transport (ECCV 2024), patch by patch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Matrix = list[list[float]]


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b) / (float(a.norm()) * float(b.norm()))


def plan(similarity: Matrix, epsilon: float, rounds: int, tolerance: float) -> Matrix:
    """Sinkhorn with uniform marginals, cost 1 − similarity."""
    kernel = [[math.exp(-(1 - value) / epsilon) for value in row] for row in similarity]
    n, m = len(kernel), len(kernel[0])
    left, right = [1.0] * n, [1.0] * m
    for _ in range(rounds):
        before = left
        left = [1 / n / sum(kernel[i][j] * right[j] for j in range(m)) for i in range(n)]
        right = [1 / m / sum(kernel[i][j] * left[i] for i in range(n)) for j in range(m)]
        if sum(abs(a - b) for a, b in zip(left, before, strict=True)) / n < tolerance:
            break
    return [[left[i] * kernel[i][j] * right[j] for j in range(m)] for i in range(n)]


def over_pixels(matrix: Matrix) -> Matrix:
    """Each column from 0 to 1."""
    columns = []
    for column in zip(*matrix, strict=True):
        low, high = min(column), max(column)
        columns.append([(value - low) / (high - low + 1e-7) for value in column])
    return [list(row) for row in zip(*columns, strict=True)]


def class_vectors(patches: Tensor, cams: Tensor, background: float) -> list[Tensor]:
    """Background first; of a class that wins nowhere, the mean weighted by its map."""
    labels = []
    for place in range(len(patches)):
        scores = [float(cam[place]) for cam in cams]
        best = max(range(len(scores)), key=lambda number: scores[number])
        labels.append(0 if scores[best] < background else best + 1)
    found = []
    for label in range(len(cams) + 1):
        weights: Sequence[float] = [float(own == label) for own in labels]
        if not any(weights):
            weights = [float(cams[label - 1, place]) if label else 1 - float(cams[:, place].max())
                       for place in range(len(patches))]
        found.append(sum((weight * patch / patch.norm()
                          for weight, patch in zip(weights, patches, strict=True)),
                         torch.zeros(patches.shape[1])))
    return found


def transport(cams: Tensor, first: Tensor, second: Tensor, background: float, alike: float,
              epsilon: float, rounds: int, tolerance: float) -> Tensor:
    def similarity_in(patches: Tensor, vectors: Sequence[Tensor]) -> Matrix:
        return [[cosine(patch, vector) for vector in vectors] for patch in patches]

    vectors = class_vectors(second, cams, background)
    similarity = similarity_in(second, vectors)
    other = over_pixels(plan(similarity_in(first, class_vectors(first, cams, background)),
                             epsilon, rounds, tolerance))
    for one in range(1, len(vectors)):
        if any(cosine(vectors[one], vectors[two]) > alike
               for two in range(1, len(vectors)) if two != one):
            for place, row in enumerate(similarity):
                row[one] *= other[place][one]
    result = over_pixels(plan(similarity, epsilon, rounds, tolerance))
    return torch.tensor([row[1:] for row in result]).T
