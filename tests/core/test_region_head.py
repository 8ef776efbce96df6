"""Labels as regions: numbered as scipy numbers them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vpltool.core.segment import number_regions

ndimage = pytest.importorskip("scipy.ndimage")


@pytest.mark.parametrize("seed", range(6))
def test_regions_are_those_of_scipy(seed: int) -> None:
    """Neighbours over corners belong together; two classes that touch do not."""
    random = np.random.default_rng(seed)
    labels = ndimage.zoom(random.integers(0, 4, (6, 7)), 2, order=0)
    labels[random.random(labels.shape) < 0.2] = 0
    numbers = number_regions(torch.from_numpy(labels), 3, sum(labels.shape)).numpy()
    assert ((numbers > 0) == (labels > 0)).all()
    for label in (1, 2, 3):
        parts, count = ndimage.label(labels == label, np.ones((3, 3)))
        for part in range(1, count + 1):
            (number,) = np.unique(numbers[parts == part])
            assert (parts == part).sum() == (numbers == number).sum()
            assert number == np.flatnonzero(parts == part).max() + 1


def test_a_region_that_winds_further_falls_into_parts() -> None:
    labels = torch.tensor([[1] * 9])
    assert number_regions(labels, 1, 9).unique().tolist() == [9]
    assert number_regions(labels, 1, 2).tolist() == [[3, 4, 5, 6, 7, 8, 9, 9, 9]]
