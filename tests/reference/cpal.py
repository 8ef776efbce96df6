"""CPAL (CVPR 2024): the prototype-aware map of one class, patch by patch."""

from __future__ import annotations

import numpy as np

from reference.vectors import Array, dot, mean, softmax, unit


def instance(patches: Array, cam: Array, share: float) -> Array:
    """Mean of the patches that the CAM (h, w) marks."""
    flat = [float(value) for row in cam for value in row]
    return unit(mean([patch for patch, value in zip(patches, flat, strict=True)
                      if value >= share * max(flat)]))


def pacam(patches: Array, cam: Array, context: Array, share: float, neighbours: int, tau: float,
          shift: float) -> Array:
    """The map (h, w) in [0, 1]; context are the prototypes of the class (m, D)."""
    own = instance(patches, cam, share)
    order = sorted(range(len(context)), key=lambda k: -dot(own, context[k]))
    chosen = [context[k] for k in order[: neighbours or len(context)]]
    weights = softmax([dot(own, row) / tau for row in chosen])
    centre = sum(w * row for w, row in zip(weights, chosen, strict=True))
    moved = [unit(row + shift * (own - centre)) for row in chosen]
    flat = [sum(w * dot(patch, row) for w, row in zip(weights, moved, strict=True))
            for patch in patches]
    low, high = min(flat), max(flat)
    return np.array([(value - low) / (high - low + 1e-7) for value in flat]).reshape(cam.shape)
