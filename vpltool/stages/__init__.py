"""The stages of the pipeline, one file each, found by its name.

Commands about the tool itself have the same form, but are in `vpltool/commands`, a layer above.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from vpltool.settings import Stage


@dataclass(frozen=True)
class FoundStage:
    """A stage: the name of its command, such as `learn-prototypes`, and its module."""

    name: str
    module: ModuleType

    @property
    def stage(self) -> Stage:
        """Its declaration."""
        return self.module.STAGE

    @property
    def function_name(self) -> str:
        """Its name in Python, such as `learn_prototypes`."""
        return self.name.replace("-", "_")

    @property
    def run(self) -> Callable[..., Any]:
        """Its work: `run(workspace, settings)`."""
        return self.module.run

    @property
    def show(self) -> Callable[..., str] | None:
        """The function that formats its result; None if the result is paths."""
        return getattr(self.module, "show", None)

    def lines(self, result: object, values: Mapping[str, object]) -> list[str]:
        """Return the lines that its command prints: from `show`, or else the paths."""
        if self.show is not None:
            return [text] if (text := self.show(result, values)) else []
        parts = result if isinstance(result, (list, tuple)) else [result]
        return [str(part) for part in parts if part is not None]

    def judge(self, result: object) -> None:
        """Raise a VplError if a result reports a problem; notebooks get it without this check."""
        if judge := getattr(self.module, "judge", None):
            judge(result)


@dataclass(frozen=True)
class Listed:
    """The entry of a stage in lists, read from its file without importing it.

    `about` is the first paragraph of `run`'s docstring.
    """

    order: int
    panel: str
    about: str


_PACKAGES = ("vpltool.stages", "vpltool.commands")

_LISTED = re.compile(r'^STAGE = Stage\(\s*order=(\d+), panel="([^"]+)".*?'
                     r'^def run\(.*?"""(.+?)(?:\n\n|""")', re.DOTALL | re.MULTILINE)
"""The entry in the text of a file; a test compares it with the imported module."""


class Stages(Mapping[str, FoundStage]):
    """Stages by name, in pipeline order. A look-up imports only the stage's own file."""

    def __init__(self) -> None:
        self._modules = {
            info.name.replace("_", "-"): f"{package}.{info.name}" for package in _PACKAGES
            for info in pkgutil.iter_modules(importlib.import_module(package).__path__)
            if not info.name.startswith("_")}

    def __contains__(self, name: object) -> bool:
        return name in self._modules

    def __getitem__(self, name: str) -> FoundStage:
        return FoundStage(name, importlib.import_module(self._modules[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self.listed)

    def __len__(self) -> int:
        return len(self._modules)

    @functools.cached_property
    def listed(self) -> Mapping[str, Listed]:
        """Entries by name, in pipeline order."""
        found = {name: _listed(module) for name, module in self._modules.items()}
        return dict(sorted(found.items(), key=lambda item: item[1].order))


def _listed(module: str) -> Listed:
    package, _, file = module.rpartition(".")
    (folder,) = importlib.import_module(package).__path__
    match = _LISTED.search(Path(folder, f"{file}.py").read_text("utf-8"))
    assert match is not None, f"{module} spells its STAGE in another way"
    return Listed(int(match[1]), match[2], " ".join(match[3].split()))


@functools.cache
def find_stages() -> Stages:
    """Return all stages and commands by name, in pipeline order."""
    return Stages()
