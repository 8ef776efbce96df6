"""`methods`: lists the methods of each kind, and their settings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vpltool import command_help
from vpltool.core import phase_one, segmenter
from vpltool.errors import VplError, near_name
from vpltool.json_text import JsonObject
from vpltool.methods import FOLDERS, KINDS, Method, MethodKind, find_methods
from vpltool.settings import Settings, Stage, described, setting
from vpltool.stages import find_stages
from vpltool.tables import markdown_table


@dataclass(frozen=True, kw_only=True)
class MethodsSettings(Settings):
    """Settings of `methods`."""

    kind: str = setting("", "Methods of this kind, or of this command; default: all.",
                        positional=True, metavar="[KIND]")
    name: str = setting("", "Describe this method: its settings, with their sources.",
                        positional=True, metavar="[NAME]")
    markdown: bool = setting(False, "Print a Markdown page.", off="-")


STAGE = Stage(order=8, panel="1. Begin", reads=(), writes=(), settings=MethodsSettings, begins=True)


def run(_path: Path, settings: MethodsSettings) -> list[JsonObject]:
    """List the methods that stages choose from, and their settings.

    Each method is a file. Your own are found in the folders that VPLTOOL_METHODS names.

    Example: vpltool methods cams gradcam

    Next: vpltool cam --method NAME

    Returns:
        each kind with its methods; with their settings, if a name or a page is asked for.

    Raises:
        VplError: there is no such kind or method, or its file lacks something.
    """
    kinds = list(KINDS.values())
    if settings.kind:
        of_stages = {kind.stage: kind.name for kind in KINDS.values()}
        wanted = of_stages.get(settings.kind, settings.kind.replace("-", "_"))
        if wanted not in KINDS:
            raise VplError(f"`{settings.kind}` is not a kind of method", near_name(wanted, KINDS))
        kinds = [KINDS[wanted]]
    if settings.name:
        methods = find_methods(kinds[0].name)
        if settings.name not in methods:
            raise VplError(f"{kinds[0].name} has no method `{settings.name}`",
                           near_name(settings.name, methods))
        return [_kind(kinds[0]) | {"methods": [_details(methods[settings.name])]}]
    describe = _details if settings.markdown else _summary
    return [_kind(kind)
            | ({"given": list(map(_class_fields, kind.types))} if settings.markdown else {})
            | {"methods": [describe(method) for method in find_methods(kind.name).values()]}
            for kind in kinds]


def _kind(kind: MethodKind) -> JsonObject:
    found = find_stages().get(kind.stage)
    name = "NAME" if found and found.stage.subcommands else "--method NAME"
    return {"kind": kind.name, "about": kind.about, "stage": kind.stage,
            "use": f"vpltool {kind.stage} {name}", "defines": list(kind.needs),
            "signature": kind.signature, "returns": kind.returns, "may read": list(kind.reads),
            "note": kind.note, "default": kind.default}


def _class_fields(name: str) -> JsonObject:
    """Describe an input class and its fields by its docstring."""
    from vpltool.methods import inputs

    elsewhere = {"Pixels": phase_one, "SegmenterNetwork": segmenter}
    found = getattr(elsewhere.get(name, inputs), name)
    text = (inspect.getdoc(found) or "").replace("\nAttributes:\n", "\nArgs:\n")
    about, _, listed = text.partition("\n\nArgs:\n")
    return {"name": name, "about": about, "fields": [
        {"name": key, "type": _type_of(found, key), "about": " ".join(text.split())}
        for key, text in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", listed, re.M)]}


def _type_of(found: type, name: str) -> str:
    """Return the type of a field, the result of a property, or the parameters of a function."""
    member = inspect.getattr_static(found, name, None)
    if isinstance(member, property):
        return str(getattr(member.fget, "__annotations__", {})["return"])
    if inspect.isfunction(member):
        return f"({', '.join([*inspect.signature(member).parameters][1:])})"
    return str(inspect.get_annotations(found)[name])


def _summary(method: Method) -> JsonObject:
    return {"name": method.name, "summary": method.summary,
            **({} if method.bundled else {"from": str(method.path)})}


def _details(method: Method) -> JsonObject:
    module = method.load()
    function = getattr(module, KINDS[method.kind].function)
    return _summary(method) | {
        "about": method.docstring, "call": f"{function.__name__}"
        f"({', '.join(inspect.signature(function).parameters)})",
        "reads": list(getattr(module, "READS", ())),
        "settings": [command_help.setting_entry(entry) for entry in described(method.settings)]}


def show(result: list[JsonObject], values: Mapping[str, object]) -> str:
    """Format the list, the description of one method, or the page."""
    if values.get("markdown"):
        return "\n\n".join([*([] if values.get("kind") else [_INTRO]), *map(_section, result)])
    if values.get("name"):
        return _format_details(result[0], result[0]["methods"][0])
    return "\n\n".join(_format_kind(kind) for kind in result)


def _format_kind(kind: JsonObject) -> str:
    lines = [f"{kind['kind']}: {kind['about']} ({kind['use']})"]
    for method in kind["methods"]:
        default = " (default)" if method["name"] == kind["default"] else ""
        lines.append(f"  {method['name']:14} {method['summary']}{default}")
        if "from" in method:
            lines.append(f"  {'':14} from {method['from']}")
    return "\n".join(lines if kind["methods"] else [*lines, "  none"])


def _format_details(kind: JsonObject, method: JsonObject) -> str:
    lines = [method["about"], "",
             f"use: {kind['use'].replace('NAME', method['name'])}", f"function: {method['call']}"]
    lines += [f"from: {method['from']}"] if "from" in method else []
    lines += [f"reads: {', '.join(method['reads'])}"] if method["reads"] else []
    for entry in method["settings"]:
        lines += ["", f"{entry['option']}  {command_help.format_values(entry)}",
                  f"    {command_help.format_help(entry)}"]
    return "\n".join(lines)


_INTRO = f"""# Methods

