"""Non-learnable prototypes by expectation-maximisation (PGSeg, NeurIPS 2023).

PGSeg regularises group tokens with prototypes that no gradient reaches: EM estimates them from the
features of a batch, an exponential moving average keeps them. Here the features are the seeds of a
class, and the prototypes are the result.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vpltool.core.matching import best_matching
from vpltool.core.prototypes import spherical_kmeans


def em_prototypes(pixels: Tensor, start: Tensor, *, tau: float, rounds: int) -> Tensor:
    """Estimate prototypes of pixels: z = softmax(x μᵀ / τ) over the prototypes, μ = L2(zᵀ x).

    Args:
        pixels: x (..., n, dim); each set of n on its own.
        start: μ before the first round, L2-normed (K, dim), or of each set (..., K, dim).
        tau: τ.
        rounds: T.

    Returns:
        L2-normed (..., K, dim), float32.
    """
    pixels, prototypes = pixels.float(), start.float()
    for _ in range(rounds):
        share = (pixels @ prototypes.mT / tau).softmax(dim=-1)
        # PGSeg divides z by its sum over the pixels: that changes the length of zᵀ x only.
        prototypes = F.normalize(share.mT @ pixels, dim=-1)
    return prototypes


def moving_average(old: Tensor, new: Tensor, *, momentum: float, reject: float) -> Tensor:
    """Move prototypes towards those of a batch, each towards the one that it is matched with.

    The matching has the largest total cosine. The cosines of all pairs are stretched to [0, 1]; a
    prototype whose own match does not exceed `reject` then keeps its place.

    Args:
        old: L2-normed (K, dim).
        new: L2-normed (K, dim), in any order.
        momentum: share of the old.
        reject: least similarity of a match, of the range.

    Returns:
        L2-normed (K, dim), in the order of the old.
    """
    cosines = old @ new.T
    match = best_matching(cosines)
    low, high = cosines.min(), cosines.max()
    matched = cosines.gather(1, match[:, None])
    # A single prototype is all of its range, and is its own match.
    trusted = ((matched - low) > reject * (high - low)) | (high == low)
    moved = F.normalize(momentum * old + (1 - momentum) * new[match], dim=-1)
    return torch.where(trusted, moved, old)


def em_over_photos(
    pixels: Tensor, photo_of: Tensor, count: int, *, tau: float, rounds: int, batch: int,
    passes: int, momentum: float, reject: float, seed: int = 0,
) -> Tensor:
    """Estimate the prototypes of a class, batch of photos by batch of photos, in their order.

    EM of each batch begins at the prototypes so far; the first ones are drawn as by k-means++.

    Args:
        pixels: the seeds of the class, L2-normed (n, dim).
        photo_of: number of the photo of each seed (n,).
        count: K; there are fewer if there are fewer seeds.
        tau: temperature of EM.
        rounds: rounds of EM, T.
        batch: photos at a time.
        passes: passes over all photos.
        momentum: share that a batch leaves of what was before.
        reject: see `moving_average`.
        seed: start of the random numbers.

    Returns:
        L2-normed (K, dim), float32.
    """
    prototypes = spherical_kmeans(pixels, count, seed=seed, rounds=0).float()
    order = photo_of.argsort(stable=True)
    sizes = photo_of.unique(return_counts=True)[1].split(batch)
    parts = pixels[order].split([int(size.sum()) for size in sizes])
    for _ in range(passes):
        for part in parts:
            found = em_prototypes(part, prototypes, tau=tau, rounds=rounds)
            prototypes = moving_average(prototypes, found, momentum=momentum, reject=reject)
    return prototypes
