"""Running a measurement of the papers as a program: `python -m vpltool.papers.NAME WORK`."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from vpltool import console, process
from vpltool.errors import VplError, explain
from vpltool.parallel.signals import interrupt_at_sigterm
from vpltool.shell import to_shell


def parser_of(name: str, docstring: str | None) -> argparse.ArgumentParser:
    """Return the parser of `python -m vpltool.papers.NAME`, with its docstring as help."""
    about, _, more = (docstring or "").partition("\n\n")
    return argparse.ArgumentParser(
        prog=f"python -m vpltool.papers.{name}", description=about, epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter)


def run_program(work: Path, recipe: Callable[[], object]) -> int:
    """Exit code of a recipe: 0 done, 1 something the user can fix, 130 interrupted."""
    process.mark_own()
    in_shell = partial(to_shell, work=work)
    try:
        with interrupt_at_sigterm(), console.heard_by(console.Terminal(rewrite=in_shell)):
            recipe()
    except KeyboardInterrupt:
        console.interrupted()
        return 130
    except (VplError, OSError, RuntimeError, MemoryError) as error:
        shown = explain(error)
        if shown is None or os.environ.get("VPLTOOL_DEBUG"):
            raise
        console.error(in_shell(shown.message), in_shell(shown.hint))
        return 1
    return 0


@contextlib.contextmanager
def works_in(work: Path) -> Iterator[None]:
    """Have messages and errors of a block name another workspace than the program's in commands."""
    in_shell = partial(to_shell, work=work)
    with console.heard_by(console.Terminal(rewrite=in_shell)):
        try:
            yield
        except VplError as error:
            error.message, error.hint = in_shell(error.message), in_shell(error.hint)
            raise
