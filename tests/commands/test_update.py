"""`update`: what it says of photos and tags that `prepare` has not seen, and of changed masks."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Run, copy_workspace, draw_scenes, prepare
from PIL import Image

from vpltool import methods
from vpltool.formats.labels import read_labels

MASKS = "masks/text-refined-full/train"


def add_photo(base: Path, name: str, tag: str) -> None:
    """Put another photo into base/photos, and a row into base/tags.csv."""
    Image.fromarray(draw_scenes(12, seed=7)[9].photo).save(base / f"photos/{name}.png")
    with (base / "tags.csv").open("a") as file:
        file.write(f"{name},{tag},train\n")


def test_new_photos_and_tags_are_told_before_anything_is_called_up_to_date(copied: Path, run: Run
                                                                           ) -> None:
    prepare(copied)
    assert "everything is up to date" in run("update", work=copied / "work").err
    add_photo(copied, "more", "disc")
    tags = (copied / "tags.csv").read_text()
    (copied / "tags.csv").write_text(tags.replace("scene0,bar", "scene0,box"))
    (copied / "photos/scene4.png").unlink()

    said = run("update", work=copied / "work")

    warning, = said.lines("warning:")
    assert "1 photo added; 1 photo gone; tags of 1 photo changed" in warning
    assert said.err.endswith("everything else is up to date\n")
    line = re.search(r"vpltool (-C \S+ )?(prepare folder \S+)", warning)
    assert line is not None
    taken = run(*shlex.split(line[2]), work=copied / "work")
    assert taken.code == 0, taken.err
    assert "everything is up to date" in run("update", work=copied / "work").err
    assert "1 photo added" not in run("update", work=copied / "work").err


def test_a_held_out_split_is_no_change(copied: Path, run: Run) -> None:
    (copied / "tags.csv").write_text(
        re.sub(r",(train|val|split)$", "", (copied / "tags.csv").read_text(), flags=re.M))
    shutil.rmtree(copied / "work")
    assert prepare(copied, "--hold-out", 3, "--halve", "train").code == 0
    assert run("update", work=copied / "work").lines("warning:") == []


def test_a_csv_that_is_gone_is_said_and_hinders_nothing(copied: Path, run: Run) -> None:
    (copied / "tags.csv").unlink()
    said = run("update", work=copied / "work")
    assert said.code == 0
    assert "tags.csv, which an earlier call has named, does not exist" in said.lines("warning:")[0]


@pytest.mark.parametrize("call", [
    {"method": "folder"}, {"method": 3}, {"method": "folder", "images": 5},
    {"method": "folder", "images": ["../photos"]}, {"method": "folder", "images": "/proc/1/fd"},
    {"method": "folder", "images": "../photos", "labels": "../tags.csv", "captions": 5},
    {"method": "folder", "images": "../photos", "labels": "../tags.csv", "captions": [5]},
    {"method": "folder", "images": "../photos", "labels": "../tags.csv", "hold_out": "all"},
    {"method": "folder", "images": "../photos", "labels": "../tags.csv", "halve": 7},
    {"method": "folder", "images": "../photos", "labels": "pipe:touch HACKED"},
    {"method": "pairs", "images": "pipe:touch HACKED"}])
def test_a_hostile_call_is_one_line_at_most(copied: Path, run: Run, call: dict[str, object],
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copied)
    log = copied / "work/changes.jsonl"
    log.write_text(json.dumps({"before": {}, "after": {}, "words": {}, "call": call}) + "\n")
    said = run("update", work=copied / "work")
    assert said.code == 0, said.err
    assert len(said.lines("warning:")) <= 1
    assert not (copied / "HACKED").exists()


def test_an_option_s_former_name_in_a_header_is_understood(copied: Path, run: Run) -> None:
    """Masks of before `crf --preset` became `--kernels` are made again with the same kernels."""
    work = copied / "work"
    result = run("crf", "--kernels", "weclip", "--workers", 0, "--overwrite", work=work)
    assert result.code == 0, result.err
    for folder in ("text-refined", "text-refined-full"):
        manifest = work / f"masks/{folder}/train/artifact.json"
        content = json.loads(manifest.read_text())
        call = content["header"]["call"]
        call["preset"] = call.pop("kernels")
        manifest.write_text(json.dumps(content))
    assert run("refine", "--cams", "text", "--mask", "none", "--overwrite", work=work).code == 0
    assert "--kernels weclip" in run("status", work=work).out
    assert run("update", work=work).code == 0
    header = json.loads((work / MASKS / "artifact.json").read_text())["header"]
    assert header["options"]["crf"]["bilateral_sxy"] == 64
    assert header["call"]["kernels"] == "weclip"


def test_what_an_artifact_was_made_with_counts_as_given(copied: Path, run: Run,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """Some defaults depend on it: the steps of `train-decoder --method finetune`."""
    work, calls = copied / "work", []
    assert run("refine", "--cams", "text", "--mask", "none", "--overwrite", work=work).code == 0
    monkeypatch.setattr("vpltool.commands.update.run_through",
                        lambda call, _work: (calls.append(call), None))
    run("update", work=work)
    assert calls
    assert all(call.given == frozenset(call.values) for call in calls)


def test_it_says_how_much_old_masks_changed(copied: Path, run: Run) -> None:
    folder = copied / "work" / MASKS
    before = {path.name: read_labels(path) for path in folder.glob("*.png")}
    add_photo(copied, "more", "disc;box")
    (copied / "tags.csv").write_text(
        (copied / "tags.csv").read_text().replace("scene0,bar", "scene0,box"))
    assert prepare(copied).code == 0

    said = run("update", work=copied / "work").err

    pairs = [(old, read_labels(folder / name)) for name, old in before.items()]
    share = (100 * sum(int((old != new).sum()) for old, new in pairs)
             / sum(old.size for old, _ in pairs))
    told = re.search(rf"{MASKS}: ([\d.]+) % of the pixels have another label than before "
                     r"\((\d+) photos? compared\)", said)
    assert told is not None, said
    # One photo alone got other tags; those of the others are not made again.
    changed = [np.any(old != new) for old, new in pairs]
    assert int(told[2]) == sum(changed) == 1
    assert float(told[1]) == pytest.approx(share * len(pairs), abs=0.06)


def test_of_masks_that_stay_the_same_nothing_is_said(copied: Path, run: Run) -> None:
    said = run("crf", "--what", "text-refined", "--workers", 0, "--overwrite",
               work=copied / "work")
    assert said.code == 0
    assert "of the pixels" not in said.err
    other = run("crf", "--what", "text-refined", "--workers", 0, "--overwrite", "--alpha", 9,
                work=copied / "work").err
    assert "% of the pixels have another label than before (6 photos compared)" in other


def test_a_predicted_photo_that_is_gone_does_not_stop_the_rest(
        layered: Path, run: Run, tmp_path: Path, tiny_clip: Path) -> None:
    base = copy_workspace(layered, tmp_path / "base", tiny_clip)
    work, one = base / "work", base / "one.png"
    shutil.copy(base / "photos/scene0.png", one)
    assert run("predict", one, "--decoder", "tiny", work=work).code == 0
    one.unlink()
    assert run("text-prototypes", "--prompts", "single", "--overwrite", work=work).code == 0
    result = run("update", work=work)
    assert result.code == 1
    error, = result.lines("error:")
    assert "one.png is gone; put it back, or delete this folder" in error
    assert "predictions/tiny/files" in error
    assert "\n1 result is stale" in run("status", "--stale", work=work).out
    shutil.rmtree(work / "predictions/tiny/files")
    again = run("update", work=work)
    assert again.code == 0, again.err


def test_a_result_that_cannot_be_recomputed_leaves_only_what_is_made_from_it(
        copied: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = copied / "work"
    method = tmp_path / "mine/cams/flat.py"
    method.parent.mkdir(parents=True)
    dense = Path(methods.__file__).parent / "cams/dense.py"
    method.write_text(dense.read_text())
    monkeypatch.setenv(methods.FOLDERS, str(tmp_path / "mine"))
    for words in (("cam", "--method", "flat"), ("crf", "--what", "text-flat", "--workers", 0),
                  ("text-prototypes", "--prompts", "seven", "--overwrite")):
        assert run(*words, work=work).code == 0
    monkeypatch.delenv(methods.FOLDERS)
    result = run("update", work=work)
    assert result.code == 1
    error, = result.lines("error:")
    assert "--method flat: no such method" in error
    assert "vpltool update continues" in re.sub(r"-C \S+ ", "", result.lines("hint:")[0])
    stale = re.findall(r"^stale +(\S+)", run("status", "--stale", work=work).out, re.M)
    assert stale == ["cams/text-flat/train", "masks/text-flat-full/train", "masks/text-flat/train"]
    monkeypatch.setenv(methods.FOLDERS, str(tmp_path / "mine"))
    assert run("update", work=work).code == 0
    assert run("status", "--stale", work=work).out == "no result is stale\n"


def test_a_stale_input_is_told(copied: Path, run: Run) -> None:
    """Also one step further back; nothing is said when it has been recomputed."""
    work = copied / "work"
    assert run("text-prototypes", "--prompts", "seven", "--overwrite", work=work).code == 0
    again = ("refine", "--cams", "text", "--out", work / "cams/again/train")
    said = run(*again, work=work)
    assert said.code == 0
    warning, = said.lines("warning:")
    assert "cams/text/train is not up to date: prototypes/text.safetensors has changed" in warning
    assert "update recomputes it" in warning
    warning, = run("crf", "--what", "again", "--workers", 0, work=work).lines("warning:")
    assert "cams/again/train is not up to date: prototypes/text.safetensors has changed" in warning
    assert run("update", work=work).lines("warning:") == []
    assert run(*again, work=work).lines("warning:") == []


def test_an_input_of_another_workspace_is_none_of_this_one_s(
        layered: Path, run: Run, tmp_path: Path, tiny_clip: Path) -> None:
    """Its header names files of that workspace, such as `prototypes/text.safetensors`."""
    work = copy_workspace(layered, tmp_path / "base", tiny_clip) / "work"
    assert run("text-prototypes", "--prompts", "seven", "--overwrite", work=work).code == 0
    result = run("predict", "--decoder", layered / "work/decoder/tiny.safetensors", "--limit", 1,
                 work=work)
    assert result.code == 0, result.err
    assert "is not up to date" not in result.err


def test_a_given_photo_that_failed_is_no_photo_of_the_workspace(
        layered: Path, run: Run, tmp_path: Path, tiny_clip: Path) -> None:
    base = copy_workspace(layered, tmp_path / "base", tiny_clip)
    work, broken = base / "work", base / "broken.png"
    broken.write_text("no photo")
    assert run("predict", broken, "--decoder", "tiny", work=work).code == 1
    assert " failed and" not in run(work=work).out
    assert "1 photo failed" in run("doctor", "--no-machine", work=work).out
    broken.unlink()
    assert "photo failed" not in run("doctor", "--no-machine", work=work).out
