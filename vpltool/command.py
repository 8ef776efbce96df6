"""Commands of the command line, made from stages: their options are the stage's settings."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from vpltool import command_help, console
from vpltool.completion import SETTINGS, names_for
from vpltool.errors import PhotosFailed, ReaderGone, VplError, near_name
from vpltool.methods import KINDS, Method, find_methods, hint_of
from vpltool.parallel.signals import check_interrupts
from vpltool.preset import Preset, read_preset
from vpltool.run import prints_results, run_stage, stage_settings
from vpltool.settings import RUNNING, VALUE_NAMES, SettingSpec, Values, described
from vpltool.shell import command_line, to_shell
from vpltool.stages import FoundStage, find_stages

_T = TypeVar("_T")


@dataclass(frozen=True)
class Globals:
    """The options before the command."""

    work: Path
    quiet: bool = False
    preset: Preset | None = None


class MadeOnce(Mapping[str, object]):
    """Commands by name, each made when it is looked up, since making options takes long."""

    def __init__(self, sources: Mapping[str, _T], make: Callable[[_T], object]) -> None:
        self._sources = sources
        self._made = functools.cache(lambda name: make(sources[name]))

    def __contains__(self, name: object) -> bool:
        return name in self._sources

    def __getitem__(self, name: str) -> object:
        return self._made(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


class CommandGroup(TyperGroup):
    """A group of commands; errors suggest the command that may be meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, with `--help COMMAND` as `COMMAND --help`, and store the topic of help.

        Without a command, print the list of commands on stderr, as a usage error.
        """
        if not args and self.no_args_is_help and not ctx.resilient_parsing:
            # Typer would print nothing, since our help is not made by rich.
            print(self.get_help(ctx), file=sys.stderr)
            ctx.exit(2)
        self._check_name(ctx, self._first_word(args))
        args, topic = command_help.take_help_topic(ctx, args, before=self.commands)
        if topic in self.commands:
            args = [topic, "--help"]
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if flag := _unknown_option(error):
                ctx.fail(_no_option(flag, self))
            raise

    def get_help(self, ctx: Any) -> str:
        """Return the page of the group; with `--help-all`, typer's full help."""
        return command_help.group_help(ctx, self) or super().get_help(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that is named first, or fail with a suggestion."""
        self._check_name(ctx, args[0] if args else "")
        return super().resolve_command(ctx, args)

    def _first_word(self, args: Sequence[str]) -> str:
        """Return the word that names a command; empty after help or an unknown option."""
        flags = {option: getattr(param, "is_flag", False)
                 for param in self.params for option in param.opts}
        words = iter(args)
        for word in words:
            if not word.startswith("-"):
                return word
            if word in ("--help", "-h") or (word.startswith("--")
                                            and word.partition("=")[0] not in flags):
                return ""
            if word in flags and not flags[word]:
                next(words, "")
        return ""

    def _check_name(self, ctx: typer.Context, name: str) -> None:
        if name and not name.startswith("-") and name not in self.commands:
            matches = [f"`{entry}`" for entry in self.commands
                       if entry.startswith(name) or f"-{name}" in entry]
            hint = (f"did you mean {' or '.join(matches)}?" if matches
                    else near_name(name, self.commands))
            ctx.fail(f"no command `{name}`"
                     + (f": {hint}" if hint.startswith("did you mean") else ""))


def _unknown_option(error: Exception) -> str:
    """Return the option that typer does not know; empty for its other errors."""
    return str(getattr(error, "option_name", "")) if hasattr(error, "possibilities") else ""


def _no_option(flag: str, command: TyperCommand | TyperGroup, cutoff: float = 0.6) -> str:
    known = {"help", "help-all", *(option[2:] for param in command.params for option in (
        *param.opts, *param.secondary_opts) if option.startswith("--"))}
    near = difflib.get_close_matches(flag.lstrip("-"), sorted(known), n=1, cutoff=cutoff)
    return f"no option `{flag}`" + (f": did you mean `--{near[0]}`?" if near else "")


def stage_command(found: FoundStage, method: Method | None = None) -> Any:
    """Make the command of a stage, or of a method that is a subcommand of the stage.

    For a stage whose methods are subcommands, it is a group of commands.
    """
    stage, text = found.stage, command_help.help_of(found)
    if not stage.subcommands:
        return _StageCommand(found, found.name, help=text,
                             rich_help_panel=stage.panel, rich_markup_mode="rich")
    if method is not None:
        return _StageCommand(found, method.name, method, help=command_help.unwrap(method.docstring),
                             rich_markup_mode="rich")
    of_methods: Any = MadeOnce(find_methods(stage.methods), lambda one: stage_command(found, one))
    return CommandGroup(name=found.name, commands=of_methods, no_args_is_help=True,
                        help=text, short_help=text.split("\n")[0],
                        rich_help_panel=stage.panel, rich_markup_mode="rich")


class _StageCommand(TyperCommand):
    """The command of a stage, without options until it is called.

    With `--method NAME` its options are also those of the method.
    """

    def __init__(self, found: FoundStage, name: str, method: Method | None = None, **looks: Any
                 ) -> None:
        super().__init__(name, **looks)
        self.found, self.method, self.shown = found, method, method

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Make the options of the stage and of the chosen method, then parse."""
        self.shown = chosen = self.method
        if self.found.stage.methods and self.method is None:
            chosen = self._chosen_method(ctx, args)
        whole = _options_of(self.found, chosen)
        self.params, self.callback = whole.params, whole.callback
        try:
            return super().parse_args(ctx, [*command_help.take_help_topic(ctx, args)[0]])
        except Exception as error:
            if flag := _unknown_option(error):
                ctx.fail(self._no_option(ctx, flag, args, chosen))
            if hasattr(error, "ctx"):
                # Typer does not always set the command.
                error.ctx = ctx
            raise

    def get_help(self, ctx: Any) -> str:
        """Return a page of 24 lines; with `--help-all`, typer's full help."""
        return command_help.stage_help(ctx, self.found, self.shown) or super().get_help(ctx)

    def _chosen_method(self, ctx: typer.Context, args: list[str]) -> Method | None:
        """Return the chosen or the default method; None if help is about the stage."""
        kind = self.found.stage.methods
        methods = find_methods(kind)
        (entry,) = (entry for entry in described(self.found.stage.settings)
                    if entry.name == "method")
        chosen = _value_of((entry.flag, *entry.aliases), args)
        name = chosen or (ctx.default_map or {}).get("method") or KINDS[kind].default
        if name not in methods:
            ctx.fail(f"--method {name}: no such method; {hint_of(kind, name)}")
        if chosen:
            self.shown = methods[name]
        elif {"--help", "--help-all", "-h"} & {*args}:
            lines = [textwrap.fill(method.summary, 76, initial_indent=f"  {method.name:12} ",
                                   subsequent_indent=" " * 15) for method in methods.values()]
            self.help = "\n".join([
                f"{self.help}\n\n\b\nMethods; --method NAME --help shows the options of one:",
                *lines])
            return None
        return methods[name]

    def _no_option(self, ctx: typer.Context, flag: str, args: list[str], chosen: Method | None
                   ) -> str:
        """Explain why there is no such option here, and which one may be meant."""
        stage, root = self.found.stage, ctx.find_root()
        if flag in stage.moved:
            return f"{flag} has moved: {to_shell(stage.moved[flag], self.found.name)}"
        for param in root.command.params:
            if flag in param.opts:
                spelt = f"{flag} {param.metavar}" if param.metavar else flag
                return (f"{flag} goes before the command: {root.info_name} {spelt}"
                        + ctx.command_path.removeprefix(root.info_name or ""))
        others = find_methods(stage.methods).values() if chosen and not stage.subcommands else ()
        for other in others:
            if other.importable and any(flag in (entry.flag, entry.off)
                                        for entry in described(other.settings)):
                return (f"{flag} is an option of --method {other.name}, not of --method "
                        f"{chosen.name if chosen else ''}")
        if self.found.name != "run":
            return _no_option(flag, self)
        text = _no_option(flag, self, 0.85)
        return text if text.endswith("?") else (
            f"{text}; values of a recipe are written NAME=VALUE, such as "
            f"{flag[2:]}={_value_of((flag,), args) or 'VALUE'}")


def usage_text(error: Exception) -> str:
    """Return the text of a usage error of typer, whose classes are not public; empty for others.

    Typer calls a number `int range`.
    """
    if not hasattr(error, "format_message"):
        return ""
    return re.sub(r"is not a valid (int|float)\w*(?: range)?",
                  lambda match: f"is not a {'whole ' if match[1] == 'int' else ''}number",
                  error.format_message().rstrip("."))


def _value_of(flags: tuple[str, ...], args: list[str]) -> str:
    """Return the value of the last `--flag VALUE` or `--flag=VALUE`; empty if there is none."""
    value = ""
    for number, word in enumerate(args):
        if word in flags and number + 1 < len(args):
            value = args[number + 1]
        elif word.partition("=")[0] in flags and "=" in word:
            value = word.partition("=")[2]
    return value


@functools.cache
def _options_of(found: FoundStage, method: Method | None) -> Any:
    """Make a plain command with the options and the callback."""
    def call(ctx: typer.Context, **_: object) -> None:
        _run(ctx, found, method)

    shared = {entry.name for entry in described(found.stage.settings)}
    parameters = [inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD,
                                    annotation=typer.Context)]
    for entry in command_help.command_settings(found, method):
        panel = entry.panel
        if method and entry.name not in shared and not found.stage.subcommands:
            panel = f"Options of --method {method.name}"
        parameters.append(_setting_parameter(entry, panel))
    if found.show is not None:
        parameters.append(_switch("as_json", "--json", "Print JSON on stdout."))
    parameters += [_switch("quiet", "--quiet", "No notes and no progress on stderr.", "-q"),
                   _switch("help_all", "--help-all", "Show all options, and exit.")]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {entry.name: entry.annotation for entry in parameters}
    app = typer.Typer(add_completion=False)
    app.command(found.name)(call)
    return typer.main.get_command(app)


