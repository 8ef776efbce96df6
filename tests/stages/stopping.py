"""Ctrl-C in the middle of a training."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str) -> None:
    """Interrupt what takes the steps, a generator of a module, when some are done."""
    train = getattr(module, name)

    def stopped(*args: Any, **options: Any) -> Iterator[Any]:
        for done, record in enumerate(train(*args, **options)):
            if done == steps:
                raise KeyboardInterrupt
            yield record

    monkeypatch.setattr(module, name, stopped)
