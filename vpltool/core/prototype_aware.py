"""Prototype-aware CAMs (CPAL, CVPR 2024): what a class looks like elsewhere, moved to this photo.

Context prototypes are clusters of a class's regions over the data set. A photo's own region chooses
among them, softly; they are moved towards it; and the map is the cosine to them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vpltool.core.gradcam import min_max
from vpltool.core.prototypes import spherical_kmeans


def context_prototypes(regions: Tensor, count: int, *, bank: int = 0, seed: int = 0) -> Tensor:
    """Cluster the regions of a class.

    Args:
        regions: L2-normed region features, one a photo (R, dim).
        count: number of clusters; fewer if there are fewer regions.
        bank: regions at most, drawn at random; 0: all.
        seed: start of the random numbers.

    Returns:
        L2-normed (count, dim).
    """
    if 0 < bank < len(regions):
        drawn = torch.randperm(len(regions), generator=torch.Generator().manual_seed(seed))[:bank]
        regions = regions[drawn.sort().values.to(regions.device)]
    return spherical_kmeans(regions, count, seed=seed)


def instance_prototypes(patches: Tensor, cams: Tensor, share: float) -> Tensor:
    """Return the mean of the patches that each map marks, L2-normed.

    Args:
        patches: L2-normed (h·w, dim).
        cams: maps (K, h, w).
        share: share of a map's maximum that a patch must reach.

    Returns:
        (K, dim), float32.
    """
    maps = cams.float().flatten(1)
    marked = (maps >= share * maps.amax(dim=-1, keepdim=True)).float()
    return F.normalize(marked @ patches.float(), dim=-1)


def soft_neighbours(instance: Tensor, rows: Tensor, *, count: int, tau: float
                    ) -> tuple[Tensor, Tensor]:
    """Choose the context prototypes nearest to an instance, with weights softmax(cos / τ).

    Args:
        instance: L2-normed (dim,).
        rows: context prototypes of its class, L2-normed (m, dim).
        count: k; 0, or more than there are: all.
        tau: τ.

    Returns:
        the k rows (k, dim) and their weights (k,), the nearest first.
    """
    near, which = (rows @ instance).topk(min(count or len(rows), len(rows)))
    return rows[which], (near / tau).softmax(dim=0)


def aligned(rows: Tensor, weights: Tensor, instance: Tensor, shift: float) -> Tensor:
    """Move context prototypes along the way from their mean to the instance; L2-normed again.

    Args:
        rows: L2-normed (k, dim).
        weights: of the mean (k,), with sum 1.
        instance: (dim,).
        shift: share of the way; 1 puts the mean onto the instance.
    """
    return F.normalize(rows + shift * (instance - weights @ rows), dim=-1)


@torch.no_grad()
def prototype_aware_cam(
    patches: Tensor, cams: Tensor, classes: Tensor, prototypes: Tensor, class_index: Tensor, *,
    share: float, count: int, tau: float, shift: float,
) -> Tensor:
    """Return the weighted mean cosine of each patch to the chosen prototypes, min-max normalised.

    Args:
        patches: L2-normed (h·w, dim).
        cams: maps (K, h, w).
        classes: their class indices (K,); each has a prototype.
        prototypes: L2-normed rows (rows, dim).
        class_index: class of each row (rows,).
        share: see `instance_prototypes`.
        count: see `soft_neighbours`.
        tau: see `soft_neighbours`.
        shift: see `aligned`.

    Returns:
        (K, h, w) in [0, 1], float32.
    """
    found = torch.zeros_like(cams, dtype=torch.float32)
    instances = instance_prototypes(patches, cams, share)
    for number, index in enumerate(classes.tolist()):
        instance = instances[number]
        rows, weights = soft_neighbours(instance, prototypes[class_index == index], count=count,
                                        tau=tau)
        moved = aligned(rows, weights, instance, shift)
        found[number] = (patches.float() @ moved.T @ weights).view(cams.shape[1:])
    return min_max(found) if len(found) else found
