"""Steps of a training: losses, checkpoints, interrupts, and the file that results."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from vpltool import console
from vpltool.core import distributed, training
from vpltool.errors import VplError
from vpltool.formats import Header, JsonObject, changes, expect_header, read_tensors, write_tensors
from vpltool.formats.fields import LIST, NUMBER, check_fields
from vpltool.formats.kinds import CHECKPOINT
from vpltool.lazy import Tensor, torch
from vpltool.options import Replaces
from vpltool.parallel import memory, signals
from vpltool.parallel import ranks as processes

Losses = list[list[float]]


@dataclass(frozen=True)
class Start:
    """The state in which a training starts or resumes.

    Args:
        curve: loss curve so far: step, and mean losses.
        recent: losses of steps not yet in the curve.
        tensors: state of network and optimizer; empty: keep their initial state.
        facts: all facts of the checkpoint's header.
    """

    step: int
    curve: Losses
    recent: Losses
    tensors: Mapping[str, Tensor]
    facts: JsonObject = field(default_factory=dict)


def checkpoint_of(target: Path) -> Path:
    """Return the path of the checkpoint that belongs to a training result."""
    return target.with_name(f"{target.stem}{CHECKPOINT}")


def is_checkpoint(path: Path) -> bool:
    """Return whether a file name is that of a checkpoint."""
    return path.name.endswith(CHECKPOINT)


def trained_header(path: Path, kind: str) -> Header:
    """Read the header of a training result: a decoder, a bundle or groups.

    Raises a VplError if the file is of another kind, or is only a checkpoint.
    """
    header = expect_header(path, kind)
    if "checkpoint" in header.facts:
        raise VplError(f"{path} is the checkpoint of a run that was stopped",
                       f"the same `{header.command.replace('-', '_')}()` again finishes it")
    return header


def read_checkpoint(target: Path, header: Header, settings: Replaces, *,
                    keep: str = "`name='NAME'` keeps it") -> Start:
    """Read the checkpoint to resume from, if any; nothing is deleted.

    Args:
        settings: `overwrite` starts over; `update` starts over if the same command had other
            options or inputs.
        keep: hint on how to keep a checkpoint of another configuration.

    Raises:
        VplError: it has another configuration, or is damaged.
    """
    path, fresh = checkpoint_of(target), Start(0, [], [], {})
    if settings.overwrite or not path.exists():
        return fresh
    found, tensors = read_tensors(path, header.kind)
    if not changes.has_same_settings(header, found, path, update=settings.update,
                                     hint=f"`overwrite=True` starts over; {keep}"):
        return fresh
    try:
        check_fields(found.facts, {"checkpoint": NUMBER, "curve": LIST, "recent": LIST})
    except ValueError as error:
        raise VplError(f"{path} is not a checkpoint: {error}", "`overwrite=True` starts over"
                       ) from error
    step = int(found.facts["checkpoint"])
    console.note(f"resuming from step {step} of {header.options['iters']}")
    return Start(step, found.facts["curve"], found.facts["recent"], tensors, found.facts)


class CheckpointRule:
    """Decides after each step whether to write a checkpoint, by steps or time, whichever is first.

    Args:
        steps: write at each multiple of this; 0: ignore steps.
        seconds: write this long after the last checkpoint or the first step; 0: ignore time.
        clock: a monotonic clock in seconds.
    """

    def __init__(self, steps: int, seconds: float = 60.0,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self.steps, self.seconds, self._clock = steps, seconds, clock
        self._since: float | None = None

    def due(self, done: int) -> bool:
        """Return whether to write a checkpoint after `done` steps; call once per step.

        After a checkpoint, time counts from the next step, so that training advances even if
        writing takes long.
        """
        now = self._clock()
        self._since = now if self._since is None else self._since
        late = self.seconds > 0 and now - self._since >= self.seconds
        if late or (self.steps > 0 and done % self.steps == 0):
            self._since = None
            return True
        return False


_STEPS_UNREAD = 10
"""Steps whose losses wait on a GPU at most: to read them, the host waits for the last of them."""


@dataclass(frozen=True)
class Steps:
    """A training: what its checkpoints hold, and how often they are written.

    Args:
        header: of the checkpoints.
        target: file of the result.
        count: total number of steps.
        names: of the losses; further values of a step are logged without averaging.
        every: steps between two checkpoints.
        facts: returns further facts for a checkpoint; all processes call it after the same step.
    """

    header: Header
    target: Path
    count: int
    network: torch.nn.Module
    optimizer: torch.optim.Optimizer
    names: Sequence[str]
    every: int
    facts: Callable[[], Mapping[str, object]] = dict


def take_steps(work: Steps, records: Iterable[distributed.Losses], start: Start,
               ranks: processes.Ranks, finish: Callable[[], tuple[Header, Mapping[str, Tensor]]]
               ) -> list[list[float]]:
    """Take the remaining steps from the checkpoint's state, and write checkpoints and the result.

    Args:
        records: takes a step whenever its next losses are requested.
        finish: returns the header, without the curve, and the tensors of the result, which the
            first process writes.

    Returns:
        the loss curve: step, and the means of the losses since the previous entry.

    Raises:
        VplError: a loss is not finite; the last checkpoint stays.
        KeyboardInterrupt: it was interrupted; there is a checkpoint.
    """
    _load_state(work.network, work.optimizer, start.tensors)
    # Around the writing, too: an interrupt in the last step comes when the file is there. torchrun
    # sends a second signal after that of the terminal.
    with signals.defer_interrupts(every=ranks.count > 1) as interrupted:
        curve = _follow(work, records, start, ranks, interrupted)
        if ranks.rank == 0:
            header, tensors = finish()
            write_trained(work.target, header, tensors, curve)
    return curve


def _follow(work: Steps, records: Iterable[distributed.Losses], start: Start,
            ranks: processes.Ranks, interrupted: Callable[[], bool]) -> list[list[float]]:
    checkpoint, steps, averaged = checkpoint_of(work.target), work.count, len(work.names)
    curve, recent, first = start.curve, start.recent, ranks.rank == 0
    unread: list[distributed.Losses] = []
    if first and not start.step:
        checkpoint.unlink(missing_ok=True)
    rule, good = CheckpointRule(work.every), start.step
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
                _check_finite(read, done - len(read) + 1, checkpoint, good)
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
                    _write_checkpoint(checkpoint, work, facts, done, curve, recent)
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
    checkpoint_of(target).unlink(missing_ok=True)


def note_losses(names: Sequence[str], curve: Sequence[Sequence[float]]) -> None:
    """Report the first and last losses; a curve may lack the last names, or be empty."""
    if curve:
        console.note("loss: " + ", ".join(
            f"{name.removesuffix(' loss')} {first:.3f} → {last:.3f}" for name, first, last in zip(
                names, curve[0][1:], curve[-1][1:], strict=False)))


def too_many_crops(steps: training.StepSettings) -> AbstractContextManager[None]:
    """Explain an error if the crops of a step do not fit into memory."""
    return memory.explain_out_of_memory(
        f"{steps.batch_size} crops of {steps.crop}×{steps.crop} patches",
        f"`batch_size={max(steps.batch_size // 2, 1)}, overwrite=True`, or "
        f"`crop={max(steps.crop // 2, 2)}, overwrite=True`")


def _write_checkpoint(path: Path, work: Steps, facts: Mapping[str, object], done: int,
                      curve: Losses, recent: Losses) -> None:
    """Write everything needed to resume after `done` steps."""
    tensors = {f"network.{name}": tensor for name, tensor in work.network.state_dict().items()}
    for index, state in work.optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if value is not None:
                tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    kept = {name: value for name, value in {**work.header.facts, **facts}.items()
            if name in ("segmenter", "cursors")}
    write_tensors(path, replace(work.header, facts={
        **kept, "checkpoint": done, "curve": curve, "recent": recent}), tensors)


def _load_state(network: torch.nn.Module, optimizer: torch.optim.Optimizer,
                tensors: Mapping[str, Tensor]) -> None:
    """Load the state saved by `_write_checkpoint`; without tensors nothing changes."""
    state: dict[int, dict[str, Tensor]] = {}
    weights = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part == "network":
            weights[rest] = tensor
        else:
            index, _, entry = rest.partition(".")
            state.setdefault(int(index), {})[entry] = tensor
    if weights:
        network.load_state_dict(weights)
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
