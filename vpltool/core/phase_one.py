"""Phase 1 of VPL: vision prototypes learned from pixels, by the objective and solver of a config.

Objective and solvers are in `prototypes`, starting points in `seeds`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vpltool.core import prototypes as solve
from vpltool.core import seeds
from vpltool.core.classes import BACKGROUND, allowed_rows
from vpltool.core.distributed import ALONE, Group
from vpltool.core.gap import Gap, modality_gap, numbered_regions
from vpltool.core.long_steps import solve_rkc
from vpltool.core.prototypes import Callback
from vpltool.lazy import Tensor, torch

SOLVERS: dict[str, Callable[..., Tensor]] = {
    "pgd": solve.solve_pgd, "rkc": solve_rkc, "lbfgs": solve.solve_lbfgs}


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
        config: how it is learned.
        callback: called with the solver's state.
        group: the processes.
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
        solver = SOLVERS[config.solver]
        own = {} if config.solver == "lbfgs" else {"lr": config.lr, "tolerance": config.tolerance}
        rows = solver(
            pixels.embeddings, targets, rows, tau=config.tau_i, iters=config.iters,
            callback=callback, allowed=in_photo if config.student == "present" else None,
            weights=seeds.balancing_weights(pixels.labels, int(start_index.max()), group)
            if config.balance else None, group=group, **own)
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
    found = numbered_regions(pixels.embeddings, pixels.photo_of, labels)
    if group.count == 1:
        regions, region_class, _ = found
    else:
        # In the order of the photos, whoever has them: sums of a class are then the same.
        parts = group.collect([part.cpu() for part in found])
        regions, region_class, numbers = (torch.cat(part).to(rows.device)
                                          for part in zip(*parts, strict=True))
        order = numbers.argsort(stable=True)
        regions, region_class = regions[order], region_class[order]
    return (modality_gap(text, text_index, regions, region_class),
            modality_gap(rows, index, regions, region_class))
