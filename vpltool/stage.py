"""What a command file declares about itself, and how the files are found."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True)
class Stage:
    """A command's place in the pipeline: orders and groups `--help`, and names the data flow.

    Args:
        order: position in the pipeline; commands are listed in this order.
        panel: heading under which `--help` shows the command.
        reads: kinds of file that it reads.
        writes: kinds of file that it writes.
    """

    order: int
    panel: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]


def command_modules() -> Iterator[tuple[str, ModuleType]]:
    """Yield (command name, module) of every file in `vpltool/stages`, in pipeline order."""
    import vpltool.stages as package

    found = []
    for info in pkgutil.iter_modules(package.__path__):
        if not info.name.startswith("_"):
            module = importlib.import_module(f"{package.__name__}.{info.name}")
            found.append((module.STAGE.order, info.name.replace("_", "-"), module))
    for _, name, module in sorted(found, key=lambda entry: entry[:2]):
        yield name, module
