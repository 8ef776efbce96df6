"""Long steps: the rows of the plain descent, with a fraction of its gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vpltool.core import phase_one
from vpltool.core.phase_one import solve_rkc
from vpltool.core.prototypes import Objective, SolverRecord, solve_pgd, text_targets


def problem(seed: int, spread: float, tau_t: float) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels around text prototypes, and shifted away from them all."""
    generator = torch.Generator().manual_seed(seed)
    text = F.normalize(torch.randn(12, 32, generator=generator), dim=-1)
    pixels = text[torch.randint(12, (1000,), generator=generator)]
    pixels = pixels + spread * torch.randn(1000, 32, generator=generator)
    pixels = F.normalize(pixels + 0.3 * torch.randn(1, 32, generator=generator), dim=-1)
    return pixels, text_targets(pixels, text, tau=tau_t), text


def in_double(pixels: Tensor, targets: Tensor, start: Tensor, iters: int) -> tuple[Tensor, int]:
    """InMaP's loop without rounding, and the step of its last halving."""
    rows, wide, rate, previous, halved = start.double(), pixels.double(), 10.0, float("inf"), 0
    moments = targets.double().T @ wide
    for step in range(iters):
        slope = ((wide @ rows.T / 0.03).softmax(-1).T @ wide - moments) / (len(wide) * 0.03)
        if (norm := float(slope.norm())) > previous:
            rate, halved = rate / 2, step
        previous = norm
        rows = F.normalize(rows - rate * slope, dim=-1)
    return rows, halved


@pytest.mark.parametrize(("seed", "spread", "tau_t"), [
    (0, 0.1, 0.01), (2, 0.3, 0.01), (3, 0.5, 0.05), (7, 0.5, 0.05)])
def test_rows_are_those_of_the_plain_descent(seed: int, spread: float, tau_t: float,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """A cosine of 0.9999 at least; where the rate goes on to be halved, too."""
    pixels, targets, text = problem(seed, spread, tau_t)
    wanted, halved = in_double(pixels, targets, text, 3000)
    count = [0]
    own = Objective.gradient

    def counted(*args: object, **more: object) -> Tensor:
        count[0] += 1
        return own(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Objective, "gradient", counted)
    objective = Objective(pixels, targets, tau=0.03)
    found = solve_rkc(objective, text, lr=10.0, iters=3000, tolerance=0.005)
    assert (found * wanted.float()).sum(dim=-1).min() >= 0.9999
    assert (text * wanted.float()).sum(dim=-1).min() < 0.99, "the rows moved"
    assert count[0] <= (600 if halved < 100 else 1500)


def test_without_a_tolerance_every_step_is_plain() -> None:
    pixels, targets, text = problem(0, 0.3, 0.05)
    steps: list[int] = []

    def callback(record: SolverRecord) -> None:
        steps.append(record.step)

    objective = Objective(pixels, targets, tau=0.03)
    found = solve_rkc(objective, text, lr=10.0, iters=120, tolerance=0, callback=callback)
    assert torch.equal(found, solve_pgd(objective, text, lr=10.0, iters=120))
    assert steps[-1] == 119


def test_it_is_told_of_first_and_last_step() -> None:
    pixels, targets, text = problem(0, 0.3, 0.05)
    records: list[SolverRecord] = []
    solve_rkc(Objective(pixels, targets, tau=0.03), text, lr=10.0, iters=1000, tolerance=0.005,
              callback=records.append)
    assert records[0].step == 0
    assert records[0].lr == 10.0
    assert records[-1].step > 500
    assert records[-1].objective < records[0].objective


@pytest.mark.parametrize("stages", [3, 10, 40])
def test_the_method_is_of_second_order_and_stable(stages: int) -> None:
    """y' = −y: exact to the third power of a short length; and it shrinks over a long one."""
    y = torch.ones(1, dtype=torch.float64)
    errors = [float(abs(phase_one._chebyshev(lambda at: -at, y, -y, length, stages)
                        - torch.tensor(-length).exp())) for length in (0.02, 0.01)]
    assert 6 < errors[0] / errors[1] < 10
    for length in torch.linspace(0.1, 0.65 * (stages**2 - 1), 20).tolist():
        assert abs(phase_one._chebyshev(lambda at: -at, y, -y, length, stages)) <= 1
