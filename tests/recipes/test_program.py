"""Recipes that run by `python -m`: their exit codes, and the lines that they print."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from vpltool.errors import VplError
from vpltool.papers.program import run_program


def _raises(error: BaseException) -> None:
    raise error


def test_a_hint_names_the_workspace(capsys: pytest.CaptureFixture[str]) -> None:
    error = VplError("no features of `train`", "`extract(split='train')` makes them")
    assert run_program(Path("work/pets"), lambda: _raises(error)) == 1
    said = capsys.readouterr()
    assert not said.out
    assert "no features of `train`" in said.err
    assert "vpltool -C work/pets extract --split train" in said.err


def test_a_full_disk_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    error = OSError(28, "No space left on device", "out/table.md")
    assert run_program(Path("work"), lambda: _raises(error)) == 1
    assert "No space left on device (out/table.md)" in capsys.readouterr().err


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        run_program(Path("work"), lambda: _raises(RuntimeError("shapes differ")))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_is_130(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(Path("work"), lambda: os.kill(os.getpid(), number)) == 130
    assert "run the same command again" in capsys.readouterr().err
