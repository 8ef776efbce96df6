"""What `--help` prints: the page of a group or a stage, or of the topic that follows `--help`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

from vpltool.errors import VplError
from vpltool.help_pages import Subject, help_page, root_page
from vpltool.methods import Method, find_methods
from vpltool.settings import described
from vpltool.stages import FoundStage

_TOPIC, _EVERYTHING = "vpltool.topic", "vpltool.everything"
"""What help was asked for, in the context of a command."""


def take_help_topic(ctx: Any, args: list[str], before: Iterable[str] = ()) -> tuple[list[str], str]:
    """Reduce what asks for help to `--help`; and the topic that follows it.

    Args:
        ctx: keeps the topic.
        args: of the command.
        before: words that end the search: after them help is another command's.
    """
    own = args[:next((number for number, word in enumerate(args) if word in before
                      and not {"--help", "-h"} & {*args[:number]}), len(args))]
    if "--help-all" in own:
        ctx.meta[_EVERYTHING] = True
        return ["--help"], ""
    flags = [number for number, word in enumerate(own) if word in ("--help", "-h")]
    if not flags:
        return args, ""
    topic = next((word for word in own[flags[0] + 1:][:1]), "")
    ctx.meta[_TOPIC] = topic
    return ["--help"], topic


def group_help(ctx: Any, group: Any) -> str:
    """Return the page of a group of commands; empty where everything is asked for."""
    if ctx.meta.get(_EVERYTHING):
        return ""
    lines = {name: _first_line(command) for name, command in group.commands.items()}
    if ctx.parent is not None:
        return _page(ctx, Subject(ctx.command_path, group.help or "", parts=lines))
    panels: dict[str, dict[str, str]] = {}
    for name, command in group.commands.items():
        panels.setdefault(str(command.rich_help_panel), {})[name] = lines[name]
    options = {", ".join(param.opts): str(param.help) for param in group.params
               if getattr(param, "help", None)}
    try:
        return root_page(group.help, panels, options, ctx.meta.get(_TOPIC, ""))
    except VplError as error:
        return str(ctx.fail(f"{error.message}; {error.hint}"))


def stage_help(ctx: Any, found: FoundStage, method: Method | None) -> str:
    """Return the page of a stage; empty where everything is asked for."""
    return "" if ctx.meta.get(_EVERYTHING) else _page(
        ctx, stage_subject(found, method, ctx.command_path, ctx.default_map))


def _page(ctx: Any, subject: Subject) -> str:
    try:
        return help_page(subject, ctx.meta.get(_TOPIC, ""))
    except VplError as error:
        return str(ctx.fail(f"{error.message}; {error.hint}"))


def _first_line(command: Any) -> str:
    return str(command.help or "").split("\n\n")[0].replace("\n", " ")


def stage_subject(found: FoundStage, method: Method | None, line: str,
                  defaults: Mapping[str, object] | None = None) -> Subject:
    """Return what a page of help is about: a stage, with a method of it if one is chosen.

    Args:
        found: the stage.
        method: of the stage.
        line: the command as it is typed.
        defaults: setting to value that a preset gives.
    """
    stage = found.stage
    shared = [entry for entry in described(stage.settings)
              if not (stage.subcommands and entry.name == "method")]
    own = [entry for entry in described(method.settings)
           if entry.name not in {other.name for other in shared}] if method else []
    parts = dict[str, str]()
    if stage.methods and not stage.subcommands:
        line += f" --method {method.name}" if method else ""
        parts = {} if method else {
            name: other.summary for name, other in find_methods(stage.methods).items()}
    prefix = "" if stage.subcommands else "--method "
    further = {f"{prefix}{name}": list(described(other.settings)) for name, other in
               find_methods(stage.methods).items()} if stage.methods else {}
    switches = {"--json": "Print JSON on stdout."} if found.show else {}
    return Subject(
        line, unwrap(method.docstring) if method and stage.subcommands else help_of(found),
        sorted((*own, *shared), key=lambda entry: not entry.about.positional and (
            2 if entry.about.panel else 1)), parts, further, defaults or {},
        switches | {"--quiet, -q": "No notes and no progress on stderr."})


def help_of(found: FoundStage) -> str:
    """The docstring of a stage's `run`, without the sections for Python."""
    text = inspect.getdoc(found.run) or ""
    return unwrap(re.split(r"\n\n(?:Args|Returns|Raises|Yields):\n", text)[0])


def unwrap(text: str) -> str:
    """Join the lines of each paragraph without indented ones: they are wrapped by the terminal."""
    return "\n\n".join(part if re.search(r"^[ -]", part, re.MULTILINE) else part.replace("\n", " ")
                       for part in text.split("\n\n"))
