"""The mean of each class's seeds.

One reading of VPL's phase 1 without its solver: where the CAMs are sure, the pixels say what a
class looks like.
"""

from __future__ import annotations

from dataclasses import dataclass

from vpltool.core.classes import BACKGROUND
from vpltool.core.distributed import ALONE, Group
from vpltool.core.phase_one import Pixels
from vpltool.lazy import F, Tensor
from vpltool.methods.estimators._background import BackgroundSettings, with_background

READS = ("patches",)


@dataclass(frozen=True, kw_only=True)
class Settings(BackgroundSettings):
    """Settings of the means."""


def divides(settings: Settings) -> bool:
    """Tell whether several processes can share the pixels: means are sums, clusters are not."""
    return settings.background == "words"


def estimate(pool: Pixels, text: Tensor, text_index: Tensor, settings: Settings, seed: int,
             group: Group | None = None) -> tuple[Tensor, Tensor]:
    """Put the mean of its seeds in place of each class's row.

    Args:
        pool: pixels with their seed labels.
        text: text prototypes (rows, dim).
        text_index: class of each row (rows,), 0 is the background.
        settings: what the background's rows are.
        seed: start of the random numbers.
        group: processes that hold the pixels; only of a method with `divides` there are several.

    Returns:
        L2-normed rows (rows', dim), float32, and their classes (rows',). A method may add a third
        thing: what else is to be stored of each row, `context_of` or `photo_of` (rows',).

    Raises:
        VplError: background clusters are wanted, and no pixel is background.
    """
    rows, index = with_background(pool, text, text_index, settings, seed)
    return class_means(pool.embeddings, pool.labels, rows, index, group or ALONE), index


def class_means(pixels: Tensor, labels: Tensor, start: Tensor, class_index: Tensor,
                group: Group) -> Tensor:
    """Replace each class's row with the mean of its seeds; classes without seeds keep theirs.

    Args:
        pixels: L2-normed (N, dim).
        labels: class of each pixel (N,).
        start: rows (rows, dim).
        class_index: class of each row (rows,); the background's rows are not changed.
        group: processes that hold the pixels.

    Returns:
        L2-normed rows (rows, dim).
    """
    rows = start.clone()
    for row, index in enumerate(class_index.tolist()):
        if index == BACKGROUND:
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
