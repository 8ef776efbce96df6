"""Prototypes by EM against PGSeg's formulas in loops; and the released code's defects, kept out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import pgseg
from torch import Tensor

from vpltool.core.npr import best_matchings, em_prototypes
from vpltool.core.prototypes import spherical_kmeans
from vpltool.methods.estimators.em import Settings, em_over_photos, moving_average

DIM = 8


def unit(count: int, seed: int, dim: int = DIM) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, dim, generator=generator), dim=-1)


def total(similarity: Tensor, columns: tuple[int, ...]) -> float:
    return sum(float(similarity[row, column]) for row, column in enumerate(columns))


@pytest.mark.parametrize("count", range(1, 7))
def test_matching_is_the_best_of_all(count: int) -> None:
    for seed in range(20):
        similarity = torch.randn(count, count, generator=torch.Generator().manual_seed(seed))
        found = best_matchings(similarity[None])[0].tolist()
        assert sorted(found) == list(range(count))
        best = max(total(similarity, columns) for columns in itertools.permutations(range(count)))
        assert total(similarity, found) == pytest.approx(best, abs=1e-6)


def test_matching_of_equals() -> None:
    assert sorted(best_matchings(torch.ones(1, 5, 5))[0].tolist()) == list(range(5))


@pytest.mark.parametrize(("count", "tau", "rounds"), [(1, 0.1, 1), (3, 0.05, 10), (4, 1.0, 3)])
def test_em_is_the_loops(count: int, tau: float, rounds: int) -> None:
    pixels, start = unit(30, 1), unit(count, 2)
    wanted = pgseg.em(pixels.double().numpy(), start.double().numpy(), tau, rounds)
    found = em_prototypes(pixels, start, tau=tau, rounds=rounds)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("reject", [0.0, 0.1, 0.6, 1.0])
def test_moving_average_is_the_loops(count: int, reject: float) -> None:
    for seed in range(5):
        old, new = unit(count, seed), unit(count, seed + 100)
        wanted = pgseg.update(old.double().numpy(), new.double().numpy(), 0.9, reject)
        found = moving_average(old, new, Settings(momentum=0.9, reject=reject))
        np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)


def test_the_average_runs() -> None:
    """In PGSeg's code it never does: prototypes stay where they were drawn."""
    old, new = unit(1, 3), unit(1, 4)
    found = moving_average(old, new, Settings(momentum=0.9, reject=0.1))
    torch.testing.assert_close(found, F.normalize(0.9 * old + 0.1 * new, dim=-1))
    pixels = unit(40, 5)
    start = spherical_kmeans(pixels, 3, rounds=0)
    moved = em_over_photos(pixels, torch.arange(40) // 4, Settings(
        per_class=3, tau=0.1, rounds=10, photos=2, passes=1), 0)
    assert float((moved - start).norm(dim=-1).min()) > 0.01


def test_a_prototype_keeps_its_identity() -> None:
    """Whatever the order of the new ones."""
    old = unit(4, 6)
    near = F.normalize(old + 0.1 * unit(4, 7), dim=-1)
    wanted = moving_average(old, near, Settings(momentum=0.5, reject=0))
    for order in itertools.permutations(range(4)):
        found = moving_average(old, near[list(order)], Settings(momentum=0.5, reject=0))
        torch.testing.assert_close(found, wanted)


def test_rejection_reads_the_matched_pair() -> None:
    """PGSeg's code reads the similarity to prototype 0, which here is poor for all but one."""
    old = torch.eye(3, DIM)
    poor = F.normalize(torch.eye(3, DIM)[2] + 3 * torch.eye(DIM)[5], dim=0)
    new = torch.stack([old[1], old[0], poor])
    found = moving_average(old, new, Settings(momentum=0.5, reject=0.5))
    # Both are matched perfectly, and neither is similar to the new prototype 0 or 1 of its index.
    torch.testing.assert_close(found[:2], old[:2])
    torch.testing.assert_close(found[2], old[2])
    kept = moving_average(old, new, Settings(momentum=0.5, reject=0.1))
    assert float((kept[2] - old[2]).norm()) > 0.1, "0.32 of the range exceeds 0.1"
    slightly = F.normalize(old[[1, 0, 2]] + 0.3 * torch.eye(3, DIM, dtype=old.dtype).roll(4, 1),
                           dim=-1)
    moved = moving_average(old, slightly, Settings(momentum=0.5, reject=0.5))
    assert float((moved - old).norm(dim=-1).min()) > 0.05, "all matches are good: all move"


@pytest.mark.parametrize(("batch", "passes"), [(1, 1), (2, 3), (99, 2)])
def test_photos_come_in_their_order(batch: int, passes: int) -> None:
    pixels, photo_of = unit(24, 8), torch.tensor([0, 2, 2, 5] * 6)
    start = spherical_kmeans(pixels, 3, rounds=0)
    wanted = pgseg.prototypes(pixels.double().numpy(), photo_of.tolist(), start.double().numpy(),
                              0.1, batch, passes)
    found = em_over_photos(pixels, photo_of, Settings(
        per_class=3, tau=0.1, rounds=10, photos=batch, passes=passes), 0)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-4)


def test_fewer_seeds_than_prototypes() -> None:
    found = em_over_photos(unit(2, 9), torch.tensor([0, 1]), Settings(
        per_class=5, tau=0.1, rounds=2, photos=1, passes=1), 0)
    assert found.shape == (2, DIM)
    assert em_prototypes(unit(1, 1), unit(1, 2), tau=1, rounds=1).shape == (1, DIM)
