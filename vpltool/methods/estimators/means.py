"""The mean of each class's seeds.

One reading of VPL's phase 1 without its solver: where the CAMs are sure, the pixels say what a
class looks like.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vpltool.methods.estimators._background import BackgroundSettings, with_background

if TYPE_CHECKING:
    from torch import Tensor

    from vpltool.core.group import Group
    from vpltool.methods.inputs import Pixels

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
    from vpltool.core.group import ALONE
    from vpltool.core.seeds import class_means

    rows, index = with_background(pool, text, text_index, settings, seed)
    return class_means(pool.embeddings, pool.labels, rows, index, group or ALONE), index
