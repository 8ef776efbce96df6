"""Completion in bash, zsh and fish: commands, options, and the names of this workspace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Run

import vpltool
from vpltool.completion import names_for, workspaces


@pytest.mark.parametrize(("setting", "begun", "wanted"), [
    ("split", "", ["train", "val"]), ("tagged", "b", ["bar", "box"]),
    ("what", "cams/", ["cams/text", "cams/text-refined"]), ("prototypes", "", ["text"]),
    ("masks", "", ["text-refined", "text-refined-full"]), ("ids", "scene0,scene7", [
        "scene0,scene7"]), ("decoder", "", []), ("recipe", "own", ["own-photos"])])
def test_names(setting: str, begun: str, wanted: list[str], ready: Path) -> None:
    assert names_for(setting, ready / "work", begun) == wanted


def test_nowhere_there_is_nothing_to_complete(tmp_path: Path) -> None:
    for setting in ("split", "what", "tagged", "decoder"):
        assert names_for(setting, tmp_path, "") == []
    (tmp_path / "images.jsonl").write_text("damaged\n")
    assert names_for("split", tmp_path, "") == []


def test_workspaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("work/demo", "work/photos", "other", "too/deep/to/look"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "workspace.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert workspaces("") == ["other", "work/demo", "work/photos"]
    assert workspaces("work/d") == ["work/demo"]
    assert workspaces(f"{tmp_path}/o") == [f"{tmp_path}/other"]
    assert workspaces("none/") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_given_them(shell: str, ready: Path) -> None:
    """As each shell asks, by its own variables; the classes of a workspace that is named."""
    line = f"vpltool -C {ready / 'work'} show --class b"
    asked = ({"COMP_WORDS": line, "COMP_CWORD": "5"} if shell == "bash" else
             {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"})
    done = subprocess.run(
        [sys.executable, "-m", "vpltool"], capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(Path(vpltool.__file__).parents[1]), "PATH": os.environ["PATH"],
             "_VPLTOOL_COMPLETE": f"complete_{shell}", **asked})
    assert "bar" in done.stdout, done.stderr
    assert "box" in done.stdout
    assert "disc" not in done.stdout


def test_photos_of_a_class(run: Run, ready: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    assert run("show", "--class", "disc", "--out", out, work=ready / "work").code == 0
    assert out.exists()
    refused = run("show", "--class", "dsc", work=ready / "work")
    assert (refused.code, refused.lines("hint:")) == (1, ["did you mean `disc`?"])


def test_photos_and_masks_without_a_workspace(run: Run, ready: Path, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """Any two folders; the names of the classes are those beside the masks."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "masks").symlink_to(ready / "masks")
    plain = run("show", ready / "photos", "masks", "--out", "plain.png")
    assert plain.code == 0, plain.err
    (tmp_path / "masks").unlink()
    (tmp_path / "masks").mkdir()
    for path in (ready / "masks").iterdir():
        (tmp_path / "masks" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "masks/classes.txt").write_text("background\nbar\nbox\ndisc\n")
    assert run("show", ready / "photos", "masks", "--out", "named.png").code == 0
    assert (tmp_path / "plain.png").read_bytes() != (tmp_path / "named.png").read_bytes()
    told = run("show", ready / "photos", "masks", "--terminal")
    assert (told.code, told.lines("warning:")) == (0, [
        "no picture is drawn: stderr is not a terminal, or one without a size"])
    assert run("show").lines("error:") == [f"no workspace in {tmp_path}"]
