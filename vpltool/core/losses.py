"""Losses of the decoder: cross-entropy on pseudo masks, and the regional semantic contrast."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vpltool.core.classes import BACKGROUND


def mask_loss(logits: Tensor, labels: Tensor, *, balanced: bool = True,
              ignore: int = 255) -> Tensor:
    """Cross-entropy of the pixels with the pseudo masks.

    Args:
        logits: (B, C, h, w); upsampled to the labels.
        labels: (B, H, W).
        balanced: half the mean over background pixels and half that over the others, as WeCLIP
            has it: most pixels are background. Otherwise the mean over all pixels.
        ignore: label that is not counted.

    Returns:
        the loss; what has no pixel counts 0.
    """
    full = F.interpolate(logits, size=tuple(labels.shape[-2:]), mode="bilinear",
                         align_corners=False)
    terms = F.cross_entropy(full.float(), labels.long(), ignore_index=ignore, reduction="none")
    counted = labels != ignore
    if not balanced:
        return terms.sum() / counted.sum().clamp_min(1)
    behind = labels == BACKGROUND
    parts = [terms[part].sum() / part.sum().clamp_min(1) for part in (behind, counted & ~behind)]
    return 0.5 * parts[0] + 0.5 * parts[1]


def regional_contrast(
    embeddings: Tensor, prototypes: Tensor, class_index: Tensor, present: Sequence[Tensor],
    mask_scale: Tensor, mask_shift: Tensor, scale: Tensor, valid: Tensor | None = None,
) -> Tensor:
    """Regional semantic contrast (VPL, eqs. 12 and 13).

    Each (photo, present class) is an entry. P is the mean embedding of photo i under the soft mask
    of class n, S its cosine to the prototype of n. The symmetric InfoNCE takes S of an entry as
    positive; its negatives are, along the row, the batch's classes that photo i does not show, and
    along the column, the photos that do not show class n. Classes that a photo does show are no
    negatives. The mask is sigmoid(scale·cos + shift) as in TCL: cosines themselves can be
    negative, and a mean weighted by them has no bounded denominator.

    Args:
        embeddings: L2-normed V (B, n, dim).
        prototypes: L2-normed W (rows, dim).
        class_index: class of each row (rows,).
        present: class indices of each photo (K_i,).
        mask_scale: scale of the soft mask.
        mask_shift: its shift.
        scale: 1/τ of the contrast.
        valid: True where a patch is no padding (B, n); None: everywhere.

    Returns:
        the loss; 0 if no entry has a negative.
    """
    classes = torch.unique(torch.cat([item.to(class_index) for item in present]))
    classes = classes[classes != BACKGROUND]
    shown = torch.stack([torch.isin(classes, item.to(classes)) for item in present])
    if not bool(shown.any()):
        return embeddings.sum() * 0
    cosine = torch.stack([
        (embeddings @ prototypes[class_index == index].T).amax(dim=-1) for index in classes
    ], dim=1)
    soft = (mask_scale * cosine + mask_shift).sigmoid()
    if valid is not None:
        soft = soft * valid[:, None]
    pooled = soft @ embeddings / soft.sum(dim=-1, keepdim=True).clamp_min(1e-6)
    pooled = F.normalize(pooled, dim=-1)
    similarity = torch.stack([
        (pooled[:, place] @ prototypes[class_index == index].T).amax(dim=-1)
        for place, index in enumerate(classes)
    ], dim=1) * scale
    negatives = similarity.masked_fill(shown, float("-inf"))
    # log(e^s / (e^s + Σ e^negatives)); without negatives the term is log 1 = 0.
    by_row = similarity - torch.logaddexp(similarity, negatives.logsumexp(1, keepdim=True))
    by_column = similarity - torch.logaddexp(similarity, negatives.logsumexp(0, keepdim=True))
    return -0.5 * (by_row[shown].mean() + by_column[shown].mean())
