"""Several prototypes per class: spherical k-means of its seeds (CPAL, CVPR 2024).

Only the idea is CPAL's: a class that looks different from photo to photo has a prototype for each
look.
"""

from __future__ import annotations

from dataclasses import dataclass

from vpltool.core.phase_one import Pixels
from vpltool.core.prototypes import spherical_kmeans
from vpltool.lazy import Tensor
from vpltool.methods.estimators import _background
from vpltool.settings import setting

READS = ("patches",)


@dataclass(frozen=True, kw_only=True)
class Settings(_background.BackgroundSettings):
    """Settings of the clusters."""

    per_class: int = setting(4, "Prototypes per class, at most one per seed.", low=1, metavar="K",
                             source="vpltool")


def estimate(pool: Pixels, text: Tensor, text_index: Tensor, settings: Settings, seed: int
             ) -> tuple[Tensor, Tensor]:
    """Put the centres of its seeds in place of each class's row.

    Args: those of `means.estimate`.

    Returns:
        L2-normed rows (rows', dim), float32, and their classes (rows',).

    Raises:
        VplError: background clusters are wanted, and no pixel is background.
    """
    rows, index = _background.with_background(pool, text, text_index, settings, seed)
    return _background.replace_class_rows(rows, index, {
        owner: spherical_kmeans(pool.embeddings[pool.labels == owner], settings.per_class,
                                seed=seed)
        for owner in _background.seeded_classes(pool.labels)})
