"""Joining rows by class against a log-sum-exp of each class's own rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from vpltool.core.classes import class_rows, class_scores, join_rows, paint


def slow_scores(logits: Tensor, class_index: Tensor, classes: Tensor) -> Tensor:
    columns = [logits[..., class_index == index].exp().sum(dim=-1).log() for index in classes]
    return torch.stack(columns, dim=-1)


CASES = {
    "a row each and background": ([1, 2, 3, 0, 0, 0], [0, 1, 2, 3]),
    "in no order": ([0, 3, 1, 0, 2, 3, 0], [3, 0, 2]),
    "two rows each": ([1, 2, 1, 2, 0, 0], [2, 1, 0]),
    "one class": ([4, 4, 4], [4]),
    "asked for twice": ([1, 0, 2, 0], [2, 0, 2]),
    "a class without rows": ([1, 0, 0, 3], [0, 1, 2, 3]),
}


@pytest.mark.parametrize("name", CASES)
def test_scores_and_gradients(name: str) -> None:
    index, classes = (torch.tensor(numbers) for numbers in CASES[name])
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 5, len(index), generator=generator, dtype=torch.float64)
    weight = torch.randn(2, 5, len(classes), generator=generator, dtype=torch.float64)
    known = torch.tensor([bool((index == owner).any()) for owner in classes])
    results = []
    for function in (slow_scores, class_scores):
        free = logits.clone().requires_grad_()
        scores = function(free, index, classes)
        (scores * weight)[..., known].sum().backward()
        assert free.grad is not None
        results.append((scores.detach(), free.grad))
    for found, wanted in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)
    assert bool((results[1][0][..., ~known] == float("-inf")).all())


def test_certain_logits_keep_their_digits() -> None:
    """A sum of exponentials would overflow, or vanish."""
    logits = torch.tensor([[900.0, 899.0, -900.0, -901.0]])
    found = class_scores(logits, torch.tensor([1, 1, 0, 0]), torch.tensor([0, 1]))
    torch.testing.assert_close(found, torch.tensor([[-899.68673, 900.31326]]))


def test_no_classes() -> None:
    found = class_scores(torch.zeros(2, 3), torch.tensor([0, 1, 2]),
                         torch.zeros(0, dtype=torch.long))
    assert tuple(found.shape) == (2, 0)


def test_rows_of_masked_logits() -> None:
    """As `dense_cam` has them: rows that may not compete are -inf."""
    logits = torch.tensor([[1.0, float("-inf"), 2.0, float("-inf")]])
    found = class_scores(logits, torch.tensor([1, 2, 0, 0]), torch.tensor([1, 0, 2]))
    assert found.tolist() == [[1.0, 2.0, float("-inf")]]


def test_joining_asks_the_device_nothing() -> None:
    """Meta tensors have no values: whatever waited for one would fail here."""
    rows = class_rows(torch.tensor([2, 0, 1, 0, 1, 3], device="cpu"), torch.arange(4))
    far = type(rows)(rows.owners, rows.order.to("meta"), rows.groups, rows.columns.to("meta"))
    assert tuple(join_rows(torch.zeros(2, 5, 6, device="meta"), far).shape) == (2, 5, 4)


@pytest.mark.parametrize("smallest_on_top", [False, True])
@pytest.mark.parametrize("first", [3, 254, 256, 65_535])
def test_regions_are_painted_whatever_their_labels(first: int, smallest_on_top: bool) -> None:
    small, large = np.zeros((4, 5), bool), np.zeros((4, 5), bool)
    small[1:3, 1:3], large[1:, :] = True, True
    labels = paint((4, 5), [(first, small), (2, large)], smallest_on_top=smallest_on_top)
    assert labels.dtype == (np.uint8 if first < 255 else np.uint16)
    assert (labels[small] == (first if smallest_on_top else 2)).all()
    assert (labels[large & ~small] == 2).all()
    assert not labels[~large].any()
