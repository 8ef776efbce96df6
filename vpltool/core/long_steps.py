"""Projected gradient descent of phase 1 in long steps, by a Runge–Kutta–Chebyshev method.

Once the rate is settled, thousands of steps follow a smooth path, slowly, while the steepest
directions keep each of them short. A method of Chebyshev polynomials follows such a path for n
steps with about √(3n) gradients (Sommeijer, Shampine and Verwer, 1997). Where the rate would be
halved, or the path is not smooth, plain steps are taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from vpltool.core import prototypes as plain
from vpltool.core.distributed import ALONE, Group
from vpltool.lazy import F, Tensor, torch

_FIRST, _LEAST, _MOST = 50, 20, 600
"""Plain steps of a long step: of the first one, at least, and at most."""

_BEFORE, _AGAIN = 60, 25
"""Plain steps before the first long one; and after a halving, or one that was given up."""

_CHECKED = 3
"""Plain steps after each long one, whose gradients must go on to shrink."""

_STEEPEST = 1.9
"""Plain steps over the steepest direction's own scale: from 2 on they diverge, and the rate is
about to be halved."""

_SHARE = 30
"""What a long step may be off, in parts of its share of the tolerance: later ones make it smaller.
On three problems rows ended a fifth of the tolerance apart, at most."""

_PROBE = 1e-3

Step = Callable[[Tensor], tuple[Tensor, float]]
"""A plain step from rows: the rows after it, and the norm of the gradient."""


@dataclass
class _Path:
    """Where the descent is, and what is known of the path."""

    rows: Tensor
    step: int = 0
    length: int = _FIRST
    calm: int = _BEFORE
    steepest: Tensor | None = None


def solve_rkc(
    pixels: Tensor, targets: Tensor, start: Tensor, *, tau: float, iters: int, lr: float,
    tolerance: float, allowed: Tensor | None = None, weights: Tensor | None = None,
    callback: plain.Callback | None = None, group: Group = ALONE,
) -> Tensor:
    """Run `solve_pgd`'s descent to the same rows, with a fraction of its gradients.

    It differs where `solve_pgd` halves its rate because of rounding: norms that are equal but for
    float32's last digits tell nothing here.

    Args: those of `solve_pgd`; the tolerance is for long steps, too, and with 0 none is taken.
    """
    moments, entropy = plain.target_moments(pixels, targets, weights)
    joint = plain.Joint.of(pixels, group)
    path, rate, previous = _Path(start.double()), lr, math.inf
    path.calm = _BEFORE if tolerance else iters
    before, begun, reported = path.rows, 0, 0

    def slope(rows: Tensor, valued: bool) -> tuple[float, Tensor]:
        if valued:
            return plain.objective_and_gradient(pixels, moments, entropy, rows, tau, allowed,
                                                weights, joint)
        return 0.0, plain.gradient(pixels, moments, rows, tau, allowed, weights, joint)

    def stepped(rows: Tensor) -> tuple[Tensor, float]:
        _, found = slope(rows, False)
        return F.normalize(rows - rate * found, dim=-1), float(found.norm())

    while path.step < iters:
        last = path.step == iters - 1
        if path.step - begun >= plain.PACE:
            pace = plain.largest_turn(path.rows, before) / (path.step - begun)
            last |= pace * (iters - path.step) < tolerance
            before, begun = path.rows, path.step
        valued = last or path.step >= reported
        value, found = slope(path.rows, bool(callback) and valued)
        norm = float(found.norm())
        if norm > previous:
            rate, path.calm = rate / 2, max(path.calm, path.step + _AGAIN)
        previous = norm
        if callback and valued:
            callback(plain.SolverRecord(path.step, value, norm, rate))
            reported = path.step + max(iters // 50, 1)
        after = F.normalize(path.rows - rate * found, dim=-1)
        if last:
            return after.float()
        if reached := _long(path, after, norm, iters, stepped, _SHARE * tolerance / iters):
            previous = reached
        else:
            path.rows, path.step = after, path.step + 1
    return path.rows.float()


def _long(path: _Path, after: Tensor, norm: float, iters: int, stepped: Step, each: float) -> float:
    """Take a long step, and the plain ones that check it; the last gradient's norm, 0: not taken.

    `after` are the rows after a plain step, `norm` is that of the gradient before it. Rows may be
    off by `each` for every plain step that the long one stands for.
    """
    length = min(path.length, iters - path.step - _CHECKED - 2)
    if path.step < path.calm or length < _LEAST:
        return 0.0
    rows, first, allow = path.rows, after - path.rows, each * length

    def move(at: Tensor) -> Tensor:
        unit = F.normalize(at, dim=-1)
        return stepped(unit)[0] - unit

    reach = _steepest(path, first, move)
    if reach >= _STEEPEST:
        path.calm = path.step + _AGAIN
        return 0.0
    stages = max(3, math.ceil(math.sqrt(1 + length * max(1.05 * reach, 1) / 0.65)))
    end = F.normalize(_chebyshev(move, rows, first, length, stages), dim=-1)
    at, norms = end, [norm]
    for number in range(_CHECKED):
        following, found = stepped(at)
        if number == 0:
            # The method's own estimate of its error, from the slopes at both ends.
            off = 0.8 * (rows - end) + 0.4 * length * (first + following - at)
            error = float(torch.linalg.vector_norm(off, dim=-1).amax())
        at = following
        norms.append(found)
    smooth = all(one > other for one, other in zip(norms, norms[1:], strict=False))
    fitting = length * min(2.0, max(0.3, 0.8 * (allow / max(error, 1e-12)) ** (1 / 3)))
    path.length = int(min(_MOST, max(_LEAST, fitting)))
    if not smooth or error > 2 * allow:
        path.calm = path.step + (_AGAIN if smooth else length)
        return 0.0
    path.rows, path.step = at, path.step + length + _CHECKED
    return norms[-1]


def _steepest(path: _Path, first: Tensor, move: Callable[[Tensor], Tensor]) -> float:
    """How far a plain step reaches along the steepest direction, by power iteration."""
    rounds, way = 1, path.steepest
    if way is None:
        generator = torch.Generator().manual_seed(0)
        way = torch.randn(first.shape, generator=generator, dtype=torch.float64).to(first.device)
        rounds = 6
    reach = 0.0
    for _ in range(rounds):
        probe = F.normalize(path.rows + _PROBE * way / way.norm(), dim=-1)
        way = (move(probe) - first) / _PROBE
        reach = float(way.norm())
    path.steepest = way
    return reach


def _chebyshev(move: Callable[[Tensor], Tensor], rows: Tensor, first: Tensor, length: float,
               stages: int) -> Tensor:
    """Follow d rows = move(rows) for a length, by the second-order method of so many stages."""
    start, terms = _coefficients(stages)
    older, newer = rows, rows + start * length * first
    for mu, nu, own, initial in terms:
        following = ((1 - mu - nu) * rows + mu * newer + nu * older
                     + length * (own * move(newer) + initial * first))
        older, newer = newer, following
    return newer


@cache
def _coefficients(stages: int) -> tuple[float, list[tuple[float, float, float, float]]]:
    """Coefficients of the first stage, and of each later one: μ, ν, μ̃, γ̃ (damping 2/13)."""
    centre = 1 + 2 / 13 / stages**2
    value, slope, bend = [1.0, centre], [0.0, 1.0], [0.0, 0.0]
    for number in range(2, stages + 1):
        value.append(2 * centre * value[-1] - value[-2])
        slope.append(2 * centre * slope[-1] - slope[-2] + 2 * value[number - 1])
        bend.append(2 * centre * bend[-1] - bend[-2] + 4 * slope[number - 1])
    scale = slope[stages] / bend[stages]
    b = [bend[number] / slope[number] ** 2 for number in range(2, stages + 1)]
    b = [b[0], b[0], *b]
    a = [1 - one * other for one, other in zip(b, value, strict=True)]
    return b[1] * scale, [
        (2 * b[number] * centre / b[number - 1], -b[number] / b[number - 2],
         2 * b[number] * scale / b[number - 1],
         -a[number - 1] * 2 * b[number] * scale / b[number - 1])
        for number in range(2, stages + 1)]
