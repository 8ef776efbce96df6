"""Optimal transport between patches and classes (DHR, ECCV 2024)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vpltool.core.gradcam import min_max


def transport_plan(similarity: Tensor, *, epsilon: float = 0.1, rounds: int = 100,
                   tolerance: float = 1e-2) -> Tensor:
    """Return the entropic plan that gives all patches, and all classes, the same mass (Sinkhorn).

    The cost is 1 − similarity.

    Args:
        similarity: of patches and classes (n, m), cosines.
        epsilon: weight of the entropy.
        rounds: number of rounds at most.
        tolerance: mean change of the patches' scaling at which it stops.

    Returns:
        (n, m), summing to 1; columns sum to 1 / m.
    """
    kernel = ((similarity.float() - 1) / epsilon).exp()
    patches, classes = kernel.shape
    left = kernel.new_ones(patches)
    right = kernel.new_ones(classes)
    for _ in range(rounds):
        before = left
        left = 1 / (patches * (kernel @ right))
        right = 1 / (classes * (kernel.T @ left))
        if float((left - before).abs().mean()) < tolerance:
            break
    return left[:, None] * kernel * right


def class_similarity(patches: Tensor, cams: Tensor, background: float) -> tuple[Tensor, Tensor]:
    """Return the cosine of each patch to what a photo's own classes look like.

    A class looks like the mean of the patches where its map is the strongest, and the background
    like those where no map reaches a threshold; a class that wins nowhere, like the mean weighted
    by its map.

    Args:
        patches: vectors of patches (n, dim).
        cams: maps (K, n).
        background: the threshold.

    Returns:
        cosines (n, 1 + K), the background first; and the cosines of the classes' vectors to each
        other (1 + K, 1 + K).
    """
    unit = F.normalize(patches.float(), dim=-1)
    strongest, label = cams.max(dim=0)
    label = torch.where(strongest < background, 0, label + 1)
    scores = torch.cat([1 - strongest[None], cams])
    weights = F.one_hot(label, len(scores)).T.to(unit)
    weights = torch.where(weights.any(dim=1, keepdim=True), weights, scores)
    vectors = F.normalize(weights @ unit, dim=-1)
    return unit @ vectors.T, vectors @ vectors.T


def transport_maps(cams: Tensor, first: Tensor, second: Tensor, *, background: float = 0.4,
                   alike: float = 0.8, epsilon: float = 0.1, rounds: int = 100,
                   tolerance: float = 1e-2) -> Tensor:
    """Return the maps that transport gives classes in the second encoder's features.

    Cosines of a class that looks like another of the photo there are multiplied by the plan, from 0
    to 1, in the first encoder's features, which know the classes apart.

    Args:
        cams: maps in [0, 1] (K, n), at least one.
        first: patch vectors of CLIP (n, dim).
        second: patch vectors of a second encoder (n, dim').
        background: see `class_similarity`.
        alike: cosine from which two classes look alike.
        epsilon: see `transport_plan`; the same for rounds and tolerance.
        rounds: see there.
        tolerance: see there.

    Returns:
        (K, n) in [0, 1].
    """
    def plan(similarity: Tensor) -> Tensor:
        made = transport_plan(similarity, epsilon=epsilon, rounds=rounds, tolerance=tolerance)
        return min_max(made.T[:, None])[:, 0].T

    similarity, between = class_similarity(second, cams, background)
    classes = between[1:, 1:].clone().fill_diagonal_(-1)
    confused = F.pad((classes > alike).any(dim=1), (1, 0))
    if confused.any():
        told_apart = plan(class_similarity(first, cams, background)[0])
        similarity = torch.where(confused, similarity * told_apart, similarity)
    return plan(similarity)[:, 1:].T
