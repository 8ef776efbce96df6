"""Nothing is finite by luck: numbers that cannot be are named where they are read and written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from vpltool.engine.photo_work import make_photos
from vpltool.formats import Header, open_output, write_tensors
from vpltool.formats.kinds import BadValues, check_values

Change = Callable[[dict[str, torch.Tensor]], object]


def tamper(path: Path, change: Change) -> None:
    """Change the numbers of a file, and leave its header as it is."""
    with safe_open(path, framework="pt") as file:
        said, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors)
    save_file(tensors, path, said)


def put(name: str, value: float) -> Change:
    """Make the first number of a tensor another one."""
    return lambda tensors: tensors[name].view(-1)[:1].fill_(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_photos_with_features_that_are_not_finite_are_named(value: float, run: Run, copied: Path
                                                            ) -> None:
    work = copied / "work"
    for name in ("scene0", "scene3"):
        tamper(work / f"features/train/{name}.safetensors", put("tokens", value))
    result = run("cam", "--overwrite", work=work)
    assert result.code == 1
    (error,) = result.lines("error:")
    assert error.startswith("2 of 6 photos failed, the others are done: scene0")
    assert "scene3" in error and "`tokens` holds NaN or infinity" in error
    done = {file.stem for file in (work / "cams/text/train").glob("*.safetensors")}
    assert done == {"scene1", "scene2", "scene4", "scene5"}
    found = json.loads(run("doctor", "--no-machine", "--json", work=work).out)
    says = {entry["about"]: entry["says"] for entry in found}
    assert "scene0" in says["features/train"] and "scene3" in says["features/train"]


def test_where_all_photos_fail_there_are_no_others(run: Run, copied: Path) -> None:
    for path in (copied / "work/features/train").glob("*.safetensors"):
        tamper(path, put("tokens", float("nan")))
    (error,) = run("cam", "--overwrite", work=copied / "work").lines("error:")
    assert error.startswith("all 6 photos failed: scene0")


@pytest.mark.parametrize(("line", "made"), [(("learn-prototypes", "--iters", 3), "vision"),
                                            (("tag-prototypes",), "tags")])
def test_a_file_of_all_photos_is_not_made_of_them(line: tuple[object, ...], made: str, run: Run,
                                                  copied: Path) -> None:
    work = copied / "work"
    tamper(work / "features/train/scene2.safetensors", put("patches", float("nan")))
    result = run(*line, work=work)
    (error,) = result.lines("error:")
    assert result.code == 1 and "scene2.safetensors: `patches` holds NaN" in error
    assert not (work / f"prototypes/{made}.safetensors").exists()


def test_a_file_of_all_photos_is_not_written_with_nan(tmp_path: Path) -> None:
    path = tmp_path / "vision.safetensors"
    header = Header(kind="prototypes", command="learn-prototypes")
    rows = torch.ones(2, 4)
    rows[1, 2] = float("nan")
    with pytest.raises(BadValues, match=r"vision\.safetensors is not written.*NaN"):
        write_tensors(path, header, {"prototypes": rows, "class_index": torch.arange(2)})
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("file", "change", "commands", "says"), [
    ("cams/text-refined/train/scene1", put("cam", float("nan")), ("crf",), "NaN or infinity"),
    ("cams/text/train/scene1", put("cam", float("inf")), ("refine",), "NaN or infinity"),
    ("cams/text-refined/train/scene1", put("classes", 99), ("crf",), "a class that is not among"),
    ("features/train/scene1", lambda tensors: tensors["patches"].zero_(), ("cam", "--method",
     "dense"), "nothing but zeros"),
    ("features/train/scene1", put("grid", 1000), ("cam",), "is not of a grid of 1000×"),
    ("features/train/scene1", put("grid", -5), ("cam",), "is not of a grid of -5×"),
])
def test_one_line_names_the_photo(file: str, change: Change, commands: tuple[str, ...],
                                  says: str, run: Run, copied: Path) -> None:
    """And the others are done; `doctor` says so, too."""
    work = copied / "work"
    tamper(work / f"{file}.safetensors", change)
    workers = ("--workers", 0) if commands[0] == "crf" else ()
    result = run(*commands, "--overwrite", *workers, work=work)
    assert result.code == 1
    (error,) = result.lines("error:")
    assert error.startswith("1 of 6 photos failed, the others are done: scene1")
    assert says in error
    for mask in (work / "masks").rglob("*.png"):
        with Image.open(mask) as image:
            assert {*np.unique(np.asarray(image)).tolist()} <= {0, 1, 2, 3, 255}
    if "class" not in says:
        assert "scene1" in run("doctor", "--no-machine", work=work).out


def one_row_less(tensors: dict[str, torch.Tensor]) -> None:
    tensors["grid"][0] -= 1


def wider(name: str) -> Change:
    """Give a tensor two more channels."""
    return lambda tensors: tensors.update({name: torch.cat([tensors[name]] * 2, -1)[
        ..., :tensors[name].shape[-1] + 2].contiguous()})


def only_tokens(tensors: dict[str, torch.Tensor]) -> None:
    for name in ("patches", "attention"):
        del tensors[name]
    one_row_less(tensors)


@pytest.mark.parametrize(("change", "command", "tensor"), [
    (one_row_less, "cam", "tokens"),
    (only_tokens, "cam", "tokens"),
    (lambda tensors: tensors.update(tokens=torch.cat([tensors["tokens"]] * 2)[:33]), "cam",
     "tokens"),
    (wider("tokens"), "cam", "tokens"),
    (wider("patches"), "cam --method dense", "patches"),
    (wider("patches"), "seed-prototypes --cams text-refined --start text", "patches"),
    (one_row_less, "embed --method naclip", "tokens"),
])
def test_features_of_another_form_than_the_others_are_named(
        change: Change, command: str, tensor: str, run: Run, copied: Path) -> None:
    """Also where the grid is nearly right: tokens may be a few more than patches."""
    tamper(copied / "work/features/train/scene1.safetensors", change)
    result = run(*command.split(), "--overwrite", work=copied / "work")
    assert result.code == 1
    (error,) = result.lines("error:")
    assert "scene1.safetensors: " in error and f"`{tensor}` has the size" in error
    assert ("1 of 6 photos failed" in error) == (not command.startswith("seed"))


def test_what_a_stage_makes_is_checked(tmp_path: Path) -> None:
    """Photo by photo: one that is not finite, or of no class, is named, the others are written."""
    ids = ["a", "b", "c"]
    header = Header(kind="cams", command="cam", options={"split": "train"})
    made = {key: {"cam": torch.ones(1, 2, 2), "classes": torch.ones(1).long()} for key in ids}
    made["a"]["cam"][0, 1, 1] = float("nan")
    made["b"]["classes"][0] = 9
    output = open_output(tmp_path / "cams", header, ids)
    output.labels = 4
    settings = type("Settings", (), {"device": "cpu", "batch_size": 1})()
    with pytest.raises(Exception, match="2 of 3 photos failed"):
        make_photos("cam", [output], lambda todo: iter(made.items()),
                    lambda folder, key, tensors: folder.write_tensors(key, tensors),
                    settings)
    assert [file.name for file in (tmp_path / "cams").glob("*.safetensors")] == ["c.safetensors"]
    assert output.failed == {"a": "`cam` holds NaN or infinity",
                             "b": "`classes` names a class that is not among the 3"}


def test_labels_of_no_class_are_not_written(tmp_path: Path) -> None:
    header = Header(kind="masks", command="crf", options={"split": "train"})
    output = open_output(tmp_path / "masks", header, ["a"])
    output.labels = 4
    with pytest.raises(BadValues, match="not among the 3"):
        output.write_labels("a", np.array([[0, 99]], np.uint8))
    output.write_labels("a", np.array([[3, 255]], np.uint8))


def test_types_that_cannot_be_compared_are_one_line() -> None:
    """They are in hostile files only."""
    for dtype, name in ((torch.uint16, "classes"), (torch.float8_e4m3fn, "weight")):
        tensors = {name: torch.ones(2).to(dtype)}
        try:
            check_values("decoder", tensors, "a.safetensors")
        except BadValues as error:
            assert str(dtype) in error.message
