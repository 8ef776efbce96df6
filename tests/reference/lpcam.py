"""LPCAM (CVPR 2023): which centres stay, and the map of one class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reference.vectors import Array, dot, softmax


def probability(x: Array, owner: int, text: Array, text_index: Sequence[int], tau: float,
                words: bool) -> float:
    """Softmax over the text's rows, added up over those of the class."""
    rows = [k for k, index in enumerate(text_index) if index or words]
    shares = softmax([dot(x, text[k]) / tau for k in rows])
    return sum(share for k, share in zip(rows, shares, strict=True) if text_index[k] == owner)


def kept_foreground(likely: Sequence[float], least: float = 0.9) -> list[int]:
    sure = [k for k, p in enumerate(likely) if p > least]
    return sure or [int(np.argmax(likely))]


def kept_context(likely: Sequence[float], low: float = 0.05, high: float = 0.9) -> list[int]:
    return [k for k, p in enumerate(likely) if low < p < high]


def cam(patches: Array, foreground: Sequence[Array], context: Sequence[Array],
        grid: tuple[int, int]) -> Array:
    """The map (h, w)."""
    flat = []
    for patch in patches:
        value = sum(dot(patch, row) for row in foreground) / len(foreground)
        if len(context):
            value -= sum(dot(patch, row) for row in context) / len(context)
        flat.append(max(value, 0.0))
    top = max(flat)
    return np.array([value / top if top else 0.0 for value in flat]).reshape(grid)
