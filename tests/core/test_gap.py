"""The modality gap by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from vpltool.core.gap import modality_gap

ROWS = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0.6, 0.8]])
INDEX = torch.tensor([1, 2, 0, 1])


def test_gap_by_hand() -> None:
    """The nearest row of a class counts; the length of a region's mean does not."""
    gap = modality_gap(ROWS, INDEX, torch.tensor([[0, 0, 5.0], [0, 0.3, 0.4]]),
                       torch.tensor([1, 2]))
    assert gap.per_class == pytest.approx({1: 1 - 0.8, 2: 1 - 0.6})
    assert gap.cosine == pytest.approx((0.2 + 0.4) / 2)
    # Mean of the chosen rows (0, .8, .4) less that of the regions (0, .3, .9).
    assert gap.centroid == pytest.approx(math.hypot(0.5, 0.5))


def test_prototypes_in_their_regions_have_no_gap() -> None:
    gap = modality_gap(ROWS, INDEX, 3 * ROWS[:2], INDEX[:2])
    assert gap.cosine == pytest.approx(0, abs=1e-6)
    assert gap.centroid == pytest.approx(0, abs=1e-6)


def test_classes_without_regions_do_not_count() -> None:
    regions = F.normalize(torch.tensor([[1.0, 1, 0]]), dim=-1)
    first = modality_gap(ROWS, INDEX, regions, torch.tensor([2]))
    second = modality_gap(ROWS[1:2], INDEX[1:2], regions, torch.tensor([2]))
    assert first == second


def test_no_regions() -> None:
    gap = modality_gap(ROWS, INDEX, torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    assert math.isnan(gap.cosine)
    assert gap.per_class == {}
