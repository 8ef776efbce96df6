"""Text mixed with the mean of regions that it assigns to their own tag (VDA, CVPR 2026).

A region is the mean of a class's pixels in a photo. It counts where softmax(P·T / τ) gives its own
tag more than 0.95, as VDA filters its instance prototypes. The prototypes are Q = (1 − α) T + α A
with A the mean of the regions that count. VDA models A by a normalising flow and a Gaussian mixture
(RealNVP, GMM, eight attributes a class), which is not implemented. Its best constant α is 0.6; its
other α is exp(−½‖z − μ‖²) with z in the flow's space, here by the distance of T and A. We do not
know τ, and whether background words take part in the softmax.

Example: `vpltool seed-prototypes --method vda --pixels regions`
"""

from __future__ import annotations

from dataclasses import dataclass

from vpltool import console
from vpltool.core import gap, phase_one
from vpltool.core.classes import BACKGROUND, class_scores
from vpltool.lazy import F, Tensor, torch
from vpltool.methods.estimators import means
from vpltool.settings import NoEffect, setting

READS = ("patches",)


@dataclass(frozen=True, kw_only=True)
class TextFilterSettings(means.Settings):
    """The text's softmax."""

    tau: float = setting(0.01, "Temperature of the text's softmax.", low=1e-6,
                         source="CLIP: logit scale 100")
    rivals: str = setting("classes", "Rows in the text's softmax: classes, or those and the words "
                                     "of the background.", choices=("classes", "words"),
                          source="vpltool")


@dataclass(frozen=True, kw_only=True)
class Settings(TextFilterSettings):
    """Settings of filter and mixture."""

    least: float = setting(0.95, "Probability of its own tag that a region must exceed.", low=0,
                           high=1, source="VDA")
    mixture: str = setting("constant", "How alpha is chosen; constant: as given; distance: exp(-|T "
                                       "- A|^2 / 2), by the distance between text and mean.",
                           choices=("constant", "distance"), source="VDA")
    alpha: float = setting(0.6, "Share of the regions in the mixture; 1: no text.", low=0, high=1,
                           source="VDA, its best constant", no_effect=[
                               NoEffect({"mixture": ("distance",)}, "the distance gives it")])


def estimate(pool: phase_one.Pixels, text: Tensor, text_index: Tensor, settings: Settings, seed: int
             ) -> tuple[Tensor, Tensor]:
    """Mix each class's text with the mean of its regions, if any; see `means.estimate`."""
    rows, index = means.with_background(pool, text, text_index, settings, seed)
    regions, region_class, _ = gap.photo_regions(pool.embeddings, pool.photo_of, pool.labels)
    vision, sure = confident_means(regions, region_class, text, text_index, settings)
    console.note(f"{int(sure.sum())} of {len(regions)} regions exceed {settings.least}")
    # Classes come in the text's order, whatever the background's rows are.
    kept, classes = index != 0, text_index != 0
    rows = rows.clone()
    rows[kept] = mixed_prototypes(text[classes], vision[classes],
                                  None if settings.mixture == "distance" else settings.alpha)
    return rows, index


def confident_means(
    regions: Tensor, region_class: Tensor, text: Tensor, text_index: Tensor, settings: Settings,
) -> tuple[Tensor, Tensor]:
    """Return the mean of each class's regions that the text assigns to it, for each row.

    Regions (R, dim) and text (rows, dim) are L2-normed; no region's class (R,) is the background.
    The means (rows, dim) are L2-normed, zeros for the background and where no region counts; the
    second result marks the regions that count (R,).
    """
    likely = class_probability(regions, region_class, text, text_index, settings)
    sure = likely > settings.least
    found = torch.zeros_like(text)
    for index in region_class[sure].unique().tolist():
        chosen = regions[sure & (region_class == index)].float()
        found[text_index == index] = F.normalize(chosen.mean(dim=0), dim=0)
    return found, sure


def mixed_prototypes(text: Tensor, vision: Tensor, alpha: float | None) -> Tensor:
    """Mix L2-normed rows (rows, dim) of text and vision: Q = (1 − α) T + α A, normalised.

    A row of zeros in A leaves the text as it is. The default α is exp(−½ ‖T − A‖²), row by row.
    """
    share: float | Tensor = (alpha if alpha is not None else
                             torch.exp(-(text - vision).square().sum(-1, keepdim=True) / 2))
    known = vision.any(dim=-1, keepdim=True)
    return torch.where(known, F.normalize((1 - share) * text + share * vision, dim=-1), text)


def class_probability(features: Tensor, wanted: Tensor, text: Tensor, text_index: Tensor,
                      settings: TextFilterSettings) -> Tensor:
    """Return the probability (N,) of each feature's class by the text: softmax(x·T / τ).

    A class without rows has probability 0. Features (N, dim) and text (rows, dim) are L2-normed;
    none of the `wanted` classes (N,) is the background.
    """
    logits = features.float() @ text.T / settings.tau
    if settings.rivals == "classes":
        logits = logits.masked_fill(text_index == BACKGROUND, float("-inf"))
    classes, column = wanted.unique(return_inverse=True)
    scores = class_scores(logits, text_index, classes).gather(1, column[:, None])[:, 0]
    return (scores - logits.logsumexp(dim=-1)).exp()
