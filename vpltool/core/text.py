"""Text prototypes: one vector per class and per background word."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from vpltool.core.prototypes import spherical_kmeans
from vpltool.lazy import F, Tensor, torch


def text_prototypes(
    words: Sequence[str], templates: Sequence[str], encode: Callable[[Sequence[str]], Tensor]
) -> Tensor:
    """Return the normalised mean of each word's prompts (CLIP-ES; CLIP's zero-shot classifier).

    Args:
        words: words that go into the templates.
        templates: prompts with one `{}` each.
        encode: function from prompts to L2-normed vectors (len(prompts), dim).

    Returns:
        L2-normed vectors (len(words), dim) float32.
    """
    rows = [encode([template.format(word) for template in templates]).mean(dim=0)
            for word in words]
    return F.normalize(torch.stack(rows).float().cpu(), dim=-1)


def attribute_centres(descriptions: Tensor, count: int) -> Tensor:
    """Cluster the descriptions of all classes into attributes (ExCEL).

    Args:
        descriptions: L2-normed vectors (N, dim).
        count: number of clusters; as many as there are descriptions, if these are fewer.

    Returns:
        the means of the clusters (count, dim), not normalised, as k-means has them.
    """
    centres = spherical_kmeans(descriptions, count, seed=0)
    owner = (descriptions @ centres.T).argmax(dim=-1)
    sums = torch.zeros_like(centres).index_add_(0, owner, descriptions)
    sizes = owner.bincount(minlength=len(centres))[:, None]
    return torch.where(sizes > 0, sums / sizes.clamp_min(1), centres)


def with_attributes(rows: Tensor, attributes: Tensor, share: float) -> Tensor:
    """Add to each class's vector the attributes that are near it (ExCEL, text semantic enrichment).

    T = norm(t + softmax(t Aᵀ) A), over the attributes A that are nearest to t.

    Args:
        rows: L2-normed vectors of classes (K, dim).
        attributes: A (N, dim).
        share: share of the attributes that take part, at least one.

    Returns:
        L2-normed (K, dim).
    """
    likeness = rows @ attributes.T
    # Not rounded up where share · N misses a whole number by the last digit.
    kept = min(max(math.ceil(share * len(attributes) - 1e-9), 1), len(attributes))
    nearest = likeness.topk(kept, dim=-1)
    weights = torch.zeros_like(likeness).scatter_(-1, nearest.indices,
                                                  nearest.values.softmax(dim=-1))
    return F.normalize(rows + weights @ attributes, dim=-1)
