"""Folders of per-photo files: resume, refusal, and what a reader may count on."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run

from vpltool import console
from vpltool.errors import PhotosFailed, VplError
from vpltool.formats import Header, find_folder, finish_all, open_input, open_output
from vpltool.formats.manifest import call_of
from vpltool.formats.outputs import OutputFolder
from vpltool.shell import to_shell

HEADER = Header(kind="cams", command="cam", options={"split": "train", "tau": 0.01})
CAM = {"cam": torch.zeros(1, 2, 2).half(), "classes": torch.tensor([1])}


def made(path: Path, ids: list[str], *, failing: tuple[str, ...] = (),
         header: Header = HEADER) -> OutputFolder:
    """A finished folder; `failing` photos are reported."""
    output = begun(path, header, ids)
    for key in output.todo:
        if key in failing:
            output.fail(key, "it is torn")
        else:
            output.write_tensors(key, CAM)
    if output.failed:
        with pytest.raises(PhotosFailed):
            finish_all([output])
    else:
        assert finish_all([output]) == [path]
    return output


def begun(path: Path, header: Header, ids: list[str], **options: Any) -> OutputFolder:
    """A folder that is opened and begun; opening changes nothing."""
    before = files_of(path)
    output = open_output(path, header, ids, **options)
    assert files_of(path) == before
    output.begin()
    return output


def files_of(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def manifest(path: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((path / "artifact.json").read_text())
    return content


def test_what_exists_is_skipped(tmp_path: Path) -> None:
    made(tmp_path, ["a"])
    assert begun(tmp_path, HEADER, ["a", "b", "c"]).todo == ["b", "c"]
    assert not manifest(tmp_path)["complete"]
    made(tmp_path, ["a", "b", "c"])
    assert manifest(tmp_path)["complete"]
    assert open_output(tmp_path, HEADER, ["a", "b", "c"]).todo == []
    assert manifest(tmp_path)["complete"]


def test_nothing_is_rewritten_where_nothing_is_to_do(tmp_path: Path) -> None:
    made(tmp_path, ["a"])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    made(tmp_path, ["a"])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    made(tmp_path, ["a"])
    other = replace(HEADER, options={"split": "train", "tau": 0.02})
    with pytest.raises(VplError, match=r"tau was 0\.01, now 0\.02") as caught:
        open_output(tmp_path, other, ["a"])
    assert "--overwrite" in to_shell(caught.value.hint)
    assert (tmp_path / "a.safetensors").exists()


def test_facts_and_version_do_not_refuse(tmp_path: Path) -> None:
    made(tmp_path, ["a"])
    assert open_output(tmp_path, replace(HEADER, version="9", facts={"x": 1}), ["a"]).todo == []


def test_overwrite_clears(tmp_path: Path) -> None:
    made(tmp_path, ["a", "sub/b"])
    (tmp_path / "notes.txt").write_text("mine")
    other = replace(HEADER, options={"split": "train", "tau": 0.02})
    output = begun(tmp_path, other, ["a"], overwrite=True)
    assert output.todo == ["a"]
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "artifact.json", "notes.txt"]


def test_overwrite_of_another_kind(tmp_path: Path) -> None:
    made(tmp_path, ["a"])
    output = begun(tmp_path, replace(HEADER, kind="masks"), ["a"], overwrite=True)
    assert output.todo == ["a"]
    assert not (tmp_path / "a.safetensors").exists()


def test_overwrite_leaves_artifacts_nested_in_the_folder(tmp_path: Path) -> None:
    """cams/text holds cams/text/train where somebody wrote to `--out cams/text`."""
    made(tmp_path / "train", ["a", "sub/b"])
    outer = tmp_path / "artifact.json"
    shutil.copy(tmp_path / "train/artifact.json", outer)
    made(tmp_path, ["c"])
    inner = files_of(tmp_path / "train")
    output = begun(tmp_path, replace(HEADER, options={"split": "val"}), ["c"], overwrite=True)
    assert output.todo == ["c"]
    assert not (tmp_path / "c.safetensors").exists()
    assert files_of(tmp_path / "train") == inner
    assert open_input(tmp_path / "train", ("cams",)).available(["a", "sub/b"]) == ["a", "sub/b"]


def test_update_replaces_what_the_same_command_made_otherwise(tmp_path: Path) -> None:
    made(tmp_path, ["a"])
    stale = replace(HEADER, inputs={"features": "other"})
    with pytest.raises(VplError) as caught:
        open_output(tmp_path, stale, ["a"])
    assert "update()" in caught.value.hint
    with pytest.raises(VplError, match="made it, not"):
        open_output(tmp_path, replace(HEADER, command="refine"), ["a"], update=True)
    other = replace(HEADER, options={"split": "train"})
    with pytest.raises(VplError, match="tau was"):
        open_output(tmp_path, other, ["a"])
    assert open_output(tmp_path, other, ["a"], update=True).todo == ["a"]
    assert open_output(tmp_path, HEADER, ["a"], update=True).todo == []
    assert begun(tmp_path, stale, ["a"], update=True).todo == ["a"]
    assert not (tmp_path / "a.safetensors").exists()


def test_a_photo_whose_tags_changed_is_made_again(tmp_path: Path) -> None:
    tags = {"a": "1", "b": "2"}
    output = begun(tmp_path, HEADER, ["a", "b"], per_photo_inputs=tags)
    for key in output.todo:
        output.write_tensors(key, CAM)
    output.finish()
    assert begun(tmp_path, HEADER, ["a", "b"], per_photo_inputs=tags).todo == []
    assert begun(tmp_path, HEADER, ["a", "b"], per_photo_inputs=tags | {"b": "2 3"}).todo == ["b"]
    assert not (tmp_path / "b.safetensors").exists(), "it must not pass for the new one"
    assert begun(tmp_path, HEADER, ["a", "b"], per_photo_inputs=tags | {"b": "2 3"}).todo == ["b"]


def test_two_processes_begin_the_same_folder(tmp_path: Path) -> None:
    """The second looked when nothing was written yet; what the first wrote since then stays."""
    first = begun(tmp_path, HEADER, ["a", "b"], per_photo_inputs={"a": "1", "b": "1"})
    second = open_output(tmp_path, HEADER, ["a", "b"], per_photo_inputs={"a": "1", "b": "1"})
    first.write_tensors("a", CAM)
    (tmp_path / ".part-b.safetensors").write_text("half: the first is writing it")
    second.begin()
    assert (tmp_path / "a.safetensors").exists()
    assert (tmp_path / ".part-b.safetensors").exists()


def test_clearing_leaves_what_another_process_is_writing(tmp_path: Path) -> None:
    made(tmp_path, ["a"])
    (tmp_path / ".part-b.safetensors").write_text("half")
    begun(tmp_path, HEADER, ["a"], overwrite=True)
    assert not (tmp_path / "a.safetensors").exists()
    assert (tmp_path / ".part-b.safetensors").exists()


def test_a_temporary_file_that_vanishes_is_no_error(tmp_path: Path) -> None:
    """Another process renames its file between the listing and the look at its time."""
    made(tmp_path, ["a"])
    (tmp_path / ".part-x.safetensors").symlink_to(tmp_path / "renamed already")
    assert begun(tmp_path, HEADER, ["a", "b"]).todo == ["b"]


@pytest.mark.parametrize(("options", "code", "said"), [
    (("--device", "cuda:9"), 1, "cuda:9"), (("--precision", "fp61"), 2, "fp61"),
    (("--precision", "fp16", "--device", "cpu"), 1, "fp16")])
def test_an_error_behind_overwrite_deletes_nothing(options: tuple[str, ...], code: int, said: str,
                                                   copied: Path, run: Run) -> None:
    before = files_of(copied / "work")
    result = run("cam", "--overwrite", *options, work=copied / "work")
    assert result.code == code
    assert said in result.err
    assert files_of(copied / "work") == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_files_are_never_touched(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.png").write_text("ten years of work")
    with pytest.raises(VplError, match="did not make") as caught:
        open_output(tmp_path, HEADER, ["a"], overwrite=overwrite)
    assert "--out" in to_shell(caught.value.hint)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.png"]


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    made(tmp_path, ["a"])
    (tmp_path / "sub").mkdir()
    for folder in (tmp_path, tmp_path / "sub"):
        for suffix in (".safetensors", ".tif.plain.tif", ""):
            (folder / f".part-{'0a' * 8}{suffix}").write_text("half")
            os.utime(folder / f".part-{'0a' * 8}{suffix}", (0, 0))
    now = f".part-{'0b' * 8}.safetensors"
    (tmp_path / now).write_text("of a run that is at work")
    (tmp_path / ".part-time").write_text("of a person")
    os.utime(tmp_path / ".part-time", (0, 0))
    output = begun(tmp_path, HEADER, ["a", "b"])
    assert output.todo == ["b"]
    assert {path.name for path in tmp_path.rglob(".part-*")} == {now, ".part-time"}


def test_failed_photos_are_named_counted_and_tried_again(tmp_path: Path) -> None:
    output = begun(tmp_path, HEADER, ["a", "b", "c"])
    output.fail("b", "it is torn")
    for key in ("a", "c"):
        output.write_tensors(key, CAM)
    with pytest.raises(PhotosFailed, match=r"1 of 3 photos failed.*b: it is torn") as caught:
        finish_all([output])
    assert caught.value.result == [tmp_path]
    assert manifest(tmp_path)["failed"] == {"b": "it is torn"}
    assert open_output(tmp_path, HEADER, ["a", "b", "c"]).todo == ["b"]


def test_a_shorter_run_does_not_forget_a_failure(tmp_path: Path) -> None:
    """`--limit 1` after a full run: later commands must still know why `b` is not there."""
    made(tmp_path, ["a", "b"], failing=("b",))
    made(tmp_path, ["a"])
    assert open_input(tmp_path, ("cams",)).available(["a", "b"]) == ["a"]


def test_a_fixed_photo_is_no_failure(tmp_path: Path) -> None:
    made(tmp_path, ["a", "b"], failing=("b",))
    made(tmp_path, ["a", "b"])
    assert manifest(tmp_path)["failed"] == {}
    assert open_input(tmp_path, ("cams",)).available(["a", "b"]) == ["a", "b"]


def test_it_is_told_which_photos_only_an_earlier_step_failed_on(tmp_path: Path) -> None:
    output = begun(tmp_path, HEADER, ["a", "b"], left_out={"c": "it is torn", "d": "it is empty"})
    output.fail("b", "it is odd")
    output.write_tensors("a", CAM)
    output.finish()
    assert manifest(tmp_path)["failed"] == {"b": "it is odd", "c": "it is torn",
                                            "d": "it is empty"}
    assert open_input(tmp_path, ("cams",)).waiting == {"c", "d"}
    # A run for some photos forgets nothing; one that makes a photo does.
    made(tmp_path, ["a", "c"])
    assert open_input(tmp_path, ("cams",)).waiting == {"d"}
    made(tmp_path, ["d"], failing=("d",))
    assert open_input(tmp_path, ("cams",)).waiting == set()
    assert open_input(tmp_path, ("cams",)).failed.keys() == {"b", "d"}


def test_available_drops_failed_ones_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path, ["a", "b", "c"], failing=("b",))
    capsys.readouterr()
    with console.heard_by(console.Terminal()):
        assert open_input(tmp_path, ("cams",)).available(["c", "b", "a"]) == ["c", "a"]
    assert ("warning: an earlier step failed on 1 photo, which is skipped: b"
            in capsys.readouterr().err)


def test_available_refuses_an_incomplete_folder(tmp_path: Path) -> None:
    made(tmp_path, ["a"])
    with pytest.raises(VplError, match=r"1 of 2 photos; b is missing") as caught:
        open_input(tmp_path, ("cams",)).available(["a", "b"])
    assert "vpltool cam --split train" in to_shell(caught.value.hint)


def test_available_refuses_a_folder_without_any(tmp_path: Path) -> None:
    made(tmp_path, ["a"], failing=("a",))
    with pytest.raises(VplError, match="none of the selected photos"):
        open_input(tmp_path, ("cams",)).available(["a"])


def test_open_input_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(VplError, match="no cams in") as caught:
        open_input(tmp_path / "none", ("cams",))
    assert to_shell(caught.value.hint) == "vpltool cam"
    made(tmp_path, ["a"])
    with pytest.raises(VplError, match="holds cams, expected masks or predictions"):
        open_input(tmp_path, ("masks", "predictions"))


@pytest.mark.parametrize("content", [
    "", "{", "[]", "{}", '{"header": {}}', '{"header": []}',
    '{"header": {"kind": "cams", "command": "cam", "format": 99}}'])
def test_a_damaged_manifest_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "artifact.json").write_text(content)
    with pytest.raises(VplError, match="artifact.json"):
        open_input(tmp_path, ("cams",))


def test_find_folder_by_name_path_and_preference(tmp_path: Path) -> None:
    for name in ("text", "vision", "other"):
        made(tmp_path / "cams" / name / "train", ["a"])

    def found(what: str, preferred: tuple[str, ...] = ()) -> str:
        return find_folder(tmp_path, ("cams",), what, "train", "vpltool cam",
                           preferred).path.relative_to(tmp_path).as_posix()

    assert found("text") == "cams/text/train"
    assert found("cams/vision") == "cams/vision/train"
    assert found(str(tmp_path / "cams/other")) == "cams/other/train"
    assert found(str(tmp_path / "cams/other/train")) == "cams/other/train"
    assert found("", ("vision", "text")) == "cams/vision/train"
    with pytest.raises(VplError, match="several") as several:
        found("", ("none",))
    assert "cams/other" in several.value.hint
    with pytest.raises(VplError, match="visoin") as caught:
        found("visoin")
    assert "vision" in caught.value.hint
    with pytest.raises(VplError, match="for the split `val`") as caught:
        find_folder(tmp_path, ("cams",), "cams/vision", "val", "make them")
    assert caught.value.hint == "`cams/vision` is there for `split='train'`"
    # A name is no pattern.
    made(tmp_path / "cams/text/val[1]", ["a"])
    assert find_folder(tmp_path, ("cams",), "", "val[1]", ("cams",), "").path.name == "val[1]"


@pytest.mark.parametrize(("command", "lacking"), [("cam", "tokens"), ("refine", "attention")])
def test_features_that_lack_a_tensor_are_refused_before_anything_is_written(
    command: str, lacking: str, run: Run, copied: Path
) -> None:
    work = copied / "work"
    assert run("extract", "--keep", "patches", "--workers", 0, "--overwrite", work=work).code == 0
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*")}
    result = run(command, "--overwrite", *(["--cams", "text"] if command == "refine" else []),
                 work=work)
    assert result.code == 1
    assert f"holds patches, but no {lacking}" in result.lines("error:")[0]
    assert result.lines("hint:") == [
        f"vpltool extract --split train --keep patches,{lacking} --overwrite"]
    assert before == {path: path.stat().st_mtime_ns for path in work.rglob("*")}


@pytest.mark.parametrize(("command", "options", "sources", "call"), [
    ("crf", {"method": "densecrf", "split": "train"}, {"what": "cams/seeds-0-dense/train"},
     "`crf(method='densecrf', split='train', what='cams/seeds-0-dense')`"),
    ("refine", {"split": "val"}, {"cams": "cams/text/val", "features": "features/val"},
     "`refine(split='val', cams='cams/text')`"),
    ("predict", {"split": "val"}, {"decoder": "decoder/segmenter.safetensors"},
     "`predict(split='val', decoder='segmenter')`"),
    ("extract", {"split": "train"}, {}, "`extract(split='train')`")])
def test_the_call_names_what_it_reads(command: str, options: dict[str, str],
                                      sources: dict[str, str], call: str) -> None:
    assert call_of(Header(kind="cams", command=command, options=options, sources=sources)) == call
