"""A command of the command line, made from a stage: its options are the stage's settings."""

from __future__ import annotations

import difflib
import functools
import inspect
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from vpltool import console
from vpltool.command_group import CommandGroup, MadeOnce
from vpltool.command_help import help_of, stage_help, take_help_topic, unwrap
from vpltool.errors import PhotosFailed, ReaderGone, VplError, near_name
from vpltool.methods import KINDS, Method, find_methods
from vpltool.parallel.signals import check_interrupts
from vpltool.parameters import name_numbers, setting_parameter, switch_parameter
from vpltool.preset import Preset, read_preset
from vpltool.run import prints_results, run_stage, stage_settings
from vpltool.settings import Values, described
from vpltool.shell import command_line, to_shell
from vpltool.stages import FoundStage, find_stages


@dataclass(frozen=True)
class Globals:
    """What the options before the command say: workspace, quiet, preset."""

    work: Path
    quiet: bool = False
    preset: Preset | None = None


def stage_command(found: FoundStage, method: Method | None = None) -> Any:
    """Make the command of a stage; a group of commands where its methods are subcommands."""
    stage = found.stage
    if not stage.subcommands:
        return _StageCommand(found, found.name, help=help_of(found),
                             rich_help_panel=stage.panel, rich_markup_mode="rich")
    if method is not None:
        return _StageCommand(found, method.name, method, help=unwrap(method.docstring),
                             rich_markup_mode="rich")
    of_methods: Any = MadeOnce(find_methods(stage.methods), lambda one: stage_command(found, one))
    return CommandGroup(name=found.name, commands=of_methods, no_args_is_help=True,
                        help=help_of(found), short_help=help_of(found).split("\n")[0],
                        rich_help_panel=stage.panel, rich_markup_mode="rich")


def _callback(found: FoundStage, method: Method | None) -> Callable[..., None]:
    """The function that typer calls: its signature lists the settings."""
    entries = list(described(found.stage.settings))
    if found.stage.methods and found.stage.subcommands:
        entries = [entry for entry in entries if entry.name != "method"]
    panels: dict[str, str] = {}
    if method is not None:
        own = {entry.name for entry in entries}
        theirs = [entry for entry in described(method.settings) if entry.name not in own]
        if not found.stage.subcommands:
            panels = {entry.name: f"Options of --method {method.name}" for entry in theirs}
        entries += theirs

    def call(ctx: typer.Context, **values: object) -> None:
        _run(ctx, found, method, values)

    parameters = [inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD,
                                    annotation=typer.Context)]
    parameters += [setting_parameter(entry, panels.get(entry.name, entry.about.panel))
                   for entry in entries]
    if found.show is not None:
        parameters.append(switch_parameter("as_json", "--json", "Print JSON on stdout."))
    parameters.append(switch_parameter(
        "quiet", "--quiet", "No notes and no progress on stderr.", "-q"))
    parameters.append(switch_parameter("help_all", "--help-all", "Show all options, and exit."))
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {entry.name: entry.annotation for entry in parameters}
    return call


