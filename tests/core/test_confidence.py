"""VDA's filter and mixture, and LPCAM's centres and maps, against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from as_methods import class_and_context, class_minus_context_cam
from reference import lpcam, vda
from torch import Tensor

from vpltool.core.prototypes import spherical_kmeans
from vpltool.methods.estimators.vda import (
    Settings,
    class_probability,
    confident_means,
    mixed_prototypes,
)

DIM = 6
TEXT_INDEX = [1, 2, 2, 3, 0, 0]


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture
def text() -> Tensor:
    return unit(len(TEXT_INDEX), DIM, seed=1)


@pytest.mark.parametrize("words", [True, False])
def test_probability_is_the_loops(words: bool, text: Tensor) -> None:
    features, wanted = unit(20, DIM, seed=2), torch.arange(20) % 3 + 1
    found = class_probability(features, wanted, text, torch.tensor(TEXT_INDEX),
                              Settings(tau=0.3, rivals="words" if words else "classes"))
    assert found.tolist() == pytest.approx([
        lpcam.probability(x, owner, text.numpy(), TEXT_INDEX, 0.3, words)
        for x, owner in zip(features.numpy(), wanted.tolist(), strict=True)], abs=1e-5)


@pytest.mark.parametrize("words", [True, False])
@pytest.mark.parametrize("alpha", [0.6, 1.0, 0.0, None])
def test_vda_is_the_loops(words: bool, alpha: float | None, text: Tensor) -> None:
    """Class 3 has no region at all."""
    regions, owners = unit(30, DIM, seed=3), torch.arange(30) % 2 + 1
    index = torch.tensor(TEXT_INDEX)
    for least in (0.3, 0.7):
        means, sure = confident_means(regions, owners, text, index, Settings(
            tau=0.2, least=least, rivals="words" if words else "classes"))
        assert 0 < int(sure.sum()) < 30
        wanted = vda.prototypes(regions.numpy(), owners.tolist(), text.numpy(), TEXT_INDEX, 0.2,
                                words, least, alpha)
        np.testing.assert_allclose(mixed_prototypes(text, means, alpha).numpy(), np.stack(wanted),
                                   atol=1e-5)


def test_vda_without_a_sure_region_is_the_text(text: Tensor) -> None:
    means, sure = confident_means(unit(4, DIM, seed=4), torch.ones(4, dtype=torch.long), text,
                                  torch.tensor(TEXT_INDEX),
                                  Settings(tau=0.2, least=1.0, rivals="words"))
    assert not sure.any()
    assert torch.equal(mixed_prototypes(text, means, 0.6), text)


def test_lpcam_keeps_the_centres_of_the_loops(text: Tensor) -> None:
    pixels, index = unit(60, DIM, seed=5), torch.tensor(TEXT_INDEX)
    labels = torch.arange(60) % 3
    beside = torch.arange(60) < 40
    seen = set()
    for owner in (1, 2):
        for least, context in ((0.9, (0.05, 0.9)), (0.3, (0.1, 0.3)), (1.0, (0.0, 1.0))):
            own, around = class_and_context(
                pixels, labels, beside, owner, text, index, per_class=4, least=least,
                context=context, tau=0.3, words=True)
            centres = spherical_kmeans(pixels[labels == owner], 4)
            others = spherical_kmeans(pixels[[
                i for i in range(60) if beside[i] and labels[i] != owner]], 4)
            likely, unlikely = ([lpcam.probability(x, owner, text.numpy(), TEXT_INDEX, 0.3, True)
                                 for x in rows.numpy()] for rows in (centres, others))
            torch.testing.assert_close(own, centres[lpcam.kept_foreground(likely, least)])
            torch.testing.assert_close(around, others[lpcam.kept_context(unlikely, *context)])
            seen |= {len(own), 10 + len(around)}
    assert len(seen) > 3, "the thresholds must choose"


def test_lpcam_without_context(text: Tensor) -> None:
    """A photo that is all object."""
    pixels = unit(9, DIM, seed=6)
    own, around = class_and_context(
        pixels, torch.ones(9, dtype=torch.long), torch.ones(9, dtype=torch.bool), 1, text,
        torch.tensor(TEXT_INDEX), per_class=3, least=0.9, context=(0.05, 0.9), tau=0.3, words=True)
    assert len(own) >= 1
    assert around.shape == (0, DIM)


@pytest.mark.parametrize("grid", [(3, 4), (1, 1)])
def test_lpcam_maps_are_the_loops(grid: tuple[int, int]) -> None:
    """Class 3 has no context; the second photo has no tag."""
    patches, rows = unit(3, grid[0] * grid[1], DIM, seed=7), unit(9, DIM, seed=8)
    index = torch.tensor([1, 1, 2, 3, 0, 0, 0, 0, 0])
    context_of = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 0])
    present = [torch.tensor([1, 3]), torch.tensor([], dtype=torch.long), torch.tensor([2])]
    found = class_minus_context_cam(patches, grid, rows, index, context_of, present)
    assert [tuple(maps.shape) for maps in found] == [(len(tags), *grid) for tags in present]
    for photo, tags in enumerate(present):
        for number, tag in enumerate(tags.tolist()):
            wanted = lpcam.cam(patches[photo].numpy(), rows[index == tag].numpy(),
                               rows[context_of == tag].numpy(), grid)
            np.testing.assert_allclose(found[photo][number].numpy(), wanted, atol=1e-5)


def test_a_map_below_its_context_is_zero() -> None:
    patch = torch.eye(2)[:1][None]
    (found,) = class_minus_context_cam(patch, (1, 1), torch.tensor([[0.0, 1.0], [1.0, 0.0]]),
                                       torch.tensor([1, 0]), torch.tensor([0, 1]),
                                       [torch.tensor([1])])
    assert found.tolist() == [[[0.0]]]
