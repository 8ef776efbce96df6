"""When to write a checkpoint, so that a run that is stopped loses little."""

from __future__ import annotations

import time
from collections.abc import Callable


class CheckpointRule:
    """Tells after each step whether to write a checkpoint.

    One is due at every multiple of a number of steps and when so many seconds have passed without
    one, whichever comes first; at an interrupt (`defer_interrupts`) always.

    Args:
        steps: a checkpoint at each multiple of this; 0: steps do not count.
        seconds: time since the last one, or since the first step; 0: time does not count.
        clock: seconds from any moment on.
    """

    def __init__(self, steps: int, seconds: float = 60.0,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self.steps, self.seconds, self._clock = steps, seconds, clock
        self._since: float | None = None

    def due(self, done: int, *, interrupted: bool = False) -> bool:
        """Tell whether to write a checkpoint after `done` steps; ask once a step.

        Time runs from the next step on: however long the writing takes, steps are done between
        two checkpoints.
        """
        now = self._clock()
        self._since = now if self._since is None else self._since
        late = self.seconds > 0 and now - self._since >= self.seconds
        if interrupted or late or (self.steps > 0 and done % self.steps == 0):
            self._since = None
            return True
        return False
