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

from vpltool import console
from vpltool.core.classes import allowed_rows
from vpltool.core.phase_one import Pixels
from vpltool.core.prototypes import spherical_kmeans
from vpltool.lazy import Tensor, torch
from vpltool.methods.estimators import means, vda
from vpltool.settings import setting

READS = ("patches",)


@dataclass(frozen=True, kw_only=True)
class Settings(vda.TextFilterSettings):
    """Settings of clusters and filter."""

    per_class: int = setting(12, "Clusters per class, and per context of a class.", low=1,
                             metavar="K", source="LPCAM, official code")
    least: float = setting(0.9, "Probability that a centre of a class must exceed.", low=0, high=1,
                           source="LPCAM, official code")
    context_least: float = setting(0.05, "Probability that a centre of a context must exceed.",
                                   low=0, high=1, source="LPCAM, official code")
    context_most: float = setting(0.9, "Probability that a centre of a context must stay below.",
                                  low=0, high=1, source="LPCAM, official code")


def estimate(pool: Pixels, text: Tensor, text_index: Tensor, settings: Settings, seed: int
             ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Replace each class's row by the centres of its seeds, and append those of its context.

    See `means.estimate`; each row has a `context_of` (rows',).
    """
    owners = means.seeded_classes(pool.labels)
    shown = allowed_rows(text_index.new_tensor(owners), pool.tags)
    own, around, context_of = {}, [text[:0]], []
    for number, owner in enumerate(owners):
        own[owner], context = class_and_context(
            pool, shown[pool.photo_of, number], owner, text, text_index, settings, seed)
        around.append(context)
        context_of += [owner] * len(context)
    rows, index = means.with_class_rows(pool, text, text_index, settings, seed, own)
    behind = index.new_tensor(context_of)
    console.note(f"{int((index > 0).sum())} centres of classes, {len(behind)} of their contexts")
    return (torch.cat([rows, *around]), torch.cat([index, torch.zeros_like(behind)]),
            {"context_of": torch.cat([torch.zeros_like(index), behind])})


def class_and_context(pool: Pixels, beside: Tensor, index: int, text: Tensor, text_index: Tensor,
                      settings: Settings, seed: int) -> tuple[Tensor, Tensor]:
    """Return the centres of a class with seeds (K', dim), and those of its context (K'', dim).

    `beside` marks the pixels of photos that show the class (N,). The likeliest centre of the class
    always stays; the context may have none.
    """
    pixels, labels = pool.embeddings, pool.labels

    def probability(centres: Tensor) -> Tensor:
        wanted = labels.new_full((len(centres),), index)
        return vda.class_probability(centres, wanted, text, text_index, settings)

    own = spherical_kmeans(pixels[labels == index], settings.per_class, seed=seed).float()
    likely = probability(own)
    own = own[(likely > settings.least) | (likely == likely.max())]
    around = pixels[beside & (labels != index)]
    if not len(around):
        return own, own[:0]
    others = spherical_kmeans(around, settings.per_class, seed=seed).float()
    likely = probability(others)
    return own, others[(likely > settings.context_least) & (likely < settings.context_most)]
