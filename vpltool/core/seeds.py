"""Seeds: the pixels that CAMs are sure of, and what prototypes can be started from them.

One reading of VPL's Φ (and of m in eq. 9): pixels where the CAM of a class reaches Φ belong to it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vpltool.core.classes import BACKGROUND
from vpltool.core.prototypes import spherical_kmeans

UNSURE = -1
"""Label of pixels that are neither a class's nor the background's seed."""


def seed_labels(cam: Tensor, classes: Tensor, phi: float, phi_background: float) -> Tensor:
    """Label a photo's patches: its strongest class where CAM ≥ Φ, background where all are low.

    Args:
        cam: maps in [0, 1] (K, h, w).
        classes: their class indices (K,).
        phi: Φ.
        phi_background: patches whose strongest CAM is below it are background.

    Returns:
        (h·w,): class index, 0 for the background, -1 for neither.
    """
    if not len(cam):
        return torch.zeros(cam.shape[1] * cam.shape[2], dtype=torch.long)
    strongest, index = cam.flatten(1).float().max(dim=0)
    labels = classes[index].clone()
    labels[strongest < phi] = UNSURE
    labels[strongest < phi_background] = BACKGROUND
    return labels


def region_features(patches: Tensor, cam: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Mean feature of each class of a photo under its CAM, and of the rest under 1 − max.

    Args:
        patches: L2-normed (h·w, dim).
        cam: (K, h, w).
        classes: (K,).

    Returns:
        L2-normed features (K + 1, dim) and their labels (K + 1,), the background last.
    """
    weights = cam.flatten(1).float()
    rest = 1 - weights.amax(dim=0, keepdim=True) if len(cam) else patches.new_ones(1, len(patches))
    weights = torch.cat([weights, rest])
    labels = torch.cat([classes, classes.new_zeros(1)])
    return F.normalize(weights @ patches.float(), dim=-1), labels


def class_means(pixels: Tensor, labels: Tensor, start: Tensor, class_index: Tensor) -> Tensor:
    """Replace each class's row by the mean of its seeds; rows of classes without seeds stay.

    Args:
        pixels: L2-normed (N, dim).
        labels: class of each pixel (N,).
        start: rows (rows, dim).
        class_index: class of each row (rows,); the background's rows stay as they are.

    Returns:
        L2-normed rows (rows, dim).
    """
    rows = start.clone()
    for place, index in enumerate(class_index.tolist()):
        chosen = pixels[labels == index]
        if index != BACKGROUND and len(chosen):
            rows[place] = F.normalize(chosen.float().mean(dim=0), dim=0)
    return rows


def class_clusters(pixels: Tensor, labels: Tensor, start: Tensor, class_index: Tensor, count: int,
                   *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Several rows a class by spherical k-means inside its seeds (the idea of CPAL, CVPR 2024).

    Args:
        pixels: L2-normed (N, dim).
        labels: class of each pixel (N,).
        start: one row a class, and background rows (rows, dim).
        class_index: class of each row (rows,).
        count: rows a class at most.
        seed: where chance begins.

    Returns:
        rows and their classes; a class without seeds keeps its row.
    """
    rows, index_of = [], []
    for place, index in enumerate(class_index.tolist()):
        chosen = pixels[labels == index]
        if index == BACKGROUND or not len(chosen):
            centres = start[place][None]
        else:
            centres = spherical_kmeans(chosen, count, seed=seed)
        rows.append(centres)
        index_of += [index] * len(centres)
    return torch.cat(rows), torch.tensor(index_of, device=class_index.device)


def seed_targets(pixels: Tensor, labels: Tensor, prototypes: Tensor, class_index: Tensor) -> Tensor:
    """One-hot targets: the row, among those of the pixel's class, that is nearest to it.

    Args:
        pixels: L2-normed (N, dim).
        labels: class of each pixel (N,), none of them unsure.
        prototypes: rows (rows, dim).
        class_index: class of each row (rows,).

    Returns:
        (N, rows).
    """
    nearest = torch.empty(len(pixels), dtype=torch.long, device=pixels.device)
    for index in labels.unique().tolist():
        rows = (class_index == index).nonzero()[:, 0]
        members = labels == index
        nearest[members] = rows[(pixels[members].float() @ prototypes[rows].T).argmax(dim=-1)]
    return F.one_hot(nearest, len(class_index)).float()


def balancing_weights(labels: Tensor) -> Tensor:
    """Weights (N,), mean 1, that give every label the same total."""
    _, place, counts = labels.unique(return_inverse=True, return_counts=True)
    return (len(labels) / (len(counts) * counts.float()))[place]
