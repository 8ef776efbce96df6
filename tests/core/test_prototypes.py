"""Phase 1 against autograd, and against InMaP's loop written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import inmap
from torch import Tensor

from vpltool.core import prototypes as module
from vpltool.core.prototypes import (
    Objective,
    SolverRecord,
    solve_lbfgs,
    solve_pgd,
    spherical_kmeans,
    text_targets,
)

ROWS, DIM, COUNT = 6, 12, 300
SOLVERS: list[Callable[..., Tensor]] = [partial(solve_pgd, lr=10.0), solve_lbfgs]


def unit(count: int, seed: int, dim: int = DIM) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, dim, generator=generator), dim=-1)


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    """Three clusters, away from the text: the modality gap."""
    centres = unit(3, 1)[torch.arange(COUNT) % 3]
    return F.normalize(centres + 0.6 * unit(COUNT, 2) + 0.5 * unit(1, 3), dim=-1)


@pytest.fixture(scope="module")
def text() -> Tensor:
    return unit(ROWS, 4)


@pytest.fixture(scope="module")
def allowed() -> Tensor:
    marks = torch.rand(COUNT, ROWS, generator=torch.Generator().manual_seed(5)) < 0.5
    marks[:, 0] = True
    return marks


def divergence(pixels: Tensor, targets: Tensor, rows: Tensor, tau: float,
               allowed: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
    """Eq. 7 by torch's own softmax, in double precision, for autograd."""
    logits = pixels.double() @ rows.T / tau
    if allowed is not None:
        logits = logits.masked_fill(~allowed, float("-inf"))
    log_q = logits.log_softmax(dim=1)
    log_q = torch.where(targets > 0, log_q, torch.zeros_like(log_q))
    each = (torch.special.xlogy(targets.double(), targets.double())
            - targets.double() * log_q).sum(dim=1)
    return (each * (1 if weights is None else weights.double())).mean()


def evaluate(pixels: Tensor, targets: Tensor, rows: Tensor, tau: float,
             allowed: Tensor | None = None, weights: Tensor | None = None) -> tuple[float, Tensor]:
    return Objective(pixels, targets, tau=tau, allowed=allowed, weights=weights
                     ).value_and_gradient(rows)


@pytest.mark.parametrize("case", ["plain", "restricted", "weighted", "both"])
def test_gradient_is_autograds(case: str, pixels: Tensor, text: Tensor, allowed: Tensor) -> None:
    marks = allowed if case in ("restricted", "both") else None
    weights = None
    if case in ("weighted", "both"):
        weights = torch.rand(COUNT, generator=torch.Generator().manual_seed(6))
        weights = weights / weights.mean()
    targets = text_targets(pixels, text, tau=0.1, allowed=marks)
    rows = unit(ROWS, 7)
    free = rows.double().requires_grad_(True)
    wanted = divergence(pixels, targets, free, 0.2, marks, weights)
    wanted.backward()
    value, gradient = evaluate(pixels, targets, rows, 0.2, marks, weights)
    assert value == pytest.approx(wanted.item(), rel=1e-5)
    torch.testing.assert_close(gradient.double(), free.grad, atol=1e-6, rtol=1e-4)


def test_chunks_change_nothing(pixels: Tensor, text: Tensor, allowed: Tensor,
                               monkeypatch: pytest.MonkeyPatch) -> None:
    targets = text_targets(pixels, text, tau=0.01, allowed=allowed)
    weights = torch.linspace(0.5, 1.5, COUNT)
    whole = evaluate(pixels, targets, text, 0.03, allowed, weights)
    monkeypatch.setattr(module, "_CHUNK", 7)
    parts = evaluate(pixels, targets, text, 0.03, allowed, weights)
    assert parts[0] == pytest.approx(whole[0], rel=1e-5)
    torch.testing.assert_close(parts[1], whole[1], atol=1e-5, rtol=1e-4)


def test_objective_is_zero_at_the_targets_own_prototypes(pixels: Tensor, text: Tensor) -> None:
    targets = text_targets(pixels, text, tau=0.05)
    value, gradient = evaluate(pixels, targets, text, 0.05)
    assert value == pytest.approx(0, abs=1e-5)
    assert float(gradient.norm()) < 1e-4


