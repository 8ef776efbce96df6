"""Every find of the stages of `make fuzz`: a stage on a hostile file ends with one message."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, Run

from vpltool.formats import read_tensors, write_tensors
from vpltool.formats.manifest import MANIFEST

Change = Callable[[dict[str, Any]], Any]


def told(result: Result) -> str:
    """The one message of a command that has failed."""
    assert result.code == 1, result.err
    (error,) = result.lines("error:")
    return error


def change(path: Path, how: Change) -> None:
    content = json.loads(path.read_text())
    how(content)
    path.write_text(json.dumps(content))


def test_a_head_of_another_shape(copied: Path, run: Run) -> None:
    work = copied / "work"
    path = work / "features/train.head.safetensors"
    header, tensors = read_tensors(path, "head")
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
    write_tensors(path, header, tensors | {name: tensors[name][:1]})
    assert f"{path} is damaged" in told(run("cam", "--overwrite", work=work))


@pytest.mark.parametrize("how", [
    lambda options: options.pop("keep"), lambda options: options.update(keep=[["x"]]),
    lambda options: options.update(layers="x"), lambda options: options.update(scale="x"),
    lambda options: options.update(split=7), lambda options: options.update(max_side=[])])
def test_options_that_other_stages_read(copied: Path, run: Run, how: Change) -> None:
    work = copied / "work"
    change(work / "features/train" / MANIFEST, lambda content: how(content["header"]["options"]))
    for command in (("cam", "--overwrite"), ("update",)):
        assert "artifact.json: its vpltool header cannot be read" in told(run(*command, work=work))


@pytest.mark.parametrize(("command", "how"), [
    (("scores",), lambda scores: scores["iou"].update(bar="x")),
    (("scores",), lambda scores: scores.update(split=7)),
    (("scores",), lambda scores: scores.update(miou=1 << 2000)),
    (("scores",), lambda scores: scores.pop("photos")),
    (("show", "masks/text-refined", "--worst", 1), lambda scores: scores.update(worst=[0.5])),
    (("show", "masks/text-refined", "--worst", 1), lambda scores: scores.update(worst=7))])
def test_scores_of_other_types(copied: Path, run: Run, command: tuple[object, ...], how: Change
                               ) -> None:
    work = copied / "work"
    assert run("eval", "--what", "masks/text-refined", "--split", "train", work=work).code == 0
    path = work / "scores/masks-text-refined-train.json"
    assert run(*command, work=work).code == 0
    change(path, how)
    assert f"{path} is not valid" in told(run(*command, work=work))


def test_sources_in_a_circle(copied: Path, run: Run) -> None:
    work = copied / "work"
    change(work / "features/train" / MANIFEST, lambda content: content["header"].update(
        sources={"features": "cams/text/train"}))
    listed = run("status", "--json", work=work)
    assert listed.code == 0, listed.err
    names = [entry["name"] for entry in json.loads(listed.out)]
    assert {"features/train", "cams/text/train"} <= set(names)
    assert len(names) == len(set(names))


def test_a_recipe_with_a_command_that_there_is_not(copied: Path, run: Run) -> None:
    recipe = copied / "a.recipe"
    recipe.write_text("# Title.\nvpltool $(touch /tmp/outside)\nvpltool status\n")
    assert "no command" in told(run("run", recipe, work=copied / "work"))
