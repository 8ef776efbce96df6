"""ExCEL (CVPR 2025) and CLIP Surgery: channel by channel, class by class."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def enriched(text: Tensor, attributes: Tensor, dropped: int) -> Tensor:
    """A class's vector with the attributes, but for those that are farthest."""
    near = [float(text @ row) for row in attributes]
    order = sorted(range(len(near)), key=lambda place: near[place])
    kept = set(order[dropped:])
    total = sum(math.exp(near[place]) for place in kept)
    result = text.clone()
    for place in kept:
        result = result + math.exp(near[place]) / total * attributes[place]
    return result / result.norm()


def surgery(patches: Tensor, photo: Tensor, rows: Tensor, scale: float, *, by_channel: bool
            ) -> Tensor:
    """Score of each row at each patch of one photo (n, rows)."""
    tokens = torch.cat([photo[None], patches])
    if by_channel:
        for channel in range(tokens.shape[1]):
            tokens[:, channel] = tokens[:, channel] / tokens[:, channel].norm()
    photo, patches = tokens[0], tokens[1:]
    powers = [math.exp(scale * float(photo @ row)) for row in rows]
    likely = [power / sum(powers) for power in powers]
    weights = [value / (sum(likely) / len(likely)) for value in likely]
    scores = torch.zeros(len(patches), len(rows))
    for place, patch in enumerate(patches):
        features = [[float(patch[c] * row[c]) * weight for c in range(len(patch))]
                    for row, weight in zip(rows, weights, strict=True)]
        shared = [sum(feature[c] for feature in features) / len(rows) for c in range(len(patch))]
        for number, feature in enumerate(features):
            scores[place, number] = sum(feature[c] - shared[c] for c in range(len(patch)))
    return scores


def stretched(scores: Sequence[float]) -> list[float]:
    low, high = min(scores), max(scores)
    return [(score - low) / (high - low + 1e-7) for score in scores]
