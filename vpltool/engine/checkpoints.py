"""Training checkpoints: state of a network and its optimizer, and when to write it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from vpltool import console
from vpltool.errors import VplError
from vpltool.formats import Header, JsonObject, expect_header, read_tensors, write_tensors
from vpltool.formats.changes import difference
from vpltool.formats.fields import LIST, NUMBER, check_fields
from vpltool.formats.header import is_stale
from vpltool.formats.kinds import CHECKPOINT
from vpltool.formats.manifest import UPDATE_HINT
from vpltool.lazy import torch
from vpltool.options import Replaces

Losses = list[list[float]]


@dataclass(frozen=True)
class Start:
    """The state in which a training starts or resumes.

    Args:
        step: first step.
        curve: loss curve so far: step, and mean losses.
        recent: losses of steps not yet in the curve.
        tensors: state of network and optimizer; empty: keep their initial state.
        facts: all facts of the checkpoint's header.
    """

    step: int
    curve: Losses
    recent: Losses
    tensors: Mapping[str, torch.Tensor]
    facts: JsonObject = field(default_factory=dict)


def checkpoint_of(target: Path) -> Path:
    """Return the path of the checkpoint that belongs to a training result."""
    return target.with_name(f"{target.stem}{CHECKPOINT}")


def is_checkpoint(path: Path) -> bool:
    """Return whether a file name is that of a checkpoint."""
    return path.name.endswith(CHECKPOINT)


def trained_header(path: Path, kind: str) -> Header:
    """Read the header of a training result: a decoder, a bundle or groups.

    Raises:
        VplError: the file is of another kind, or is only a checkpoint.
    """
    header = expect_header(path, kind)
    if "checkpoint" in header.facts:
        raise VplError(f"{path} is the checkpoint of a run that was stopped",
                       f"the same `{header.command.replace('-', '_')}()` again finishes it")
    return header


def write_checkpoint(path: Path, header: Header, network: torch.nn.Module,
                     optimizer: torch.optim.Optimizer, done: int, curve: Losses, recent: Losses
                     ) -> None:
    """Write everything needed to resume after `done` steps."""
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if value is not None:
                tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    kept = {name: header.facts[name] for name in ("segmenter", "cursors") if name in header.facts}
    facts = kept | {"checkpoint": done, "curve": curve, "recent": recent}
    write_tensors(path, replace(header, facts=facts), tensors)


def read_checkpoint(target: Path, header: Header, settings: Replaces, *,
                    keep: str = "`name='NAME'` keeps it") -> Start:
    """Read the checkpoint to resume from, if any; nothing is deleted.

    Args:
        target: path of the training result.
        header: header of the checkpoint.
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
    if found.config_hash != header.config_hash:
        stale = is_stale(header, found)
        if settings.update and found.command == header.command:
            return fresh
        raise VplError(f"{path} was made with other settings: "
                       f"{'; '.join(difference(header, found, path))}",
                       (UPDATE_HINT if stale else "")
                       + f"`overwrite=True` starts over; {keep}")
    try:
        check_fields(found.facts, {"checkpoint": NUMBER, "curve": LIST, "recent": LIST})
    except ValueError as error:
        raise VplError(f"{path} is not a checkpoint: {error}", "`overwrite=True` starts over"
                       ) from error
    step = int(found.facts["checkpoint"])
    console.note(f"resuming from step {step} of {header.options['iters']}")
    return Start(step, found.facts["curve"], found.facts["recent"], tensors, found.facts)


def load_state(network: torch.nn.Module, optimizer: torch.optim.Optimizer,
               tensors: Mapping[str, torch.Tensor]) -> None:
    """Load the state saved by `write_checkpoint`; without tensors nothing changes."""
    state: dict[int, dict[str, torch.Tensor]] = {}
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

    def due(self, done: int, *, interrupted: bool = False) -> bool:
        """Return whether to write a checkpoint after `done` steps; call once per step.

        After a checkpoint, time counts from the next step, so that training advances even if
        writing takes long.
        """
        now = self._clock()
        self._since = now if self._since is None else self._since
        late = self.seconds > 0 and now - self._since >= self.seconds
        if interrupted or late or (self.steps > 0 and done % self.steps == 0):
            self._since = None
            return True
        return False