def test_targets_are_a_softmax(pixels: Tensor, text: Tensor, allowed: Tensor) -> None:
    found = text_targets(pixels, text, tau=0.05, allowed=allowed)
    for place in (0, 1, 17):
        exps = [math.exp(float(pixels[place] @ text[row]) / 0.05) if allowed[place, row] else 0.0
                for row in range(ROWS)]
        assert found[place].tolist() == pytest.approx([e / sum(exps) for e in exps], abs=1e-5)
    assert float(found[~allowed].abs().max()) == 0


def test_hardening(pixels: Tensor, text: Tensor) -> None:
    soft = text_targets(pixels, text, tau=0.05)
    hard = text_targets(pixels, text, tau=0.05, harden=inmap.ALPHA)
    sure = soft.amax(dim=1) > 0.6
    assert 0 < int(sure.sum()) < COUNT
    np.testing.assert_array_equal(hard.numpy(), inmap.harden(soft.numpy()))
    assert not torch.equal(hard, soft)
    # InMaP changes the caller's tensor; here nothing of the caller's is touched.
    assert torch.equal(soft, text_targets(pixels, text, tau=0.05))


def test_one_pgd_step_is_autograds(pixels: Tensor, text: Tensor) -> None:
    targets = text_targets(pixels, text, tau=0.1)
    free = text.double().requires_grad_(True)
    divergence(pixels, targets, free, 0.3).backward()
    assert free.grad is not None
    moved = free.detach() - 0.7 * free.grad
    wanted = moved / moved.square().sum(dim=1, keepdim=True).sqrt()
    found = solve_pgd(Objective(pixels, targets, tau=0.3), text, iters=1, lr=0.7)
    torch.testing.assert_close(found.double(), wanted, atol=1e-6, rtol=1e-5)


