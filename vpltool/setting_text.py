"""Settings as lists, text and tables: what `methods` and the reference pages print."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vpltool.settings import Described

Entry = dict[str, Any]


def setting_entry(entry: Described) -> Entry:
    """Say all about a setting, as JSON can hold it."""
    about = entry.about
    needed = entry.default is dataclasses.MISSING
    default = None if needed or entry.default is None else entry.default
    switch = f"{entry.flag}/{entry.off}" if about.off != "-" else entry.flag
    option = switch if entry.type is bool else entry.flag
    return {"name": entry.name, "option": about.metavar if about.positional else option,
            "type": entry.type.__name__, "many": entry.many, "needed": needed,
            "default": str(default) if isinstance(default, Path) else default, "low": about.low,
            "high": about.high, "choices": list(about.choices), "help": about.help,
            "source": about.source}


def format_values(entry: Entry) -> str:
    """Format what a setting takes, and its default: `number, at least 0; default 0.5`."""
    words = [" or ".join(entry["choices"]) if entry["choices"] else _TYPES[entry["type"]]]
    words += [f"at least {entry['low']:g}"] if entry["low"] is not None else []
    words += [f"at most {entry['high']:g}"] if entry["high"] is not None else []
    words += ["may be given several times"] if entry["many"] else []
    # What happens without a value, some settings say better than `none`.
    told = entry["default"] in (None, "", ()) and "default:" in entry["help"].lower()
    return ", ".join(words) + ("" if told and not entry["needed"] else "; " + _default(entry))


_TYPES = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false",
          "Path": "path"}


def _default(entry: Entry) -> str:
    if entry["needed"]:
        return "must be given"
    value = entry["default"]
    if value in (None, "", ()):
        return "default: none"
    return f"default {str(value).lower() if isinstance(value, bool) else value}"


def format_help(entry: Entry) -> str:
    """Format what a setting does, and where its default comes from."""
    return entry["help"] + (f" Source: {entry['source']}." if entry["source"] else "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def paragraphs(text: str) -> str:
    """A docstring as Markdown; lines of a command become code."""
    return "\n\n".join(
        f"{word}: `{rest}`" if (word := part.partition(": ")[0]) in ("Example", "Next")
        and (rest := " ".join(part.partition(": ")[2].split())) else part
        for part in text.split("\n\n"))


def settings_table(settings: Sequence[Entry]) -> str:
    """Return settings as a table in Markdown."""
    rows = ["| setting | option | takes | what it does |", "| --- | --- | --- | --- |"]
    rows += [f"| `{entry['name']}` | `{entry['option']}` | {_cell(format_values(entry))} "
             f"| {_cell(format_help(entry))} |" for entry in settings]
    return "\n".join(rows)
