"""WeCLIP (CVPR 2024): views averaged as logits and the CRF over all classes at test; the affinity
loss and the refining module in training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
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


RADIUS = 8
RFM_BLOCKS = {"voc": 6, "coco": 10}


def affinity(fused: Tensor) -> list[list[float]]:
    """S = sigmoid(F·Fᵀ) of the patches of one photo, F (n, width)."""
    return [[1 / (1 + math.exp(-float(one.double() @ other.double()))) for other in fused]
            for one in fused]


def affinity_loss(fused: Tensor, labels: Tensor, radius: int = RADIUS) -> float:
    """L_aff of a batch: F (B, h·w, width), a label a patch (B, h, w), 255 = ignored."""
    alike, apart = [], []
    height, width = labels.shape[1:]
    places = [(y, x) for y in range(height) for x in range(width)]
    for photo, own in zip(fused, labels, strict=True):
        likeness = affinity(photo)
        for i, (y, x) in enumerate(places):
            for j, (row, column) in enumerate(places):
                far = abs(y - row) > radius or abs(x - column) > radius
                first, second = int(own[y, x]), int(own[row, column])
                if far or 255 in (first, second):
                    continue
                if first == second:
                    alike.append(1 - likeness[i][j])
                else:
                    apart.append(likeness[i][j])
    return sum(alike) / (len(alike) + 1) / 2 + sum(apart) / (len(apart) + 1) / 2


def refining(fused: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """R of the refining module: F (n, width), attention of some blocks (n, n), no class token."""
    own = torch.tensor(affinity(fused), dtype=torch.double)
    distances = [float((own - field.double()).sum()) for field in maps]
    mean = sum(distances) / len(distances)
    kept = [field.double() for field, distance in zip(maps, distances, strict=True)
            if distance <= mean]
    return own * sum(kept) / len(kept)