def test_pgd_is_inmaps_loop(pixels: Tensor, text: Tensor) -> None:
    targets = text_targets(pixels, text, tau=0.01)
    wanted, halvings = inmap.image_opt(pixels.double().numpy(), text.T.double().numpy(),
                                       targets.double().numpy(), 200, 10.0, 0.03)
    assert halvings > 2, "without a halving this would not test it"
    rates: list[float] = []
    found = solve_pgd(Objective(pixels, targets, tau=0.03), text, iters=200, lr=10.0,
                      callback=lambda record: rates.append(record.lr))
    assert rates[0] == 10.0
    assert rates[-1] == 10.0 / 2**halvings
    np.testing.assert_allclose(found.T.numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize(("tau_t", "tau_i"), [(0.01, 0.03), (0.05, 0.03), (0.05, 0.1)])
def test_pgd_stops_where_nothing_moves(tau_t: float, tau_i: float, pixels: Tensor, text: Tensor
                                       ) -> None:
    """Its rows are those of all steps, to the tolerance; with 0 it takes them all."""
    targets = text_targets(pixels, text, tau=tau_t)
    steps: list[int] = []

    def solved(tolerance: float) -> Tensor:
        return solve_pgd(Objective(pixels, targets, tau=tau_i), text, iters=3000, lr=10.0,
                         tolerance=tolerance, callback=lambda record: steps.append(record.step))

    exact = solved(0.0)
    assert steps[-1] == 2999
    for tolerance in (0.005, 0.02):
        turned = 2 * ((solved(tolerance).double() - exact.double()).norm(dim=-1) / 2).asin()
        assert steps[-1] < 2999
        assert turned.max() <= tolerance
        assert (solved(tolerance) * exact).sum(dim=-1).min() >= 0.9998


def test_pgd_lowers_the_objective_and_stays_on_the_sphere(pixels: Tensor, text: Tensor) -> None:
    targets = text_targets(pixels, text, tau=0.05)
    start = text.clone()
    records: list[SolverRecord] = []
    found = solve_pgd(Objective(pixels, targets, tau=0.1), text, iters=100, lr=10.0,
                      callback=records.append)
    assert records[0].step == 0
    assert records[-1].step == 99
    assert records[-1].objective < 0.8 * records[0].objective
    torch.testing.assert_close(found.norm(dim=1), torch.ones(ROWS))
    assert torch.equal(text, start), "the caller's prototypes were changed"


@pytest.mark.parametrize("restricted", [False, True])
def test_lbfgs_gets_at_least_as_low(restricted: bool, pixels: Tensor, text: Tensor,
                                    allowed: Tensor) -> None:
    marks = allowed if restricted else None
    targets = text_targets(pixels, text, tau=0.05, allowed=marks)
    records: list[SolverRecord] = []
    objective = Objective(pixels, targets, tau=0.1, allowed=marks)
    slow = solve_pgd(objective, text, iters=1000, lr=10.0)
    fast = solve_lbfgs(objective, text, iters=100, callback=records.append)
    first, second = (evaluate(pixels, targets, rows, 0.1, marks)[0]
                     for rows in (slow, fast))
    assert second <= first + 1e-6
    assert len(records) <= 200
    torch.testing.assert_close(fast.norm(dim=1), torch.ones(ROWS))


def test_a_row_that_is_never_allowed_stays(pixels: Tensor, text: Tensor, allowed: Tensor) -> None:
    marks = allowed.clone()
    marks[:, 3] = False
    targets = text_targets(pixels, text, tau=0.01, allowed=marks)
    for solve in SOLVERS:
        found = solve(Objective(pixels, targets, tau=0.03, allowed=marks), text, iters=20)
        torch.testing.assert_close(found[3], text[3])
        assert not torch.allclose(found[0], text[0])


def test_kmeans_finds_planted_clusters() -> None:
    planted = unit(4, 8, dim=32)
    owner = torch.arange(400) % 4
    points = F.normalize(planted[owner] + 0.05 * unit(400, 9, dim=32), dim=-1)
    centres = spherical_kmeans(points, 4)
    likeness = planted @ centres.T
    assert float(likeness.amax(dim=1).min()) > 0.995
    assert sorted(likeness.argmax(dim=1).tolist()) == [0, 1, 2, 3]
    torch.testing.assert_close(centres.norm(dim=1), torch.ones(4))
    for index in range(4):
        mean = F.normalize(points[owner == index].sum(dim=0), dim=0)
        torch.testing.assert_close(centres[likeness[index].argmax()], mean, atol=1e-4, rtol=0)


def test_kmeans_depends_on_its_seed_alone(pixels: Tensor) -> None:
    first = spherical_kmeans(pixels, 8, seed=3)
    torch.rand(5)
    assert torch.equal(first, spherical_kmeans(pixels, 8, seed=3))
    assert not torch.equal(first, spherical_kmeans(pixels, 8, seed=4))


def test_kmeans_of_few_or_equal_points() -> None:
    few = unit(3, 10)
    assert torch.equal(spherical_kmeans(few, 5), few)
    found = spherical_kmeans(few[:1].repeat(10, 1), 3)
    assert found.isfinite().all()
    torch.testing.assert_close(found, few[:1].repeat(3, 1))


def test_gradient_alone_is_that_of_the_objective(pixels: Tensor, text: Tensor, allowed: Tensor,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pixels a step takes at a time."""
    targets = text_targets(pixels, text, tau=0.1, allowed=allowed)
    weights = torch.rand(COUNT, generator=torch.Generator().manual_seed(7)) + 0.5
    objective = Objective(pixels, targets, tau=0.1, allowed=allowed, weights=weights)
    _, whole = objective.value_and_gradient(text)
    monkeypatch.setattr(module, "_CACHED", 7 * DIM)
    parts = objective.gradient(text)
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_half_precision_features(solver: Callable[..., Tensor], pixels: Tensor,
                                 text: Tensor) -> None:
    """As they lie on a GPU: the arithmetic is in float32, only the features are rounded."""
    results = []
    for held in (pixels, pixels.half()):
        targets = text_targets(held, text, tau=0.05)
        assert targets.dtype == torch.float32
        results.append(solver(Objective(held, targets, tau=0.03), text, iters=40))
    assert results[1].dtype == torch.float32
    assert float((results[0] * results[1]).sum(dim=1).min()) > 0.999
