"""Several prototypes per class, by EM and a moving average over photos (PGSeg, NeurIPS 2023).

PGSeg's non-learnable prototypes: z = softmax(x μᵀ / τ), μ = L2(zᵀ x), ten rounds for each batch; an
exponential moving average over the batches, in which the best matching keeps each prototype what
it is, and prototypes whose match is poor stay. There the features are a network's tokens, and the
prototypes teach it; here they are a class's seeds, and the prototypes are the result. The moving
average runs, and the rejection reads the matched pair, where the released code does neither.

Open in the source for this use: the start, drawn as by k-means++ (there random, where seeds that
all look alike would stay together); τ, as the seeds are normalised and PGSeg's tokens are not;
photos a batch, and passes. The range of the rejection is that of all pairs of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vpltool.methods.estimators._background import BackgroundSettings, with_background
from vpltool.settings import setting

if TYPE_CHECKING:
    from torch import Tensor

    from vpltool.methods.inputs import Pixels

READS = ("patches",)


@dataclass(frozen=True, kw_only=True)
class Settings(BackgroundSettings):
    """Settings of expectation-maximisation."""

    per_class: int = setting(4, "Prototypes per class, at most one per seed.", low=1, metavar="K",
                             source="vpltool")
    tau: float = setting(0.05, "Temperature of EM.", low=1e-6, source="vpltool")
    rounds: int = setting(10, "EM iterations per batch.", low=1, source="PGSeg, official code")
    photos: int = setting(4, "Photos per batch.", low=1, source="vpltool")
    passes: int = setting(4, "Passes over all photos of a class.", low=1, source="vpltool")
    momentum: float = setting(0.9, "Momentum of the moving average: how much of the earlier "
                                   "prototypes each batch keeps.",
                              low=0, high=1, source="PGSeg, official code")
    reject: float = setting(0.1, "Minimum similarity of a match, as a share of the range in its "
                                 "batch; a prototype with a worse match stays as it is.", low=0,
                            high=1,
                            source="PGSeg, official code")


def estimate(pool: Pixels, text: Tensor, text_index: Tensor, settings: Settings, seed: int
             ) -> tuple[Tensor, Tensor]:
    """Put the prototypes of its seeds in place of each class's row.

    Args: those of `means.estimate`.

    Returns:
        L2-normed rows (rows', dim), float32, and their classes (rows',).

    Raises:
        VplError: background clusters are wanted, and no pixel is background.
    """
    from vpltool.core.em import em_over_photos
    from vpltool.core.seeds import replace_class_rows, seeded_classes

    rows, index = with_background(pool, text, text_index, settings, seed)
    found = {}
    for owner in seeded_classes(pool.labels):
        own = pool.labels == owner
        found[owner] = em_over_photos(
            pool.embeddings[own], pool.photo_of[own], settings.per_class, tau=settings.tau,
            rounds=settings.rounds, batch=settings.photos, passes=settings.passes,
            momentum=settings.momentum, reject=settings.reject, seed=seed)
    return replace_class_rows(rows, index, found)
