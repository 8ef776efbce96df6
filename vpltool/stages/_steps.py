"""The steps of any training: losses, checkpoints, an end at any time, and the file that results."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from vpltool import console
from vpltool.core import training
from vpltool.core.distributed import Losses
from vpltool.engine import checkpoints
from vpltool.errors import VplError
from vpltool.formats import Header, write_tensors
from vpltool.lazy import Tensor, torch
from vpltool.parallel import memory, signals
from vpltool.parallel.ranks import Ranks

_STEPS_UNREAD = 10
"""Steps whose losses wait on a GPU at most: to read them, the host waits for the last of them."""


@dataclass(frozen=True)
class Steps:
    """A training that is under way: what checkpoints hold, and how often they are written.

    Args:
        header: of the checkpoints.
        target: the file that is to come.
        count: number of steps in all.
        network: its state dict goes into checkpoints.
        optimizer: of the network's parameters.
        names: of the losses. What a step says beyond these is logged as it is, not averaged.
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


def take_steps(work: Steps, records: Iterable[Losses], start: checkpoints.Start,
               ranks: Ranks, finish: Callable[[], tuple[Header, Mapping[str, Tensor]]]
               ) -> list[list[float]]:
    """Take the steps that are left, and write checkpoints and the result.

    The state of network and optimizer is loaded from the checkpoint. `records` takes a step each
    time that its losses are asked for. `finish` gives the header, without the curve, and the
    tensors of the result, which the first of the processes writes.

    Returns:
        the loss curve: step, and the means of the losses since the last one.

    Raises:
        VplError: a loss is not finite; the last checkpoint stays.
        KeyboardInterrupt: it was interrupted; there is a checkpoint.
    """
    checkpoints.load_state(work.network, work.optimizer, start.tensors)
    # Around the writing, too: an interrupt in the last step comes when the file is there. torchrun
    # sends a second signal after that of the terminal.
    with signals.defer_interrupts(every=ranks.count > 1) as interrupted:
        curve = _follow(work, records, start, ranks, interrupted)
        if ranks.rank == 0:
            header, tensors = finish()
            write_trained(work.target, header, tensors, curve)
    return curve


def _follow(work: Steps, records: Iterable[Losses], start: checkpoints.Start,
            ranks: Ranks, interrupted: Callable[[], bool]) -> list[list[float]]:
    checkpoint, steps, averaged = (checkpoints.checkpoint_of(work.target), work.count,
                                   len(work.names))
    curve, recent, first = start.curve, start.recent, ranks.rank == 0
    unread: list[Losses] = []
    if first and not start.step:
        checkpoint.unlink(missing_ok=True)
    rule, good = checkpoints.CheckpointRule(work.every), start.step
    title = f"{work.header.command} {work.target.stem}"
    with console.progress(title, steps - start.step) as advance:
        for done, losses in enumerate(records, start.step + 1):
            unread.append(losses)
            here = interrupted()
            # A step needs all processes, so all stop after the same one; the clock of process 0
            # counts.
            stop, kept = ranks.any(here, here or first and rule.due(done))
            logged = done % max(steps // 50, 1) == 0 or done == steps
            kept = kept and done < steps
            text = ""
            if logged or kept or len(unread) == _STEPS_UNREAD:
                read = torch.stack([torch.stack(part) for part in unread]).tolist()
                _check_finite(read, done - len(read), checkpoint, good)
                recent += [row[:averaged] for row in read]
                unread.clear()
                text = " ".join(f"{name} {loss:.3f}" for name, loss in zip(
                    work.names, recent[-1], strict=False) if loss)
            if logged:
                means = [sum(part) / len(part) for part in zip(*recent, strict=True)]
                curve.append([done, *(round(value, 5) for value in (*means, *read[-1][averaged:]))])
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


def _check_finite(losses: Sequence[Sequence[float]], first: int, checkpoint: Path, good: int
                  ) -> None:
    for step, own in enumerate(losses, first):
        if not math.isfinite(sum(own)):
            kept = f"; {checkpoint} holds the network of step {good}" if good else ""
            raise VplError(f"the loss is not finite at step {step}{kept}",
                           "lower `lr`, with `overwrite=True`")


def write_trained(target: Path, header: Header, tensors: Mapping[str, Tensor],
                  curve: Sequence[Sequence[float]]) -> None:
    """Write what was trained, with its loss curve, and delete its checkpoint."""
    write_tensors(target, replace(header, facts={**header.facts, "curve": curve}), tensors)
    checkpoints.checkpoint_of(target).unlink(missing_ok=True)


def note_losses(names: Sequence[str], curve: Sequence[Sequence[float]]) -> None:
    """Say how the losses fell; the curve may have the first of the names only, or no step."""
    if curve:
        console.note("loss: " + ", ".join(
            f"{name.removesuffix(' loss')} {first:.3f} → {last:.3f}" for name, first, last in zip(
                names, curve[0][1:], curve[-1][1:], strict=False)))


def too_many_crops(steps: training.StepSettings) -> AbstractContextManager[None]:
    """Say what to do where the crops of a step do not fit into memory."""
    return memory.explain_out_of_memory(
        f"{steps.batch_size} crops of {steps.crop}×{steps.crop} patches",
        f"`batch_size={max(steps.batch_size // 2, 1)}, overwrite=True`, or "
        f"`crop={max(steps.crop // 2, 2)}, overwrite=True`")