<!-- printed by: vpltool methods --markdown -->

A stage that can do its work in several ways takes a method. A method is one file, `KIND/NAME.py`: a
docstring, whose first sentence is its line here and in `--help`; `Settings`, whose fields are its
options; `READS`, what it needs of a photo; and one function. The file of your own method is found
in a folder that the environment variable `{FOLDERS}` names, or by an entry point `vpltool.KIND`.
Nothing else has to be changed: options, headers and checks follow from the file. Each kind's
section says what its function is given; the classes are in `vpltool.methods.inputs`. [A whole
example](../design.md#a-method-is-a-file) is in the design. `vpltool methods` lists all methods,
including yours, and `vpltool methods KIND NAME` prints the section below about one of them."""


def _section(kind: JsonObject) -> str:
    lines = [f"{kind['about'][0].upper()}{kind['about'][1:]}: `{kind['use']}`.",
             f"A file defines {_code(kind['defines'])}.",
             f"`{kind['signature']}` returns {kind['returns']}.",
             *filter(None, [kind["note"]])]
    lines += [f"`READS` may name {_code(kind['may read'])}."] if kind["may read"] else []
    lines += [f"The default is `{kind['default']}`."] if kind["default"] else []
    return "\n\n".join([f"## {kind['kind']}", "\n".join(lines),
                        *map(_class_section, kind["given"]),
                        *(_subsection(method) for method in kind["methods"])])


def _class_section(of_class: JsonObject) -> str:
    return "\n\n".join([f"`{of_class['name']}`: {command_help.paragraphs(of_class['about'])}",
                        markdown_table(("field", "type", "what it is"), (
                            (f"`{entry['name']}`", f"`{entry['type']}`", entry["about"])
                            for entry in of_class["fields"]))])


def _code(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _subsection(method: JsonObject) -> str:
    parts = [f"### {method['name']}", command_help.paragraphs(method["about"]),
             f"`{method['call']}`"]
    if "from" in method:
        parts[-1] += f" in {method['from']}"
    if method["reads"]:
        parts[-1] += f" reads {_code(method['reads'])}"
    parts[-1] += "."
    if method["settings"]:
        parts.append(command_help.settings_table(method["settings"]))
    return "\n\n".join(parts)
