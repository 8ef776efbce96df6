"""Several prototypes per class, by EM and a moving average over photos (PGSeg, NeurIPS 2023).

PGSeg's non-learnable prototypes: z = softmax(x μᵀ / τ), μ = L2(zᵀ x), ten rounds for each batch; an
exponential moving average over the batches, in which the best matching keeps each prototype what
it is, and prototypes whose match is poor stay. There the features are a network's tokens, and the
prototypes teach it; here they are a class's seeds, and the prototypes are the result. The moving
average runs, and the rejection reads the matched pair, where the released code does neither.

The source leaves open for this use: the start, here drawn as by k-means++ (with PGSeg's random
start, seeds that look alike would stay together); τ, since the seeds are normalised and PGSeg's
tokens are not; photos per batch, and passes. The rejection's range is that of all pairs of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from vpltool.core import npr, phase_one
from vpltool.core.prototypes import spherical_kmeans
from vpltool.lazy import F, Tensor, torch
from vpltool.methods.estimators import kmeans, means
from vpltool.settings import setting

READS = ("patches",)


@dataclass(frozen=True, kw_only=True)
class Settings(kmeans.Settings):
    """Settings of expectation-maximisation."""

    tau: float = setting(0.05, "Temperature of EM.", low=1e-6, source="vpltool")
    rounds: int = setting(10, "EM iterations per batch.", low=1, source="PGSeg, official code")
    photos: int = setting(4, "Photos per batch.", low=1, source="vpltool")
    passes: int = setting(4, "Passes over all photos of a class.", low=1, source="vpltool")
    momentum: float = setting(0.9, "Momentum of the moving average: how much of the earlier "
                                   "prototypes each batch keeps.", low=0, high=1,
                              source="PGSeg, official code")
    reject: float = setting(0.1, "Minimum similarity of a match, as a share of the range in its "
                                 "batch; a prototype with a worse match stays as it is.", low=0,
                            high=1, source="PGSeg, official code")


def estimate(pool: phase_one.Pixels, text: Tensor, text_index: Tensor, settings: Settings, seed: int
             ) -> tuple[Tensor, Tensor]:
    """Replace each class's row by the prototypes of its seeds; see `means.estimate`."""
    found = {}
    for owner in means.seeded_classes(pool.labels):
        own = pool.labels == owner
        found[owner] = em_over_photos(pool.embeddings[own], pool.photo_of[own], settings, seed)
    return means.with_class_rows(pool, text, text_index, settings, seed, found)


def em_over_photos(pixels: Tensor, photo_of: Tensor, settings: Settings, seed: int) -> Tensor:
    """Return the prototypes (K, dim) of a class after all batches of photos.

    EM of each batch begins at the prototypes so far; the first are drawn as by k-means++. There are
    no more than seeds. They and the seeds (n, dim) are L2-normed; `photo_of` is (n,).
    """
    prototypes = spherical_kmeans(pixels, settings.per_class, seed=seed, rounds=0).float()
    order = photo_of.argsort(stable=True)
    sizes = photo_of.unique(return_counts=True)[1].split(settings.photos)
    parts = pixels[order].split([int(size.sum()) for size in sizes])
    for _ in range(settings.passes):
        for part in parts:
            found = npr.em_prototypes(part, prototypes, tau=settings.tau, rounds=settings.rounds)
            prototypes = moving_average(prototypes, found, settings)
    return prototypes


def moving_average(old: Tensor, new: Tensor, settings: Settings) -> Tensor:
    """Move prototypes (K, dim) towards their matches among those of a batch; all are L2-normed.

    The matching has the largest total cosine. The cosines of all pairs are stretched to [0, 1]; a
    prototype whose match does not exceed `reject` then keeps its place.
    """
    cosines = old @ new.T
    match = npr.best_matchings(cosines[None])[0]
    low, high = cosines.min(), cosines.max()
    matched = cosines.gather(1, match[:, None])
    # A single prototype has no range, and is its own match.
    trusted = ((matched - low) > settings.reject * (high - low)) | (high == low)
    moved = F.normalize(settings.momentum * old + (1 - settings.momentum) * new[match], dim=-1)
    return torch.where(trusted, moved, old)
