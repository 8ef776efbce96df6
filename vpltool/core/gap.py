"""The modality gap between prototypes and what they stand for in the photos."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gap:
    """How far prototypes are from their regions.

    Args:
        centroid: ‖mean prototype − mean region feature‖₂ over the classes (Liang et al. 2022).
        cosine: mean over the classes of 1 − cos(prototype, region feature).
        per_class: class index to 1 − cos.
    """

    centroid: float
    cosine: float
    per_class: dict[int, float]


def modality_gap(prototypes: Tensor, class_index: Tensor, regions: Tensor,
                 region_class: Tensor) -> Gap:
    """Distance of class prototypes to CAM-masked mean features.

    Args:
        prototypes: L2-normed rows (rows, dim); several rows of a class: the nearest counts.
        class_index: class of each row (rows,).
        regions: mean feature of each class's regions (K, dim), any length.
        region_class: class of each region feature (K,).
    """
    regions = torch.nn.functional.normalize(regions.float(), dim=-1)
    per_class, means = {}, []
    for region, index in zip(regions, region_class.tolist(), strict=True):
        rows = prototypes[class_index == index]
        cosines = rows @ region
        per_class[index] = 1 - float(cosines.max())
        means.append(rows[cosines.argmax()])
    if not means:
        return Gap(float("nan"), float("nan"), {})
    centroid = (torch.stack(means).mean(0) - regions.mean(0)).norm()
    return Gap(float(centroid), sum(per_class.values()) / len(per_class), per_class)
