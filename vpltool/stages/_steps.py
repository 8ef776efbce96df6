"""The steps of a decoder's training: losses, checkpoints, and an end at any time."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vpltool import console
from vpltool.engine.checkpoints import Start, checkpoint_of, load_state, write_checkpoint
from vpltool.errors import VplError
from vpltool.formats import Header
from vpltool.lazy import torch
from vpltool.parallel.checkpoints import CheckpointRule
from vpltool.parallel.device import worker_count
from vpltool.parallel.memory import explain_out_of_memory
from vpltool.stages._fitting import TrainDecoderSettings
from vpltool.stages._training_data import TrainingData, crop_batches

if TYPE_CHECKING:
    from vpltool.core.segmenter import SegmenterNetwork
    from vpltool.core.training import StepRecord, TrainingSettings
    from vpltool.parallel.ranks import Ranks

_STEPS_UNREAD = 10
"""Steps whose losses wait on a GPU at most: to read them, the host waits for the last of them."""


@dataclass(frozen=True)
class Training:
    """A training: what is learned, how, and the file that is to come, with its header."""

    data: TrainingData
    training: TrainingSettings
    header: Header
    target: Path

    @property
    def checkpoint(self) -> Path:
        return checkpoint_of(self.target)


def take_steps(run: Training, network: SegmenterNetwork, start: Start,
               settings: TrainDecoderSettings, ranks: Ranks, interrupted: Callable[[], bool]
               ) -> list[list[float]]:
    """Take the steps that are left, and write checkpoints; give the loss curve."""
    from vpltool.core.training import make_optimizer, train

    device = ranks.device
    network = network.to(device)
    training, steps = run.training, run.training.iterations
    optimizer = make_optimizer(network, training)
    load_state(network, optimizer, start.tensors)
    curve, recent = start.curve, start.recent
    unread: list[StepRecord] = []
    if not start.step and ranks.rank == 0:
        run.checkpoint.unlink(missing_ok=True)
    rule = CheckpointRule(settings.checkpoint_every)
    with (contextlib.closing(crop_batches(run.data, training, start.step, device=device,
                                          workers=worker_count(settings.workers))) as batches,
          console.progress(f"train-decoder {run.target.stem}", steps - start.step) as advance,
          explain_out_of_memory(
              f"{training.batch_size} crops of {training.crop}×{training.crop} patches",
              f"`batch_size={max(training.batch_size // 2, 1)}, overwrite=True`, or "
              f"`crop={max(training.crop // 2, 2)}, overwrite=True`")):
        for record in train(network, optimizer, training, batches, start=start.step, group=ranks):
            unread.append(record)
            done, stop = record.iteration + 1, ranks.any(interrupted())
            logged = done % max(steps // 50, 1) == 0 or done == steps
            kept = rule.due(done, interrupted=stop) and done < steps
            text = ""
            if logged or kept or len(unread) == _STEPS_UNREAD:
                recent += _read_losses(unread)
                unread.clear()
                text = _formatted(recent[-1])
            if logged:
                means = [round(sum(part) / len(part), 5) for part in zip(*recent, strict=True)]
                curve.append([done, *means])
                recent.clear()
            if kept and ranks.rank == 0:
                write_checkpoint(run.checkpoint, run.header, network, optimizer, done, curve,
                                 recent)
            if kept and stop:
                raise KeyboardInterrupt
            advance(text=text)
    return curve


def _formatted(losses: list[float]) -> str:
    return " ".join(f"{name} {loss:.3f}" for name, loss in zip(
        ("mask", "contrast", "affinity"), losses, strict=False))


def _read_losses(records: list[StepRecord]) -> list[list[float]]:
    """Mask loss, contrast and, where it has a weight, affinity of each step, read at once.

    Raises:
        VplError: one is not finite.
    """
    losses: list[list[float]] = torch.stack([
        torch.stack([loss for loss in (record.mask, record.contrast, record.affinity)
                     if loss is not None]) for record in records]).tolist()
    for record, own in zip(records, losses, strict=True):
        if not math.isfinite(sum(own)):
            raise VplError(f"the loss is not finite at step {record.iteration}",
                           "lower `lr`, with `overwrite=True`")
    return losses
