"""Checkpoints come by steps and by time, whichever is first."""

from __future__ import annotations

import pytest

from vpltool.engine.checkpoints import CheckpointRule


def due_steps(rule: CheckpointRule, count: int, step: float, clock: list[float],
              writing: float = 0) -> list[int]:
    """Steps after which a checkpoint is due, where a step takes `step` seconds."""
    found = []
    for done in range(1, count + 1):
        clock[0] += step
        if rule.due(done):
            found.append(done)
            clock[0] += writing
    return found


@pytest.mark.parametrize(("steps", "seconds", "step", "wanted"), [
    (200, 60, 0.01, [200]),  # quick steps: by their number
    (200, 60, 3.3, [20, 40, 60, 80, 100, 120, 140, 160, 180, 200, 220, 240, 260, 280, 300]),
    (200, 0, 3.3, [200]),
    (0, 60, 0.01, []),
    (0, 60, 30, [3, 6, 9]),
])
def test_steps_or_seconds(steps: int, seconds: float, step: float, wanted: list[int]) -> None:
    """A recipe of 300 steps, 3.3 s each, lost all of them with a checkpoint every 200."""
    clock = [0.0]
    count = 10 if step == 30 else 300
    assert due_steps(CheckpointRule(steps, seconds, lambda: clock[0]), count, step, clock) == wanted


def test_a_slow_disk_does_not_stop_the_steps() -> None:
    """Writing takes longer than the time between two checkpoints."""
    clock = [0.0]
    found = due_steps(CheckpointRule(0, 60, lambda: clock[0]), 100, 10, clock, writing=500)
    assert found[:3] == [7, 14, 21]
