"""Asking a bank: k-nearest soft labels (hummingbird evaluation), retrieval (after CorrCLIPv2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reference.vectors import Array, dot, mean, softmax, unit


def soft_labels(patches: Array, tags: Sequence[int], photo: int, bank: Array,
                owners: Sequence[int], photo_of: Sequence[int], k: int = 30, tau: float = 0.02
                ) -> Array:
    """Share of each tag at each patch (n, K)."""
    rows = [j for j in range(len(bank))
            if photo_of[j] not in (-1, photo) and owners[j] in (0, *tags)]
    shares = np.zeros((len(patches), len(tags)))
    for i, patch in enumerate(patches):
        near = sorted(rows, key=lambda j: -dot(patch, bank[j]))[:k]
        if not near:
            continue
        for j, weight in zip(near, softmax([dot(patch, bank[j]) / tau for j in near]), strict=True):
            for column, tag in enumerate(tags):
                shares[i, column] += weight * (owners[j] == tag)
    return shares


def region(patches: Array, weights: Sequence[float]) -> Array:
    return unit(sum(w * patch for w, patch in zip(weights, patches, strict=True)))


def supported_maps(patches: Array, cams: Array, tags: Sequence[int], photo: int, bank: Array,
                   owners: Sequence[int], photo_of: Sequence[int], k: int = 20,
                   share: float = 0.5, tau: float = 0.025) -> Array:
    """Probability of each tag at each patch (K, h, w)."""
    flat = cams.reshape(len(tags), -1)
    rest = [1 - max(flat[c, i] for c in range(len(tags))) for i in range(len(patches))]
    scores = []
    for tag, weights in zip([*tags, 0], [*flat, rest], strict=True):
        if sum(weights) == 0:
            scores.append([-np.inf] * len(patches))
            continue
        own = region(patches, weights)
        others = [j for j in range(len(bank)) if photo_of[j] not in (-1, photo)]
        alike = {photo_of[j] for j in others if owners[j] in tags}
        rows = [j for j in others if owners[j] == tag and (tag or photo_of[j] in alike)]
        near = sorted(rows, key=lambda j: -dot(own, bank[j]))[:k]
        support = unit(mean([bank[j] for j in near])) if near else own
        scores.append([(1 - share) * dot(x, own) + share * dot(x, support) for x in patches])
    columns = [softmax([row[i] / tau for row in scores]) for i in range(len(patches))]
    return np.array(columns).T[:-1].reshape(cams.shape)