def _switch(name: str, flag: str, text: str, *more: str) -> inspect.Parameter:
    option = typer.Option(flag, *more, help=text, rich_help_panel=RUNNING)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False,
                             annotation=Annotated[bool, option])


def _setting_parameter(entry: SettingSpec, panel: str) -> inspect.Parameter:
    """Make the parameter that typer turns into the option or argument of a setting."""
    wanted: Any = Literal[tuple(entry.choices)] if entry.choices else entry.type
    if entry.many:
        wanted = list[wanted]
    if entry.default is None or entry.many:
        wanted = wanted | None
    limits = ({"min": entry.low, "max": entry.high} if entry.type in (int, float) else {})
    shown: dict[str, Any] = {"help": entry.help, "rich_help_panel": panel or None, **limits}
    if metavar := entry.metavar or ("" if entry.choices else VALUE_NAMES.get(entry.type, "")):
        shown["metavar"] = metavar
    if entry.name in SETTINGS and not entry.choices:
        shown["autocompletion"] = lambda ctx, incomplete: names_for(
            entry.name, Path(ctx.find_root().params.get("work") or "."), incomplete)
    if entry.positional:
        info: Any = typer.Argument(**shown)
    else:
        info = typer.Option(entry.option, *entry.aliases, *filter(None, [entry.short]), **shown)
    default: Any = None if entry.many else entry.default
    if default is dataclasses.MISSING:
        default = inspect.Parameter.empty
    return inspect.Parameter(entry.name, inspect.Parameter.KEYWORD_ONLY, default=default,
                             annotation=Annotated[wanted, info])


