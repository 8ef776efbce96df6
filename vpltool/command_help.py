"""Pages of `--help`: of a group, a stage, or a topic; and settings as tables of Markdown.

A page has 80 columns and 24 lines. `COMMAND --help` has one option per line, as many as fit, in the
order of their declaration: those of daily use come first. `COMMAND --help TOPIC` has the others, or
everything about one option.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import starmap
from pathlib import Path
from typing import Any

from vpltool.errors import VplError, near_name
from vpltool.json_text import JsonObject
from vpltool.methods import Method, find_methods
from vpltool.settings import RUNNING, VALUE_NAMES, SettingSpec, described
from vpltool.shell import settings_with
from vpltool.stages import FoundStage, find_stages
from vpltool.tables import markdown_table

_TOPIC, _EVERYTHING = "vpltool.topic", "vpltool.everything"
"""Keys of the requested help in the context of a command."""

WIDTH, LINES = 80, 23
"""Columns and lines of a page; the 24th line is the prompt's."""

_LEFT = 26
"""Columns of names, if they fit."""


def take_help_topic(ctx: Any, args: list[str], before: Iterable[str] = ()) -> tuple[list[str], str]:
    """Reduce a request for help to `--help`; return it and its topic, which `ctx` stores.

    The search ends at one of the words `before`, after which help is another command's.
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
    """Return the page of a group of commands; empty for `--help-all`."""
    def page(topic: str) -> str:
        if ctx.parent is not None:
            lines = {name: str(command.help or "").split("\n\n")[0].replace("\n", " ")
                     for name, command in group.commands.items()}
            return help_page(Subject(ctx.command_path, group.help or "", parts=lines), topic)
        options = {", ".join(param.opts): str(param.help) for param in group.params
                   if getattr(param, "help", None)}
        return _root_page(group.help, options, topic)

    return _requested(ctx, page)


def stage_help(ctx: Any, found: FoundStage, method: Method | None) -> str:
    """Return the page of a stage; empty for `--help-all`."""
    return _requested(ctx, lambda topic: help_page(
        stage_subject(found, method, ctx.command_path, ctx.default_map), topic))


def _requested(ctx: Any, page: Callable[[str], str]) -> str:
    if ctx.meta.get(_EVERYTHING):
        return ""
    try:
        return page(ctx.meta.get(_TOPIC, ""))
    except VplError as error:
        return str(ctx.fail(f"{error.message}; {error.hint}"))


def command_settings(found: FoundStage, method: Method | None) -> list[SettingSpec]:
    """List the settings of a command: those of a stage, and of its method if one is chosen."""
    return [entry for entry in settings_with(found, method.name if method else None).values()
            if not (found.stage.subcommands and entry.name == "method")]


def stage_subject(found: FoundStage, method: Method | None, line: str,
                  defaults: Mapping[str, object] | None = None) -> Subject:
    """Return the subject of the help of a stage, with its method if one is chosen."""
    stage, parts = found.stage, dict[str, str]()
    shared = {entry.name for entry in described(stage.settings)}
    methods = find_methods(stage.methods) if stage.methods else {}
    if methods and not stage.subcommands:
        line += f" --method {method.name}" if method else ""
        parts = {} if method else {name: other.summary for name, other in methods.items()}
    prefix = "" if stage.subcommands else "--method "
    switches = {"--json": "Print JSON on stdout."} if found.show else {}
    return Subject(
        line, unwrap(method.docstring) if method and stage.subcommands else help_of(found),
        sorted(command_settings(found, method), key=lambda entry: (
            not entry.positional and (2 if entry.panel else 1), entry.name in shared)),
        parts, {f"{prefix}{name}": list(described(other.settings))
                for name, other in methods.items() if other.importable}, defaults or {},
        switches | {"--quiet, -q": "No notes and no progress on stderr."})


def help_of(found: FoundStage) -> str:
    """Return the docstring of a stage's `run` without the sections for Python."""
    text = inspect.getdoc(found.run) or ""
    return unwrap(re.split(r"\n\n(?:Args|Returns|Raises|Yields):\n", text)[0])


