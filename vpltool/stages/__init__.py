"""The stages of the pipeline: a file each, found by its name.

Commands about the tool itself have the same form, and lie in `vpltool/commands`, since they stand
above the stages.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
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

    def lines(self, result: object, values: Mapping[str, object]) -> list[str]:
        """Format what its command prints of a result: what `show` spells, else the paths."""
        if self.show is not None:
            return [text] if (text := self.show(result, values)) else []
        parts = result if isinstance(result, (list, tuple)) else [result]
        return [str(part) for part in parts if part is not None]

    def judge(self, result: object) -> None:
        """Refuse a result that is a verdict, once it is printed; notebooks get it as it is.

        Raises:
            VplError: the result says that something is wrong.
        """
        getattr(self.module, "judge", lambda _result: None)(result)


_PACKAGES = ("vpltool.stages", "vpltool.commands")


class _Stages(Mapping[str, FoundStage]):
    """Name to stage. Looking one up imports its file alone; going through them imports all."""

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
        return iter(self._in_order)

    def __len__(self) -> int:
        return len(self._modules)

    @functools.cached_property
    def _in_order(self) -> list[str]:
        return sorted(self._modules, key=lambda name: self[name].stage.order)


@functools.cache
def find_stages() -> Mapping[str, FoundStage]:
    """Name to stage of every file in these two folders, in pipeline order."""
    return _Stages()
