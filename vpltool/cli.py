"""The `vpltool` command: stages become commands, exceptions become a line and an exit code."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vpltool import __version__, console, process
from vpltool.command import CommandGroup, Globals, MadeOnce, stage_command, usage_text
from vpltool.command_help import unwrap
from vpltool.completion import workspaces
from vpltool.errors import ReaderGone, VplError, explain
from vpltool.formats import kinds, shards, workspace
from vpltool.methods.own import fault_of
from vpltool.parallel import signals
from vpltool.preset import read_preset
from vpltool.shell import to_shell
from vpltool.stages import find_stages

_HELP = """Photos with image-level tags in, a trained segmenter out.

Commands are in the order of the pipeline. Each reads and writes files, and its help names the
next one. A recipe runs them all:

    vpltool -C WORK run own-photos photos=PHOTOS tags=tags.csv

or, without photos, on synthetic scenes:

    vpltool -C work/demo run demo
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
            "-C", "--work", envvar="VPLTOOL_WORK", metavar="DIR", autocompletion=workspaces,
            help="Workspace: folder of inputs and outputs.",
        ),
    ] = Path(),
    preset: Annotated[
        str,
        typer.Option(
            "--preset", envvar="VPLTOOL_PRESET", metavar="NAME-OR-FILE",
            help="Protocol: replaces the commands' defaults; `vpltool presets` lists them. "
                 "Explicit options take precedence.",
        ),
    ] = "",
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No notes and no progress on stderr.")
    ] = False,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", is_eager=True,
            callback=_print_version,
        ),
    ] = False,
) -> None:
    chosen = read_preset(preset) if preset else None
    ctx.obj = Globals(work, quiet, chosen)
    if ctx.invoked_subcommand is None:
        _say_what_is_next(ctx, work)
    if chosen:
        # A recipe takes the protocol for all its lines.
        ctx.default_map = chosen.defaults | {"run": {"preset": preset}}


def _say_what_is_next(ctx: typer.Context, work: Path) -> None:
    """Print the next command of a workspace, or elsewhere all commands."""
    workspace.check_folder(work)
    if not kinds.is_workspace(work):
        if near := workspace.near_workspace(work):
            raise VplError(f"no workspace in {work}", near)
        print(ctx.get_help())
        raise typer.Exit(2)
    from vpltool.next_step import advice

    print(advice(work))


class _AllCommands(CommandGroup):
    """The commands of all stages."""

    def __init__(self, **looks: Any) -> None:
        super().__init__(**looks | {"commands": MadeOnce(find_stages(), stage_command)})


def build_app() -> typer.Typer:
    """Assemble the Typer application from the stages."""
    app = typer.Typer(
        name="vpltool", help=unwrap(_HELP), invoke_without_command=True, cls=_AllCommands,
        pretty_exceptions_enable=False, rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_global_options)
    return app


def main() -> None:
    """Run the command line, and exit.

    Exit codes: 0 done; 1 an error that the user can fix; 2 usage; 130 interrupted (the next run
    continues). `VPLTOOL_DEBUG=1` shows the traceback of an error.
    """
    process.mark_own()
    try:
        with signals.interrupt_at_sigterm(), signals.remember_interrupts():
            code = build_app()(prog_name="vpltool", standalone_mode=False)
            sys.exit(code)
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as stop:
        # Typer silently turns Ctrl-C into exit code 130. The next command of a script must not run
        # if Ctrl-C was dropped, even if all work was done.
        if stop.code == 130 or (not stop.code and signals.was_interrupted()):
            _interrupted()
        if _reader_is_gone(stop):
            sys.exit(1 if isinstance(stop.__context__, ReaderGone) else 0)
        raise
    except Exception as error:
        # A library that Ctrl-C left half imported may fail in any way.
        if signals.was_interrupted():
            _interrupted()
        if text := usage_text(error):
            path = getattr(getattr(error, "ctx", None), "command_path", "vpltool")
            console.error(text[0].lower() + text[1:], f"{path} --help")
            sys.exit(2)
        shown = fault_of(error) or (
            explain(error) if isinstance(error, (VplError, OSError, RuntimeError, MemoryError))
            else None)
        if shown is None or os.environ.get("VPLTOOL_DEBUG"):
            raise
        rank, count = shards.rank_of_process()
        named = not rank or count == 1 or shown.message.startswith("rank")
        console.error(("" if named else f"rank {rank}: ") + to_shell(shown.message),
                      to_shell(shown.hint))
        sys.exit(1)


def _reader_is_gone(stop: SystemExit) -> bool:
    """Return whether the reader of our stdout has closed it, as in `| head`."""
    if sys.stdout is None:
        # It was closed before the start, as some supervisors do.
        return False
    try:
        # Flush here: an error at the interpreter's exit would be printed, with exit code 120.
        sys.stdout.flush()
        # Typer turns an error of writing into exit code 1.
        gone = isinstance(stop.__context__, BrokenPipeError)
    except BrokenPipeError:
        gone = True
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def _interrupted() -> None:
    if shards.rank_of_process()[0]:
        # The first process of torchrun prints it for all.
        sys.exit(130)
    # `timeout` and job schedulers send SIGTERM to the workers, too, whose end torch would report.
    if signals.in_main_thread() and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    console.interrupted()
    sys.exit(130)
