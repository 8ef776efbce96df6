"""What the photos of a data set say about one photo: its nearest rows in a bank.

A bank holds a row for each region or patch of many photos, with its class and its photo. A photo
asks rows of other photos only: it would find itself first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vpltool.core.classes import BACKGROUND

_ENTRIES = 1 << 22
"""Cosines that are held at a time: a bank may have millions of rows."""


def rows_of_others(class_index: Tensor, photo_of: Tensor, tags: Tensor, own: int) -> Tensor:
    """Mark the rows that a photo may ask: of its tags and of the background, from other photos.

    Args:
        class_index: class of each row (rows,).
        photo_of: number of the photo of each row (rows,); below 0: of none, never asked.
        tags: class indices of the photo (K,).
        own: number of the photo itself; -1 if the bank does not know it.

    Returns:
        bool (rows,).
    """
    shown = torch.isin(class_index, tags.to(class_index)) | (class_index == BACKGROUND)
    return shown & (photo_of >= 0) & (photo_of != own)


def nearest_rows(queries: Tensor, bank: Tensor, allowed: Tensor, count: int
                 ) -> tuple[Tensor, Tensor]:
    """Find the rows of the largest cosine, part by part: memory does not grow with the bank.

    Args:
        queries: L2-normed (n, dim).
        bank: L2-normed rows (rows, dim).
        allowed: indices of the rows that may be found (m,).
        count: k; there are fewer if fewer are allowed.

    Returns:
        cosines (n, k), the largest first, float32; and the indices of their rows (n, k).
    """
    queries = queries.float()
    best, rows = queries.new_empty(len(queries), 0), allowed.new_empty(len(queries), 0)
    for part in allowed.split(max(1, _ENTRIES // max(*queries.shape, 1))):
        cosines = queries @ bank[part].float().T
        near, index = cosines.topk(min(count, len(part)), dim=-1)
        best, rows = torch.cat([best, near], dim=-1), torch.cat([rows, part[index]], dim=-1)
        best, index = best.topk(min(count, best.shape[1]), dim=-1)
        rows = rows.gather(1, index)
    return best, rows


def soft_labels(patches: Tensor, classes: Tensor, bank: Tensor, class_index: Tensor,
                allowed: Tensor, *, count: int, tau: float) -> Tensor:
    """Return the share of each class among a patch's nearest rows, weighted by softmax(cos / τ).

    Args:
        patches: L2-normed (n, dim).
        classes: class indices wanted (K,).
        bank: L2-normed rows (rows, dim).
        class_index: class of each row (rows,).
        allowed: indices of the rows that are asked (m,).
        count: rows that a patch asks.
        tau: τ.

    Returns:
        (n, K) float32; the rest to 1 is the background. Zeros if no row is allowed.
    """
    if not len(classes):
        return patches.new_zeros(len(patches), 0, dtype=torch.float32)
    cosines, rows = nearest_rows(patches, bank, allowed, count)
    owners, weights = class_index[rows], (cosines / tau).softmax(dim=-1)
    return torch.stack([(weights * (owners == index)).sum(dim=-1) for index in classes.tolist()],
                       dim=-1)


def supports(regions: Tensor, region_class: Tensor, bank: Tensor, class_index: Tensor,
             photo_of: Tensor, own: int, *, count: int) -> Tensor:
    """Return the mean of the rows most similar to each region, of its class, from other photos.

    The background's rows come from photos that share a tag with this one.

    Args:
        regions: L2-normed region features of a photo (R, dim).
        region_class: their classes (R,), those of the photo's tags and the background.
        bank: L2-normed rows (rows, dim).
        class_index: class of each row (rows,).
        photo_of: number of the photo of each row (rows,), below 0 for none.
        own: number of the photo itself, see `rows_of_others`.
        count: rows that are averaged.

    Returns:
        L2-normed (R, dim), float32; a region without rows to ask supports itself.
    """
    tags = region_class[region_class != BACKGROUND]
    allowed_rows = rows_of_others(class_index, photo_of, tags, own)
    alike = photo_of[allowed_rows & (class_index != BACKGROUND)]
    allowed_rows &= (class_index != BACKGROUND) | torch.isin(photo_of, alike)
    found = regions.float().clone()
    for number, index in enumerate(region_class.tolist()):
        allowed = (allowed_rows & (class_index == index)).nonzero()[:, 0]
        if len(allowed):
            _, rows = nearest_rows(regions[number][None], bank, allowed, count)
            found[number] = F.normalize(bank[rows[0]].float().mean(dim=0), dim=0)
    return found


def supported_cam(patches: Tensor, regions: Tensor, support: Tensor, *, share: float, tau: float
                  ) -> Tensor:
    """Return the softmax of each patch over a photo's regions, scored with what supports them.

    Args:
        patches: L2-normed (n, dim).
        regions: L2-normed (R, dim).
        support: L2-normed (R, dim), see `supports`.
        share: weight of the support's cosine; the rest is that of the region itself.
        tau: temperature.

    Returns:
        (R, n), float32; columns sum to 1. A region of zeros, that of an empty map, has none.
    """
    logits = (1 - share) * (regions @ patches.T) + share * (support @ patches.T)
    logits[~regions.any(dim=-1)] = float("-inf")
    return (logits / tau).softmax(dim=0)
