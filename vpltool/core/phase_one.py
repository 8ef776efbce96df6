"""Phase 1 of VPL from start to end, in any of its readings: `learn` is what the command calls.

Which pixels, which targets, which start, which background: a `Reading` says so. The parts are in
`prototypes` (objective and solvers) and `seeds`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vpltool.core import prototypes as solve
from vpltool.core import seeds
from vpltool.core.classes import BACKGROUND, allowed_rows
from vpltool.core.gap import Gap, modality_gap, photo_regions
from vpltool.core.prototypes import Watch


@dataclass(frozen=True)
class Reading:
    """A reading of phase 1; the defaults are the paper's, with P' restricted to a photo's tags.

    Args:
        tau_t: temperature of P'.
        tau_i: temperature of P.
        iters: iterations of the solver; 0: the start is the result.
        lr: rate of projected gradient descent.
        solver: `pgd` or `lbfgs`.
        harden: targets whose largest entry exceeds this become one-hot; 0: never.
        classes: classes in P': `present` in the photo, or `all`.
        student: classes in P: `all` or `present`.
        targets: `text`, or `seeds`: one-hot by the pixels' labels.
        start: `text`, or `seeds`: the mean of each class's seeds.
        background: `words` of the text prototypes, or `clusters` of the background's seeds.
        clusters: number of background clusters.
        per_class: prototypes a class, by k-means in its seeds.
        rounds: from the second on, P' is that of the last W; with the student `present` and
            nothing hardened there is no second.
        balance: give each label of the pixels the same weight.
        seed: where chance begins.
    """

    tau_t: float = 0.01
    tau_i: float = 0.03
    iters: int = 3000
    lr: float = 10.0
    solver: str = "pgd"
    harden: float = 0.0
    classes: str = "present"
    student: str = "all"
    targets: str = "text"
    start: str = "text"
    background: str = "words"
    clusters: int = 24
    per_class: int = 1
    rounds: int = 1
    balance: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Pixels:
    """Pixels of many photos.

    Args:
        embeddings: L2-normed (N, dim), float32; on a GPU float16 will do, see `prototypes`.
        photo_of: number of the photo that each comes from (N,).
        labels: its seed label (N,): class, 0 for the background, -1 where seeds play no part.
        tags: class indices of each photo (K_i,).
    """

    embeddings: Tensor
    photo_of: Tensor
    labels: Tensor
    tags: list[Tensor]


def learn(pixels: Pixels, text: Tensor, text_index: Tensor, reading: Reading,
          watch: Watch | None = None) -> tuple[Tensor, Tensor]:
    """Learn vision prototypes.

    Args:
        pixels: what they are learned from.
        text: text prototypes, L2-normed (rows, dim).
        text_index: class of each row (rows,), 0 is the background.
        reading: how.
        watch: called with the solver's state.

    Returns:
        L2-normed rows (rows', dim) and their classes (rows',).

    Raises:
        ValueError: background clusters are wanted, and no pixel is background.
    """
    rows, index = starting_rows(pixels, text, text_index, reading)
    if not reading.iters:
        return rows, index
    in_photo = allowed_rows(index, pixels.tags)[pixels.photo_of]
    # P' of the last W over the present classes would be P itself. The gradient is then nil but for
    # rounding, which steps of rate 10 blow up: a round of it learns noise.
    settled = reading.student == "present" and not reading.harden
    for number in range(1 if settled else reading.rounds):
        if number:
            # The last round's own distribution, within the photo's tags: an EM step.
            targets = solve.text_targets(pixels.embeddings, rows, tau=reading.tau_i,
                                         allowed=in_photo, harden=reading.harden)
        elif reading.targets == "seeds":
            targets = seeds.seed_targets(pixels.embeddings, pixels.labels, rows, index)
        else:
            targets = solve.text_targets(
                pixels.embeddings, text, tau=reading.tau_t, harden=reading.harden,
                allowed=in_photo if reading.classes == "present" else None)
        solver = solve.solve_lbfgs if reading.solver == "lbfgs" else solve.solve_pgd
        rate = {} if reading.solver == "lbfgs" else {"lr": reading.lr}
        rows = solver(
            pixels.embeddings, targets, rows, tau=reading.tau_i, iters=reading.iters, watch=watch,
            allowed=in_photo if reading.student == "present" else None,
            weights=seeds.balancing_weights(pixels.labels) if reading.balance else None, **rate)
    return rows, index


def starting_rows(pixels: Pixels, text: Tensor, text_index: Tensor, reading: Reading
                  ) -> tuple[Tensor, Tensor]:
    """Rows before the first step, and their classes; see `learn`."""
    rows, index = text, text_index
    if reading.background == "clusters":
        behind = pixels.embeddings[pixels.labels == BACKGROUND]
        if not len(behind):
            raise ValueError("no pixel is background")
        centres = solve.spherical_kmeans(behind, reading.clusters, seed=reading.seed)
        kept = text_index != BACKGROUND
        rows = torch.cat([text[kept], centres])
        index = torch.cat([text_index[kept], text_index.new_zeros(len(centres))])
    if reading.start == "seeds":
        if reading.per_class > 1:
            return seeds.class_clusters(pixels.embeddings, pixels.labels, rows, index,
                                        reading.per_class, seed=reading.seed)
        rows = seeds.class_means(pixels.embeddings, pixels.labels, rows, index)
    return rows, index


def gaps(pixels: Pixels, text: Tensor, text_index: Tensor, rows: Tensor, index: Tensor
         ) -> tuple[Gap, Gap]:
    """Modality gap of the text prototypes and of the vision prototypes, to the same regions.

    A region is a class's seeds in a photo; without seeds, the pixels whose likeliest tag it is by
    the text.
    """
    labels = pixels.labels
    if not bool((labels > BACKGROUND).any()):
        tagged = allowed_rows(text_index, pixels.tags)[pixels.photo_of]
        tagged &= text_index != BACKGROUND
        scores = (pixels.embeddings @ text.to(pixels.embeddings).T).float()
        likeliest = scores.masked_fill_(~tagged, float("-inf")).argmax(dim=-1)
        labels = torch.where(tagged.any(dim=-1), text_index[likeliest], BACKGROUND)
    regions, region_class = photo_regions(pixels.embeddings, pixels.photo_of, labels)
    return (modality_gap(text, text_index, regions, region_class),
            modality_gap(rows, index, regions, region_class))
