"""Clusters of each class and of its context, separated by the text (LPCAM, CVPR 2023).

For each class: cosine k-means on its seeds, and on the other pixels of the photos that show it.
Centres of the class stay where the classifier is sure of them (p > 0.9), at least the surest; those
of the context where it takes them for the class sometimes (0.05 < p < 0.9): grass, which comes with
cows. LPCAM's classifier is trained on the tags; here it is softmax(x·T / τ) of the text. Context
rows are stored as background rows that say whose context they are; `cam --method lpcam` reads that.
LPCAM splits at a CAM of 0.1: `--phi 0.1 --phi-background 0.1`. A pixel whose strongest map is that
of another tag counts as context, where LPCAM looks at each map alone.

Example: `vpltool seed-prototypes --method lpcam --phi 0.1 --phi-background 0.1`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vpltool import console
from vpltool.methods.estimators._background import with_background
from vpltool.methods.estimators._text_filter import TextFilterSettings
from vpltool.settings import setting

if TYPE_CHECKING:
    from torch import Tensor

    from vpltool.methods.inputs import Pixels

READS = ("patches",)


@dataclass(frozen=True, kw_only=True)
class Settings(TextFilterSettings):
    """Settings of clusters and filter."""

    per_class: int = setting(12, "Clusters per class, and per context of a class.", low=1,
                             metavar="K",
                             source="LPCAM, official code")
    least: float = setting(0.9, "Probability that a centre of a class must exceed.", low=0, high=1,
                           source="LPCAM, official code")
    context_least: float = setting(0.05, "Probability that a centre of a context must exceed.",
                                   low=0, high=1, source="LPCAM, official code")
    context_most: float = setting(0.9, "Probability that a centre of a context must stay below.",
                                  low=0, high=1, source="LPCAM, official code")


def estimate(pool: Pixels, text: Tensor, text_index: Tensor, settings: Settings, seed: int
             ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Put the centres of its seeds in place of each class's row, and those of its context after.

    Args: those of `means.estimate`.

    Returns:
        L2-normed rows (rows', dim), float32; their classes (rows',); and `context_of` (rows',).

    Raises:
        VplError: background clusters are wanted, and no pixel is background.
    """
    import torch

    from vpltool.core.classes import allowed_rows
    from vpltool.core.context import class_and_context
    from vpltool.core.seeds import replace_class_rows, seeded_classes

    rows, index = with_background(pool, text, text_index, settings, seed)
    owners = seeded_classes(pool.labels)
    shown = allowed_rows(index.new_tensor(owners), pool.tags)
    own, around, context_of = {}, [rows[:0]], []
    for number, owner in enumerate(owners):
        own[owner], context = class_and_context(
            pool.embeddings, pool.labels, shown[pool.photo_of, number], owner, text, text_index,
            per_class=settings.per_class, least=settings.least,
            context=(settings.context_least, settings.context_most), tau=settings.tau,
            words=settings.rivals == "words", seed=seed)
        around.append(context)
        context_of += [owner] * len(context)
    rows, index = replace_class_rows(rows, index, own)
    behind = index.new_tensor(context_of)
    console.note(f"{int((index > 0).sum())} centres of classes, {len(behind)} of their contexts")
    return (torch.cat([rows, *around]), torch.cat([index, torch.zeros_like(behind)]),
            {"context_of": torch.cat([torch.zeros_like(index), behind])})
