"""WeCLIP (CVPR 2024) at test: views averaged as logits, the CRF over all classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from reference import clip_es

SCALES = (1.0, 0.75)
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
CRF = {"smooth_sxy": 3, "smooth_weight": 3, "bilateral_sxy": 64, "bilateral_srgb": 5,
       "bilateral_weight": 4, "iterations": 10}


def average(views: Sequence[tuple[Tensor, bool]]) -> Tensor:
    """Mean of the logits (classes, h, w) of views, each said to be mirrored or not.

    They are taken to the size of the first.
    """
    size = (views[0][0].shape[1], views[0][0].shape[2])
    total = 0 * views[0][0]
    for logits, mirrored in views:
        full = clip_es.to_size(logits, size)
        total = total + (full.flip(2) if mirrored else full)
    return total / len(views)


def masks(photo: np.ndarray[Any, Any], logits: Tensor) -> np.ndarray[Any, Any]:
    """Labels (H, W) of mean logits (classes, h, w), after the CRF over every class."""
    full = clip_es.to_size(logits, (photo.shape[0], photo.shape[1]))
    return clip_es.crf(photo, full.softmax(dim=0), CRF).argmax(axis=0).astype(np.uint8)