def unwrap(text: str) -> str:
    """Join the lines of each paragraph that has no indented lines; the terminal wraps them."""
    return "\n\n".join(part if re.search(r"^[ -]", part, re.MULTILINE) else part.replace("\n", " ")
                       for part in text.split("\n\n"))


@dataclass(frozen=True)
class Subject:
    """The subject of a help page: a command, with its method if one is chosen.

    Args:
        line: the command as it is typed, `vpltool export yolo`.
        about: docstring without the sections for Python.
        entries: settings, those of daily use first.
        parts: methods of a stage, or commands of a group: name to description.
        further: method as it is typed to its settings, which are found by name only.
        defaults: setting to the value that a preset gives.
        switches: options that are not settings: option to help.
    """

    line: str
    about: str
    entries: Sequence[SettingSpec] = ()
    parts: Mapping[str, str] = field(default_factory=dict)
    further: Mapping[str, Sequence[SettingSpec]] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)
    switches: Mapping[str, str] = field(default_factory=dict)


def help_page(subject: Subject, topic: str = "") -> str:
    """Return the page of a command, or of a topic; raise a VplError for an unknown topic."""
    if not topic:
        return "\n".join(_first_page(subject))
    topics = _topics(subject)
    if topic in topics:
        return "\n".join([f"{subject.line}: {topic}", "", *topics[topic]])
    if found := _options_named(topic, subject.entries):
        return "\n\n".join(found)
    takers: dict[str, list[str]] = {}
    for method, entries in subject.further.items():
        for text in _options_named(topic, entries):
            takers.setdefault(text, []).append(method)
    if takers:
        return "\n\n".join(f"With {', '.join(methods)}:\n{text}"
                           for text, methods in takers.items())
    names = [*topics, *(entry.flag[2:] for entry in subject.entries)]
    raise VplError(f"no help about `{topic}`", near_name(topic, names))


def _root_page(about: str, options: Mapping[str, str], topic: str) -> str:
    """Return the page of all commands by panel, or the lines of one panel."""
    panels: dict[str, dict[str, str]] = {}
    for name, listed in find_stages().listed.items():
        panels.setdefault(listed.panel, {})[name] = listed.about
    topics = {re.sub(r"^\d+\. ", "", panel).split()[0].lower(): lines
              for panel, lines in panels.items()} | {"options": options}
    if topic:
        if topic not in topics:
            raise VplError(f"no help about `{topic}`", near_name(topic, topics))
        return "\n".join([f"vpltool: {topic}", "", *_listing(topics[topic], _LEFT)])
    first, *others = _paragraphs(about)
    lines = [line for part in others for line in _wrapped(part)]
    width = max(map(len, panels)) + 3
    for panel, names in panels.items():
        lines += ["", *textwrap.wrap(", ".join(names), WIDTH, initial_indent=f"{panel:{width}}",
                                     subsequent_indent=" " * width, break_on_hyphens=False)]
    more = f"More: vpltool --help TOPIC ({', '.join(topics)}), vpltool COMMAND --help; --help-all."
    return "\n".join(["Usage: vpltool [-C DIR] COMMAND", "", first, *lines, "", *_wrapped(more)])


def _listing(names: Mapping[str, str], width: int = 0) -> list[str]:
    """Format a line per name with its description, shortened to fit."""
    width = width or min(max(map(len, names), default=0), _LEFT)
    return [_row(name, text, "", width) for name, text in names.items()]


def _first_page(subject: Subject) -> list[str]:
    first, *others = _paragraphs(subject.about)
    head = [_usage(subject), "", *_wrapped(first)]
    middle = ["", *examples] if (examples := _examples(subject.about)) else []
    rows = _rows(subject, _shown(subject)) if subject.entries else _listing(subject.parts)
    tail = ["", *_wrapped(_more(subject))]
    # If the whole text does not fit, it is the topic `about`.
    about = [line for part in others for line in ("", *_wrapped(part))]
    if len(head + about + middle + tail) + len(rows) + bool(rows) <= LINES:
        head += about
    return [*head, *middle, *(["", *rows] if rows else []), *tail]


