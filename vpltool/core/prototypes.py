"""Text prototypes, and the vision prototypes that phase 1 of VPL (AAAI 2025) learns.

    min_W  Σ_i KL(P'_i ‖ softmax(x_i W / τ_I)),   P'_i = softmax(x_i Z / τ_T)          (eq. 7)

x_i are L2-normed patch embeddings; Z are the text prototypes and W the vision prototypes, both with
L2-normed rows. The paper's solver is projected gradient descent as in InMaP (NeurIPS 2023). Text
prototypes have one vector per class word and background word.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vpltool.core.distributed import ALONE, Group
from vpltool.lazy import F, Tensor, torch

_CHUNK = 65536
"""Pixels per softmax over the rows; bounds the memory."""

_CACHED = 2**19
"""Values of X per chunk of a solver's step on a CPU: X is used twice, the second time from the
cache."""

PACE = 50
"""Steps over which projected gradient descent measures how fast the rows rotate."""

_MOMENT_CHUNK = 4096
"""Pixels per chunk in double precision."""


@dataclass(frozen=True)
class SolverRecord:
    """Solver state: step, objective (eq. 7, nats per pixel), gradient norm, learning rate."""

    step: int
    objective: float
    gradient: float
    lr: float


Callback = Callable[[SolverRecord], None]


def text_targets(pixels: Tensor, prototypes: Tensor, *, tau: float,
                 allowed: Tensor | None = None, harden: float = 0.0) -> Tensor:
    """Return the targets P' (eq. 5) of L2-normed pixels (N, dim): (N, rows), rows summing to 1.

    Args:
        pixels: X.
        prototypes: L2-normed rows Z (rows, dim).
        tau: τ_T.
        allowed: True for rows that may take part (N, rows): those of the photo's classes and of the
            background; None: all rows, as the paper's formula has it.
        harden: targets whose largest entry exceeds this become one-hot (InMaP's α); 0: never.
    """
    targets = pixels.new_empty((len(pixels), len(prototypes)), dtype=torch.float32)
    for part in _parts(pixels, _CHUNK):
        logits = pixels[part].float() @ prototypes.T / tau
        if allowed is not None:
            logits.masked_fill_(~allowed[part], float("-inf"))
        targets[part] = logits.softmax(dim=-1)
    if harden:
        top, index = targets.max(dim=-1)
        sure = top > harden
        targets[sure] = F.one_hot(index[sure], targets.shape[1]).to(targets)
    return targets


def _parts(pixels: Tensor, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, len(pixels), size)]


def part_size(pixels: Tensor) -> int:
    """Return the number of pixels per chunk of a solver's step."""
    return _CHUNK if pixels.is_cuda else min(_CHUNK, max(1, _CACHED // pixels.shape[1]))


class Objective:
    """The KL objective (eq. 7), a mean over the pixels of all processes, and its exact gradient.

    The targets enter only through their moments: Σ P' log P_W is ⟨P'ᵀX, W⟩ / τ_I minus the
    log-partitions, since each pixel's targets sum to 1.
    """

    def __init__(self, pixels: Tensor, targets: Tensor, *, tau: float,
                 allowed: Tensor | None = None, weights: Tensor | None = None,
                 group: Group = ALONE) -> None:
        """Sum up what does not depend on W.

        Args:
            pixels: X of this process (N, dim), float32 or half precision; the arithmetic is in
                float32.
            targets: P' (N, rows).
            tau: τ_I.
            allowed: rows that P_W may use at each pixel (N, rows); None: all. Targets must be 0
                elsewhere.
            weights: weights of the pixels (N,), mean 1; None: all equal.
            group: processes that hold the pixels.
        """
        self.pixels, self.tau, self.allowed, self.weights = pixels, tau, allowed, weights
        self.group = group
        # P'ᵀ X, in float64 since the gradient is a small difference from it; and Σ P' log P'.
        self.moments = pixels.new_zeros(targets.shape[1], pixels.shape[1], dtype=torch.float64)
        self.negative_entropy = 0.0
        for part in _parts(pixels, _MOMENT_CHUNK):
            p = targets[part].double()
            terms = p * p.clamp_min(1e-30).log()
            if weights is not None:
                p, terms = p * weights[part, None], terms * weights[part, None]
            self.moments += p.T @ pixels[part].double()
            self.negative_entropy += float(terms.sum())
        self.count = int(group.total(torch.tensor(len(pixels), device=pixels.device)))

    def value_and_gradient(self, prototypes: Tensor) -> tuple[float, Tensor]:
        """Return the objective in nats, and its `gradient`, at W (rows, dim), float64."""
        partitions: list[Tensor] = []
        slope = self.gradient(prototypes, partitions)
        agreement = float((self.moments * prototypes).sum()) / self.tau
        partition = float(torch.stack(partitions).sum()) if partitions else 0.0
        value = self.group.total(
            self.moments.new_tensor(self.negative_entropy - agreement + partition))
        return float(value) / self.count, slope

    def gradient(self, prototypes: Tensor, partitions: list[Tensor] | None = None) -> Tensor:
        """Return ∂L/∂W = (P_W − P')ᵀ X / (N τ_I) at W (rows, dim), both float64.

        The products X Wᵀ and P_Wᵀ X take most of the time. The sums of the log-partitions, float64,
        are appended to `partitions`.
        """
        total, scaled = -self.moments, (prototypes / self.tau).float()
        for part in _parts(self.pixels, part_size(self.pixels)):
            x = self.pixels[part].float()
            logits = x @ scaled.T
            if self.allowed is not None:
                logits.masked_fill_(~self.allowed[part], float("-inf"))
            # Not exp(logits − log-partition), which puts the partition's rounding into every entry.
            q = logits.softmax(dim=-1)
            if self.weights is not None:
                q *= self.weights[part, None]
            total += q.T @ x
            if partitions is not None:
                terms = logits.logsumexp(dim=-1)
                terms = terms if self.weights is None else terms * self.weights[part]
                partitions.append(terms.double().sum())
        return self.group.total(total) / (self.count * self.tau)


def solve_pgd(objective: Objective, start: Tensor, *, iters: int, lr: float,
              tolerance: float = 0.0, callback: Callback | None = None) -> Tensor:
    """Run projected gradient descent (eq. 11, Algorithm 1), with InMaP's halving of the rate.

    W ← W − lr·∂L/∂W, then every row is normalised. Whenever the gradient norm has grown, the rate
    is halved permanently; without this, lr 10 diverges. All processes take the same steps.

    Args:
        start: W at the start (rows, dim): the text prototypes.
        iters: T_w.
        lr: α.
        tolerance: stop once no row would rotate by more than this angle in the remaining steps, at
            the pace of the last 50; 0: take all steps.
        callback: called with the state about 50 times, and at the first and last step.

    Returns:
        W (rows, dim), L2-normed.
    """
    # In float32, rounding errors add up to 5e-4 after 200 steps on the demo's scenes.
    prototypes = start.double()
    # On the device of X: comparing norms on the CPU would synchronize with a GPU.
    rate = torch.tensor(lr, dtype=torch.float64, device=objective.pixels.device)
    previous = prototypes.new_tensor(float("inf"))
    before = prototypes
    for step in range(iters):
        last = step == iters - 1
        if tolerance and step and step % PACE == 0:
            last |= largest_turn(prototypes, before) * (iters - step) / PACE <= tolerance
            before = prototypes
        if callback and (step % max(iters // 50, 1) == 0 or last):
            value, slope = objective.value_and_gradient(prototypes)
        else:
            value, slope = None, objective.gradient(prototypes)
        norm = slope.norm()
        rate = torch.where(norm > previous, rate / 2, rate)
        previous = norm
        if callback and value is not None:
            callback(SolverRecord(step, value, float(norm), float(rate)))
        prototypes = F.normalize(prototypes - rate * slope, dim=-1)
        if last:
            break
    return prototypes.float()


def largest_turn(rows: Tensor, before: Tensor) -> float:
    """Return the largest angle, in radians, between a row and its earlier value."""
    chord = torch.linalg.vector_norm(rows - before, dim=-1).amax()
    return 2 * math.asin(min(float(chord) / 2, 1.0))


def solve_lbfgs(objective: Objective, start: Tensor, *, iters: int,
                callback: Callback | None = None) -> Tensor:
    """Minimise the same objective by L-BFGS on w = v / ‖v‖, with far fewer passes over the data.

    Arguments and result are those of `solve_pgd`. The solver stops after `iters` iterations, or
    when the objective no longer decreases, and calls the callback after each evaluation.
    """
    free = start.clone().float().requires_grad_(True)
    optimizer = torch.optim.LBFGS([free], max_iter=iters, max_eval=2 * iters, history_size=10,
                                  tolerance_grad=1e-9, tolerance_change=1e-9,
                                  line_search_fn="strong_wolfe")
    count = 0

    def closure() -> Tensor:
        nonlocal count
        length = free.detach().norm(dim=-1, keepdim=True)
        unit = free.detach() / length
        value, slope = objective.value_and_gradient(unit)
        # Chain rule of v / ‖v‖: only the tangential component of the gradient remains.
        tangent = slope - (slope * unit).sum(-1, keepdim=True) * unit
        free.grad = (tangent / length).to(free)
        if callback:
            callback(SolverRecord(count, value, float(free.grad.norm()), 1.0))
        count += 1
        return torch.tensor(value, dtype=torch.float32)

    optimizer.step(closure)
    return F.normalize(free.detach(), dim=-1)


def spherical_kmeans(points: Tensor, count: int, *, seed: int = 0, rounds: int = 25) -> Tensor:
    """Return L2-normed centres (count, dim) by cosine k-means with k-means++ initialisation.

    Points are L2-normed (N, dim); `count` or fewer are returned as they are. `rounds` is the
    maximum of Lloyd's iterations.
    """
    generator = torch.Generator().manual_seed(seed)
    if len(points) <= count:
        return points.clone()
    points = points.float()
    first = int(torch.randint(len(points), (1,), generator=generator))
    centres = points[first][None]
    nearest = points @ centres[0]
    for _ in range(count - 1):
        chance = (1 - nearest).clamp_min(0).cpu() + 1e-12
        # Inverse transform sampling: torch.multinomial takes at most 2²⁴ categories.
        drawn = torch.rand(1, generator=generator, dtype=torch.float64) * chance.double().sum()
        index = int(torch.searchsorted(chance.double().cumsum(0), drawn).clamp(max=len(points) - 1))
        centres = torch.cat([centres, points[index][None]])
        nearest = torch.maximum(nearest, points @ points[index])
    return lloyd(points, centres, rounds=rounds)


def lloyd(points: Tensor, centres: Tensor, *, rounds: int = 25) -> Tensor:
    """Return the centres (count, dim) after Lloyd's iterations of cosine k-means.

    Points (N, dim) and initial centres are L2-normed, float32; the result keeps the centres' order.
    `rounds` is the maximum of iterations.
    """
    for _ in range(rounds):
        owner = torch.cat([(part @ centres.T).argmax(dim=-1) for part in points.split(_CHUNK)])
        sums = torch.zeros_like(centres).index_add_(0, owner, points)
        moved = F.normalize(sums, dim=-1)
        # An empty cluster keeps its centre.
        moved = torch.where(sums.norm(dim=-1, keepdim=True) > 0, moved, centres)
        if torch.allclose(moved, centres, atol=1e-6):
            break
        centres = moved
    return centres


def text_prototypes(
    words: Sequence[str], templates: Sequence[str], encode: Callable[[Sequence[str]], Tensor]
) -> Tensor:
    """Return the normalised mean of each word's prompts (CLIP-ES; CLIP's zero-shot classifier).

    Each template contains one `{}`; `encode` maps prompts to L2-normed vectors (prompts, dim). The
    result is L2-normed (words, dim), float32.
    """
    rows = [encode([template.format(word) for template in templates]).mean(dim=0) for word in words]
    return F.normalize(torch.stack(rows).float().cpu(), dim=-1)


def attribute_centres(descriptions: Tensor, count: int) -> Tensor:
    """Cluster the descriptions of all classes, L2-normed (N, dim), into attributes (ExCEL).

    Returns the cluster means (min(count, N), dim), not normalised.
    """
    centres = spherical_kmeans(descriptions, count, seed=0)
    owner = (descriptions @ centres.T).argmax(dim=-1)
    sums = torch.zeros_like(centres).index_add_(0, owner, descriptions)
    sizes = owner.bincount(minlength=len(centres))[:, None]
    return torch.where(sizes > 0, sums / sizes.clamp_min(1), centres)


def with_attributes(rows: Tensor, attributes: Tensor, share: float) -> Tensor:
    """Add to each class's vector its nearest attributes (ExCEL, text semantic enrichment).

    T = norm(t + softmax(t Aᵀ) A), of L2-normed t (K, dim), over the nearest `share` of the
    attributes A (N, dim), at least one.
    """
    likeness = rows @ attributes.T
    # The epsilon absorbs the rounding error of share · N before it is rounded up.
    kept = min(max(math.ceil(share * len(attributes) - 1e-9), 1), len(attributes))
    nearest = likeness.topk(kept, dim=-1)
    weights = torch.zeros_like(likeness).scatter_(-1, nearest.indices,
                                                  nearest.values.softmax(dim=-1))
    return F.normalize(rows + weights @ attributes, dim=-1)
