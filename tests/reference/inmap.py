"""InMaP (NeurIPS 2023): `image_opt`, the loop that VPL takes as its solver. Columns, as there."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

ITERS = 2000
LR = 10.0
TAU_T = 0.01
TAU_I = 0.04
ALPHA = 0.6
TEMPLATES = (
    "itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.",
    "a {} in a video game.", "art of the {}.", "a photo of the small {}.",
)


def softmax(logits: Array) -> Array:
    """Along the classes (N, C)."""
    heat = np.exp(logits - logits.max(axis=1, keepdims=True))
    return heat / heat.sum(axis=1, keepdims=True)


def harden(targets: Array, alpha: float = ALPHA) -> Array:
    """Rows whose largest entry exceeds α become one-hot (N, C); InMaP does it in place."""
    hard = targets.copy()
    for row in hard:
        if row.max() > alpha:
            best = int(row.argmax())
            row[:] = 0
            row[best] = 1
    return hard


def image_opt(feat: Array, init: Array, plabel: Array, iters: int = ITERS, lr: float = LR,
              tau_i: float = TAU_I) -> tuple[Array, int]:
    """Proxies (D, C) after the last step, and how often the rate was halved.

    Args:
        feat: X, unit rows (N, D).
        init: Z, unit columns (D, C).
        plabel: P, rows summing to 1 (N, C), hardened already.
        iters: number of steps.
        lr: the rate at the start.
        tau_i: temperature of the proxies.
    """
    proxies, previous, halvings = init.copy(), math.inf, 0
    base = feat.T @ plabel
    for _ in range(iters):
        gradient = feat.T @ softmax(feat @ proxies / tau_i) - base
        norm = float(np.linalg.norm(gradient))
        if norm > previous:
            lr /= 2
            halvings += 1
        previous = norm
        proxies = proxies - lr / (len(feat) * tau_i) * gradient
        proxies = proxies / np.linalg.norm(proxies, axis=0, keepdims=True)
    return proxies, halvings
