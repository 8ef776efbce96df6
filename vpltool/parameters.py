"""Settings as the parameters of a function: typer makes options and arguments of them."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vpltool.completion import completes, names_for
from vpltool.settings import RUNNING, Described


def switch_parameter(name: str, flag: str, text: str, *more: str) -> inspect.Parameter:
    """Make the parameter of a switch that the command line adds to a stage's settings."""
    option = typer.Option(flag, *more, help=text, rich_help_panel=RUNNING)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False,
                             annotation=Annotated[bool, option])


def setting_parameter(entry: Described, panel: str) -> inspect.Parameter:
    """Make the parameter that typer turns into the option, or argument, of a setting."""
    about = entry.about
    wanted: Any = Literal[about.choices] if about.choices else entry.type
    if entry.many:
        wanted = list[wanted]
    if entry.default is None or entry.many:
        wanted = wanted | None
    limits = ({"min": about.low, "max": about.high} if entry.type in (int, float) else {})
    shown: dict[str, Any] = {"help": about.help, "rich_help_panel": panel or None, **limits}
    if metavar := about.metavar or ("" if about.choices else _METAVARS.get(entry.type, "")):
        shown["metavar"] = metavar
    if completes(entry.name) and not about.choices:
        shown["autocompletion"] = _completer(entry.name)
    if about.positional:
        info: Any = typer.Argument(**shown)
    else:
        flag = entry.flag
        if entry.type is bool and about.off != "-":
            flag = f"{flag}/{entry.off}"
        info = typer.Option(flag, *about.aliases, *filter(None, [about.short]), **shown)
    default: Any = None if entry.many else entry.default
    if default is dataclasses.MISSING:
        default = inspect.Parameter.empty
    return inspect.Parameter(entry.name, inspect.Parameter.KEYWORD_ONLY, default=default,
                             annotation=Annotated[wanted, info])


def name_numbers(error: Exception) -> None:
    """Have typer's error of a word that is no number say so: it calls a number `int range`."""
    # Typer's own errors are not among its public names.
    if isinstance(message := getattr(error, "message", None), str):
        error.message = _NO_NUMBER.sub(  # type: ignore[attr-defined]
            lambda match: f"is not a {'whole ' if match[1] == 'int' else ''}number", message)


_NO_NUMBER = re.compile(r"is not a valid (int|float)\w*(?: range)?")


def _completer(setting: str) -> Callable[..., list[str]]:
    """What a shell asks for names of a setting; see `names_for`."""
    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        return names_for(setting, Path(ctx.find_root().params.get("work") or "."), incomplete)

    return complete


_METAVARS = {str: "TEXT", int: "N", float: "X", Path: "PATH"}
