"""Several prototypes per class: spherical k-means of its seeds (CPAL, CVPR 2024).

Only the idea is CPAL's: a class that looks different from photo to photo has a prototype for each
look.
"""

from __future__ import annotations

from dataclasses import dataclass

from vpltool.core.phase_one import Pixels
from vpltool.core.prototypes import spherical_kmeans
from vpltool.lazy import Tensor
from vpltool.methods.estimators import means
from vpltool.settings import setting

READS = ("patches",)


@dataclass(frozen=True, kw_only=True)
class Settings(means.Settings):
    """Settings of the clusters."""

    per_class: int = setting(4, "Prototypes per class, at most one per seed.", low=1, metavar="K",
                             source="vpltool")


def estimate(pool: Pixels, text: Tensor, text_index: Tensor, settings: Settings, seed: int
             ) -> tuple[Tensor, Tensor]:
    """Replace each class's row by the centres of its seeds; see `means.estimate`."""
    return means.with_class_rows(pool, text, text_index, settings, seed, {
        owner: spherical_kmeans(pool.embeddings[pool.labels == owner], settings.per_class,
                                seed=seed)
        for owner in means.seeded_classes(pool.labels)})
