"""The mean of each class's seeds.

One reading of VPL's phase 1 without its solver: where the CAMs are sure, the pixels say what a
class looks like.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vpltool import settings
from vpltool.core import classes, distributed, prototypes
from vpltool.core.phase_one import Pixels
from vpltool.errors import VplError
from vpltool.lazy import F, Tensor, torch
from vpltool.settings import NoEffect, setting

READS = ("patches",)


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of the background's rows, which other estimators inherit."""

    background: str = setting(
        "words", "Background rows: words of the text prototypes, or clusters of the pixels below "
                 "phi-background.", choices=("words", "clusters"),
        source="vpltool's reading: GradCAM needs the background in the same space")
    clusters: int = setting(
        24, "Number of background clusters.", low=1, source="vpltool",
        no_effect=[NoEffect({"background": ("words",)}, "there is a row for each word")])


def divides(settings: Settings) -> bool:
    """Return whether several processes can share the pixels: means are sums, clusters are not."""
    return settings.background == "words"


def estimate(pool: Pixels, text: Tensor, text_index: Tensor, settings: Settings, seed: int,
             group: distributed.Group | None = None) -> tuple[Tensor, Tensor]:
    """Replace each class's row by the mean of its seeds.

    Args:
        pool: pixels with their seed labels.
        text: text prototypes (rows, dim).
        text_index: class of each row (rows,), 0 is the background.
        settings: source of the background's rows.
        seed: of the random numbers.
        group: processes that hold the pixels, if the method `divides`.

    Returns:
        L2-normed rows (rows', dim), float32, and their classes (rows',). Other methods may add a
        dictionary of tensors to store for each row, `context_of` or `photo_of` (rows',).

    Raises:
        VplError: background clusters are wanted, and no pixel is background.
    """
    rows, index = with_background(pool, text, text_index, settings, seed)
    return class_means(pool.embeddings, pool.labels, rows, index, group or distributed.ALONE), index


def class_means(pixels: Tensor, labels: Tensor, start: Tensor, class_index: Tensor,
                group: distributed.Group) -> Tensor:
    """Replace the row of each class with seeds, but not the background's, by their mean.

    Pixels (N, dim), with labels (N,), and rows (rows, dim), with classes (rows,), are L2-normed.
    """
    rows = start.clone()
    for row, index in enumerate(class_index.tolist()):
        if index == classes.BACKGROUND:
            continue
        chosen = pixels[labels == index]
        if group.count > 1:
            # The length of a mean is normalised away, so the sum will do.
            total = group.total(chosen.double().sum(dim=0)).float()
            if bool(total.any()):
                rows[row] = F.normalize(total, dim=0)
        elif len(chosen):
            rows[row] = F.normalize(chosen.float().mean(dim=0), dim=0)
    return rows


def with_background(pool: Pixels, text: Tensor, text_index: Tensor, settings: Settings, seed: int
                    ) -> tuple[Tensor, Tensor]:
    """Return the text's rows and their classes, with the background's words or clusters.

    Clusters of the background's seeds come last. Raises a VplError if there are no such seeds.
    """
    if settings.background == "words":
        return text, text_index
    background = pool.embeddings[pool.labels == classes.BACKGROUND]
    if not len(background):
        raise VplError("`background='clusters'`: no pixel is background, none is below "
                       "phi_background", "raise it, for example `phi_background=0.5`, or take "
                                         "`background='words'`")
    centres = prototypes.spherical_kmeans(background, settings.clusters, seed=seed)
    kept = text_index != classes.BACKGROUND
    return (torch.cat([text[kept], centres]),
            torch.cat([text_index[kept], text_index.new_zeros(len(centres))]))


def seeded_classes(labels: Tensor) -> list[int]:
    """Return the classes among labels (N,), without the background, ascending."""
    return [index for index in labels.unique().tolist() if index > classes.BACKGROUND]


def with_class_rows(pool: Pixels, text: Tensor, text_index: Tensor, settings: Settings, seed: int,
                    found: Mapping[int, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the rows found for each class (K, dim), or its text, with the rows' classes.

    The background's rows are those of `with_background`.
    """
    start, index = with_background(pool, text, text_index, settings, seed)
    parts = [found.get(owner, start[row][None]) for row, owner in enumerate(index.tolist())]
    counts = torch.tensor([len(part) for part in parts], device=index.device)
    return torch.cat(parts), index.repeat_interleave(counts)
