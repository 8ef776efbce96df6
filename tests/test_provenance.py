"""A header is data: `update` runs nothing that the workspace's own commands did not record."""

from __future__ import annotations

import json
import shlex
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run, copy_workspace
from PIL import Image

from vpltool import Workspace
from vpltool.errors import VplError
from vpltool.formats import Header, describe, write_tensors
from vpltool.formats.manifest import MANIFEST


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def put_prototypes(work: Path, name: str = "gift", **fields: Any) -> Path:
    """A file of prototypes as a stranger may have written it; stale, since its input is gone."""
    path = work / f"prototypes/{name}.safetensors"
    header = Header(**{"kind": "prototypes", "command": "text-prototypes",
                       "inputs": {"classes": "0" * 16}} | fields)
    write_tensors(path, header, {"prototypes": torch.ones(3, 8),
                                 "class_index": torch.arange(1, 4)})
    return path


@pytest.mark.parametrize("command", ["train-groups", "prepare webdataset", "demo", "run", "push",
                                     "pull", "export", "extract", "report", "ray", "eval"])
def test_a_header_names_a_command_that_makes_no_such_file(run: Run, copied: Path, command: str
                                                          ) -> None:
    """Row 40: the command of a header may run only what it says of itself."""
    work, mark = copied / "work", copied / "mark"
    address = f"pipe:touch {shlex.quote(str(mark))}"
    path = put_prototypes(work, command=command, call={
        "pairs": [address], "method": "webdataset", "tars": [address]} if command in (
            "train-groups", "prepare webdataset") else {})
    before = contents(work)
    result = run("update", work=work)
    assert result.code == 1
    assert not mark.exists()
    assert contents(work) == before
    (error,), (hint,) = result.lines("error:"), result.lines("hint:")
    assert path.stem in error and command.split()[0] in error
    assert hint.startswith("move prototypes/gift.safetensors out")
    listed = {entry["name"]: entry for entry in json.loads(run("status", "--json", work=work).out)}
    assert listed["prototypes/gift.safetensors"]["damaged"]


def test_a_header_may_not_say_what_is_replaced(run: Run, copied: Path) -> None:
    """Row 41: neither by a setting nor by an input that is called like one."""
    work, victim = copied / "work", copied / "victim.safetensors"
    victim.write_text("precious")
    for more in ({"call": {"out": str(victim), "overwrite": True}},
                 {"call": {"out": "text.safetensors", "overwrite": True}},
                 {"sources": {"overwrite": "x", "classes": "."}},
                 {"sources": {"out": str(victim)}},
                 {"call": {"out": ["x"]}}):
        put_prototypes(work, **more)
        before = contents(work)
        result = run("update", work=work)
        assert result.code == 1, more
        assert len(result.lines("error:")) == 1, result.err
        assert contents(work) == before
        assert victim.read_text() == "precious"


def test_what_lies_elsewhere_is_asked_for_by_hand(run: Run, copied: Path) -> None:
    work, victim = copied / "work", copied / "a victim.safetensors"
    victim.write_text("precious")
    put_prototypes(work, call={"out": "../a victim.safetensors"})
    result = run("update", work=work)
    assert result.code == 1
    assert "outside of the workspace" in result.lines("error:")[0]
    line = result.lines("hint:")[0]
    assert "text-prototypes" in line and "--overwrite" not in line
    assert str(victim) in shlex.split(line)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("call", [{}, {"out": "prototypes/text.safetensors"}])
def test_a_stranger_does_not_replace_what_is_there(run: Run, copied: Path, call: dict[str, Any]
                                                   ) -> None:
    """A file that lies where its own command does not write; the other's settings stay."""
    work = copied / "work"
    put_prototypes(work, options={"prompts": "origami"}, call={"prompts": "origami"} | call)
    before = contents(work)
    result = run("update", work=work)
    assert result.code == 1
    assert contents(work) == before
    assert "move it out of the workspace" in result.err
    # Without the stranger, all is as before.
    (work / "prototypes/gift.safetensors").unlink()
    assert run("update", work=work).code == 0


def test_a_folder_of_a_stranger(run: Run, copied: Path) -> None:
    work = copied / "work"
    manifest = work / "masks/text-refined/train" / MANIFEST
    content = json.loads(manifest.read_text())
    content["header"]["command"] = "text-prototypes"
    manifest.write_text(json.dumps(content))
    result = run("update", work=work)
    assert result.code == 1
    assert "text-prototypes" in result.lines("error:")[0]


def test_a_workspace_that_was_moved_is_updated(run: Run, copied: Path, tmp_path: Path,
                                               tiny_clip: Path) -> None:
    """Its owner may copy it: no record ties it to a place, a user or a machine."""
    out = copied / "work/prototypes/mine.safetensors"
    assert run("text-prototypes", "--prompts", "single", "--out", out,
               work=copied / "work").code == 0
    assert describe(out).header.call["out"] == "prototypes/mine.safetensors"  # type: ignore[union-attr]
    there = copy_workspace(copied, tmp_path / "there", tiny_clip)
    (there / "tags.csv").write_text((there / "tags.csv").read_text().replace("bar", "rod"))
    prepared = run("prepare", "folder", there / "photos", "--labels", there / "tags.csv",
                   work=there / "work")
    assert prepared.code == 0, prepared.err
    result = run("update", work=there / "work")
    assert result.code == 0, result.err
    assert "prototypes/mine.safetensors" in result.out
    assert "everything is up to date" in result.err