class _StageCommand(TyperCommand):
    """The command of a stage, without options until it is called.

    With `--method NAME` its options are also those of the method.
    """

    def __init__(self, found: FoundStage, name: str, method: Method | None = None, **looks: Any
                 ) -> None:
        super().__init__(name, **looks)
        self.found = found
        self.method = method
        self.shown = method

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the options, those of the method that is asked for too, then parse."""
        stage = self.found.stage
        self.shown = self.method
        self._take_options(self.method)
        for option, instead in stage.moved.items():
            if option in {arg.split("=")[0] for arg in args}:
                ctx.fail(f"{option} has moved: {to_shell(instead, self.found.name)}")
        if stage.methods and not stage.subcommands:
            self._take_method(ctx, args)
        if self.found.name == "run":
            _check_values(ctx, args, self)
        # Now that the method's options are known.
        _check_order(ctx, args[:args.index("--")] if "--" in args else args, self)
        try:
            return super().parse_args(ctx, take_help_topic(ctx, args)[0])
        except Exception as error:
            name_numbers(error)
            raise

    def get_help(self, ctx: Any) -> str:
        """Return a page of 24 lines; with `--help-all`, everything as typer has it."""
        return stage_help(ctx, self.found, self.shown) or super().get_help(ctx)

    def _take_options(self, method: Method | None) -> None:
        whole = _options_of(self.found, method)
        self.params, self.callback = whole.params, whole.callback

    def _take_method(self, ctx: typer.Context, args: list[str]) -> None:
        kind = self.found.stage.methods
        methods = find_methods(kind)
        chosen = _value_of(self._method_flags(), args)
        name = chosen or (ctx.default_map or {}).get("method") or KINDS[kind].default
        if name not in methods:
            ctx.fail(f"--method {name}: no such method; {near_name(name, methods)}")
        if chosen or not {"--help", "--help-all", "-h"} & {*args}:
            self._check_owner(ctx, args, methods, name)
            self.shown = methods[name] if chosen else None
            self._take_options(methods[name])
            return
        lines = [textwrap.fill(method.summary, 76, initial_indent=f"  {method.name:12} ",
                               subsequent_indent=" " * 15) for method in methods.values()]
        self.help = "\n".join([
            f"{self.help}\n\n\b\nMethods; --method NAME --help shows the options of one:", *lines])

    def _method_flags(self) -> tuple[str, ...]:
        (entry,) = (entry for entry in described(self.found.stage.settings)
                    if entry.name == "method")
        return (entry.flag, *entry.about.aliases)

    def _check_owner(self, ctx: typer.Context, args: list[str], methods: Mapping[str, Method],
                     name: str) -> None:
        own = {flag for param in _options_of(self.found, methods[name]).params
               for flag in (*param.opts, *param.secondary_opts)}
        unknown = {word.split("=")[0] for word in args if word.startswith("--")} - own
        for other in methods.values() if unknown else ():
            flags = {flag for entry in described(other.settings)
                     for flag in (entry.flag, entry.off)} & unknown
            if flags:
                ctx.fail(f"{min(flags)} is an option of --method {other.name}, not of --method "
                         f"{name}")


@functools.cache
def _options_of(found: FoundStage, method: Method | None) -> Any:
    """Make a command that has the options and the callback, and nothing else."""
    app = typer.Typer(add_completion=False)
    app.command(found.name)(_callback(found, method))
    return typer.main.get_command(app)


def _value_of(flags: tuple[str, ...], args: list[str]) -> str:
    """Value of the last `--flag VALUE` or `--flag=VALUE`; empty if there is none."""
    value = ""
    for number, word in enumerate(args):
        if word in flags and number + 1 < len(args):
            value = args[number + 1]
        elif word.partition("=")[0] in flags and "=" in word:
            value = word.partition("=")[2]
    return value


def _check_order(ctx: typer.Context, args: list[str], command: TyperCommand) -> None:
    """Say that an option belongs before the command, where that is the mistake."""
    root = ctx.find_root()
    own = {option for param in command.params for option in param.opts}
    chosen = {arg.split("=")[0] for arg in args} - own
    for param in root.command.params:
        for option in chosen & {*param.opts} - {"--help", "-h"}:
            spelt = f"{option} {param.metavar}" if param.metavar else option
            ctx.fail(f"{option} goes before the command: {root.info_name} {spelt}"
                     + ctx.command_path.removeprefix(root.info_name or ""))


def _check_values(ctx: typer.Context, args: list[str], command: TyperCommand) -> None:
    """Say how the values of a recipe are written, where one looks like an option."""
    params = [*command.params, *ctx.find_root().command.params]
    known = {"--help", "--help-all", *(option for param in params for option in param.opts)}
    for flag in [word.partition("=")[0] for word in args if word.startswith("--")]:
        if flag not in known:
            if near := difflib.get_close_matches(flag, known, n=1, cutoff=0.85):
                ctx.fail(f"{flag} is no option of run; did you mean `{near[0]}`?")
            ctx.fail(f"{flag} is no option of run; values of a recipe are written NAME=VALUE, "
                     f"such as {flag[2:]}={_value_of((flag,), args) or 'VALUE'}")


def _run(ctx: typer.Context, found: FoundStage, method: Method | None, values: Values
         ) -> None:
    shared: Globals = ctx.obj
    quiet, as_json = bool(values["quiet"]) or shared.quiet, bool(values.get("as_json"))
    values, given = _values_of(ctx, method if found.stage.subcommands else None)
    listener = console.Terminal(quiet=quiet, check=check_interrupts,
                                rewrite=lambda text: to_shell(text, found.name, shared.work))
    with console.heard_by(listener):
        record = _preset_record(shared.preset, found, values)
        try:
            if record:
                assert shared.preset is not None
                console.note(_preset_note(found, shared.preset, values))
            result = run_stage(found, shared.work, values, given=given, preset=record)
        except PhotosFailed as error:
            _print(found, error.result, as_json, values)
            raise
        except BrokenPipeError as error:
            # The work has stopped; a pipe that is closed while results are printed is no failure.
            raise ReaderGone(*error.args) from error
        except VplError as error:
            error.message = to_shell(error.message, found.name, shared.work)
            error.hint = to_shell(error.hint, found.name, shared.work)
            raise
        _print(found, result, as_json, values)
        found.judge(result)


@dataclass(frozen=True)
class Call:
    """A command line that was parsed: its stage, setting to value, and what was given explicitly.
    """

    found: FoundStage
    values: Values
    given: frozenset[str] = frozenset()
    preset: Values = field(default_factory=dict)
    quiet: bool = False


def parse_line(words: Sequence[str], preset: Preset | None = None) -> Call:
    """Parse the words after `vpltool`, and check all that can be checked without a workspace.

    Args:
        words: `--preset NAME` may come first, then the command and its options.

    Raises:
        VplError: they are not a command line.
    """
    if tuple(words[:1]) == ("--preset",):
        preset, words = read_preset(words[1]), words[2:]
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
        # Typer's own errors are not among its public names; all of them can be spelled.
        if not hasattr(error, "format_message"):
            raise
        raise VplError(error.format_message(), f"vpltool {name} --help") from error
    values, given = _values_of(ctx, method)
    if "allow_pipe" in given:
        raise VplError("`allow_pipe=True` is only taken from a command line of its own",
                       f"type it yourself: vpltool {' '.join(words)}")
    stage_settings(found, values, given)
    return Call(found, values, frozenset(given), _preset_record(preset, found, values),
                bool(ctx.params.get("quiet")))


def _values_of(ctx: typer.Context, method: Method | None) -> tuple[Values, set[str]]:
    """Setting to value of a parsed command, and the names of those that were given."""
    values = {name: value for name, value in ctx.params.items()
              if value is not None and name not in ("quiet", "as_json", "help_all")}
    if method is not None:
        values["method"] = method.name
    given = {name for name in values if (source := ctx.get_parameter_source(name))
             and source.name == "COMMANDLINE"}
    return values, given


def _preset_record(preset: Preset | None, found: FoundStage, values: Mapping[str, object]
                   ) -> Values:
    if preset is None:
        return {}
    method = str(values.get("method", ""))
    sets = preset.values(found, method)
    if not sets:
        return {}
    flags = {entry.name: entry.flag[2:] for entry in described(found.stage.settings)}
    if found.stage.methods:
        chosen = find_methods(found.stage.methods)[method or KINDS[found.stage.methods].default]
        flags |= {entry.name: entry.flag[2:] for entry in described(chosen.settings)}
    other = {flags[name]: values.get(name) for name, value in sets.items()
             if name in flags and values.get(name) != value}
    return preset.record(sets, other)


def _preset_note(found: FoundStage, preset: Preset, values: Mapping[str, object]) -> str:
    """What a preset gives a command, as options."""
    method = str(values.get("method", ""))
    taken = {name: value for name, value in preset.values(found, method).items()
             if values.get(name) == value}
    return f"preset {preset.name}: " + command_line(
        found.name, taken | ({"method": method} if method else {}))


def _print(found: FoundStage, result: object, as_json: bool, values: Mapping[str, object]) -> None:
    """Print paths, or the report as the stage spells it."""
    if not prints_results(found):
        return
    for line in [json.dumps(result)] if as_json else found.lines(result, values):
        print(line)
