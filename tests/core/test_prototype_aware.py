"""CPAL's prototype-aware maps against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from as_methods import prototype_aware_cam
from reference import cpal
from torch import Tensor

from vpltool.methods.estimators.context import Settings, context_prototypes

DIM = 6
INDEX = torch.tensor([1, 2, 1, 2, 1, 3, 0])


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def maps(cams: Tensor, classes: list[int], share: float = 0.5, count: int = 2, tau: float = 0.1,
         shift: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    patches, rows = unit(cams.shape[1] * cams.shape[2], DIM, seed=1), unit(len(INDEX), DIM, seed=2)
    return patches, rows, prototype_aware_cam(
        patches, cams, torch.tensor(classes, dtype=torch.long), rows, INDEX, instance=share,
        neighbours=count, tau=tau, shift=shift)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("count", [0, 1, 2, 9])
@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("grid", [(3, 4), (1, 1)])
def test_maps_are_the_loops(share: float, count: int, shift: float, grid: tuple[int, int]) -> None:
    cams = torch.rand(3, *grid, generator=torch.Generator().manual_seed(3))
    patches, rows, found = maps(cams, [1, 2, 3], share, count, 0.1, shift)
    for number, index in enumerate([1, 2, 3]):
        wanted = cpal.pacam(patches.numpy(), cams[number].numpy(), rows[index == INDEX].numpy(),
                            share, count, 0.1, shift)
        # The smallest and the largest value are near each other.
        np.testing.assert_allclose(found[number].numpy(), wanted, atol=1e-4)


def test_prototypes_depend_on_the_photo() -> None:
    cams = torch.zeros(1, 2, 3)
    found = []
    for place in range(2):
        marked = cams.clone()
        marked[0, place, 0] = 1
        found.append(maps(marked, [1])[2])
    assert float((found[0] - found[1]).abs().max()) > 0.1


def test_an_empty_map_marks_all_and_no_tag_is_no_map() -> None:
    empty = maps(torch.zeros(1, 2, 3), [1])[2]
    assert torch.equal(empty, maps(torch.ones(1, 2, 3), [1])[2])
    assert maps(torch.zeros(0, 2, 3), [])[2].shape == (0, 2, 3)


def test_a_bank_draws_regions_and_the_seed_decides() -> None:
    regions = unit(40, DIM, seed=4)
    drawn = context_prototypes(regions, Settings(per_class=99, bank=7), 1)
    assert len(drawn) == 7
    assert all(bool((row == regions).all(dim=1).any()) for row in drawn)
    assert torch.equal(drawn, context_prototypes(regions, Settings(per_class=99, bank=7), 1))
    assert not torch.equal(drawn, context_prototypes(regions, Settings(per_class=99, bank=7), 2))
    assert torch.equal(context_prototypes(regions, Settings(per_class=99), 0), regions)
    assert len(context_prototypes(regions, Settings(per_class=3, bank=7), 0)) == 3
