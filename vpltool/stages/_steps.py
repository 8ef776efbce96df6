"""The steps of a decoder's training: losses, checkpoints, and an end at any time."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vpltool import console
from vpltool.core import segmenter
from vpltool.core import training as learning
from vpltool.engine import checkpoints
from vpltool.errors import VplError
from vpltool.formats import Header, write_tensors
from vpltool.lazy import Tensor, torch
from vpltool.parallel import memory
from vpltool.parallel.device import worker_count
from vpltool.parallel.ranks import Ranks
from vpltool.stages._fitting import TrainDecoderSettings
from vpltool.stages._training_data import TrainingData, crop_batches

_STEPS_UNREAD = 10
"""Steps whose losses wait on a GPU at most: to read them, the host waits for the last of them."""


@dataclass(frozen=True)
class Training:
    """A training: what is learned, how, and the file that is to come, with its header."""

    data: TrainingData
    training: learning.TrainingSettings
    header: Header
    target: Path

    @property
    def checkpoint(self) -> Path:
        return checkpoints.checkpoint_of(self.target)


def take_steps(run: Training, network: segmenter.SegmenterNetwork, start: checkpoints.Start,
               settings: TrainDecoderSettings, ranks: Ranks, interrupted: Callable[[], bool]
               ) -> list[list[float]]:
    """Take the steps that are left, and write checkpoints; give the loss curve."""
    device = ranks.device
    network = network.to(device)
    training = run.training
    optimizer = learning.make_optimizer(network, training)
    checkpoints.load_state(network, optimizer, start.tensors)
    with (contextlib.closing(crop_batches(run.data, training, start.step, device=device,
                                          workers=worker_count(settings.workers))) as batches,
          too_many_crops(training)):
        return follow_steps(
            Steps(run.header, run.target, training.iterations, network, optimizer,
                  ("mask", "contrast", "affinity"), settings.checkpoint_every),
            learning.train(network, optimizer, training, batches, start=start.step, group=ranks),
            start, ranks, interrupted)


def too_many_crops(training: learning.StepSettings) -> contextlib.AbstractContextManager[None]:
    """Say what to do where the crops of a step do not fit into memory."""
    return memory.explain_out_of_memory(
        f"{training.batch_size} crops of {training.crop}×{training.crop} patches",
        f"`batch_size={max(training.batch_size // 2, 1)}, overwrite=True`, or "
        f"`crop={max(training.crop // 2, 2)}, overwrite=True`")


@dataclass(frozen=True)
class Steps:
    """A training that is under way: what checkpoints hold, and how often they are written.

    Args:
        header: of the file that is to come.
        target: that file.
        count: number of steps in all.
        network: what is trained; its state dict goes into checkpoints.
        optimizer: of its parameters.
        names: of the losses.
        every: steps between two checkpoints.
        facts: gives what else a checkpoint says; all processes call it after the same step.
    """

    header: Header
    target: Path
    count: int
    network: torch.nn.Module
    optimizer: torch.optim.Optimizer
    names: Sequence[str]
    every: int
    facts: Callable[[], Mapping[str, object]] = dict


def follow_steps(work: Steps, records: Iterable[learning.StepRecord], start: checkpoints.Start,
                 ranks: Ranks, interrupted: Callable[[], bool]) -> list[list[float]]:
    """Follow the steps that are left, write checkpoints, and stop where that is asked for.

    Args:
        work: the training.
        records: takes a step each time that one is asked for.
        start: where it begins.
        ranks: the processes that train together.
        interrupted: tells whether to stop.

    Returns:
        the loss curve: step, and the means of the losses since the last one.

    Raises:
        VplError: a loss is not finite; the last checkpoint stays.
        KeyboardInterrupt: it was interrupted; there is a checkpoint.
    """
    checkpoint, steps = checkpoints.checkpoint_of(work.target), work.count
    curve, recent, first = start.curve, start.recent, ranks.rank == 0
    unread: list[learning.StepRecord] = []
    if first and not start.step:
        checkpoint.unlink(missing_ok=True)
    rule, good = checkpoints.CheckpointRule(work.every), start.step
    title = f"{work.header.command} {work.target.stem}"
    with console.progress(title, steps - start.step) as advance:
        for record in records:
            unread.append(record)
            done, here = record.iteration + 1, interrupted()
            # A step needs all processes, so all stop after the same one; the clock of process 0
            # counts.
            stop, kept = ranks.any(here, here or first and rule.due(done))
            logged = done % max(steps // 50, 1) == 0 or done == steps
            kept = kept and done < steps
            text = ""
            if logged or kept or len(unread) == _STEPS_UNREAD:
                recent += _read_losses(unread, checkpoint, good)
                unread.clear()
                text = " ".join(f"{name} {loss:.3f}" for name, loss in zip(
                    work.names, recent[-1], strict=False) if loss)
            if logged:
                means = [round(sum(part) / len(part), 5) for part in zip(*recent, strict=True)]
                curve.append([done, *means])
                recent.clear()
            if kept:
                facts, good = work.facts(), done
                if first:
                    header = replace(work.header, facts={**work.header.facts, **facts})
                    checkpoints.write_checkpoint(checkpoint, header, work.network, work.optimizer,
                                                 done, curve, recent)
                if stop:
                    raise KeyboardInterrupt
            advance(text=text)
    return curve


def write_trained(target: Path, header: Header, tensors: Mapping[str, Tensor],
                  curve: Sequence[Sequence[float]], names: Sequence[str]) -> None:
    """Write what was trained, delete its checkpoint, and say how the losses fell.

    Args:
        target: the file.
        header: of the file.
        tensors: of the file.
        curve: see `follow_steps`.
        names: of the losses; the curve may have the first of them only.
    """
    write_tensors(target, header, tensors)
    checkpoints.checkpoint_of(target).unlink(missing_ok=True)
    if curve:
        console.note(", ".join(f"{name} {first:.3f} → {last:.3f}" for name, first, last in zip(
            names, curve[0][1:], curve[-1][1:], strict=False)))


def _read_losses(records: Sequence[learning.StepRecord], checkpoint: Path, good: int
                 ) -> list[list[float]]:
    """Losses of each step, read at once.

    Raises:
        VplError: one is not finite.
    """
    losses: list[list[float]] = torch.stack([
        torch.stack(record.losses) for record in records]).tolist()
    for record, own in zip(records, losses, strict=True):
        if not math.isfinite(sum(own)):
            kept = f"; {checkpoint} holds the network of step {good}" if good else ""
            raise VplError(f"the loss is not finite at step {record.iteration}{kept}",
                           "lower `lr`, with `overwrite=True`")
    return losses
