"""Losses of the decoder: cross-entropy on pseudo masks, regional contrast, affinity of patches."""

from __future__ import annotations

from collections.abc import Sequence

from vpltool.core.classes import BACKGROUND, IGNORE
from vpltool.lazy import F, Tensor, torch


def mask_loss(logits: Tensor, labels: Tensor, *, balanced: bool) -> Tensor:
    """Return the cross-entropy of the pixels with the pseudo masks; a mean without pixels is 0.

    Args:
        logits: (B, C, h, w); upsampled to the labels.
        labels: (B, H, W); 255 is left out.
        balanced: take the mean over background pixels and the mean over the others, half of each,
            as in WeCLIP, since most pixels are background. Else the mean over all pixels.
    """
    full = F.interpolate(logits, size=tuple(labels.shape[-2:]), mode="bilinear",
                         align_corners=False)
    terms = F.cross_entropy(full.float(), labels.long(), ignore_index=IGNORE, reduction="none")
    counted = labels != IGNORE
    if not balanced:
        return terms.sum() / counted.sum().clamp_min(1)
    background = labels == BACKGROUND
    # Not terms[part]: its length depends on the data, so the host would wait for the GPU.
    parts = [terms.where(part, terms.new_zeros(())).sum() / part.sum().clamp_min(1)
             for part in (background, counted & ~background)]
    return 0.5 * parts[0] + 0.5 * parts[1]


def patch_affinity(fused: Tensor) -> Tensor:
    """Return how much patches belong together (B, n, n): S = sigmoid(F·Fᵀ) (WeCLIP, CVPR 2024).

    F are a decoder's fused features (B, n, width), not normed.
    """
    return (fused @ fused.transpose(1, 2)).sigmoid()


def affinity_loss(fused: Tensor, labels: Tensor, grid: tuple[int, int], *, radius: int = 8
                  ) -> Tensor:
    """Return WeCLIP's affinity loss: ½·mean(1 − S) over alike pairs + ½·mean(S) over the others.

    A pair is two patches at most `radius` rows and columns apart, a patch with itself included, as
    in WeCLIP's code; alike are those of one label. Both means are over all pairs of the batch, with
    1 added to the number of pairs. The features are fused, see `patch_affinity` (B, h·w, width);
    patches with the label (B, h, w) 255 are in no pair; the grid is (h, w).
    """
    affinity = patch_affinity(fused.float())
    flat = labels.flatten(1)
    y, x = (torch.arange(length, device=flat.device) for length in grid)
    rows, columns = (axis.flatten() for axis in torch.meshgrid(y, x, indexing="ij"))
    near = torch.maximum((rows[:, None] - rows).abs(), (columns[:, None] - columns).abs()) <= radius
    known = flat != IGNORE
    counted = near & known[:, :, None] & known[:, None]
    alike = counted & (flat[:, :, None] == flat[:, None])
    apart = counted & ~alike
    return 0.5 * (((1 - affinity) * alike).sum() / (alike.sum() + 1)
                  + (affinity * apart).sum() / (apart.sum() + 1))


def regional_contrast(
    embeddings: Tensor, prototypes: Tensor, class_index: Tensor, present: Sequence[Tensor],
    mask_scale: Tensor, mask_shift: Tensor, scale: Tensor, valid: Tensor | None = None,
) -> Tensor:
    """Return the regional semantic contrast (VPL, eqs. 12 and 13).

    Each (photo, present class) is an entry. P is the mean embedding of photo i under the soft mask
    of class n, S its cosine to the prototype of n. In the symmetric InfoNCE the positive is S of
    the entry. The negatives of its row are the batch's classes that photo i does not show; those
    of its column are the photos that do not show class n. The mask is sigmoid(scale·cos + shift) as
    in TCL: a mean weighted with cosines, which can be negative, could divide by zero. Without
    negatives the loss is 0.

    Args:
        embeddings: L2-normed V (B, n, dim).
        prototypes: L2-normed W (rows, dim).
        class_index: class of each row (rows,); on the CPU, as reading a GPU would wait for it.
        present: class indices of each photo (K_i,), on the CPU.
        mask_scale: scale of the soft mask.
        mask_shift: shift of the soft mask.
        scale: 1/τ of the contrast.
        valid: False for patches of padding (B, n); None: there is no padding.
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
        (pooled[:, column] @ part.T).amax(dim=-1) for column, part in enumerate(own)
    ], dim=1) * scale
    negatives = similarity.masked_fill(shown, float("-inf"))
    # log(e^s / (e^s + Σ e^negatives)); without negatives the term is log 1 = 0.
    by_row = similarity - torch.logaddexp(similarity, negatives.logsumexp(1, keepdim=True))
    by_column = similarity - torch.logaddexp(similarity, negatives.logsumexp(0, keepdim=True))
    photo, column = pairs.unbind(1)
    return -0.5 * (by_row[photo, column].mean() + by_column[photo, column].mean())
