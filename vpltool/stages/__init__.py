"""The stages of the pipeline: a file each, found by its name.

Commands about the tool itself have the same form, and lie in `vpltool/commands`, since they stand
above the stages.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from vpltool.stage import Stage


@dataclass(frozen=True)
class FoundStage:
    """A stage that was found.

    Args:
        name: name of its command, such as `learn-prototypes`.
        module: its file.
    """

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

    def judge(self, result: Any) -> None:
        """Refuse a result that is a verdict, once it is printed; notebooks get it as it is.

        Raises:
            VplError: the result says that something is wrong.
        """
        getattr(self.module, "judge", lambda _result: None)(result)


_PACKAGES = ("vpltool.stages", "vpltool.commands")


@functools.cache
def find_stages() -> dict[str, FoundStage]:
    """Name to stage of every file in these two folders, in pipeline order."""
    found = []
    for package in _PACKAGES:
        for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
            if not info.name.startswith("_"):
                module = importlib.import_module(f"{package}.{info.name}")
                found.append(FoundStage(info.name.replace("_", "-"), module))
    return {entry.name: entry for entry in sorted(found, key=lambda entry: entry.stage.order)}
