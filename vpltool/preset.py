"""Reading presets, which may set what the stages and their methods declare."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vpltool.errors import VplError, near_name
from vpltool.formats.header import identity_of_many
from vpltool.methods import KINDS, find_methods
from vpltool.names import without_home
from vpltool.presets import find_preset
from vpltool.settings import SettingSpec, Values
from vpltool.shell import settings_with
from vpltool.stages import FoundStage, find_stages

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Preset:
    """A checked preset.

    Args:
        identity: hash of its values, independent of comments, order and layout.
        defaults: command to setting to value; with subcommands, command to method to both.
    """

    name: str
    identity: str
    defaults: Values

    def values(self, found: FoundStage, method: str = "") -> Values:
        """Return its values for a stage, or for a subcommand of the stage."""
        values: Values = self.defaults.get(found.name, {})
        return dict(values.get(method, {})) if found.stage.subcommands else dict(values)

    def record(self, found: FoundStage, values: Mapping[str, object]) -> Values:
        """Return the record for headers, see `under_preset`; empty if it does not set the stage.

        Those of the call's `values` that differ from the preset's are listed in it.
        """
        method = str(values.get("method", ""))
        sets = self.values(found, method)
        known = settings_with(found, method)
        other = {known[name].flag[2:]: without_home(values.get(name))
                 for name, value in sets.items() if name in known and values.get(name) != value}
        return {"name": self.name, "hash": self.identity, "given": other} if sets else {}


def read_preset(choice: str) -> Preset:
    """Read and check a preset, given by name or as a TOML file with a table per command.

    Raises a VplError if there is no such preset, it is not TOML, or it has an unknown setting or a
    value that the command would not accept; the file and the key are named.
    """
    path = find_preset(choice)
    try:
        content = tomllib.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise VplError(f"{path} is not TOML: {error}",
                       "a table per command, a line per option: [refine], lambda = 0.4") from error
    stages = find_stages()
    defaults = {}
    for key, table in content.items():
        if key not in stages:
            raise VplError(f"{path}: `{key}` is not a command", near_name(key, stages))
        if not isinstance(table, dict):
            raise VplError(f"{path}: {key} = {table!r} is a command, not an option",
                           f"[{key}] begins the table of its options")
        defaults[key] = _check_stage(stages[key], table, path)
    return Preset(path.stem, identity_of_many(content), defaults)


def _check_stage(found: FoundStage, table: Values, path: Path) -> Values:
    where, kind = f"{path}: [{found.name}]", found.stage.methods
    methods = find_methods(kind) if kind else {}
    if found.stage.subcommands:
        checked: Values = {}
        for key, part in table.items():
            if key not in methods:
                raise VplError(f"{where}: `{key}` is not a command", near_name(key, methods))
            checked[key] = _check(settings_with(found, key).values(), part, f"{found.name} {key}",
                                  f"{where}: [{key}]")
        return checked
    method = table.get("method", KINDS[kind].default) if kind else ""
    if kind and method not in methods:
        raise VplError(f"{where}: method = {method!r}: no such method",
                       near_name(str(method), methods))
    return _check(settings_with(found, method).values(), table, found.name, where)


def _check(entries: Iterable[SettingSpec], table: Values, command: str, where: str) -> Values:
    options = {flag[2:]: entry for entry in entries if not entry.positional
               for flag in (entry.flag, *entry.aliases)}
    if by_hand := [key for key in table if key in options and options[key].by_hand]:
        raise VplError(f"{where}: `{by_hand[0]}` is not set by a preset", "delete the line, and "
                       f"type the option: vpltool {command} --{by_hand[0]}")
    checked = {}
    for key, value in table.items():
        if key not in options:
            raise VplError(f"{where}: `{key}` is not an option of vpltool {command}",
                           near_name(key, options))
        entry = options[key]
        try:
            entry.check(value)
        except VplError as error:
            reason = error.message.partition("`: ")[2]
            raise VplError(f"{where}: {key} = {value!r}: {reason}", error.hint) from error
        checked[entry.name] = float(value) if entry.type is float else value
    return checked
