"""Every find of the stages of `make fuzz`: a stage on a hostile file ends with one message."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import TRAIN, Result, Run

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


@pytest.mark.parametrize("how", [
    lambda config: config.update(post_eps={}), lambda config: config["shape"].update(eps="x"),
    lambda config: config["shape"].update(heads=0.5), lambda config: config.update(prefix=[])])
def test_a_head_whose_numbers_are_none(copied: Path, run: Run, how: Change) -> None:
    work = copied / "work"
    path = work / "features/train.head.safetensors"
    header, tensors = read_tensors(path, "head")
    how(header.facts["config"])
    write_tensors(path, header, tensors)
    assert f"{path} is damaged" in told(run("cam", "--overwrite", work=work))


def rewrite(path: Path, how: Change) -> None:
    """Change what a .safetensors says of itself and its tensors; the numbers stay."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    said = json.loads(content[8 : 8 + length])
    header = json.loads(said["__metadata__"]["vpltool"])
    how(said | {"header": header})
    said["__metadata__"]["vpltool"] = json.dumps(header)
    new = json.dumps(said).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + content[8 + length :])


def test_a_file_that_no_command_has_made(copied: Path, run: Run) -> None:
    work = copied / "work"
    rewrite(work / "cams/text/train/scene0.safetensors",
            lambda said: said["header"].update(command=" "))
    (work / "cams/text/train" / MANIFEST).unlink()
    found = run("doctor", work=work)
    assert found.code == 1
    assert "cams/text/train" in found.out


@pytest.mark.parametrize(("how", "said"), [
    (lambda header: header.update(sources={"features": ""}), "cannot be read"),
    (lambda header: header.update(sources={"features": "."}), "cannot be read"),
    (lambda header: header.update(call={"out": 0.5}), "no valid `out`"),
    (lambda header: header.update(call={"features": 0.5}), "gives a `features` that is no path"),
    (lambda header: header.update(call={"features": [{}]}), "gives a `features` that is no path")])
def test_paths_of_a_header_that_are_none(copied: Path, run: Run, how: Change, said: str) -> None:
    work = copied / "work"
    change(work / "cams/text/train" / MANIFEST, lambda content: how(content["header"]))
    assert said in told(run("update", work=work))
    for command in (("status", "--json"), ("doctor",)):
        done = run(*command, work=work)
        assert done.code in (0, 1)
        assert said in done.out + done.err


def test_layers_of_another_rank(copied: Path, run: Run) -> None:
    work = copied / "work"
    assert run("extract", "--split", "train", "--overwrite", "--workers", 0, "--keep",
               "tokens,patches,attention,layers", work=work).code == 0
    path = work / "features/train/scene0.safetensors"
    _, tensors = read_tensors(path, "features")
    layers = tensors["layers"]
    rewrite(path, lambda said: said["layers"].update(
        shape=[layers.shape[0] * layers.shape[1], layers.shape[2]]))
    assert "scene0" in told(run(
        "train-decoder", "--masks", "text-refined", "--prototypes", "text", "--crop", 3,
        "--batch-size", 2, "--width", 16, "--iters", 1, "--name", "new", "--workers", 0,
        work=work))


