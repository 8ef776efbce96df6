"""Phase 1 as a function: its readings put together by hand from the parts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from as_methods import class_clusters, with_background_clusters
from torch import Tensor

from vpltool.core.distributed import ALONE
from vpltool.core.phase_one import PhaseOneConfig, Pixels, learn
from vpltool.core.prototypes import Objective, solve_pgd, text_targets
from vpltool.core.seeds import seed_targets
from vpltool.methods.estimators.means import class_means

TEXT_INDEX = torch.tensor([1, 2, 3, 0, 0])
TAGS = [torch.tensor([1]), torch.tensor([2, 3])]


def unit(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, 12, generator=generator), dim=-1)


TEXT = unit(5, 1)
LABELS = torch.tensor([1, 0, 1, 0, 1, 0] * 5 + [2, 3, 0, 2, 3, 0] * 5)
PIXELS = Pixels(unit(60, 2), torch.arange(60) // 30, LABELS, TAGS)


def reading(**changes: Any) -> PhaseOneConfig:
    """The paper's reading, with P' restricted to a photo's tags."""
    paper: dict[str, Any] = {
        "tau_t": 0.01, "tau_i": 0.03, "iters": 3000, "tolerance": 0.0, "lr": 10.0, "solver": "pgd",
        "harden": 0.0, "classes": "present", "student": "all", "targets": "text", "rounds": 1,
        "balance": False}
    return PhaseOneConfig(**(paper | changes))


def learn_from_text(**changes: Any) -> Tensor:
    return learn(PIXELS, TEXT, TEXT, TEXT_INDEX, reading(**changes))


def descended(targets: Tensor, start: Tensor, *, tau: float = 0.03, lr: float = 10.0, iters: int,
              **changes: Any) -> Tensor:
    """The rows that the paper's solver ends at."""
    objective = Objective(PIXELS.embeddings, targets, tau=tau, **changes)
    return solve_pgd(objective, start, iters=iters, lr=lr)


def allowed() -> Tensor:
    """Rows of a pixel's photo's tags, and the background's."""
    return torch.tensor([[owner == 0 or owner in TAGS[photo].tolist()
                          for owner in TEXT_INDEX.tolist()] for photo in PIXELS.photo_of.tolist()])


def test_the_paper_to_the_letter() -> None:
    rows = learn_from_text(classes="all", iters=7)
    wanted = descended(text_targets(PIXELS.embeddings, TEXT, tau=0.01), TEXT, iters=7)
    torch.testing.assert_close(rows, wanted)


def test_present_teacher_and_student() -> None:
    marks = allowed()
    targets = text_targets(PIXELS.embeddings, TEXT, allowed=marks, tau=0.02, harden=0.7)
    for student, learner in (("all", None), ("present", marks)):
        rows = learn_from_text(tau_t=0.02, tau_i=0.1, harden=0.7, student=student, iters=7, lr=3)
        wanted = descended(targets, TEXT, tau=0.1, iters=7, lr=3, allowed=learner)
        torch.testing.assert_close(rows, wanted)


def test_rounds_follow_the_last_rounds_own_distribution() -> None:
    marks = allowed()
    first = descended(seed_targets(PIXELS.embeddings, LABELS, TEXT, TEXT_INDEX), TEXT, iters=5)
    second = descended(text_targets(PIXELS.embeddings, first, tau=0.03, allowed=marks), first,
                       iters=5)
    for rounds, wanted in ((1, first), (2, second)):
        rows = learn_from_text(targets="seeds", rounds=rounds, iters=5)
        torch.testing.assert_close(rows, wanted)


def test_means_and_background_clusters() -> None:
    rows, index = with_background_clusters(PIXELS.embeddings, LABELS, TEXT, TEXT_INDEX, 4)
    rows = class_means(PIXELS.embeddings, LABELS, rows, index, ALONE)
    assert index.tolist() == [1, 2, 3, 0, 0, 0, 0]
    for owner in (1, 2, 3):
        mean = PIXELS.embeddings[owner == LABELS].mean(dim=0)
        torch.testing.assert_close(rows[owner - 1], mean / mean.norm())
    behind = PIXELS.embeddings[LABELS == 0]
    likeness, centre = (behind @ rows[3:].T).max(dim=1)
    assert set(centre.tolist()) == {0, 1, 2, 3}
    assert float(likeness.mean()) > float((behind @ behind.mean(0) / behind.mean(0).norm()).mean())


def test_without_iterations_the_start_is_the_result() -> None:
    start = unit(7, 3)
    index = torch.tensor([1, 2, 3, 0, 0, 0, 0])
    assert torch.equal(learn(PIXELS, TEXT, start, index, reading(iters=0)), start)


def test_any_start_is_learned_from_its_own_seeds() -> None:
    """Background clusters and several rows a class: each is drawn to the pixels next to it."""
    rows, index = with_background_clusters(PIXELS.embeddings, LABELS, TEXT, TEXT_INDEX, 4)
    start, index = class_clusters(PIXELS.embeddings, LABELS, rows, index, 3)
    assert index.tolist() == [1] * 3 + [2] * 3 + [3] * 3 + [0] * 4
    found = learn(PIXELS, TEXT, start, index, reading(targets="seeds", iters=4))
    wanted = descended(seed_targets(PIXELS.embeddings, LABELS, start, index), start, iters=4)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(13))


def test_several_rows_a_class() -> None:
    start, index = class_clusters(PIXELS.embeddings, LABELS, TEXT, TEXT_INDEX, 3)
    rows = learn(PIXELS, TEXT, start, index, reading(targets="seeds", iters=2))
    assert index.tolist() == [1] * 3 + [2] * 3 + [3] * 3 + [0, 0]
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(11))
