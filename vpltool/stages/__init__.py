"""The stages of the pipeline: a file each, found by its name.

Commands about the tool itself have the same form, and lie in `vpltool/commands`, since they stand
above the stages.
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
    """A stage that was found: the name of its command, such as `learn-prototypes`, and its file."""

    name: str
    module: ModuleType

    @property
    def stage(self) -> Stage:
        """What it declares."""
        stage: Stage = self.module.STAGE
        return stage

    @property
    def function_name(self) -> str:
        """Its name in Python, such as `learn_prototypes`."""
        return self.name.replace("-", "_")

    @property
    def run(self) -> Callable[..., Any]:
        """Its work: `run(workspace, settings)`."""
        run: Callable[..., Any] = self.module.run
        return run

    @property
    def show(self) -> Callable[..., str] | None:
        """What spells its result for people, if paths are not all that there is to say."""
        return getattr(self.module, "show", None)

    def lines(self, result: object, values: Mapping[str, object]) -> list[str]:
        """What its command prints of a result: what `show` spells, else the paths."""
        if self.show is not None:
            return [text] if (text := self.show(result, values)) else []
        parts = result if isinstance(result, (list, tuple)) else [result]
        return [str(part) for part in parts if part is not None]

    def judge(self, result: object) -> None:
        """Refuse a result that is a verdict, once it is printed; notebooks get it as it is.

        Raises:
            VplError: the result says that something is wrong.
        """
        if judge := getattr(self.module, "judge", None):
            judge(result)


@dataclass(frozen=True)
class Listed:
    """What a list of all stages says of one, read from its file without importing it.

    Order and panel are those of its `STAGE`, `about` the first paragraph of `run`'s docstring.
    """

    order: int
    panel: str
    about: str


_PACKAGES = ("vpltool.stages", "vpltool.commands")

_LISTED = re.compile(r'^STAGE = Stage\(\s*order=(\d+), panel="([^"]+)".*?'
                     r'^def run\(.*?"""(.+?)(?:\n\n|""")', re.DOTALL | re.MULTILINE)
"""How each file spells what is listed; a test compares it with what the file says when imported."""


class Stages(Mapping[str, FoundStage]):
    """Name to stage, in pipeline order. Looking one up imports its file alone."""

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
        """Name to what a list says."""
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
    """Name to stage of every file in these two folders, in pipeline order."""
    return Stages()
