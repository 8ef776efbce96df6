"""Fisher's linear discriminant of patches: a pixel classifier in closed form, from one pass.

The classes share one covariance Σ, so that class k scores a token x by x·Σ⁻¹μₖ − ½ μₖ·Σ⁻¹μₖ plus
the logarithm of how frequent it is (Fisher 1936; Hastie, Tibshirani and Friedman, The Elements of
Statistical Learning, section 4.3). Sums over the photos are all that is needed, so the memory does
not grow with them, and their order does not matter but for rounding. Σ is drawn towards a multiple
of the identity, as Friedman (1989) does: few photos leave most of its directions unknown.
"""

from __future__ import annotations

from dataclasses import dataclass

from vpltool.core.grids import LABELS_PER_PATCH
from vpltool.lazy import Tensor, torch

_NEVER = -1e4
"""Score of a class without patches: finite, since the walk multiplies scores by zeros."""


@dataclass
class Moments:
    """Sums over the patches so far; a patch counts for each class by its share of it."""

    counts: Tensor  # patches of each class (K,)
    sums: Tensor  # sum of their tokens (K, D)
    products: Tensor  # sum of x xᵀ over all patches (D, D)

    @classmethod
    def zeros(cls, classes: int, width: int, device: torch.device) -> Moments:
        """Make the sums over no patch, in double precision."""
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=device)
                     for shape in ((classes,), (classes, width), (width, width))))

    def add(self, tokens: Tensor, shares: Tensor) -> None:
        """Add a photo's tokens (patches, D), float32, with each patch's share of each class.

        Shares are (patches, K); the remainder to 1 is unlabelled, and counts for none.
        """
        self.counts += shares.sum(dim=0)
        self.sums += shares.T @ tokens
        self.products += (tokens * shares.sum(dim=1, keepdim=True)).T @ tokens


def label_shares(labels: Tensor, classes: int) -> Tensor:
    """Return the share of each class in each patch (h·w, classes), from 4×4 labels a patch.

    Labels are (4h, 4w); values that are no class count as unlabelled.
    """
    side = LABELS_PER_PATCH
    tiles = labels.long().unflatten(1, (-1, side)).unflatten(0, (-1, side)).transpose(1, 2)
    known = tiles.flatten(2).flatten(0, 1).clamp(max=classes)
    counts = torch.zeros(len(known), classes + 1, device=labels.device)
    counts.scatter_add_(1, known, torch.ones_like(known, dtype=counts.dtype))
    return counts[:, :classes] / side**2


def discriminant(moments: Moments, shrinkage: float, prior: float) -> tuple[Tensor, Tensor]:
    """Return the weight (K, D) and bias (K,) of the linear discriminant, float32.

    At least one patch is labelled. `shrinkage`, above 0, is the share of Σ that is replaced by its
    mean variance times the identity; `prior` the exponent of the classes' frequency, 1 by Bayes'
    rule, 0 if all are equally likely.
    """
    counts = moments.counts
    means = moments.sums / counts.clamp(min=1)[:, None]
    within = (moments.products - (counts[:, None] * means).T @ means) / counts.sum()
    weight = torch.linalg.solve(shrunk(within, shrinkage), means.T).T
    bias = -(weight * means).sum(dim=1) / 2 + prior * (counts / counts.sum()).clamp(min=1e-12).log()
    bias[counts == 0] = _NEVER
    return weight.float(), bias.float()


def shrunk(covariance: Tensor, shrinkage: float) -> Tensor:
    """Return a covariance (D, D) drawn towards its mean variance times the identity."""
    variance = covariance.diagonal().mean()
    return (1 - shrinkage) * covariance + shrinkage * variance * torch.eye(
        len(covariance), dtype=covariance.dtype, device=covariance.device)
