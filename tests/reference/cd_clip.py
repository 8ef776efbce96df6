"""CD-CLIP's divergence affinity (CVPR 2026), pair by pair."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ROUNDS = 3


def softmax(values: Sequence[float]) -> list[float]:
    top = max(values)
    powers = [math.exp(value - top) for value in values]
    return [power / sum(powers) for power in powers]


def distributions(patches: Tensor, rows: Tensor, tau: float, stretch: str) -> list[list[float]]:
    cosine = [[float(patch @ row) for row in rows] for patch in patches]
    everything = [value for values in cosine for value in values]
    found: list[list[float]] = []
    for values in cosine:
        scaled = []
        for number, value in enumerate(values):
            among = everything if stretch == "all" else [other[number] for other in cosine]
            scaled.append((value - min(among)) / (max(among) - min(among) + 1e-7))
        found.append(softmax([value / tau for value in scaled]))
    return found


def kl(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(a * math.log2(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def jensen_shannon(p: Sequence[float], q: Sequence[float]) -> float:
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return (kl(p, middle) + kl(q, middle)) / 2


def doubly_stochastic(attention: Tensor) -> Tensor:
    matrix = attention.double()
    for _ in range(ROUNDS):
        matrix = matrix / matrix.sum(dim=0, keepdim=True)
        matrix = matrix / matrix.sum(dim=1, keepdim=True)
    return (matrix + matrix.T) / 2


def spread(cams: Tensor, attention: Tensor, likely: Sequence[Sequence[float]], tau: float,
           steps: int, combine: str) -> Tensor:
    """Maps (K, n) after `steps` steps, float64."""
    similar = torch.tensor([softmax([(1 - jensen_shannon(p, q)) / tau for q in likely])
                            for p in likely], dtype=torch.double)
    start = doubly_stochastic(attention)
    if combine == "product":
        affinity = similar @ start
    else:
        affinity = similar * start
        affinity = affinity / affinity.sum(dim=1, keepdim=True)
    power = torch.eye(len(affinity), dtype=torch.double)
    for _ in range(steps):
        power = power @ affinity
    return (power @ cams.double().T).T