def _run(ctx: typer.Context, found: FoundStage, method: Method | None) -> None:
    shared: Globals = ctx.obj
    quiet, as_json = ctx.params["quiet"] or shared.quiet, bool(ctx.params.get("as_json"))
    values, given = _values_of(ctx, method if found.stage.subcommands else None)
    preset = shared.preset
    listener = console.Terminal(quiet=quiet, check=check_interrupts,
                                rewrite=lambda text: to_shell(text, found.name, shared.work))
    with console.heard_by(listener):
        record = preset.record(found, values) if preset else {}
        try:
            if preset and record:
                console.note(_preset_note(found, preset, values))
            result = run_stage(found, shared.work, values, given=given, preset=record)
        except PhotosFailed as error:
            _print(found, error.result, as_json, values)
            raise
        except BrokenPipeError as error:
            # The work was stopped, unlike by a pipe that is closed while results are printed.
            raise ReaderGone(*error.args) from error
        except VplError as error:
            error.message = to_shell(error.message, found.name, shared.work)
            error.hint = to_shell(error.hint, found.name, shared.work)
            raise
        _print(found, result, as_json, values)
        found.judge(result)


@dataclass(frozen=True)
class Call:
    """A parsed command line: stage, setting to value, and names of the settings it gives.

    `preset` is the record for the headers; `quiet` is set by `-q`.
    """

    found: FoundStage
    values: Values
    given: frozenset[str] = frozenset()
    preset: Values = field(default_factory=dict)
    quiet: bool = False


