"""PGSeg (NeurIPS 2023), its non-learnable prototypes: EM, moving average, matching, rejection.

In loops over pixels and prototypes. Where the released code departs from the paper, this is the
paper: the average runs, and the rejection reads the matched pair.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from reference.vectors import Array, dot, unit

T = 10
MOMENTUM = 0.9
REJECT = 0.1


def em(pixels: Array, start: Array, tau: float, rounds: int = T) -> Array:
    """μ after the last round (K, D); pixels are unit rows (n, D)."""
    mu = [row.copy() for row in start]
    for _ in range(rounds):
        z = np.zeros((len(pixels), len(mu)))
        for i, x in enumerate(pixels):
            heat = [math.exp(dot(x, row) / tau) for row in mu]
            z[i] = [value / sum(heat) for value in heat]
        for k in range(len(mu)):
            # Columns sum to 1 over the pixels.
            column = z[:, k] / z[:, k].sum()
            mu[k] = unit(sum(column[i] * x for i, x in enumerate(pixels)))
    return np.stack(mu)


def matching(similarity: Array) -> tuple[int, ...]:
    """The column of each row: the permutation of the largest sum, by trying all."""
    count = len(similarity)
    return max(itertools.permutations(range(count)),
               key=lambda order: sum(similarity[i, j] for i, j in enumerate(order)))


def update(old: Array, new: Array, momentum: float = MOMENTUM, reject: float = REJECT) -> Array:
    """One step of the moving average, each prototype with its match, unless that is rejected."""
    similarity = np.array([[dot(a, b) for b in new] for a in old])
    low, high = similarity.min(), similarity.max()
    moved = []
    for k, other in enumerate(matching(similarity)):
        own = math.inf if high == low else (similarity[k, other] - low) / (high - low)
        moved.append(unit(momentum * old[k] + (1 - momentum) * new[other]) if own > reject
                     else old[k])
    return np.stack(moved)


def prototypes(pixels: Array, photo_of: list[int], start: Array, tau: float, batch: int,
               passes: int, rounds: int = T) -> Array:
    """All photos in their order, `batch` at a time (K, D)."""
    mu = start
    photos = sorted(set(photo_of))
    for _ in range(passes):
        for begin in range(0, len(photos), batch):
            chosen = photos[begin : begin + batch]
            part = np.stack([pixels[i] for photo in chosen for i in range(len(pixels))
                             if photo_of[i] == photo])
            mu = update(mu, em(part, mu, tau, rounds))
    return mu
