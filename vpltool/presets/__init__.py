"""Presets: options of several commands in one readable file, so that a protocol has a name.

What a preset may set is asked of the command line itself: every option of every command, by its
own name, type and range. `cli` hands the result to the commands as their defaults.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from vpltool.errors import VplError, near_name
from vpltool.formats.header import identity_of_many

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_TYPES: tuple[tuple[str, str, type | tuple[type, ...]], ...] = (
    ("bool", "true or false", bool), ("int", "a whole number", int),
    ("float", "a number", (int, float)), ("", "a string", str))
"""How typer's name of a type begins, what to call it, and what TOML must give."""


@dataclass(frozen=True)
class Preset:
    """A preset that was read and checked.

    Args:
        name: the file's name without suffix.
        identity: hash of what it sets; comments, order and layout do not count.
        defaults: command to parameter to value; a group of commands holds its own commands.
    """

    name: str
    identity: str
    defaults: dict[str, Any]


def preset_files() -> dict[str, Path]:
    """Name to file of the presets that come with vpltool."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}


def find_preset(choice: str) -> Path:
    """File of a preset given by name or path.

    Raises:
        VplError: there is none.
    """
    known = preset_files()
    path = known.get(choice, Path(choice))
    if not path.is_file():
        raise VplError(f"--preset {choice}: neither a preset nor a file", near_name(choice, known))
    return path


def read_preset(choice: str, commands: Any) -> Preset:
    """Read a preset by name or path, and check all of it.

    Args:
        choice: name of one that comes with vpltool, or a TOML file with a table a command.
        commands: the whole command line, as typer built it.

    Raises:
        VplError: there is no such preset, it is no TOML, or it sets what no command has, to a
            value that the command would not take; the file and the key are named.
    """
    path = find_preset(choice)
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise VplError(f"{path} is no TOML: {error}",
                       "a table a command, a line an option: [refine], lambda = 0.4") from error
    defaults = _check(content, commands, str(path))
    return Preset(path.stem, identity_of_many(content), defaults)


def flags_of(command: Any, values: dict[str, Any]) -> str:
    """Spell a command's parameters as they are given by hand: `--lambda 0.4 --min-max`."""
    said = []
    for param in command.params:
        if param.name in values:
            value = values[param.name]
            if isinstance(value, bool):
                said += param.opts[:1] if value else param.secondary_opts[:1]
            else:
                said += [param.opts[0], shlex.quote(str(value))]
    return " ".join(said)


def _check(table: dict[str, Any], command: Any, where: str) -> dict[str, Any]:
    """Check a table against a command or a group of them: parameter to value, for all below."""
    group = getattr(command, "stages", None)
    options = {option[2:]: param for param in getattr(command, "params", ())
               for option in param.opts if option.startswith("--")}
    checked = {}
    for key, value in table.items():
        if key not in (options if group is None else group):
            wanted = "command" if group is not None else f"option of vpltool {command.name}"
            raise VplError(f"{where}: `{key}` is no {wanted}", near_name(key, group or options))
        if group is None:
            checked[options[key].name] = _value(options[key], value, f"{where}: {key} = {value!r}")
        elif isinstance(value, dict):
            checked[key] = _check(value, group[key], f"{where}: [{key}]")
        else:
            raise VplError(f"{where}: {key} = {value!r} is a command, not an option",
                           f"[{key}] begins the table of its options")
    return checked


def _value(param: Any, value: Any, where: str) -> Any:
    """Check a value's type and range as the command line does."""
    wanted, types = next(entry[1:] for entry in _TYPES if param.type.name.startswith(entry[0]))
    # TOML's true is a whole number to Python.
    if not isinstance(value, types) or isinstance(value, bool) != (types is bool):
        raise VplError(f"{where}: expected {wanted}", param.help)
    try:
        return param.type.convert(value, param, None)
    except typer.BadParameter as error:
        raise VplError(f"{where}: {error.message}", param.help) from error
