"""Rows of prototypes and the classes they stand for: several rows may share a class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

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
    marks = torch.stack([torch.isin(class_index, classes.to(class_index, non_blocking=True))
                         for classes in present])
    return marks | (class_index == BACKGROUND)


@dataclass(frozen=True)
class ClassRows:
    """Where the rows of wanted classes lie, known on the host: using it, no GPU is waited for.

    Args:
        owners: class of each row (rows,), on the host.
        order: the rows, group by group (R,); on the logits' device, as `columns`.
        groups: classes with equally many rows share a group: (number of classes, rows of each).
        columns: place of each wanted class in the groups (K,).
    """

    owners: Tensor
    order: Tensor
    groups: tuple[tuple[int, int], ...]
    columns: Tensor


def class_rows(class_index: Tensor, classes: Tensor) -> ClassRows:
    """Find the rows of classes; reads both tensors to the host.

    Args:
        class_index: class of each row (rows,).
        classes: class indices wanted (K,).
    """
    owners, wanted = class_index.cpu(), classes.tolist()
    rows: dict[int, list[int]] = {index: [] for index in wanted}
    for row, owner in enumerate(owners.tolist()):
        if owner in rows:
            rows[owner].append(row)
    alike: dict[int, list[int]] = defaultdict(list)
    for index, own in rows.items():
        alike[len(own)].append(index)
    grouped = [index for members in alike.values() for index in members]
    place = {index: column for column, index in enumerate(grouped)}
    order, columns = (
        torch.tensor(numbers, dtype=torch.long).to(class_index.device, non_blocking=True)
        for numbers in ([row for index in grouped for row in rows[index]],
                        [place[index] for index in wanted]))
    groups = tuple((len(members), count) for count, members in alike.items())
    return ClassRows(owners, order, groups, columns)


def join_rows(logits: Tensor, rows: ClassRows) -> Tensor:
    """Join rows (..., rows) of each class by log-sum-exp: (..., K), see `class_scores`."""
    if not rows.groups:
        return logits.new_zeros((*logits.shape[:-1], 0))
    parts = logits.index_select(-1, rows.order).split(
        [classes * count for classes, count in rows.groups], dim=-1)
    scores = []
    for part, (classes, count) in zip(parts, rows.groups, strict=True):
        if count == 0:
            part = part.new_full((*part.shape[:-1], classes), float("-inf"))
        elif count > 1:
            part = part.unflatten(-1, (classes, count)).logsumexp(dim=-1)
        scores.append(part)
    return torch.cat(scores, dim=-1).index_select(-1, rows.columns)


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
    return join_rows(logits, class_rows(class_index, classes))
