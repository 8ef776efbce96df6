"""Which features the text takes for their own class, and prototypes mixed of text and these (VDA).

VDA (CVPR 2026) lets instance prototypes count only where the text recognises them. Its normalising
flow and mixture model (RealNVP, GMM) are not here: the instances' mean is what the text is mixed
with.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vpltool.core.classes import BACKGROUND, class_scores


def class_probability(features: Tensor, wanted: Tensor, text: Tensor, text_index: Tensor, *,
                      tau: float, words: bool) -> Tensor:
    """Return the probability of each feature's class by the text: softmax(x·T / τ).

    Args:
        features: L2-normed (N, dim).
        wanted: the class of each feature (N,), none of them the background.
        text: text prototypes, L2-normed (rows, dim).
        text_index: class of each row (rows,).
        tau: τ.
        words: whether the background's rows take part.

    Returns:
        (N,); a class without rows has probability 0.
    """
    logits = features.float() @ text.T / tau
    if not words:
        logits = logits.masked_fill(text_index == BACKGROUND, float("-inf"))
    classes, column = wanted.unique(return_inverse=True)
    scores = class_scores(logits, text_index, classes).gather(1, column[:, None])[:, 0]
    return (scores - logits.logsumexp(dim=-1)).exp()


def confident_means(
    regions: Tensor, region_class: Tensor, text: Tensor, text_index: Tensor, *, tau: float,
    least: float, words: bool,
) -> tuple[Tensor, Tensor]:
    """Return the mean of each class's regions that the text takes for this class.

    Args:
        regions: L2-normed region features (R, dim).
        region_class: class of each region (R,), none of them the background.
        text: text prototypes, L2-normed (rows, dim).
        text_index: class of each row (rows,).
        tau: temperature of the text's softmax.
        least: probability that a region must exceed.
        words: whether the background's rows take part in the softmax.

    Returns:
        for each row of the text the L2-normed mean of its class (rows, dim), zeros where no region
        counts and for the background; and which regions count (R,), bool.
    """
    sure = class_probability(regions, region_class, text, text_index, tau=tau, words=words) > least
    means = torch.zeros_like(text)
    for index in region_class[sure].unique().tolist():
        chosen = regions[sure & (region_class == index)].float()
        means[text_index == index] = F.normalize(chosen.mean(dim=0), dim=0)
    return means, sure


def mixed_prototypes(text: Tensor, vision: Tensor, alpha: float | None) -> Tensor:
    """Mix rows of text and vision: Q = (1 − α) T + α A, normalised.

    Args:
        text: T, L2-normed (rows, dim).
        vision: A, L2-normed (rows, dim); a row of zeros leaves the text as it is.
        alpha: α; None: exp(−½ ‖T − A‖²), row by row: the further, the less.

    Returns:
        L2-normed (rows, dim).
    """
    share: float | Tensor = (alpha if alpha is not None else
                             torch.exp(-(text - vision).square().sum(-1, keepdim=True) / 2))
    known = vision.any(dim=-1, keepdim=True)
    return torch.where(known, F.normalize((1 - share) * text + share * vision, dim=-1), text)
