"""Affinity of patches that the classes explain alike (CD-CLIP, CVPR 2026).

Each patch has a distribution over text rows. Two patches belong together as far as their
distributions do: one less their Jensen-Shannon divergence. That weighs CLIP's attention.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vpltool.core.affinity import sinkhorn_scaling, symmetric_product
from vpltool.core.gradcam import min_max


def text_distributions(patches: Tensor, rows: Tensor, *, tau: float, stretch: str = "row"
                       ) -> Tensor:
    """Return the distribution of each patch over text rows: softmax of its stretched cosines / τ.

    Args:
        patches: L2-normed patch embeddings (n, dim).
        rows: L2-normed text rows (T, dim).
        tau: temperature.
        stretch: `row`, each row's cosines go from 0 to 1 in the photo; `all`, those of all rows
            together.

    Returns:
        (n, T), rows summing to 1.
    """
    cosine = patches.float() @ rows.float().T
    stretched = min_max(cosine.T[:, None] if stretch == "row" else cosine.T).view(cosine.T.shape)
    return (stretched.T / tau).softmax(dim=-1)


def divergence(distributions: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of each pair of distributions, in bits.

    It is H((p + q) / 2) − (H(p) + H(q)) / 2, with the entropy H. The mixtures' entropy is added up
    entry by entry: time O(n² T), memory O(n²).

    Args:
        distributions: (n, T), rows summing to 1.

    Returns:
        (n, n) in [0, 1], symmetric, zero on the diagonal.
    """
    own = -torch.special.xlogy(distributions, distributions).sum(dim=-1)
    total = -(own[:, None] + own) / 2
    for column in distributions.T:
        mixture = (column[:, None] + column) / 2
        total -= torch.special.xlogy(mixture, mixture)
    return (total / math.log(2)).clamp(0, 1).fill_diagonal_(0)


def spread(cams: Tensor, attention: Tensor, distributions: Tensor, *, tau: float, steps: int,
           combine: str = "product") -> Tensor:
    """Spread maps along attention, weighed by the divergence of the patches' distributions.

    S = softmax((1 − JS) / τ), A = S·D, maps ← Aᵗ maps; D is the doubly stochastic attention of
    CAA (`affinity.sinkhorn_scaling`).

    Args:
        cams: maps (K, n).
        attention: non-negative (n, n).
        distributions: of each patch (n, T).
        tau: τ of S.
        steps: t.
        combine: what the dot is: `product` of the matrices; or `entries`, entry by entry, each row
            divided by its sum.

    Returns:
        (K, n).
    """
    alike = ((1 - divergence(distributions)) / tau).softmax(dim=-1)
    rows, columns = (scaling[0] for scaling in sinkhorn_scaling(attention[None]))
    if combine == "entries":
        scaled = rows[:, None] * attention * columns
        alike *= (scaled + scaled.T) / 2
        alike /= alike.sum(dim=-1, keepdim=True).clamp_min(1e-12)
    maps = cams.T
    for _ in range(steps):
        if combine == "product":
            maps = symmetric_product(attention, rows, columns, maps)
        maps = alike @ maps
    return maps.T
