"""Translation of Python names and calls into options and command lines."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from vpltool.methods import KINDS, find_methods
from vpltool.settings import SettingSpec, described, renamed
from vpltool.stages import FoundStage, find_stages

_CODE = re.compile(r"`([^`]+)`")


def program(work: Path = Path()) -> list[str]:
    """Return the first words of a line for a workspace: `vpltool -C work`."""
    return ["vpltool", *(["-C", str(work)] if work != Path() else [])]


def to_shell(text: str, stage: str = "", work: Path = Path(),
             names: Mapping[str, str] | None = None) -> str:
    """Translate the Python in a message's backticks to the syntax of the command line.

    `` `phi=0.4` `` becomes `--phi 0.4`, `` `extract(split='train')` `` becomes
    `vpltool -C work extract --split train`. Other text in backticks is unchanged.

    Args:
        stage: command whose settings are tried first, before those of all others.
        names: setting to the value of a recipe that fills it: `` `labels='FILE'` `` becomes
            `tags=FILE`.
    """
    return _CODE.sub(lambda match: _translated(match[1], stage, work, names or {}) or match[0],
                     text)


def _translated(code: str, stage: str, work: Path, names: Mapping[str, str]) -> str:
    try:
        call = ast.parse(code if re.match(r"\w+\(", code) else f"_({code})", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            return ""
        values = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
        positional = [ast.literal_eval(value) for value in call.args]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # The text in backticks may come from a file.
        return ""
    if call.func.id == "_":
        if positional or not values:
            return ""
        if any(name in names and values[name] != "" for name in values):
            # A recipe replaces results of other values without `overwrite`.
            values.pop("overwrite", None)
        words = [shlex.quote(f"{names[name]}={value}") if name in names and value != ""
                 else _option(name, value, stage) for name, value in values.items()]
        return " ".join(words) if all(words) else ""
    if call.func.id == "Workspace" and len(positional) == 1:
        return shlex.join([*program(Path(str(positional[0]))), "COMMAND"])
    name = call.func.id.replace("_", "-")
    if name not in find_stages():
        return ""
    return command_line(name, ({"method": positional[0]} if positional else {}) | values,
                        program(work))


def _option(name: str, value: object, stage: str) -> str:
    stages = find_stages()
    first = [stages[stage]] if stage in stages else []
    for found in (*first, *stages.values()):
        for entry in all_settings(found):
            if entry.name == name:
                return shlex.join(flag_words(entry, value))
    return ""


def all_settings(found: FoundStage) -> list[SettingSpec]:
    """List the settings of a stage, and of all its methods."""
    entries = list(described(found.stage.settings))
    for method in find_methods(found.stage.methods).values() if found.stage.methods else ():
        entries += described(method.settings) if method.importable else ()
    return entries


def settings_with(found: FoundStage, method: str | None = "") -> dict[str, SettingSpec]:
    """Return the settings of a stage and one of its methods by name, the stage's first.

    Without a name, the method is the default one; with None, the stage's own are returned.
    """
    settings = {entry.name: entry for entry in described(found.stage.settings)}
    kind = found.stage.methods
    if kind and method is not None and (name := method or KINDS[kind].default):
        chosen = find_methods(kind).get(name)
        for entry in described(chosen.settings) if chosen else ():
            settings.setdefault(entry.name, entry)
    return settings


def flag_words(entry: SettingSpec, value: object) -> list[str]:
    """Return the words that set a value: `--lambda 0.4`, `--no-flip`."""
    if entry.many and isinstance(value, (list, tuple)):
        return [word for item in value for word in flag_words(entry, item)]
    if entry.type is bool and not entry.positional:
        return [entry.flag if value else entry.off]
    short = isinstance(value, float) and float(f"{value:g}") == value
    text = f"{value:g}" if short else str(value)
    return [text] if entry.positional else [entry.flag, text]


def command_line(name: str, values: Mapping[str, object], program: Sequence[str] = ("vpltool",)
                 ) -> str:
    """Format a call of a stage for the shell: `vpltool cam --method dense`.

    `values` without a setting of that name are left out.
    """
    found = find_stages()[name]
    stage, values = found.stage, dict(values)
    words = [*program, name]
    method = values.get("method") or ""
    if stage.subcommands:
        words.append(str(values.pop("method", "")))
    entries = settings_with(found, str(method))
    values = renamed(values, entries.values())
    for entry in sorted(entries.values(), key=lambda entry: not entry.positional):
        if entry.name in values and values[entry.name] is not None:
            words += flag_words(entry, values[entry.name])
    return shlex.join(words)
