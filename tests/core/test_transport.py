"""Optimal transport of patches to classes against the loops of DHR's formulas."""

from __future__ import annotations

import pytest
import torch
from as_methods import transport_maps
from reference import dhr as slow

from vpltool.methods.refiners.transport import Settings, transport_plan


@pytest.mark.parametrize(("classes", "count"), [(1, 1), (1, 7), (3, 12)])
@pytest.mark.parametrize("alike", [-1.0, 0.3, 1.0])
@pytest.mark.parametrize("background", [0.0, 0.5, 1.0])
def test_maps_are_the_loops(classes: int, count: int, alike: float, background: float) -> None:
    """Background 0 and 1: one where there is no background, one where no class wins."""
    generator = torch.Generator().manual_seed(classes)
    cams = torch.rand(classes, count, generator=generator)
    first, second = (torch.randn(count, 6, generator=generator) for _ in range(2))
    for rounds, tolerance in ((100, 1e-2), (1, 0.0), (200, 0.0)):
        found = transport_maps(cams, first, second, background=background, alike=alike,
                               epsilon=0.2, rounds=rounds, tolerance=tolerance)
        wanted = slow.transport(cams, first, second, background, alike, 0.2, rounds, tolerance)
        torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-3)


def test_the_marginals_are_uniform() -> None:
    plan = transport_plan(torch.rand(9, 4) * 2 - 1, Settings(rounds=500, tolerance=0))
    torch.testing.assert_close(plan.sum(dim=0), torch.full((4,), 1 / 4))
    torch.testing.assert_close(plan.sum(dim=1), torch.full((9,), 1 / 9), atol=1e-4, rtol=0)
