"""Ctrl-C at any time, also where Python or a library drops it; and a reader that goes away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Run

import vpltool

IMPORTING = """
import runpy, sys

class Stop:
    def find_spec(self, name, *_rest):
        if name == {name!r}:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Stop())
{start}
"""


@pytest.mark.parametrize("start", ["runpy.run_module('vpltool', run_name='__main__')",
                                   "from vpltool.__main__ import main; main()"])
@pytest.mark.parametrize("name", ["vpltool.cli", "typer", "vpltool.parallel.signals"])
def test_during_the_imports_it_is_one_line(name: str, start: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING.format(name=name, start=start)], check=False,
        capture_output=True, text=True, env={"PYTHONPATH": str(Path(vpltool.__file__).parents[1])})
    assert done.returncode == 130
    assert done.stderr.splitlines() == ["error: interrupted; finished results are kept",
                                        "hint: run the same command again to continue"]


def interrupt_and_drop(number: int = signal.SIGINT) -> None:
    """What a bare `except` in a library does with Ctrl-C."""
    try:
        os.kill(os.getpid(), number)
    except BaseException:  # noqa: BLE001
        return


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGCHLD")
def test_workers_that_the_same_signal_ends_are_not_told_of(
    run: Run, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`timeout` sends SIGTERM to all; torch raises an error for each worker that it ends."""
    def interrupted(_name: str) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr("vpltool.stages.extract.find_device", interrupted)
    before = signal.signal(signal.SIGCHLD, lambda *_: pytest.fail("a worker was told of"))
    try:
        assert run("extract", "--overwrite", "--workers", 0, work=copied / "work").code == 130
        subprocess.run([sys.executable, "-c", ""], check=True)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_dropped_before_the_work_it_ends_the_work(run: Run, copied: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    from vpltool.parallel.device import find_device

    def find(name: str) -> object:
        interrupt_and_drop()
        return find_device(name)

    monkeypatch.setattr("vpltool.stages.extract.find_device", find)
    result = run("extract", "--overwrite", "--workers", 0, work=copied / "work")
    assert result.code == 130
    assert result.lines("error:") == ["interrupted; finished results are kept"]
    assert not list((copied / "work/features/train").glob("scene5*"))


@pytest.mark.parametrize(("number", "error"), [
    (signal.SIGINT, AttributeError("module 'numpy' has no attribute 'multiply'")),
    (signal.SIGTERM, SystemError("numpy: numba returned a result with an exception set"))],
    ids=["half imported", "compiled"])
def test_what_an_interrupted_library_raises_is_not_shown(
        number: int, error: Exception, run: Run, ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object) -> str:
        interrupt_and_drop(number)
        raise error

    monkeypatch.setattr("vpltool.commands.status.show", fail)
    result = run("status", work=ready / "work")
    assert result.code == 130
    assert "numpy" not in result.err


def test_dropped_at_the_end_the_exit_code_tells(run: Run, ready: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    def show(*_args: object) -> str:
        interrupt_and_drop()
        return "all"

    monkeypatch.setattr("vpltool.commands.status.show", show)
    assert run("status", work=ready / "work").code == 130
    monkeypatch.undo()
    assert run("status", work=ready / "work").code == 0, "the next command is another one"


def exit_code_without_reader(work: Path, *words: str, stderr_too: bool) -> int:
    """Exit code of a command whose output nobody reads any more, as behind `| head`."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "vpltool", "-C", str(work), *words], check=False, stdout=write,
        stderr=write if stderr_too else subprocess.DEVNULL,
        env={"PYTHONPATH": str(Path(vpltool.__file__).parents[1])})
    os.close(write)
    return done.returncode


def test_work_that_stops_since_its_reader_has_gone_is_not_done(copied: Path) -> None:
    recipe = copied / "maps.recipe"
    recipe.write_text("# Maps.\nvpltool cam --method dense\n")
    work = copied / "work"
    assert exit_code_without_reader(work, "run", str(recipe), stderr_too=True) == 1
    assert not (work / "cams/text-dense").exists()
    assert exit_code_without_reader(work, "cam", "--method", "dense", stderr_too=True) == 1


@pytest.mark.parametrize("words", [("status",), ("eval", "--what", "cams/text", "--split", "val")])
def test_only_printing_into_a_closed_pipe_is_no_failure(words: tuple[str, ...], copied: Path
                                                        ) -> None:
    assert exit_code_without_reader(copied / "work", *words, stderr_too=False) == 0
