"""How long a training will take, from a few steps of it."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vpltool import api, console

_STEPS = 6
"""Steps that are timed; the first, which waits for its crops, does not count."""

_LONG = 1000
"""Steps from which on a training is timed beforehand."""


def is_long(steps: int) -> bool:
    """Tell whether a training is worth timing beforehand."""
    return steps >= _LONG


def seconds_a_step(work: api.Workspace, values: Mapping[str, Any]) -> float:
    """Seconds that a step of a training takes here; nothing of it is kept.

    Args:
        work: the workspace.
        values: settings of `train_decoder`.

    Raises:
        VplError: the training is refused.
    """
    watch = _Watch()
    with tempfile.TemporaryDirectory() as folder, console.heard_by(watch):
        work.train_decoder(**{**values, "iters": _STEPS,
                              "out": Path(folder) / "trial.safetensors"})
    return statistics.median(after - before for before, after in itertools.pairwise(watch.times))


class _Watch:
    """Notes when each step of the last piece of work ended, and passes nothing on."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def note(self, message: str) -> None:
        """Nothing: the training itself will say it."""

    def warn(self, message: str) -> None:
        """Nothing: the training itself will say it."""

    @contextlib.contextmanager
    def progress(self, title: str, total: int) -> Iterator[console.Advance]:
        """Start over."""
        self.times = []
        yield lambda steps=1, text="": self.times.append(time.monotonic())
