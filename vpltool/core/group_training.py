"""Training a `GroupNetwork` on photo-caption pairs: losses, schedule, steps.

    L = L_pairs + λ₁ L_first + λ₂ L_second + λ_t L_text

L_pairs is CLIP's symmetric contrast over all pairs of a step, in all processes. The others are
`prototype_contrast` between the groups of each stage and the photo's prototypes, and between the
parts and the prototypes of the captions. A step depends only on the seed and its number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpltool.core.distributed import ALONE, Group, Losses
from vpltool.core.groups import EncodedPhotos, GroupNetwork
from vpltool.core.npr import MAX_SCALE, prototype_contrast


@dataclass(frozen=True)
class GroupTraining:
    """Training settings of a `GroupNetwork`; `stages/train_groups.py` holds their sources."""

    iterations: int
    warmup: int  # steps in which the learning rate rises from `lr_start` to `lr`
    lr_start: float
    lr: float
    lr_end: float  # rate to which it falls by half a cosine
    weight_decay: float  # AdamW's, on matrices
    clip: float  # largest norm of the gradient; 0: any
    weights: tuple[float, float, float]  # λ₁, λ₂ and λ_t
    reject: float  # see `prototype_contrast`
    precision: torch.dtype
    seed: int


PairBatch = tuple[Tensor, Tensor]
"""Pairs of a step, of one process: normalised photos (B, 3, side, side); and token numbers of their
captions (B, length), or vectors of a frozen tower (B, dim)."""


class Objective(nn.Module):
    """The losses of a step. A module, so that `DistributedDataParallel` can hold it."""

    def __init__(self, network: GroupNetwork, training: GroupTraining,
                 group: Group = ALONE) -> None:
        super().__init__()
        self.network, self.training_settings, self.group = network, training, group

    def forward(self, pixels: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted loss of a `PairBatch`, and all losses (4,).

        They are those of pairs, first stage, second stage and text; 0 where there is none.
        """
        network, settings = self.network, self.training_settings
        encoded = network.vision(pixels)
        photos, captions = network.embed_photos(encoded), network.embed_captions(texts)
        every = self.group.gather(captions)
        losses = [contrast(photos, captions, self.group.gather(photos), every,
                           network.log_scale, self.group.rank)]
        for stage, prototypes, log_scale in zip(
                encoded.stages, encoded.prototypes, network.log_npr_scales, strict=False):
            losses.append(prototype_contrast(stage.groups, prototypes, log_scale, settings.reject))
        losses += [losses[0].new_zeros(())] * (3 - len(losses))
        losses.append(self._of_text(encoded, every) if network.text_prototypes is not None
                      else losses[0].new_zeros(()))
        self._move_averages(encoded.prototypes)
        total = losses[0] + sum(weight * loss for weight, loss in zip(
            settings.weights, losses[1:], strict=True))
        return total, torch.stack(losses).detach()

    def _of_text(self, encoded: EncodedPhotos, captions: Tensor) -> Tensor:
        """Contrast parts with the prototypes of all captions, and move their average."""
        network = self.network
        assert network.text_prototypes is not None
        prototypes = network.text_prototypes.estimate(captions)
        if self.training:
            # The captions are those of all processes already.
            network.text_prototypes.update(prototypes[None])
        return prototype_contrast(network.embed_parts(encoded), prototypes,
                                  network.log_npr_scales[2], self.training_settings.reject)

    def _move_averages(self, prototypes: tuple[Tensor, ...]) -> None:
        if self.training:
            stages = (self.network.vision.first, self.network.vision.second)
            for stage, found in zip(stages, prototypes, strict=False):
                assert stage.prototypes is not None
                stage.prototypes.update(found, lambda own: self.group.total(own) / self.group.count)


def contrast(photos: Tensor, captions: Tensor, all_photos: Tensor, all_captions: Tensor,
             log_scale: Tensor, rank: int = 0) -> Tensor:
    """Return CLIP's symmetric cross-entropy of a process's pairs against those of all processes.

    Photos and captions are L2-normed (B, dim), those of all processes (R·B, dim); the pairs of a
    process begin at rank·B. `log_scale` is the logarithm of the scale of the cosines.
    """
    scale = log_scale.exp().clamp_max(MAX_SCALE)
    own = torch.arange(len(photos), device=photos.device) + rank * len(photos)
    return (F.cross_entropy(scale * photos @ all_captions.T, own)
            + F.cross_entropy(scale * captions @ all_photos.T, own)) / 2


def make_optimizer(network: GroupNetwork, settings: GroupTraining) -> torch.optim.Optimizer:
    """Return AdamW; biases, norms and scales, all that is no matrix, have no weight decay."""
    learned = [item for item in network.parameters() if item.requires_grad]
    groups: list[dict[str, object]] = [
        {"params": [item for item in learned if item.dim() >= 2]},
        {"params": [item for item in learned if item.dim() < 2], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay)


def learning_rate(settings: GroupTraining, iteration: int) -> float:
    """Return the learning rate of a step: a linear rise, then half a cosine."""
    if iteration < settings.warmup:
        share = iteration / settings.warmup
        return settings.lr_start + (settings.lr - settings.lr_start) * share
    share = (iteration - settings.warmup) / max(settings.iterations - settings.warmup, 1)
    return settings.lr_end + (settings.lr - settings.lr_end) * (1 + math.cos(math.pi * share)) / 2


def train(objective: nn.Module, network: GroupNetwork, optimizer: torch.optim.Optimizer,
          settings: GroupTraining, batches: Iterable[PairBatch], *, start: int = 0, rank: int = 0
          ) -> Iterator[Losses]:
    """Run steps `start`, `start + 1`, … with their pairs, in the process of this rank.

    The objective is an `Objective` of the network, or a module that wraps one. Network and
    optimizer are changed in place. Yields the losses of pairs, first stage, second stage and text.
    """
    objective.train()
    device = network.log_scale.device
    for iteration, batch in zip(range(start, settings.iterations), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, iteration)
        # Gumbel noise and drop-path: of this step and process, whatever came before.
        torch.manual_seed((settings.seed * 1_000_003 + iteration) * 4099 + rank)
        with torch.autocast(device.type, settings.precision,
                            enabled=settings.precision != torch.float32):
            total, losses = objective(*batch)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        if settings.clip:
            nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
        optimizer.step()
        yield losses.unbind()
