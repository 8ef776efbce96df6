"""The reference pages of the documentation, generated from the product's own tables.

    python -m vpltool.reference docs/reference
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from vpltool.command_help import paragraphs, setting_entry, settings_table
from vpltool.commands import methods
from vpltool.formats.atomic import atomic_path
from vpltool.formats.kinds import KINDS, Kind
from vpltool.methods import KINDS as METHOD_KINDS
from vpltool.methods import find_methods
from vpltool.preset import read_preset
from vpltool.presets import preset_files
from vpltool.recipes.parse import read_recipe, recipe_files
from vpltool.run import find_stage, run_stage
from vpltool.settings import Settings, described
from vpltool.shell import to_shell
from vpltool.stages import FoundStage, find_stages
from vpltool.tables import markdown_table

_MADE = "<!-- printed by: python -m vpltool.reference docs/reference -->"

_LAYOUTS = {"json": "`.json`", "jsonl": "`.jsonl`", "tensors": "one `.safetensors`",
            "tensors-folder": "a `.safetensors` per photo",
            "labels-folder": "a palette PNG per photo", "raster": "one GeoTIFF"}


def pages() -> dict[str, str]:
    """Return the text of each page by file name."""
    return {
        "commands.md": _page(
            "Every command", "All settings of all commands, in the order of the pipeline. [The "
            "guide to the commands](../commands.md) says which of them matter. In Python, a "
            "setting has the name in the first column.", _commands()),
        "kinds.md": _page(
            "Every kind of file", "What each kind of file contains, and what writes it. [The guide "
            "to the files](../files.md) lists their paths and headers.",
            map(_kind, KINDS.values())),
        "presets.md": _page(
            "Every preset", "What each sets, command by command; `vpltool presets NAME` prints the "
            "file with its sources. [The guide to presets](../presets.md) says what they are for.",
            (_preset(name, path) for name, path in preset_files().items())),
        "recipes.md": _page(
            "Every recipe", "All included recipes, with their parameters; `vpltool recipes NAME` "
            "prints one, as a template for your own.",
            (_recipe(name, path) for name, path in recipe_files().items())),
        "methods.md": methods.show(run_stage(find_stage("methods"), Path(), {"markdown": True}),
                                   {"markdown": True}) + "\n"}


def _page(title: str, about: str, parts: Iterable[str]) -> str:
    return "\n\n".join([f"# {title}", _MADE, about, *parts]) + "\n"


def _commands() -> Iterator[str]:
    panel = ""
    for found in find_stages().values():
        if found.stage.panel != panel:
            panel = found.stage.panel
            yield f"## {panel}"
        yield _command(found)


def _command(found: FoundStage) -> str:
    stage = found.stage
    about = re.split(r"\n\n(?:Args|Returns|Raises|Yields):\n", inspect.getdoc(found.run) or "")[0]
    flow = [f"{word} {', '.join(f'[{kind}](kinds.md#{kind})' for kind in kinds)}"
            for word, kinds in (("Reads", stage.reads), ("Writes", stage.writes)) if kinds]
    parts = [f"### {found.name}", paragraphs(about), *([". ".join(flow) + "."] if flow else [])]
    own = [] if stage.subcommands else [_table(stage.settings)]
    if stage.methods and stage.subcommands:
        shared = {entry.name for entry in described(stage.settings)}
        parts += ["All of the following also accept these settings.",
                  _table(stage.settings, skip={"method"})] if shared - {"method"} else []
        for method in find_methods(stage.methods).values():
            parts += [f"#### {found.name} {method.name}", paragraphs(method.docstring),
                      _table(method.settings, skip=shared)]
    elif stage.methods:
        names = ", ".join(f"[{name}](methods.md#{name})" for name in find_methods(stage.methods))
        own.append(f"Methods ({METHOD_KINDS[stage.methods].name}): {names}.")
    return "\n\n".join(part for part in [*parts, *own] if part)


def _table(kind: type[Settings], skip: set[str] | frozenset[str] = frozenset()) -> str:
    entries = [setting_entry(entry) for entry in described(kind) if entry.name not in skip]
    return settings_table(entries) if entries else ""


def _kind(kind: Kind) -> str:
    readers = [found.name for found in find_stages().values() if kind.name in found.stage.reads]
    parts = [f"## {kind.name}", f"{kind.about[0].upper()}{kind.about[1:]}.",
             f"{_LAYOUTS[kind.layout]}, version {kind.version}; made by {to_shell(kind.made_by)}."]
    if readers:
        parts.append("Read by " + ", ".join(f"[{name}](commands.md#{name})" for name in readers)
                     + ".")
    if kind.tensors:
        rows = ["| tensor | type | axes | |", "| --- | --- | --- | --- |"]
        rows += [f"| `{name}` | {' or '.join(spec.dtypes)} | {', '.join(spec.axes)} | "
                 f"{'may be missing' if spec.optional else ''} |"
                 for name, spec in kind.tensors.items()]
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def _preset(name: str, path: Path) -> str:
    preset = read_preset(name)
    title = path.read_text("utf-8").split("\n", 1)[0].lstrip("# ")
    rows = markdown_table(("command", "setting", "value"), (
        (command, f"`{setting}`", f"`{value}`")
        for command, setting, value in _flat(preset.defaults)))
    return "\n\n".join([f"## {name}", f"{title}.", f"Hash `{preset.identity}`.", rows])


def _flat(values: Mapping[str, object], command: str = "") -> list[tuple[str, str, object]]:
    rows: list[tuple[str, str, object]] = []
    for name, value in values.items():
        rows += (_flat(value, f"{command} {name}".strip()) if isinstance(value, Mapping)
                 else [(command, name, value)])
    return rows


def _recipe(name: str, path: Path) -> str:
    recipe = read_recipe(path)
    rows = markdown_table(("value", "default", "what it is"), (
        (f"`{value.name}`",
         "must be given" if value.default is None else value.default or "not set", value.about)
        for value in recipe.values))
    return "\n\n".join([f"## {name}", recipe.title, f"`vpltool run {name}`",
                        *([rows] if recipe.values else [])])


def main() -> None:
    """Write the pages into the folder given on the command line."""
    folder = Path(sys.argv[1])
    for name, text in pages().items():
        with atomic_path(folder / name) as path:
            path.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