def _shown(subject: Subject) -> list[SettingSpec]:
    """List the settings on the first page: those of daily use, as many as fit."""
    first, *_ = _paragraphs(subject.about)
    taken = len(_wrapped(first)) + len(_examples(subject.about)) + 7
    if subject.entries and subject.parts:
        taken += len(_wrapped(_names_of_parts(subject)))
    daily = [entry for entry in subject.entries
             if entry.brief and entry.panel != RUNNING]
    return daily[:max(0, LINES - taken)]


def _topics(subject: Subject) -> dict[str, list[str]]:
    shown = {entry.name for entry in _shown(subject)}
    running = [entry for entry in subject.entries if entry.panel == RUNNING]
    rest = [entry for entry in subject.entries
            if entry.panel != RUNNING and entry.name not in shown]
    found = {
        "about": [line for part in re.split(r"\n\n", subject.about)
                  for line in ("", *_wrapped(part))][1:],
        "methods" if subject.entries else "commands": _listing(subject.parts),
        "more": _rows(subject, [entry for entry in rest if entry.brief]),
        "rare": _rows(subject, [entry for entry in rest if not entry.brief]),
        "running": [*_rows(subject, running), *_listing(subject.switches, _LEFT)]}
    return {name: lines for name, lines in found.items() if lines}


def _more(subject: Subject) -> str:
    if not subject.entries and subject.parts:
        return f"More: {subject.line} COMMAND --help"
    option = next((entry.flag[2:] for entry in subject.entries if not entry.positional), "")
    one = f", or an option, such as --help {option}" if option else ""
    methods = f" {_names_of_parts(subject)}." if subject.parts else ""
    return f"More: --help TOPIC ({', '.join(_topics(subject))}){one}; --help-all.{methods}"


def _names_of_parts(subject: Subject) -> str:
    return f"Methods, each with --method NAME --help: {', '.join(subject.parts)}"


def _usage(subject: Subject) -> str:
    words = [entry.metavar or entry.name.upper() for entry in subject.entries
             if entry.positional]
    if len(words) < len(subject.entries):
        words.append("[OPTIONS]")
    end = ["COMMAND"] if subject.parts and not subject.entries else []
    return " ".join(["Usage:", subject.line, *words, *end])


def _paragraphs(about: str) -> list[str]:
    """List the paragraphs of a docstring without `Example:`, `Next:` and `Source:`."""
    return [part if part.startswith(" ") else " ".join(part.split())
            for part in about.split("\n\n") if not re.match(r"(?:Example|Next|Source): ", part)]


def _examples(about: str) -> list[str]:
    """List the first `Example:` and the `Next:` of a docstring."""
    lines = [" ".join(part.split()) for part in about.split("\n\n")]
    first = [line for line in lines if line.startswith("Example: ")][:1]
    return [textwrap.shorten(line, WIDTH, placeholder=" …")
            for line in (*first, *(line for line in lines if line.startswith("Next: ")))]


def _wrapped(text: str) -> list[str]:
    if re.search(r"^ ", text, re.MULTILINE):
        return text.split("\n")
    return textwrap.wrap(" ".join(text.split()), WIDTH, break_on_hyphens=False)


def _rows(subject: Subject, entries: Sequence[SettingSpec]) -> list[str]:
    left = [_name(entry) for entry in entries]
    width = min(max(map(len, left), default=0), _LEFT)
    return [_row(name, entry.help, _shown_default(entry, subject.defaults), width)
            for name, entry in zip(left, entries, strict=True)]


def _name(entry: SettingSpec) -> str:
    if entry.positional:
        return entry.metavar or entry.name.upper()
    if entry.type is bool:
        return entry.option
    value = "|".join(entry.choices) or entry.metavar or VALUE_NAMES[entry.type]
    if len(entry.flag) + len(value) >= _LEFT:
        value = "NAME" if entry.choices else entry.metavar or value
    return " ".join([entry.flag, value])


def _shown_default(entry: SettingSpec, defaults: Mapping[str, object]) -> str:
    value = defaults.get(entry.name, entry.default)
    if entry.type is bool or value in (None, "", ()) or value is dataclasses.MISSING:
        return ""
    return f" [{value:g}]" if isinstance(value, float) else f" [{value}]"


