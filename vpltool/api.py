"""The Python API: a workspace whose methods are the stages."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from vpltool import console
from vpltool.errors import VplError
from vpltool.formats import Photo, open_workspace
from vpltool.methods import KINDS, find_methods
from vpltool.parallel.plain_torch import plain_torch
from vpltool.preset import read_preset
from vpltool.run import find_stage, run_stage
from vpltool.settings import Values, described
from vpltool.shell import settings_with
from vpltool.stages import FoundStage, find_stages


class Workspace:
    """A workspace folder, with a method for each stage.

    `work.cam(prototypes="vision", method="dense")` does the same as `vpltool cam --prototypes
    vision --method dense`, with the same files and errors, and progress as a bar. It returns what
    the command prints: a path, several, or a report. `help(work.cam)` lists the settings. Stages
    reread the workspace at each call, so that other programs may change it in between.

    Args:
        path: the folder, which may be empty or missing: `prepare` and `demo` fill it.
        preset: protocol whose values replace the defaults, by name or path.
    """

    def __init__(self, path: str | Path = ".", *, preset: str = "") -> None:
        self.path = Path(path)
        self.preset = preset

    def __repr__(self) -> str:
        preset = f", preset={self.preset!r}" if self.preset else ""
        return f"Workspace({str(self.path)!r}{preset})"

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order, without the background: the first is class 1.

        Raises:
            VplError: there is no workspace in the folder yet.
        """
        return open_workspace(self.path).classes

    def photos(self, split: str = "") -> list[Photo]:
        """Return the photos of a split, or all.

        Raises:
            VplError: there is no workspace in the folder yet, or no such split.
        """
        return open_workspace(self.path).photos(split)

    def photo_paths(self, split: str = "") -> dict[str, Path]:
        """Return the paths of the photos of a split, or all, by id.

        The mask of a photo is the file ID.png in a folder of masks.

        Raises:
            VplError: there is no workspace in the folder yet, or no such split.
        """
        opened = open_workspace(self.path)
        return {photo.id: opened.image_path(photo) for photo in opened.photos(split)}

    def run(self, recipe: str | Path, *values: str, preset: str = "", dry_run: bool = False,
            jobs: int = 0, **named: object) -> list[Any]:
        """Run a recipe: `work.run("own-photos", photos="photos", tags="tags.csv")`.

        Args:
            recipe: name of a recipe, or its file.
            values: values of the recipe, as on the command line: `"photos=photos"`.
            preset: preset for all commands; default: the workspace's.
            dry_run: whether to return the command lines without running them.
            jobs: rounds that run in parallel; 0: depends on the number of cores.
            named: values of the recipe by name; of a list, its items are the words.

        Returns:
            paths that the recipe made, or found up to date; the lines, for a dry run.

        Raises:
            VplError: a line is wrong (before anything is run), or failed.
            PhotosFailed: some photos failed; the recipe processed the others.
        """
        words = (*values, *(f"{name}={_as_words(value)}" for name, value in named.items()))
        settings = {"preset": preset or self.preset, "dry_run": dry_run, "jobs": jobs}
        given = {name: value for name, value in settings.items() if value}
        with plain_torch(whole=True), console.timed_as_one():
            result: list[object] = run_stage(find_stage("run"), self.path, {
                "recipe": str(recipe), "values": words} | given)
        return result

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return the function of a stage, bound to this workspace."""
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            found = find_stage(name)
        except VplError as error:
            raise AttributeError(f"{error.message}: {error.hint}") from None
        return _bound(self, found)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(found.function_name for found in find_stages().values())]


def _as_words(value: object) -> str:
    """Spell a value of a recipe: None as nothing, a list or tuple as its words."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


def _bound(work: Workspace, found: FoundStage) -> Callable[..., Any]:
    def call(*positional: object, **values: object) -> Any:
        values = _named(found, positional) | values
        sets, record = _preset_values(work.preset, found, values) if work.preset else ({}, {})
        with plain_torch(whole=True), console.timed_as_one():
            return run_stage(found, work.path, sets | values, given=values, preset=record)

    call.__name__ = call.__qualname__ = found.function_name
    call.__doc__ = _documentation(found)
    call.__signature__ = inspect.Signature([  # type: ignore[attr-defined]
        inspect.Parameter(entry.name, inspect.Parameter.KEYWORD_ONLY,
                          default=inspect.Parameter.empty if entry.default is MISSING
                          else entry.default)
        for entry in described(found.stage.settings)])
    return call


def _preset_values(choice: str, found: FoundStage, values: Mapping[str, object]
                   ) -> tuple[Values, Values]:
    """Return the settings that a preset gives a call, and its record for headers."""
    preset = read_preset(choice)
    sets = preset.values(found, str(values.get("method", "")))
    # The preset may have settings of another method.
    method = str(values.get("method") or sets.get("method") or "")
    known = settings_with(found, method)
    sets = {name: value for name, value in sets.items() if name in known}
    return sets, preset.record(found, sets | dict(values))


def _named(found: FoundStage, positional: Sequence[object]) -> Values:
    """Name positional arguments: the method of a group, then positional settings."""
    method = str(positional[0]) if found.stage.subcommands and positional else None
    taken = [entry for entry in settings_with(found, method).values() if entry.positional]
    names = (["method"] if found.stage.subcommands else []) + [entry.name for entry in taken]
    if taken and taken[-1].many and len(positional) >= len(names):
        last = len(names) - 1
        positional = [*positional[:last], tuple(positional[last:])]
    if len(positional) > len(names):
        raise TypeError(f"{found.function_name}() takes {len(names)} positional arguments, "
                        f"{len(positional)} were given")
    return dict(zip(names, positional, strict=False))


def _documentation(found: FoundStage) -> str:
    lines = [inspect.getdoc(found.run) or "", "", "Settings:"]
    for entry in described(found.stage.settings):
        default = "required" if entry.default is MISSING else f"default {entry.default!r}"
        lines.append(f"    {entry.name}: {entry.help} ({default})")
    if found.stage.methods:
        kind = KINDS[found.stage.methods]
        lines += ["", f"Methods, which have settings of their own (default: {kind.default}; "
                      f"`vpltool methods {kind.name} NAME` lists them):"]
        lines += [f"    {method.name}: {method.summary}"
                  for method in find_methods(kind.name).values()]
    return "\n".join(lines)