def test_a_record_of_changes_that_no_file_can_hold(copied: Path, run: Run) -> None:
    work = copied / "work"
    lines = (work / "changes.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    last["call"]["words"] = "\ud800"
    (work / "changes.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last), ""]))
    done = run("prepare", "folder", copied / "photos", "--labels", copied / "tags.csv",
               "--pretrained", copied / "clip", work=work)
    assert done.code == 0, done.err


def test_layers_that_the_folder_does_not_name(copied: Path, run: Run) -> None:
    work = copied / "work"
    assert run("extract", "--split", "train", "--overwrite", "--workers", 0, "--keep",
               "tokens,patches,attention,layers", work=work).code == 0
    path = work / "features/train/scene0.safetensors"
    header, tensors = read_tensors(path, "features")
    write_tensors(path, header, tensors | {"layer_index": tensors["layer_index"] + 7})
    error = told(run("train-decoder", "--masks", "text-refined", "--prototypes", "text",
                     "--crop", 3, "--batch-size", 2, "--width", 16, "--iters", 4, "--name", "new",
                     "--workers", 0, work=work))
    assert f"{path}: `layer_index` does not name" in error


def test_a_header_that_is_nested_too_deeply(copied: Path, run: Run) -> None:
    work = copied / "work"
    path = work / "prototypes/text.safetensors"
    head = b"[" * 100_000 + b"]" * 100_000
    path.write_bytes(len(head).to_bytes(8, "little") + head)
    done = run("doctor", work=work)
    assert done.code == 1
    assert "prototypes/text.safetensors" in done.out


@pytest.mark.parametrize("fields", [
    *({"mask_values": values} for values in ({"1": 300}, {"66000": 1}, {"-1": 1}, {"1": 1 << 70})),
    {"ignore": 1 << 16}, {"ignore": -1},
    {"classes": [f"class {number}" for number in range(65_535)]}], ids=range(7))
def test_values_that_no_mask_can_have(copied: Path, run: Run, fields: dict[str, Any]) -> None:
    work = copied / "work"
    change(work / "workspace.json", lambda content: content.update(fields))
    said = told(run("eval", "--what", "masks/text-refined", "--split", "train", work=work))
    assert "workspace.json is not valid" in said


@pytest.mark.parametrize(("name", "value"), [
    ("rows", ["bar", {}]), ("rows", 7), ("photos", 7), ("photos", [[]]), ("aligned", 7),
    ("space", [])])
def test_facts_that_other_stages_read(copied: Path, run: Run, name: str, value: object) -> None:
    path = copied / "work/prototypes/text.safetensors"
    header, tensors = read_tensors(path, "prototypes")
    write_tensors(path, replace(header, facts=header.facts | {name: value}), tensors)
    for command in (("cam", "--overwrite"), ("update",)):
        assert f"`{name}` is not" in told(run(*command, work=copied / "work"))


@pytest.mark.parametrize("heads", [-1, 0, 3])
def test_a_decoder_whose_width_its_heads_do_not_divide(copied: Path, run: Run, heads: int) -> None:
    work = copied / "work"
    assert run(*TRAIN, "--name", "tiny", work=work).code == 0
    path = work / "decoder/tiny.safetensors"
    header, tensors = read_tensors(path, "decoder")
    config = header.facts["config"]
    hostile = config | {"shape": config["shape"] | {"heads": heads}}
    write_tensors(path, replace(header, facts=header.facts | {"config": hostile}), tensors)
    said = told(run("predict", "--decoder", "tiny", "--split", "val", "--workers", 0, work=work))
    assert "tiny.safetensors" in said and f"cannot be divided among {heads} heads" in said


@pytest.mark.parametrize("command", ["status", "doctor", "update"])
def test_a_decoder_that_names_no_split(copied: Path, run: Run, command: str) -> None:
    """The masks that it learned are then those of all photos that have one."""
    work = copied / "work"
    assert run(*TRAIN, "--name", "tiny", work=work).code == 0
    path = work / "decoder/tiny.safetensors"
    header, tensors = read_tensors(path, "decoder")
    options = {key: value for key, value in header.options.items() if key != "split"}
    write_tensors(path, replace(header, options=options), tensors)
    assert run(command, work=work).code == 0
    (work / "masks/text-refined/train/scene1.png").unlink()
    listed = json.loads(run("status", "--json", work=work).out)
    (stale,) = (entry["stale"] for entry in listed if entry["name"] == "decoder/tiny.safetensors")
    assert any("masks" in reason for reason in stale)


def test_a_tensor_of_no_type(copied: Path, run: Run) -> None:
    """Also where many tensors are told in groups, as `inspect` does."""
    path = copied / "work/features/train.head.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8:8 + length])
    next(entry for name, entry in entries.items() if name != "__metadata__")["dtype"] = {"": {}}
    hostile = json.dumps(entries).encode()
    path.write_bytes(len(hostile).to_bytes(8, "little") + hostile + content[8 + length:])
    for command in (("inspect", path), ("cam", "--overwrite")):
        said = told(run(*command, work=copied / "work"))
        assert "train.head.safetensors is not a .safetensors file" in said


def test_a_header_that_no_file_can_quote(copied: Path, run: Run) -> None:
    """JSON can say half a character; why a photo failed is written down, too."""
    work = copied / "work"
    path = work / "cams/text/train/scene0.safetensors"
    header, tensors = read_tensors(path, "cams")
    write_tensors(path, replace(header, options=header.options | {"target": "\ud800"}), tensors)
    said = told(run("crf", "--what", "text", "--workers", 0, work=work))
    assert "1 of 6 photos failed" in said and "scene0" in said
    failed = json.loads((work / "masks/text/train" / MANIFEST).read_text())["failed"]
    assert "\\ud800" in failed["scene0"]
    assert run("status", work=work).code == 0
