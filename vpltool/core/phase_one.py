"""Phase 1 of VPL: vision prototypes learned from pixels; and its descent in long steps.

The objective and the other solvers are in `prototypes`, starting points in `seeds`.

Once its rate is settled, projected gradient descent follows a smooth path for thousands of steps,
while the steepest directions keep each of them short. A Runge–Kutta–Chebyshev method follows such a
path for n steps with about √(3n) gradients (Sommeijer, Shampine and Verwer, 1997). Where the rate
would be halved, or the path is not smooth, plain steps are taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from vpltool.core import prototypes as solve
from vpltool.core import seeds
from vpltool.core.classes import BACKGROUND, allowed_rows
from vpltool.core.distributed import ALONE, Group
from vpltool.core.gap import Gap, modality_gap, photo_regions
from vpltool.core.prototypes import Callback
from vpltool.lazy import F, Tensor, torch

_FIRST, _LEAST, _MOST = 50, 20, 600
"""Length of long steps in plain ones: of the first, and the range of all."""

_BEFORE, _AGAIN = 60, 25
"""Plain steps before the first long one; and after a halving, or a long step that is not taken."""

_CHECKED = 3
"""Plain steps after each long one, whose gradients must continue to shrink."""

_STEEPEST = 1.9
"""Largest reach of a plain step along the steepest direction: from 2 on steps diverge, and the rate
is about to be halved."""

_SHARE = 30
"""Error allowed in a long step, in multiples of its share of the tolerance: later steps reduce it.
On three problems rows differed by at most a fifth of the tolerance in the end."""

_PROBE = 1e-3

Step = Callable[[Tensor], tuple[Tensor, float]]
"""A plain step from rows: the rows after it, and the norm of the gradient."""


@dataclass(frozen=True, kw_only=True)
class PhaseOneConfig:
    """Configuration of phase 1: the settings of `learn-prototypes` of these names, with their help.

    With 0 iterations the start is the result. With the student `present` and no hardening there is
    only one round.
    """

    tau_t: float
    tau_i: float
    iters: int
    lr: float
    tolerance: float
    solver: str
    harden: float
    classes: str
    student: str
    targets: str
    rounds: int
    balance: bool


@dataclass(frozen=True)
class Pixels:
    """Pixels of many photos; of several processes each has those of some of the photos.

    Args:
        embeddings: L2-normed (N, dim), float32; on a GPU, float16 is enough, see `prototypes`.
        photo_of: number of the photo of each pixel (N,).
        labels: seed label of each pixel (N,): class, 0 for the background, -1 if not a seed.
        tags: class indices of each photo (K_i,).
        ids: of the photos.
    """

    embeddings: Tensor
    photo_of: Tensor
    labels: Tensor
    tags: list[Tensor]
    ids: Sequence[str] = ()


def learn(pixels: Pixels, text: Tensor, start: Tensor, start_index: Tensor,
          config: PhaseOneConfig, callback: Callback | None = None, group: Group = ALONE) -> Tensor:
    """Learn vision prototypes W, L2-normed (rows, dim), from the pixels of a group of processes.

    Args:
        pixels: of this process.
        text: text prototypes, L2-normed (rows', dim); with the targets `text` their rows have the
            same classes as those of the start.
        start: W before the first step, L2-normed (rows, dim).
        start_index: class of each row (rows,), 0 is the background.
    """
    rows = start
    if not config.iters:
        return rows
    in_photo = allowed_rows(start_index, pixels.tags)[pixels.photo_of]
    # P' of the last W over the present classes would be P itself. The gradient would then be only
    # rounding errors, which a learning rate of 10 amplifies: such a round would learn noise.
    settled = config.student == "present" and not config.harden
    for number in range(1 if settled else config.rounds):
        if number:
            # The distribution of the last round, within the photo's tags: an EM step.
            targets = solve.text_targets(pixels.embeddings, rows, tau=config.tau_i,
                                         allowed=in_photo, harden=config.harden)
        elif config.targets == "seeds":
            targets = seeds.seed_targets(pixels.embeddings, pixels.labels, rows, start_index)
        else:
            targets = solve.text_targets(
                pixels.embeddings, text, tau=config.tau_t, harden=config.harden,
                allowed=in_photo if config.classes == "present" else None)
        objective = solve.Objective(
            pixels.embeddings, targets, tau=config.tau_i, group=group,
            allowed=in_photo if config.student == "present" else None,
            weights=seeds.balancing_weights(pixels.labels, int(start_index.max()), group)
            if config.balance else None)
        own = {} if config.solver == "lbfgs" else {"lr": config.lr, "tolerance": config.tolerance}
        rows = SOLVERS[config.solver](objective, rows, iters=config.iters, callback=callback, **own)
    return rows


def gaps(pixels: Pixels, text: Tensor, text_index: Tensor, rows: Tensor, index: Tensor,
         group: Group = ALONE) -> tuple[Gap, Gap]:
    """Return the modality gaps of text and vision prototypes to the same regions.

    A region is a class's seeds in a photo; without seeds, the pixels for which the class is the
    most likely tag according to the text.
    """
    labels = pixels.labels
    if not any(group.collect(bool((labels > BACKGROUND).any()))):
        tagged = allowed_rows(text_index, pixels.tags)[pixels.photo_of]
        tagged &= text_index != BACKGROUND
        scores = (pixels.embeddings @ text.to(pixels.embeddings).T).float()
        likeliest = scores.masked_fill_(~tagged, float("-inf")).argmax(dim=-1)
        labels = torch.where(tagged.any(dim=-1), text_index[likeliest], BACKGROUND)
    found = photo_regions(pixels.embeddings, pixels.photo_of, labels)
    if group.count == 1:
        regions, region_class, _ = found
    else:
        # In the order of the photos, for the same sums however many processes there are.
        parts = group.collect([part.cpu() for part in found])
        regions, region_class, numbers = (torch.cat(part).to(rows.device)
                                          for part in zip(*parts, strict=True))
        order = numbers.argsort(stable=True)
        regions, region_class = regions[order], region_class[order]
    return (modality_gap(text, text_index, regions, region_class),
            modality_gap(rows, index, regions, region_class))


@dataclass
class _Path:
    """State of the descent."""

    rows: Tensor
    step: int = 0  # plain steps so far
    length: int = _FIRST  # of the next long step, in plain steps
    calm: int = _BEFORE  # plain step before which no long one begins
    steepest: Tensor | None = None  # direction, from power iteration


def solve_rkc(objective: solve.Objective, start: Tensor, *, iters: int, lr: float,
              tolerance: float, callback: solve.Callback | None = None) -> Tensor:
    """Run `solve_pgd`'s descent to the same rows, with a fraction of its gradients.

    It differs where `solve_pgd` halves its rate because of rounding: norms that differ only in
    float32's last digits mean nothing here. Arguments are those of `solve_pgd`; the tolerance is
    for long steps too, and with 0 none is taken.
    """
    path, rate, previous = _Path(start.double()), lr, math.inf
    path.calm = _BEFORE if tolerance else iters
    before, begun, reported = path.rows, 0, 0

    def stepped(rows: Tensor) -> tuple[Tensor, float]:
        slope = objective.gradient(rows)
        return F.normalize(rows - rate * slope, dim=-1), float(slope.norm())

    while path.step < iters:
        last = path.step == iters - 1
        if path.step - begun >= solve.PACE:
            pace = solve.largest_turn(path.rows, before) / (path.step - begun)
            last |= pace * (iters - path.step) < tolerance
            before, begun = path.rows, path.step
        valued = callback is not None and (last or path.step >= reported)
        value, slope = (objective.value_and_gradient(path.rows) if valued
                        else (0.0, objective.gradient(path.rows)))
        norm = float(slope.norm())
        if norm > previous:
            rate, path.calm = rate / 2, max(path.calm, path.step + _AGAIN)
        previous = norm
        if callback and valued:
            callback(solve.SolverRecord(path.step, value, norm, rate))
            reported = path.step + max(iters // 50, 1)
        after = F.normalize(path.rows - rate * slope, dim=-1)
        if last:
            return after.float()
        if reached := _long(path, after, norm, iters, stepped, _SHARE * tolerance / iters):
            previous = reached
        else:
            path.rows, path.step = after, path.step + 1
    return path.rows.float()


def _long(path: _Path, after: Tensor, norm: float, iters: int, stepped: Step, each: float) -> float:
    """Take a long step, and the plain ones that check it; return the last gradient's norm.

    0: it is not taken. `after` are the rows after a plain step, `norm` is that of the gradient
    before it. `each` is the largest error of rows per plain step that the long one replaces.
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
    """Return the reach of a plain step along the steepest direction, by power iteration."""
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
    """Follow d rows = move(rows) for a length, by the second-order method with these stages."""
    start, terms = _coefficients(stages)
    older, newer = rows, rows + start * length * first
    for mu, nu, own, initial in terms:
        following = ((1 - mu - nu) * rows + mu * newer + nu * older
                     + length * (own * move(newer) + initial * first))
        older, newer = newer, following
    return newer


@cache
def _coefficients(stages: int) -> tuple[float, list[tuple[float, float, float, float]]]:
    """Return the coefficients of the first stage, and μ, ν, μ̃, γ̃ of later ones (damping 2/13)."""
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


SOLVERS: dict[str, Callable[..., Tensor]] = {
    "pgd": solve.solve_pgd, "rkc": solve_rkc, "lbfgs": solve.solve_lbfgs}
