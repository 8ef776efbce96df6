"""A step of `train-groups` against the plain way: photo by photo, EM round by round.

The plain way is the released code's in its structure: for each photo of the batch its own rounds of
EM. The matching (by scipy), the network, its losses and its gradients are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from unittest import mock

import torch
import torch.nn.functional as F
from measure import Pair, Row, compared, side_by_side
from stages import TOY, Bench
from torch import Tensor

from vpltool.core import npr
from vpltool.core.group_training import GroupTraining, Objective, make_optimizer
from vpltool.core.groups import GroupNetwork, GroupShape
from vpltool.core.npr import Prototypes, prototype_contrast
from vpltool.stages.train_groups import TrainGroupsSettings, shape_of

PAPER = shape_of(TrainGroupsSettings(text="own", drop_path=0))
TINY = shape_of(TrainGroupsSettings(
    text="own", side=32, patch=8, width=16, heads=2, depths="1,1,1", groups="6,3", dim=8,
    hidden=16, drop_path=0, npr_hidden=16))


def plain_em(pixels: Tensor, start: Tensor, *, tau: float, rounds: int) -> Tensor:
    """EM of one photo after the other."""
    photos = []
    for tokens in pixels.flatten(0, -3) if pixels.dim() > 2 else pixels[None]:
        mu = start
        for _ in range(rounds):
            share = (tokens.float() @ mu.T / tau).softmax(dim=-1)
            share = share / share.sum(dim=0)
            mu = F.normalize(share.T @ tokens.float(), dim=-1)
        photos.append(mu)
    return torch.stack(photos) if pixels.dim() > 2 else photos[0]


def groups(bench: Bench) -> Iterator[Row]:
    """A whole step, and what the prototypes alone take of it: forward, matching, losses."""
    toy = bench.sizes == TOY
    shape, count = (TINY, 4) if toy else (PAPER, 16)
    torch.manual_seed(0)
    network = GroupNetwork(shape).to(bench.device)
    training = GroupTraining(1, 0, 0, 1e-6, 0, 0.05, 5.0, (0.1, 0.1, 0.01), 0.1, torch.float32, 0)
    objective, optimizer = Objective(network, training), make_optimizer(network, training)
    pixels = torch.randn(count, 3, shape.side, shape.side, device=bench.device)
    words = torch.randint(1, 400, (count, 12), device=bench.device)

    def step() -> int:
        total, _ = objective(pixels, words)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        return count

    rounds = 1 if toy else 3
    same = _same_losses(objective, pixels, words)
    yield compared("train-groups, a step (pair)", _pair(step, rounds), {}, same=same,
                   reason=f"ViT-S/16 at 224, {count} pairs: both ways run the same network")
    yield compared("train-groups, prototypes of 256 photos (photo)",
                   _pair(_prototypes_alone(bench, shape, 8 if toy else 256), rounds), {}, same=same,
                   reason="matrices of 196 tokens and 64 prototypes are large enough to fill a "
                          "core alone")


def _pair(work: Callable[[], int], rounds: int) -> Pair:
    def plain() -> int:
        with mock.patch.object(npr, "em_prototypes", plain_em):
            return work()

    plain(), work()
    return side_by_side(plain, work, rounds)


def _same_losses(objective: Objective, pixels: Tensor, words: Tensor) -> float:
    """1 less the largest difference of a loss."""
    objective.eval()
    with torch.no_grad():
        ours = objective(pixels, words)[1]
        with mock.patch.object(npr, "em_prototypes", plain_em):
            plain = objective(pixels, words)[1]
    objective.train()
    return 1 - float((ours - plain).abs().max())


def _prototypes_alone(bench: Bench, shape: GroupShape, count: int) -> Callable[[], int]:
    parts, scale = [], torch.tensor(10.0, device=bench.device).log()
    for tokens, number in (((shape.side // shape.patch) ** 2, shape.groups[0]),
                           (shape.groups[0], shape.groups[1])):
        prototypes = Prototypes(number, shape.width, tau=1.0, rounds=10, momentum=0.9)
        parts.append((prototypes.to(bench.device),
                      torch.randn(count, tokens, shape.width, device=bench.device),
                      torch.randn(count, number, shape.width, device=bench.device)))

    def run() -> int:
        for prototypes, tokens, tokens_of_groups in parts:
            prototype_contrast(tokens_of_groups, prototypes.estimate(tokens), scale, 0.1)
        return count

    return run
