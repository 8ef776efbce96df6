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
    # Not terms[part]: how many these are, the host would have to wait for.
    parts = [terms.where(part, terms.new_zeros(())).sum() / part.sum().clamp_min(1)
             for part in (behind, counted & ~behind)]
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

    `class_index` and `present` are best on the host: what is there then makes no GPU wait.

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
    owners = class_index.cpu()
    classes = torch.unique(torch.cat([item.to(owners) for item in present]))
    classes = classes[classes != BACKGROUND]
    marks = torch.stack([torch.isin(classes, item.to(owners)) for item in present])
    if not bool(marks.any()):
        return embeddings.sum() * 0
    rows = [(owners == index).nonzero()[:, 0] for index in classes]
    order, shown, pairs = (item.to(prototypes.device, non_blocking=True)
                           for item in (torch.cat(rows), marks, marks.nonzero()))
    own = prototypes.index_select(0, order).split([len(part) for part in rows])
    cosine = torch.stack([(embeddings @ part.T).amax(dim=-1) for part in own], dim=1)
    soft = (mask_scale * cosine + mask_shift).sigmoid()
    if valid is not None:
        soft = soft * valid[:, None]
    pooled = soft @ embeddings / soft.sum(dim=-1, keepdim=True).clamp_min(1e-6)
    pooled = F.normalize(pooled, dim=-1)
    similarity = torch.stack([
        (pooled[:, place] @ part.T).amax(dim=-1) for place, part in enumerate(own)
    ], dim=1) * scale
    negatives = similarity.masked_fill(shown, float("-inf"))
    # log(e^s / (e^s + Σ e^negatives)); without negatives the term is log 1 = 0.
    by_row = similarity - torch.logaddexp(similarity, negatives.logsumexp(1, keepdim=True))
    by_column = similarity - torch.logaddexp(similarity, negatives.logsumexp(0, keepdim=True))
    photo, place = pairs.unbind(1)
    return -0.5 * (by_row[photo, place].mean() + by_column[photo, place].mean())