def _row(name: str, text: str, default: str, width: int) -> str:
    """Format a line; the text is cut at the end of a sentence or clause if it does not fit."""
    begin = f"  {name:{width}}  "
    room = WIDTH - len(begin) - len(default)
    if len(text) > room:
        ends = [match.start() for match in re.finditer(r"\.(?= [A-Z])|;(?= )| \(", text)
                if match.start() <= room]
        text = text[:ends[-1]] if ends else textwrap.shorten(
            text, room, placeholder=" …", break_on_hyphens=False)
    return begin + text + default


def _options_named(name: str, entries: Sequence[SettingSpec]) -> list[str]:
    """Describe the options of a name, with or without hyphens."""
    name = name.lstrip("-").replace("-", "_")
    return list(dict.fromkeys(_option(entry) for entry in entries if name in (
        entry.name, entry.flag[2:].replace("-", "_"), entry.off[2:].replace("-", "_"))))


def _option(entry: SettingSpec) -> str:
    shown = setting_entry(entry)
    lines = textwrap.wrap(f"{shown['option']}  {format_values(shown)}", WIDTH,
                          subsequent_indent="    ")
    lines += textwrap.wrap(format_help(shown), WIDTH, initial_indent="    ",
                           subsequent_indent="    ", break_on_hyphens=False)
    for reason in entry.no_effect:
        where = " and ".join(starmap(_condition, reason.where.items()))
        lines += textwrap.wrap(f"No effect {where}: {reason.why}.", WIDTH, initial_indent="    ",
                               subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(lines)


def _condition(name: str, values: Collection[object]) -> str:
    """Spell values of an option: `with --pixels all or regions`, `without --tile`."""
    option = name.replace("_", "-")
    if isinstance(values, range):
        return f"with --{option} {values.start} or more"
    texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return {"": f"without --{option}", "False": f"with --no-{option}"}.get(
        texts[0], f"with --{option} {' or '.join(texts)}")


def setting_entry(entry: SettingSpec) -> JsonObject:
    """Return everything about a setting, as JSON can hold it."""
    needed = entry.default is dataclasses.MISSING
    default = None if needed or entry.default is None else entry.default
    return {"name": entry.name, "option": entry.metavar if entry.positional else entry.option,
            "type": entry.type.__name__, "many": entry.many, "needed": needed,
            "default": str(default) if isinstance(default, Path) else default, "low": entry.low,
            "high": entry.high, "choices": list(entry.choices), "help": entry.help,
            "source": entry.source}


def format_values(entry: JsonObject) -> str:
    """Format what a setting takes, and its default: `number, at least 0; default 0.5`."""
    words = [" or ".join(entry["choices"]) if entry["choices"] else _TYPES[entry["type"]]]
    words += [f"at least {entry['low']:g}"] if entry["low"] is not None else []
    words += [f"at most {entry['high']:g}"] if entry["high"] is not None else []
    words += ["may be given several times"] if entry["many"] else []
    takes, value = ", ".join(words), entry["default"]
    if entry["needed"]:
        return f"{takes}; must be given"
    if value in (None, "", ()):
        # Some help texts say what the default is.
        return takes if "default:" in entry["help"].lower() else f"{takes}; default: none"
    return f"{takes}; default {str(value).lower() if isinstance(value, bool) else value}"


_TYPES = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false",
          "Path": "path"}


def format_help(entry: JsonObject) -> str:
    """Format what a setting does, and where its default comes from."""
    return entry["help"] + (f" Source: {entry['source']}." if entry["source"] else "")


def paragraphs(text: str) -> str:
    """Return a docstring as Markdown, with command lines as code."""
    return "\n\n".join(
        f"{word}: `{rest}`" if (word := part.partition(": ")[0]) in ("Example", "Next")
        and (rest := " ".join(part.partition(": ")[2].split())) else part
        for part in text.split("\n\n"))


def settings_table(settings: Sequence[JsonObject]) -> str:
    """Return settings as a table in Markdown."""
    return markdown_table(("setting", "option", "takes", "what it does"),
                          ([f"`{entry['name']}`", f"`{entry['option']}`", format_values(entry),
                            format_help(entry)] for entry in settings))
