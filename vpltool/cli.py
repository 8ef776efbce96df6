"""The `vpltool` command: finds the commands, turns exceptions into a line and an exit code."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from vpltool import __version__, console
from vpltool.errors import VplError, is_out_of_memory
from vpltool.formats.header import set_preset
from vpltool.presets import flags_of, read_preset
from vpltool.stage import command_modules

_HELP = """Photos with image-level tags in, a trained segmenter out.

The commands stand below in the order of the pipeline: run them from top to bottom, cam and refine
once with text prototypes and once with vision prototypes. Each reads files and writes files, and
`vpltool COMMAND --help` says what comes next. Begin with:

    vpltool prepare folder PHOTOS --labels tags.csv --model ViT-B-16-quickgelu --pretrained openai

or, without photos and without a network, with a world of drawn ones:

    vpltool -C work/demo demo
"""


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"vpltool {__version__}")
        raise typer.Exit


def _global_options(
    ctx: typer.Context,
    work: Annotated[
        Path,
        typer.Option(
            "-C", "--work", envvar="VPLTOOL_WORK", metavar="DIR",
            help="Workspace: where inputs are looked for and outputs go.",
        ),
    ] = Path(),
    preset: Annotated[
        str,
        typer.Option(
            "--preset", envvar="VPLTOOL_PRESET", metavar="NAME-OR-FILE",
            help="Protocol: takes the place of the commands' defaults; `vpltool presets` lists "
                 "them. An option that is given wins.",
        ),
    ] = "",
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", is_eager=True,
            callback=_print_version,
        ),
    ] = False,
) -> None:
    ctx.obj = work
    set_preset()
    if preset:
        chosen = read_preset(preset, ctx.command)
        ctx.default_map = chosen.defaults
        ctx.meta["preset"] = chosen


class _Command(TyperCommand):
    """A command that says, and has every header say, which of its options a preset gave."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        root = ctx.find_root()
        own = {option for param in self.params for option in param.opts}
        asked = {arg.split("=")[0] for arg in args} - own
        for param in root.command.params:
            for option in asked & {*param.opts}:
                spelt = f"{option} {param.metavar}" if param.metavar else option
                ctx.fail(f"{option} stands before the command: {root.info_name} {spelt}"
                         + ctx.command_path.removeprefix(root.info_name))
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        if ctx.default_map:
            preset = ctx.meta["preset"]
            taken = {name: value for name, value in ctx.default_map.items()
                     if ctx.params[name] == value}
            set_preset(preset.name, preset.identity, {
                param.opts[0].removeprefix("--"): ctx.params[param.name] for param in self.params
                if param.name in ctx.default_map and param.name not in taken})
            if not ctx.params.get("quiet"):
                console.note(f"preset {preset.name}: {ctx.command_path} {flags_of(self, taken)}")
        return super().invoke(ctx)


def build_app() -> typer.Typer:
    """Assemble the Typer application from the files in `vpltool/stages`."""
    app = typer.Typer(
        name="vpltool", help=_HELP, no_args_is_help=True, add_completion=False,
        pretty_exceptions_enable=False, rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_global_options)
    for name, module in command_modules():
        panel = module.STAGE.panel
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name, rich_help_panel=panel)
            for entry in module.app.registered_commands:
                entry.cls = _Command
        else:
            # A nameless group each: typer lists groups behind commands, and the order must hold.
            single = typer.Typer()
            single.command(name, cls=_Command, rich_help_panel=panel)(
                getattr(module, name.replace("-", "_")))
            app.add_typer(single)
    return app


def main() -> None:
    """Run the command line; every exit code of the contract is decided here.

    0 done; 1 something the user can fix; 2 usage; 130 interrupted (the next run goes on).
    `VPLTOOL_DEBUG=1` shows the traceback of an error.
    """
    try:
        build_app()(prog_name="vpltool")
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as stop:
        # Typer turns Ctrl-C into this exit code by itself, without a word.
        if stop.code == 130:
            _interrupted()
        raise
    except BrokenPipeError:
        # The reader of our stdout (`| head`) is gone; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (VplError, OSError, RuntimeError, MemoryError) as error:
        told = _explain(error)
        if told is None or os.environ.get("VPLTOOL_DEBUG"):
            raise
        console.error(told.message, told.hint)
        sys.exit(1)


_KILLED = ("DataLoader worker (pid", "process pool was terminated")
"""What torch and Python say where a worker process has gone."""


def _explain(error: Exception) -> VplError | None:
    """What to tell the user of an exception; None where only a traceback helps."""
    if isinstance(error, VplError):
        return error
    if isinstance(error, OSError) and (error.filename is not None or error.errno is not None):
        where = f" ({error.filename})" if error.filename else ""
        return VplError(f"{error.strerror or error}{where}",
                        "VPLTOOL_DEBUG=1 shows the traceback")
    if any(words in str(error) for words in _KILLED):
        return VplError("a worker process was killed, most likely for lack of memory",
                        "fewer --workers, or 0; the same command goes on where it stopped")
    if is_out_of_memory(error):
        return VplError(str(error).partition("\n")[0] or "out of memory",
                        "close other programs, or --device cpu; what is written is kept")
    return None


def _interrupted() -> None:
    console.error("interrupted; what is written is kept", "run the same command again to go on")
    sys.exit(130)
