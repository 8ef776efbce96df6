"""Rows of the classes and of the background, for estimators that replace some of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vpltool.core.classes import BACKGROUND
from vpltool.core.phase_one import Pixels
from vpltool.core.prototypes import spherical_kmeans
from vpltool.errors import VplError
from vpltool.lazy import Tensor, torch
from vpltool.settings import NoEffect, Settings, setting


@dataclass(frozen=True, kw_only=True)
class BackgroundSettings(Settings):
    """Settings of the background's rows."""

    background: str = setting(
        "words", "Background rows: words of the text prototypes, or clusters of the pixels below "
                 "phi-background.", choices=("words", "clusters"),
        source="vpltool's reading: GradCAM needs the background in the same space")
    clusters: int = setting(
        24, "Number of background clusters.", low=1, source="vpltool",
        no_effect=[NoEffect({"background": ("words",)}, "there is a row for each word")])


def with_background(pool: Pixels, text: Tensor, text_index: Tensor, settings: BackgroundSettings,
                    seed: int) -> tuple[Tensor, Tensor]:
    """Give the text's rows and their classes, with clusters as background if asked for.

    Clusters of the background's seeds come last, in the place of the words.

    Raises:
        VplError: no pixel is background.
    """
    if settings.background == "words":
        return text, text_index
    background = pool.embeddings[pool.labels == BACKGROUND]
    if not len(background):
        raise VplError("`background='clusters'`: no pixel is background, none is below "
                       "phi_background", "raise it, for example `phi_background=0.5`, or take "
                                         "`background='words'`")
    centres = spherical_kmeans(background, settings.clusters, seed=seed)
    kept = text_index != BACKGROUND
    return (torch.cat([text[kept], centres]),
            torch.cat([text_index[kept], text_index.new_zeros(len(centres))]))


def seeded_classes(labels: Tensor) -> list[int]:
    """Return the classes among labels (N,), without the background, ascending."""
    return [index for index in labels.unique().tolist() if index > BACKGROUND]


def replace_class_rows(start: Tensor, class_index: Tensor, found: Mapping[int, Tensor]
                       ) -> tuple[Tensor, Tensor]:
    """Replace the row of each class with the rows that were found for it.

    Args:
        start: one row a class, and background rows (rows, dim).
        class_index: class of each row (rows,).
        found: class to its rows (K, dim).

    Returns:
        rows and their classes; a class for which nothing was found keeps its row.
    """
    parts = [found.get(index, start[row][None]) for row, index in enumerate(class_index.tolist())]
    counts = torch.tensor([len(part) for part in parts], device=class_index.device)
    return torch.cat(parts), class_index.repeat_interleave(counts)
