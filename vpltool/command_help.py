"""What `--help` prints: the page of a group or a stage, or of the topic that follows `--help`.

A page has 80 columns and 24 lines. `COMMAND --help` has an option a line, as many as fit, in the
order in which they are declared: what is used daily comes first. `COMMAND --help TOPIC` has the
others, or all about one option.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vpltool.errors import VplError, near_name
from vpltool.methods import Method, find_methods
from vpltool.setting_text import format_help, format_values, setting_entry
from vpltool.settings import RUNNING, Described, described
from vpltool.stages import FoundStage, find_stages

_TOPIC, _EVERYTHING = "vpltool.topic", "vpltool.everything"
"""What help was asked for, in the context of a command."""

WIDTH, LINES = 80, 23
"""Columns and lines of a page; the 24th line is the prompt's."""

_LEFT = 26
"""Columns of names, where they fit."""


def take_help_topic(ctx: Any, args: list[str], before: Iterable[str] = ()) -> tuple[list[str], str]:
    """Reduce what asks for help to `--help`; and the topic that follows it.

    Args:
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
    if ctx.parent is not None:
        lines = {name: _first_line(command) for name, command in group.commands.items()}
        return _page(ctx, Subject(ctx.command_path, group.help or "", parts=lines))
    panels: dict[str, dict[str, str]] = {}
    for name, listed in find_stages().listed.items():
        panels.setdefault(listed.panel, {})[name] = listed.about
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
    """Return what a page of help is about: a stage, with a method of it if one is chosen."""
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


@dataclass(frozen=True)
class Subject:
    """What help is about: a command, with the method that is chosen.

    Args:
        line: the command as it is typed, `vpltool export yolo`.
        about: docstring, without the sections for Python.
        entries: settings, those of daily use first.
        parts: name to a line about it: methods of a stage, or the commands of a group.
        further: method, as it is asked for, to settings of it that are found by name only.
        defaults: setting to value that a preset gives.
        switches: option to help, of options that are no settings.
    """

    line: str
    about: str
    entries: Sequence[Described] = ()
    parts: Mapping[str, str] = field(default_factory=dict)
    further: Mapping[str, Sequence[Described]] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)
    switches: Mapping[str, str] = field(default_factory=dict)


def help_page(subject: Subject, topic: str = "") -> str:
    """Return the page of a command, or of a topic.

    Raises:
        VplError: there is no such topic.
    """
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


def root_page(about: str, panels: Mapping[str, Mapping[str, str]], options: Mapping[str, str],
              topic: str = "") -> str:
    """Return the page of all commands: their names, panel by panel; or the lines of one panel.

    Raises:
        VplError: there is no such topic.
    """
    topics = {re.sub(r"^\d+\. ", "", panel).split()[0].lower(): lines
              for panel, lines in panels.items()} | {"options": options}
    if topic:
        if topic not in topics:
            raise VplError(f"no help about `{topic}`", near_name(topic, topics))
        return "\n".join([f"vpltool: {topic}", "", *listing(topics[topic], _LEFT)])
    first, *rest = _paragraphs(about)
    lines = [line for part in rest for line in _wrapped(part)]
    width = max(map(len, panels)) + 3
    for panel, names in panels.items():
        lines += ["", *textwrap.wrap(", ".join(names), WIDTH, initial_indent=f"{panel:{width}}",
                                     subsequent_indent=" " * width, break_on_hyphens=False)]
    more = f"More: vpltool --help TOPIC ({', '.join(topics)}), vpltool COMMAND --help; --help-all."
    return "\n".join(["Usage: vpltool [-C DIR] COMMAND", "", first, *lines, "", *_wrapped(more)])


def listing(names: Mapping[str, str], width: int = 0) -> list[str]:
    """Return a line for each name, what is said of it cut where the line ends."""
    width = width or min(max(map(len, names), default=0), _LEFT)
    return [_row(name, text, "", width) for name, text in names.items()]


def _first_page(subject: Subject) -> list[str]:
    first, *rest = _paragraphs(subject.about)
    head = [_usage(subject), "", *_wrapped(first)]
    middle = ["", *examples] if (examples := _examples(subject.about)) else []
    shown, topics = _shown(subject), _topics(subject)
    rows = _rows(subject, shown) if subject.entries else listing(subject.parts)
    tail = ["", *_wrapped(_more(subject, topics))]
    # All that is said, where there is room for it; otherwise it is the topic `about`.
    about = [line for part in rest for line in ("", *_wrapped(part))]
    if len(head + about + middle + tail) + len(rows) + bool(rows) <= LINES:
        head += about
    return [*head, *middle, *(["", *rows] if rows else []), *tail]


def _shown(subject: Subject) -> list[Described]:
    """Settings on the first page: those of daily use, as many as fit."""
    first, *_ = _paragraphs(subject.about)
    taken = len(_wrapped(first)) + len(_examples(subject.about)) + 7
    daily = [entry for entry in subject.entries
             if entry.about.brief and entry.about.panel != RUNNING]
    names = len(_wrapped(_names_of_parts(subject))) if subject.entries and subject.parts else 0
    return daily[:max(0, LINES - taken - names)]


def _topics(subject: Subject) -> dict[str, list[str]]:
    """Name of each topic to its lines."""
    shown = {entry.name for entry in _shown(subject)}
    running = [entry for entry in subject.entries if entry.about.panel == RUNNING]
    rest = [entry for entry in subject.entries
            if entry not in running and entry.name not in shown]
    found = {
        "about": [line for part in re.split(r"\n\n", subject.about)
                  for line in ("", *_wrapped(part))][1:],
        "methods" if subject.entries else "commands": listing(subject.parts),
        "more": _rows(subject, [entry for entry in rest if entry.about.brief]),
        "rare": _rows(subject, [entry for entry in rest if not entry.about.brief]),
        "running": [*_rows(subject, running), *listing(subject.switches, _LEFT)]}
    return {name: lines for name, lines in found.items() if lines}


def _more(subject: Subject, topics: Iterable[str]) -> str:
    if not subject.entries and subject.parts:
        return f"More: {subject.line} COMMAND --help"
    names = ", ".join(topics)
    option = next((entry.flag[2:] for entry in subject.entries if not entry.about.positional), "")
    one = f", or an option, such as --help {option}" if option else ""
    methods = f" {_names_of_parts(subject)}." if subject.parts else ""
    return f"More: --help TOPIC ({names}){one}; --help-all.{methods}"


def _names_of_parts(subject: Subject) -> str:
    return f"Methods, each with --method NAME --help: {', '.join(subject.parts)}"


def _usage(subject: Subject) -> str:
    words = [entry.about.metavar or entry.name.upper() for entry in subject.entries
             if entry.about.positional]
    options = ["[OPTIONS]"] if any(not entry.about.positional for entry in subject.entries) else []
    end = ["COMMAND"] if subject.parts and not subject.entries else []
    return " ".join(["Usage:", subject.line, *words, *options, *end])


def _paragraphs(about: str) -> list[str]:
    """What a docstring says, without examples, sources and what comes next."""
    return [part if part.startswith(" ") else " ".join(part.split())
            for part in about.split("\n\n") if not re.match(r"(?:Example|Next|Source): ", part)]


def _examples(about: str) -> list[str]:
    lines = [" ".join(part.split()) for part in about.split("\n\n")
             if re.match(r"(?:Example|Next): ", part)]
    seen = [line for line in lines if line.startswith("Example: ")][:1]
    return [textwrap.shorten(line, WIDTH, placeholder=" …")
            for line in (*seen, *(line for line in lines if line.startswith("Next: ")))]


def _wrapped(text: str) -> list[str]:
    if re.search(r"^ ", text, re.MULTILINE):
        return text.split("\n")
    return textwrap.wrap(" ".join(text.split()), WIDTH, break_on_hyphens=False)


def _rows(subject: Subject, entries: Sequence[Described]) -> list[str]:
    """A line for each setting: its option, what it does, its default."""
    left = [_name(entry) for entry in entries]
    width = min(max(map(len, left), default=0), _LEFT)
    return [_row(name, entry.about.help, _default(entry, subject.defaults), width)
            for name, entry in zip(left, entries, strict=True)]


def _name(entry: Described) -> str:
    about = entry.about
    if about.positional:
        return about.metavar or entry.name.upper()
    if entry.type is bool:
        return entry.flag if about.off == "-" else f"{entry.flag}/{entry.off}"
    value = "|".join(about.choices) or about.metavar or _VALUES[entry.type.__name__]
    if len(entry.flag) + len(value) >= _LEFT:
        value = "NAME" if about.choices else about.metavar or value
    return " ".join([entry.flag, value])


_VALUES = {"str": "TEXT", "int": "N", "float": "X", "Path": "PATH"}


def _default(entry: Described, defaults: Mapping[str, object]) -> str:
    value = defaults.get(entry.name, entry.default)
    if entry.type is bool or value in (None, "", ()) or value is dataclasses.MISSING:
        return ""
    return f" [{value:g}]" if isinstance(value, float) else f" [{value}]"


def _row(name: str, text: str, default: str, width: int) -> str:
    begin = f"  {name:{width}}  "
    room = WIDTH - len(begin) - len(default)
    return begin + _clause(text, room) + default


def _clause(text: str, room: int) -> str:
    """The text, or what of it makes sense by itself and fits."""
    if len(text) <= room:
        return text
    ends = [match.start() for match in re.finditer(r"\.(?= [A-Z])|;(?= )| \(", text)
            if match.start() <= room]
    return text[:ends[-1]] if ends else textwrap.shorten(
        text, room, placeholder=" …", break_on_hyphens=False)


def _options_named(name: str, entries: Sequence[Described]) -> list[str]:
    """All about the options of a name, which may be typed in any way."""
    name = name.lstrip("-").replace("-", "_")
    return list(dict.fromkeys(_option(entry) for entry in entries if name in (
        entry.name, entry.flag[2:].replace("-", "_"), entry.off[2:].replace("-", "_"))))


def _option(entry: Described) -> str:
    """All about one option."""
    shown = setting_entry(entry)
    lines = [f"{shown['option']}  {format_values(shown)}", *textwrap.wrap(
        format_help(shown), WIDTH, initial_indent="    ", subsequent_indent="    ",
        break_on_hyphens=False)]
    reasons = [f"    No effect: {reason.why}." for reason in entry.about.no_effect]
    return "\n".join([*textwrap.wrap(lines[0], WIDTH, subsequent_indent="    "), *lines[1:],
                      *reasons])
