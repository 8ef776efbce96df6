"""Nearest neighbours in a bank of patches or regions of other photos.

A bank holds a row for each region or patch of many photos, with its class and its photo. A photo
asks rows of other photos only: it would find itself first.
"""

from __future__ import annotations

from vpltool.core.classes import BACKGROUND
from vpltool.lazy import Tensor, torch

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
