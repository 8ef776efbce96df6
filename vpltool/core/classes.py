"""Rows of prototypes and their classes: several rows may belong to one class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vpltool.lazy import Tensor, np, npt, torch

BACKGROUND = 0
"""Class index of background words and background prototypes."""

IGNORE = 255
"""Label of unlabelled pixels."""


def label_type(highest: int) -> np.dtype[Any]:
    """Return the type of label images: bytes, or 16 bits if a label is above 255 (ignored)."""
    return np.dtype(np.uint8 if highest <= 255 else np.uint16)


def renumbered(labels: npt.NDArray[np.uint8], names: Sequence[str], classes: Sequence[str]
               ) -> npt.NDArray[np.uint8]:
    """Return labels (H, W) of the classes `names` with the numbers that these have in `classes`.

    Raises:
        KeyError: a class that they show is not among `classes`; its argument is the name.
    """
    numbers = {name: number for number, name in enumerate(classes, 1)}
    table = np.arange(1 + max(IGNORE, len(names), len(classes)))
    for label in np.unique(labels[(labels > 0) & (labels != IGNORE)]).tolist():
        table[label] = numbers[names[label - 1]]
    return table.astype(label_type(len(table) - 1))[labels]


def paint(size: tuple[int, int], regions: Iterable[tuple[int, npt.NDArray[np.bool_]]], *,
          smallest_on_top: bool = False) -> npt.NDArray[np.uint8]:
    """Paint regions over each other into labels (H, W), of 16 bits if a label needs them.

    A region is a label and a mask (H, W). They are painted in order, or with `smallest_on_top` from
    the largest to the smallest.
    """
    if smallest_on_top:
        regions = sorted(regions, key=lambda region: -int(region[1].sum()))
    canvas = np.zeros(size, np.uint8)
    for label, inside in regions:
        canvas = canvas.astype(np.promote_types(canvas.dtype, label_type(label)), copy=False)
        canvas[inside] = label
    return canvas


def allowed_rows(class_index: Tensor, present: Sequence[Tensor]) -> Tensor:
    """Return which rows compete in each photo (photos, rows): of its classes and the background.

    `class_index` is the class of each row (rows,), `present` the classes of each photo (K_i,).
    """
    end = 1 + max((int(classes.max()) for classes in present if len(classes)), default=BACKGROUND)
    # One column more, for the rows of classes that no photo has.
    competes = torch.zeros(len(present), end + 1, dtype=torch.bool)
    for photo, classes in zip(competes, present, strict=True):
        photo[BACKGROUND] = photo[classes.cpu()] = True
    return competes.to(class_index.device, non_blocking=True)[:, class_index.clamp(max=end)]


@dataclass(frozen=True)
class ClassRows:
    """Indices of the rows of wanted classes. Sizes are known on the host: no waiting for a GPU.

    Classes with equally many rows form a group. `order` and `columns` are on the logits' device.
    """

    owners: Tensor  # class of each row (rows,), on the CPU
    order: Tensor  # the rows, group by group (R,)
    groups: tuple[tuple[int, int], ...]  # number of classes, and rows of each class
    columns: Tensor  # position of each wanted class within the groups (K,)


def class_rows(class_index: Tensor, classes: Tensor) -> ClassRows:
    """Find the rows of the wanted classes (K,) among rows of classes (rows,), on the CPU."""
    owners, wanted = class_index.cpu(), classes.tolist()
    rows: dict[int, list[int]] = {index: [] for index in wanted}
    for row, owner in enumerate(owners.tolist()):
        if owner in rows:
            rows[owner].append(row)
    grouped = sorted(rows, key=lambda index: len(rows[index]))
    position = {index: column for column, index in enumerate(grouped)}
    order, columns = (
        torch.tensor(numbers, dtype=torch.long).to(class_index.device, non_blocking=True)
        for numbers in ([row for index in grouped for row in rows[index]],
                        [position[index] for index in wanted]))
    sizes = Counter(len(rows[index]) for index in grouped)
    return ClassRows(owners, order, tuple((sizes[count], count) for count in sizes), columns)


def join_rows(logits: Tensor, rows: ClassRows) -> Tensor:
    """Join the logits (..., rows) of each class by log-sum-exp to (..., K); see `class_scores`."""
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
    """Join the logits (..., rows) of each wanted class's rows by log-sum-exp to (..., K).

    A softmax over the rows, summed within the classes, equals the softmax over these scores. A
    class without rows scores -inf. Rows have classes (rows,); wanted are (K,).
    """
    return join_rows(logits, class_rows(class_index, classes))
