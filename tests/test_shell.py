"""Messages name settings; the command line spells them as it takes them."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

import pytest
from conftest import Run

from vpltool.cli import main
from vpltool.shell import command_line, to_shell


@pytest.mark.parametrize(("text", "spelled"), [
    ("`extract()` makes them", "vpltool extract makes them"),
    ("`extract(split='val', max_side=512, overwrite=True)`",
     "vpltool extract --split val --max-side 512 --overwrite"),
    ("`cam(prototypes='text', method='dense', tau=0.1)`",
     "vpltool cam --prototypes text --method dense --tau 0.1"),
    ("`refine(threshold=0.7, min_max=False)`", "vpltool refine --lambda 0.7 --keep-scale"),
    ("`text_prototypes(overwrite=True)`, or `device='cpu'`",
     "vpltool text-prototypes --overwrite, or --device cpu"),
    ("`out='a folder'`", "--out 'a folder'"),
    ("`overwrite=True` replaces it", "--overwrite replaces it"),
    ("class `goat` is new", "class `goat` is new"),
    ("did you mean `val`?", "did you mean `val`?"),
    ("`no such thing(`", "`no such thing(`"),
    ("`unknown_stage(x=1)`", "`unknown_stage(x=1)`"),
    ("`unknown_setting=3`", "`unknown_setting=3`"),
    ("`prepare('folder', images='my photos', labels='tags.csv')`",
     "vpltool prepare folder 'my photos' --labels tags.csv"),
])
def test_spelled(text: str, spelled: str) -> None:
    assert to_shell(text) == spelled


def test_the_stage_that_failed_is_asked_first() -> None:
    """`threshold` is --lambda of refine, and --threshold of eval."""
    assert to_shell("`threshold=0.4`", "refine") == "--lambda 0.4"
    assert to_shell("`threshold=0.4`", "eval") == "--threshold 0.4"


def test_lines_name_the_workspace(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They can be typed as they stand, from the folder that the command was typed in."""
    assert to_shell("`extract()`, or `phi=0.4`", "", Path("a b")) == (
        "vpltool -C 'a b' extract, or --phi 0.4")
    words = ["vpltool", "-C", str(ready / "work"), "refine", "--cams", "text", "--method", "excel"]
    with mock.patch.object(sys, "argv", words), pytest.raises(SystemExit):
        main()
    assert f"vpltool -C {ready / 'work'} extract --" in capsys.readouterr().err


def test_a_call_as_a_line() -> None:
    assert command_line("cam", {"method": "dense", "split": "val"}, ["vpltool", "-C", "a b"]) == (
        "vpltool -C 'a b' cam --method dense --split val")
    assert command_line("show", {"what": ["cams/text", "masks/text"], "truth": False}) == (
        "vpltool show cams/text masks/text --no-truth")


def test_help_is_wrapped_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that ends early is the last of its paragraph."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = [line.strip() for line in run("run", "--help", "about").out.splitlines()]
    start = next(number for number, line in enumerate(lines) if line.startswith("Steps that are"))
    assert lines[start + 3].endswith("earlier pictures are kept, and a table lists all runs.")
    assert all(len(line) > 65 for line in lines[start:start + 3])
