"""What the references of this folder share: vectors, number by number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def dot(a: Array, b: Array) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def unit(a: Array) -> Array:
    length = math.sqrt(dot(a, a))
    return np.asarray([float(x) / length for x in a])


def softmax(scores: Sequence[float]) -> list[float]:
    heat = [math.exp(score - max(scores)) for score in scores]
    return [value / sum(heat) for value in heat]


def mean(rows: Sequence[Array]) -> Array:
    return np.asarray([sum(float(row[k]) for row in rows) / len(rows)
                       for k in range(len(rows[0]))])
