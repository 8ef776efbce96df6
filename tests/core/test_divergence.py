"""The divergence affinity against the pair-by-pair formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from reference import cd_clip as slow
from torch import Tensor

from vpltool.methods.refiners.divergence import Settings, divergence, spread, text_distributions


def some_patches(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (F.normalize(torch.randn(count, 8, generator=generator), dim=-1),
            F.normalize(torch.randn(5, 8, generator=generator), dim=-1))


@pytest.mark.parametrize("count", [1, 2, 13])
@pytest.mark.parametrize("stretch", ["row", "all"])
@pytest.mark.parametrize("tau", [1.0, 0.02])
def test_divergences_are_those_of_the_formula(count: int, stretch: str, tau: float) -> None:
    """With tau 0.02 some probabilities are zero in single precision."""
    patches, rows = some_patches(count)
    likely = text_distributions(patches, rows, Settings(tau_text=tau, stretch=stretch))
    wanted = slow.distributions(patches, rows, tau, stretch)
    torch.testing.assert_close(likely, torch.tensor(wanted), atol=1e-5, rtol=1e-4)
    found = divergence(likely)
    pairs = torch.tensor([[slow.jensen_shannon(p, q) for q in wanted] for p in wanted])
    torch.testing.assert_close(found, pairs, atol=2e-5, rtol=1e-3)
    assert torch.equal(found, found.T)
    assert not found.diagonal().any()


def test_distributions_apart_are_a_bit_apart() -> None:
    assert divergence(torch.eye(3)).tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]


@pytest.mark.parametrize(("classes", "count"), [(0, 6), (1, 1), (3, 12)])
@pytest.mark.parametrize("combine", ["product", "entries"])
@pytest.mark.parametrize("steps", [1, 3])
def test_maps_are_spread_as_by_the_matrices(classes: int, count: int, combine: str, steps: int
                                            ) -> None:
    patches, rows = some_patches(count, seed=3)
    generator = torch.Generator().manual_seed(4)
    attention = (2 * torch.randn(count, count, generator=generator)).softmax(dim=-1) * 0.9
    cams = torch.rand(classes, count, generator=generator)
    likely = text_distributions(patches, rows, Settings(tau_text=0.1))
    found = spread(cams.T, attention, likely, Settings(tau=0.2, steps=steps, combine=combine)).T
    wanted = slow.spread(cams, attention, slow.distributions(patches, rows, 0.1, "row"), 0.2,
                         steps, combine)
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-4)
    assert not count > 1 or not classes or float((found - cams).abs().max()) > 0.01
