"""Rows of prototypes and the classes they stand for: several rows may share a class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BACKGROUND = 0
"""Class index of background words and background prototypes."""


def allowed_rows(class_index: Tensor, present: Sequence[Tensor]) -> Tensor:
    """Mark the rows that compete in each photo: its present classes and the background.

    Args:
        class_index: class of each row (rows,).
        present: class indices that each photo shows, one tensor (K_i,) a photo.

    Returns:
        bool (photos, rows).
    """
    marks = torch.stack([torch.isin(class_index, classes.to(class_index)) for classes in present])
    return marks | (class_index == BACKGROUND)


def class_scores(logits: Tensor, class_index: Tensor, classes: Tensor) -> Tensor:
    """Join the rows of each class by log-sum-exp.

    A softmax over the rows, summed within the classes, equals the softmax over these scores.

    Args:
        logits: (..., rows).
        class_index: class of each row (rows,).
        classes: class indices wanted (K,).

    Returns:
        (..., K); a class without rows scores -inf.
    """
    columns = []
    for index in classes.tolist():
        rows = (class_index == index).nonzero()[:, 0]
        columns.append(logits.index_select(-1, rows).logsumexp(dim=-1) if len(rows)
                       else logits.new_full(logits.shape[:-1], float("-inf")))
    if not columns:
        return logits.new_zeros((*logits.shape[:-1], 0))
    return torch.stack(columns, dim=-1)
