"""VDA (CVPR 2026): its filter of instance prototypes, and the mixture with the text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from reference.lpcam import probability
from reference.vectors import Array, dot, mean, unit


def prototypes(regions: Array, owners: Sequence[int], text: Array, text_index: Sequence[int],
               tau: float, words: bool, least: float = 0.95, alpha: float | None = 0.6
               ) -> list[Array]:
    """A row for each of the text's; α None: by the distance of T and A."""
    found = []
    for row, owner in zip(text, text_index, strict=True):
        sure = [x for x, of in zip(regions, owners, strict=True) if owner and of == owner
                and probability(x, owner, text, text_index, tau, words) > least]
        if not sure:
            found.append(row)
            continue
        a = unit(mean(sure))
        share = alpha if alpha is not None else math.exp(-dot(row - a, row - a) / 2)
        found.append(unit((1 - share) * row + share * a))
    return found
