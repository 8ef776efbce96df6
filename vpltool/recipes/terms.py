"""The values of a recipe in messages: `tags=FILE` for what a command calls `--labels FILE`.

Which value fills which option is read from the recipe's lines: `vpltool prepare --labels $tags`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vpltool.clip import encoders
from vpltool.errors import VplError, near_path
from vpltool.names import is_on_hub
from vpltool.recipes.parse import Block, Line, Recipe, Rounds, Step, commands_of
from vpltool.settings import SettingSpec
from vpltool.shell import all_settings, settings_with, to_shell
from vpltool.stages import find_stages

_VALUE = re.compile(r"\$\{?(\w+)\}?")
_USAGE = re.compile(r"Invalid value for '(-[\w-]+)'[^:]*: (.*?)\.?$")


@dataclass(frozen=True)
class Terms:
    """A recipe with the values given to it, and `names`: stage to setting to value's name."""

    recipe: Recipe
    given: Mapping[str, str]
    names: Mapping[str, Mapping[str, str]]

    def where(self, line: int) -> str:
        """Name a line of the recipe, whose file the user may not have seen."""
        return f"{self.recipe.name}, line {line}"

    def spell(self, text: str, stage: str, work: Path = Path()) -> str:
        """Translate the Python in a message, see `to_shell`, with the values of the recipe."""
        # A setting of the stage itself takes precedence over another stage's.
        known = find_stages()
        own = {entry.name for entry in all_settings(known[stage])} if stage in known else set()
        names = dict(self.names.get(stage, {}))
        for others in self.names.values():
            for setting, name in others.items():
                # The first stage that a value reaches is the one that others build on.
                if setting not in own:
                    names.setdefault(setting, name)
        return to_shell(text, stage, work, names)

    def value_error(self, message: str, stage: str) -> VplError | None:
        """Return the error for a value that an option of a stage does not take.

        `message` is typer's, which names the option. None if no value fills this option.
        """
        match = _USAGE.match(message)
        entry = _entry_of(match[1], all_settings(find_stages()[stage])) if match else None
        name = self.names.get(stage, {}).get(entry.name, "") if entry else ""
        if not match or not name:
            return None
        return VplError(f"{name}={self.value(name)}: {match[2]}",
                        self.recipe.hint(name, f"give {name} another value"))

    def value(self, name: str) -> str:
        """Return a value that was given, else its default; empty if there is none."""
        default = next((value.default for value in self.recipe.values if value.name == name), "")
        return self.given.get(name, default or "")


def terms_of(recipe: Recipe, given: Mapping[str, str]) -> Terms:
    """Find out which settings the values of a recipe fill, from its lines."""
    names: dict[str, dict[str, str]] = {}
    for stage, entry, name in _filled(recipe):
        names.setdefault(stage, {}).setdefault(entry.name, name)
    return Terms(recipe, given, names)


def path_names(recipe: Recipe) -> list[str]:
    """Return the names of the values that fill path settings, without paths of results."""
    filled = list(_filled(recipe))
    made = {name for _, entry, name in filled if entry.name == "out"}
    return list(dict.fromkeys(name for _, entry, name in filled
                              if entry.type is Path and name not in made))


def path_in(value: str, *, is_path: bool) -> tuple[str, str]:
    """Split a value into the text before a path, and the path; empty if it holds none.

    Weights are a tag, a path, timm:MODEL,PATH or MODEL:PATH: only the disk tells which, except
    where the whole value is known to be a path.
    """
    if value and is_path:
        return "", value
    # Names on the Hub look like paths, and may be those of folders here.
    starts = [] if is_on_hub(value) else [
        0, *(match.end() for match in re.finditer("[,:]", value))]
    return next(((value[:start], value[start:]) for start in starts
                 if os.path.exists(value[start:])), (value, ""))  # noqa: PTH110


def check_paths(recipe: Recipe, given: Mapping[str, str], kept: Collection[str] = ()) -> None:
    """Check that the paths given to a recipe exist; `kept` are names of values of the last run.

    Raises:
        VplError: one does not exist; the value is named.
    """
    for name in path_names(recipe):
        if given.get(name) and not Path(given[name]).exists():
            hint = near_path(Path(given[name])) or recipe.hint(name, f"give `{name}=PATH`")
            if name in kept:
                optional = all(value.name != name for value in recipe.missing({}))
                hint = (f"if it has moved, give `{name}=PATH`"
                        + (f"; `{name}=` leaves it out" if optional else ""))
            raise VplError(f"{name}={given[name]}{' of the last run' if name in kept else ''}: "
                           f"{given[name]} does not exist", hint)


def check_encoders(terms: Terms, steps: Iterable[Step | Rounds], work: Path) -> None:
    """Check the encoders that values name, before the hours of work that precede their use.

    Raises:
        VplError: a value names none, or a file without weights.
    """
    for step in commands_of(steps):
        name = terms.names.get(step.words[0], {}).get("encoder", "")
        given = terms.value(name)
        if given in ("", "auto") or given not in step.words:
            continue
        source = None
        try:
            source = encoders.find_encoder(given, (Path(), work))
            encoders.check_encoder(source)
        except VplError as error:
            hint = terms.spell(error.hint, step.words[0])
            raise VplError(terms.spell(error.message, step.words[0]),
                           hint if source else terms.recipe.hint(name, hint)) from error


def _filled(recipe: Recipe) -> Iterator[tuple[str, SettingSpec, str]]:
    """Yield stage, setting and name of each value that alone fills a setting in a line."""
    known = {value.name for value in recipe.values}
    stages = find_stages()
    for text in _lines(recipe.body):
        words = re.sub(r"[\[\]]", " ", text).replace("=$", " $").split()[1:]
        words = words[2:] if words[:1] == ["--preset"] else words
        if not words or words[0] not in stages:
            continue
        found = stages[words[0]]
        entries = (list(settings_with(found, words[1]).values())
                   if found.stage.subcommands and words[1:] else all_settings(found))
        places = [entry for entry in entries if entry.positional]
        for before, word in zip(words, words[1:], strict=False):
            match = _VALUE.fullmatch(word)
            if match and match[1] in known:
                entry = _entry_of(before, entries)
                if entry is None or entry.type is bool:
                    entry = places.pop(0) if places else None
                if entry is not None:
                    yield found.name, entry, match[1]


def _lines(body: Sequence[Line | Block]) -> Iterator[str]:
    """Yield the commands of a recipe, including blocks that do not run."""
    for item in body:
        if isinstance(item, Block):
            yield from _lines(item.body)
        elif item.text.startswith("vpltool "):
            yield item.text


def _entry_of(flag: str, entries: Sequence[SettingSpec]) -> SettingSpec | None:
    return next((entry for entry in entries if not entry.positional
                 and flag in (entry.flag, entry.short, *entry.aliases)), None)
