"""Names that become paths or Python: none leads out of its folder, none ends a string."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from conftest import Run, prepare

OUT = ("../../ESC", "/ESC", "a/../../../ESC", "..", "a\\..\\..\\ESC", "C:ESC")


@pytest.mark.parametrize("split", OUT)
def test_a_split_in_a_csv(ready: Path, tmp_path: Path, tiny_clip: Path, run: Run, split: str
                          ) -> None:
    """Row 63: the row is named, before anything is written."""
    (tmp_path / "tags.csv").write_text(
        f'id,labels,split\nscene0,bar,train\nscene1,box,"{split}"\n')
    result = run("prepare", "folder", ready / "photos", "--labels", tmp_path / "tags.csv",
                 "--pretrained", tiny_clip, work=tmp_path / "work")
    assert result.code == 1
    assert any("leads out" in line and "tags.csv:3" in line for line in result.err.splitlines())
    assert not (tmp_path / "work").exists() or not any((tmp_path / "work").iterdir())


@pytest.mark.parametrize("split", OUT)
def test_a_split_in_a_workspace(copied: Path, run: Run, split: str) -> None:
    work = copied / "work"
    lines = (work / "images.jsonl").read_text().splitlines()
    entry = json.loads(lines[0])
    lines[0] = json.dumps(entry | {"splits": [split]})
    (work / "images.jsonl").write_text("\n".join(lines) + "\n")
    before = set(copied.rglob("*"))
    result = run("extract", "--split", split, "--workers", 0, work=work)
    assert result.code == 1
    assert "leads out of a folder" in result.lines("error:")[0]
    assert set(copied.rglob("*")) == before


@pytest.mark.parametrize("command", [
    ("cam",), ("embed", "--method", "naclip"), ("train-groups",),
    ("train-decoder", "--masks", "text-refined", "--prototypes", "text")])
@pytest.mark.parametrize("name", OUT[:3])
def test_the_name_of_a_result(copied: Path, run: Run, command: tuple[str, ...], name: str) -> None:
    before = set(copied.parent.rglob("*"))
    result = run(*command, "--name", name, work=copied / "work")
    assert result.code == 1
    assert result.lines("error:") == [f"--name {name}: a name that leads out of its folder"]
    assert set(copied.parent.rglob("*")) == before
    assert run("cam", "--name", "mine", work=copied / "work").code == 0


def test_the_python_of_an_export(copied: Path, run: Run) -> None:
    """A split cannot end the string that it stands in."""
    split = "it's', x=print(1), y='"
    tags = copied / "tags.csv"
    rows = [line.split(",")[:2] for line in tags.read_text().splitlines()[1:]]
    tags.write_text("id,labels,split\n" + "".join(
        f'{key},{labels},"{split if number < 4 else "val"};1st"\n'
        for number, (key, labels) in enumerate(rows)))
    assert prepare(copied).code == 0
    (copied / "given").mkdir()
    folder = copied / "work/masks/text-refined"
    (folder / "train").rename(folder / split)
    result = run("export", "mmseg", "--what", folder / split, "--split", split,
                 "--out", copied / "mmseg", work=copied / "work")
    made = copied / "mmseg/dataset.py"
    assert made.exists(), result.err
    calls = [node for node in ast.walk(ast.parse(made.read_text())) if isinstance(node, ast.Call)]
    assert {call.func.id for call in calls if isinstance(call.func, ast.Name)} == {"dict"}