def parse_line(words: Sequence[str], preset: Preset | None = None) -> Call:
    """Parse the words after `vpltool`, `--preset NAME` first if used, and check the settings.

    Raises a VplError if they are not a command line.
    """
    if tuple(words[:1]) == ("--preset",):
        preset, words = read_preset("".join(words[1:2])), words[2:]
    if not words:
        raise VplError("there is no command", "vpltool --help")
    name, *rest = words
    stages = find_stages()
    if name not in stages:
        raise VplError(f"no command `{name}`", near_name(name, stages))
    found, method = stages[name], None
    if found.stage.subcommands:
        methods = find_methods(found.stage.methods)
        if not rest or rest[0] not in methods:
            raise VplError(f"{name}: no command `{rest[0] if rest else ''}`",
                           near_name(rest[0] if rest else "", methods))
        method, rest = methods[rest[0]], rest[1:]
    command = stage_command(found, method)
    sets = preset.values(found, method.name if method else "") if preset else {}
    try:
        ctx = command.make_context(f"vpltool {name}", list(rest), default_map=sets)
    except Exception as error:
        if text := usage_text(error):
            raise VplError(text, f"vpltool {name} --help") from error
        raise
    values, given = _values_of(ctx, method)
    if "allow_pipe" in given:
        raise VplError("`allow_pipe=True` is only taken from a command line of its own",
                       f"type it yourself: vpltool {' '.join(words)}")
    stage_settings(found, values, given)
    return Call(found, values, frozenset(given), preset.record(found, values) if preset else {},
                bool(ctx.params.get("quiet")))


def _values_of(ctx: typer.Context, method: Method | None) -> tuple[Values, set[str]]:
    """Return setting to value of a parsed command, and the names of settings that it gives."""
    sources = {name: getattr(ctx.get_parameter_source(name), "name", "") for name in ctx.params}
    # Typer makes an empty tuple of a list that is not given, whatever its setting's default.
    values = {name: value for name, value in ctx.params.items()
              if value is not None and name not in ("quiet", "as_json", "help_all")
              and not (value == () and sources[name] == "DEFAULT")}
    if method is not None:
        values["method"] = method.name
    return values, {name for name in values if sources.get(name) == "COMMANDLINE"}


def _preset_note(found: FoundStage, preset: Preset, values: Mapping[str, object]) -> str:
    method = str(values.get("method", ""))
    taken = {name: value for name, value in preset.values(found, method).items()
             if values.get(name) == value}
    return f"preset {preset.name}: " + command_line(
        found.name, taken | ({"method": method} if method else {}))


def _print(found: FoundStage, result: object, as_json: bool, values: Mapping[str, object]) -> None:
    if prints_results(found):
        for line in [json.dumps(result)] if as_json else found.lines(result, values):
            print(line)