# Addresses that start a program.


def test_an_address_starts_a_program_only_where_it_is_typed(run: Run, tmp_path: Path,
                                                            tiny_clip: Path) -> None:
    pytest.importorskip("webdataset")
    mark = tmp_path / "mark"
    call = ("prepare", "webdataset", f"pipe:touch {mark}; false", "--pretrained", tiny_clip)
    refused = run(*call, work=tmp_path / "work")
    assert refused.code == 1
    assert "starts a program" in refused.lines("error:")[0]
    assert "--allow-pipe" in refused.lines("hint:")[0]
    assert not mark.exists()
    run(*call, "--allow-pipe", work=tmp_path / "work")
    assert mark.exists()
    mark.unlink()
    with pytest.raises(VplError, match="starts a program"):
        Workspace(tmp_path / "work").prepare("webdataset", f"pipe:touch {mark}",
                                             pretrained=str(tiny_clip))
    assert not mark.exists()


@pytest.mark.parametrize("address", ["pipe:touch {}", "a.tar::pipe:touch {}", "PIPE:touch {}",
                                     "PIPE://x; touch {}", "http://h/'; touch {}; '"])
def test_forms_of_such_addresses(run: Run, copied: Path, address: str) -> None:
    pytest.importorskip("webdataset")
    (copied / "a.tar").touch()
    mark = copied / "mark"
    result = run("train-groups", "--pairs", address.format(mark).replace(
        "a.tar", str(copied / "a.tar")), work=copied / "work")
    assert result.code == 1
    assert len(result.lines("error:")) == 1
    assert not mark.exists()


def test_addresses_of_an_earlier_call_start_nothing(run: Run, tmp_path: Path, tiny_clip: Path
                                                    ) -> None:
    """Row 45: changes.jsonl is data, even if a flag allows what is typed beside it."""
    pytest.importorskip("webdataset")
    work, mark = tmp_path / "work", tmp_path / "mark"
    Image.new("RGB", (40, 30)).save(tmp_path / "0.jpg")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        tar.add(tmp_path / "0.jpg", "0.jpg")
    typed = f"pipe:cat {tmp_path / '0.tar'}"
    call = ("prepare", "webdataset", typed, "--pretrained", tiny_clip, "--allow-pipe")
    made = run(*call, work=work)
    assert made.code == 0, made.err
    changes = work / "changes.jsonl"
    assert "allow_pipe" not in changes.read_text()
    entry = json.loads(changes.read_text().splitlines()[-1])
    entry["call"] |= {"val": [f"pipe:touch {mark}"], "allow_pipe": True}
    changes.write_text(json.dumps(entry) + "\n")
    result = run(*call, work=work)
    assert result.code == 1
    assert "starts a program" in result.lines("error:")[0]
    assert not mark.exists()
    assert run(*call[:-1], work=work).code == 1


def test_a_recipe_starts_no_program(run: Run, tmp_path: Path, tiny_clip: Path) -> None:
    pytest.importorskip("webdataset")
    mark, recipe = tmp_path / "mark", tmp_path / "a.recipe"
    for option in ("", " --allow-pipe"):
        recipe.write_text(f"# Title.\nvpltool prepare webdataset 'pipe:touch {mark}' "
                          f"--pretrained {tiny_clip}{option}\n")
        result = run("run", recipe, work=tmp_path / "work")
        assert result.code == 1
        assert not mark.exists()
        assert ("--allow-pipe is only taken from a command line" in result.err) == bool(option)


@pytest.mark.parametrize("line", [
    '[text-prototypes]\nout = "{}"', "[text-prototypes]\noverwrite = true",
    "[cam]\nupdate = true", '[export.coco]\nout = "{}"', '[pack]\nto = "{}"',
    '[scores]\nout = "{}"', "[train-groups]\nallow-pipe = true",
    "[prepare.webdataset]\nallow-pipe = true", '[report]\nout = "{}"', '[pull]\nout = "{}"'])
def test_a_preset_says_neither_where_nor_what_is_replaced(run: Run, copied: Path, line: str
                                                          ) -> None:
    preset, victim = copied / "a.toml", copied / "victim.safetensors"
    victim.write_text("precious")
    preset.write_text(line.format(victim) + "\n")
    result = run("--preset", preset, "text-prototypes", work=copied / "work")
    assert result.code == 1
    assert "is not set by a preset" in result.lines("error:")[0]
    assert victim.read_text() == "precious"


def test_a_presets_address_starts_no_program(run: Run, copied: Path) -> None:
    """Even where the line allows its own."""
    pytest.importorskip("webdataset")
    preset, mark = copied / "a.toml", copied / "mark"
    preset.write_text(f'[train-groups]\npairs = ["pipe:touch {mark}"]\n')
    result = run("--preset", preset, "train-groups", "--allow-pipe", work=copied / "work")
    assert result.code == 1
    assert "starts a program" in result.lines("error:")[0]
    assert not mark.exists()
