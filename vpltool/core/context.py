"""Several prototypes of a class, less those of its context (LPCAM, CVPR 2023).

A class is clustered where its seeds are, and so is what surrounds them in the same photos. A
classifier says which centres belong to the class and which only come with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vpltool.core.classes import BACKGROUND
from vpltool.core.confidence import class_probability
from vpltool.core.prototypes import spherical_kmeans


def class_and_context(
    pixels: Tensor, labels: Tensor, beside: Tensor, index: int, text: Tensor, text_index: Tensor,
    *, per_class: int, least: float, context: tuple[float, float], tau: float, words: bool,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Find the centres of a class, and those of its context.

    Args:
        pixels: L2-normed (N, dim).
        labels: class of each pixel (N,).
        beside: whether a pixel is in a photo that shows the class (N,), bool.
        index: the class; it has seeds.
        text: text prototypes, L2-normed (rows, dim).
        text_index: class of each row (rows,).
        per_class: clusters of either, K.
        least: probability that a centre of the class must exceed; the likeliest always stays.
        context: bounds between which the probability of a context centre must lie.
        tau: temperature of the probabilities, see `class_probability`.
        words: whether the background's rows take part in them.
        seed: start of the random numbers.

    Returns:
        centres of the class (K', dim) and of its context (K'', dim), which may be empty.
    """
    def probability(centres: Tensor) -> Tensor:
        wanted = labels.new_full((len(centres),), index)
        return class_probability(centres, wanted, text, text_index, tau=tau, words=words)

    own = spherical_kmeans(pixels[labels == index], per_class, seed=seed).float()
    likely = probability(own)
    own = own[(likely > least) | (likely == likely.max())]
    around = pixels[beside & (labels != index)]
    if not len(around):
        return own, own[:0]
    others = spherical_kmeans(around, per_class, seed=seed).float()
    likely = probability(others)
    return own, others[(likely > context[0]) & (likely < context[1])]


@torch.no_grad()
def class_minus_context_cam(
    patches: Tensor, grid: tuple[int, int], prototypes: Tensor, class_index: Tensor,
    context_of: Tensor, present: Sequence[Tensor],
) -> list[Tensor]:
    """Return ReLU(mean cosine to the class − mean cosine to its context), divided by its maximum.

    Args:
        patches: L2-normed patch embeddings (B, h·w, dim).
        grid: (h, w).
        prototypes: L2-normed rows (rows, dim).
        class_index: class of each row (rows,).
        context_of: class whose context a row is (rows,), 0 for none. A class without such rows
            has nothing subtracted.
        present: class indices of each photo, one tensor (K_i,) a photo.

    Returns:
        for each photo a map per class (K_i, h, w) in [0, 1], float32.
    """
    cosines = (patches @ prototypes.to(patches).T).float()

    def mean_of(photo: int, rows: Tensor) -> Tensor:
        return cosines[photo][:, rows].mean(dim=-1) if bool(rows.any()) else cosines.new_zeros(())

    maps = []
    for photo, classes in enumerate(present):
        own = cosines.new_zeros(len(classes), patches.shape[1])
        for number, index in enumerate(classes.tolist()):
            assert index != BACKGROUND
            own[number] = (mean_of(photo, class_index == index)
                           - mean_of(photo, context_of == index)).relu()
        own /= own.amax(dim=-1, keepdim=True).clamp_min(1e-12)
        maps.append(own.view(-1, *grid))
    return maps
