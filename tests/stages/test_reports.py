"""What is said about results: eval, scores, inspect, show."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SHAPES, Run, copy_workspace, draw_scenes
from PIL import Image

import vpltool
from vpltool.formats import (
    KINDS,
    Header,
    open_workspace,
    read_labels,
    read_tensors,
    write_tensors,
)
from vpltool.pictures.colours import class_palette

TRAIN = [scene for scene in draw_scenes() if scene.split == "train"]


def slow_iou(pairs: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]) -> list[float | None]:
    """IoU per class from sets of pixels."""
    found: list[float | None] = []
    for index in range(len(SHAPES) + 1):
        both = either = 0
        for truth, label in pairs:
            label = np.where(label == 255, 0, label)
            both += int(((truth == index) & (label == index)).sum())
            either += int(((truth == index) | (label == index)).sum())
        found.append(both / either if either else None)
    return found


def evaluate(run: Run, base: Path, what: str, *options: object) -> dict[str, Any]:
    out = base / "scores.json"
    result = run("eval", "--split", "train", "--what", what, "--json", "--out", out, *options,
                 work=base / "work")
    assert result.code == 0, result.err
    report: dict[str, Any] = json.loads(result.out)
    assert report == json.loads(out.read_text())
    return report


def test_eval_of_masks_is_counting_pixels(copied: Path, run: Run) -> None:
    report = evaluate(run, copied, "masks/text-refined")
    folder = copied / "work/masks/text-refined/train"
    wanted = slow_iou([(scene.mask, read_labels(folder / f"{scene.id}.png")) for scene in TRAIN])
    assert list(report["iou"].values()) == pytest.approx(wanted, abs=1e-6)
    assert list(report["iou"]) == ["background", *SHAPES]
    counted = [value for value in wanted if value is not None]
    assert report["miou"] == pytest.approx(np.mean(counted), abs=1e-6)
    assert np.sum(report["confusion"]) == sum(scene.mask.size for scene in TRAIN)
    assert (report["split"], report["photos"], report["scored"]) == ("train", 6, "masks")


@pytest.mark.parametrize("what", ["masks/text-refined", "cams/text"])
def test_scores_of_each_photo(what: str, copied: Path, run: Run) -> None:
    """Alone, a photo has the scores that its row says."""
    work, table = copied / "work", copied / "photos.csv"
    cut = ("--threshold", 0.3) if what.startswith("cams") else ()
    scene = next(scene for scene in TRAIN if len(np.unique(scene.mask)) < 4)
    corrected = scene.mask.copy()
    corrected[:4, :4] = next(iter({1, 2, 3} - {*np.unique(scene.mask).tolist()}))
    Image.fromarray(corrected).save(work / f"masks/text-refined/train/{scene.id}.png")
    whole = evaluate(run, copied, what, *cut, "--per-photo", table)
    assert evaluate(run, copied, what, *cut) == whole
    with table.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["id", "miou", "accuracy", *(f"iou {name}" for name in whole["iou"])]
    assert [row[0] for row in rows] == [photo.id for photo in open_workspace(work).photos("train")]
    listed = (work / "images.jsonl").read_text().splitlines()
    empty = only_predicted = 0
    for row in rows:
        (work / "images.jsonl").write_text("\n".join(
            line for line in listed if json.loads(line)["id"] == row[0]))
        alone = evaluate(run, copied, what, *cut)
        found = [float(value) if value else None for value in row[1:]]
        matrix = np.array(alone["confusion"])
        assert found[:2] == [alone["miou"], alone["accuracy"]]
        for number, (iou, wanted) in enumerate(zip(found[2:], alone["iou"].values(), strict=True)):
            only = wanted is None and bool(matrix[:, number].any())
            assert iou == (0 if only else wanted)
            empty, only_predicted = empty + (iou is None), only_predicted + only
    assert empty and only_predicted == what.startswith("masks")


def test_scores_of_each_photo_need_a_threshold_of_cams(copied: Path, run: Run) -> None:
    work, table = copied / "work", copied / "photos.csv"
    line = ("eval", "--split", "train", "--what", "cams/text")
    refused = run(*line, "--per-photo", table, work=work)
    assert refused.code == 1 and not table.exists() and not (work / "scores").exists()
    first, second = re.findall(r"vpltool (eval.*?)(?:, then|;)", refused.lines("hint:")[0])
    for words in (first, second):
        assert run(*shlex.split(words), work=work).code == 0
    assert len(table.read_text().splitlines()) == 1 + len(TRAIN)
    against = run("eval", "--split", "train", "--what", "masks/text-refined", "--against", "tags",
                  "--per-photo", copied / "none.csv", work=work)
    assert "has no effect: photos are scored beside true masks" in against.lines("warning:")[0]
    assert not (copied / "none.csv").exists()


@pytest.mark.parametrize("threshold", [0.2, 0.55])
def test_eval_of_cams_at_a_threshold(copied: Path, run: Run, threshold: float) -> None:
    report = evaluate(run, copied, "cams/text", "--threshold", threshold)
    pairs = []
    for scene in TRAIN:
        tensors = read_tensors(copied / f"work/cams/text/train/{scene.id}.safetensors", "cams")[1]
        cam = F.interpolate(tensors["cam"].float()[None], size=scene.mask.shape, mode="bilinear",
                            align_corners=False)[0].numpy()
        label = tensors["classes"].numpy()[cam.argmax(axis=0)]
        pairs.append((scene.mask, np.where(cam.max(axis=0) >= threshold, label, 0)))
    assert list(report["iou"].values()) == pytest.approx(slow_iou(pairs), abs=1e-6)
    assert report["threshold_chosen_by"] == "given"


def test_the_best_of_the_sweep_is_said_to_be_so(copied: Path, run: Run) -> None:
    report = evaluate(run, copied, "cams/text")
    assert report["threshold_chosen_by"] == "best of the sweep"
    assert report["miou"] == max(report["sweep"].values())
    fixed = evaluate(run, copied, "cams/text", "--threshold", report["threshold"])
    assert fixed["miou"] == report["miou"]


@pytest.mark.parametrize("ways", [
    ("--alpha", 8, "--threshold", 0.4), ("--threshold-from", "FILE", "--threshold", 0.4),
    ("--threshold-from", "FILE", "--alpha", 2)], ids=lambda ways: "".join(map(str, ways[::2])))
def test_cutting_in_two_ways_is_refused(ways: tuple[object, ...], copied: Path, run: Run) -> None:
    """Until now one of them was ignored without a word."""
    evaluate(run, copied, "cams/text")
    scores = copied / "scores.json"
    result = run("eval", "--split", "train", "--what", "cams/text",
                 *[scores if word == "FILE" else word for word in ways], work=copied / "work")
    assert result.code == 1
    (error,) = result.lines("error:")
    assert all(str(option) in error for option in ways[::2])
    assert result.lines("hint:")
    assert not (copied / "work/scores").exists()


def test_what_is_given_wins_over_the_cut_of_a_preset(copied: Path, run: Run) -> None:
    (copied / "mine.toml").write_text("[eval]\nalpha = 8.0\n")
    line = ("eval", "--split", "train", "--what", "cams/text", "--json")
    preset = ("--preset", copied / "mine.toml")
    given = run(*preset, *line, "--threshold", 0.4, work=copied / "work")
    assert given.code == 0, given.err
    assert json.loads(given.out)["threshold"] == 0.4
    assert json.loads(run(*preset, *line, work=copied / "work").out)["threshold"] == (
        pytest.approx(0.1883, abs=1e-4))
    masks = run(*preset, "eval", "--split", "train", "--what", "masks/text-refined",
                work=copied / "work")
    assert masks.code == 0
    assert masks.lines("warning:") == [], "it was not asked for in this line"


@pytest.mark.parametrize("option", ["--threshold 0.4", "--alpha 8", "--sweep"])
def test_a_cut_of_masks_is_told_to_have_no_effect(option: str, copied: Path, run: Run) -> None:
    result = run("eval", "--split", "train", "--what", "masks/text-refined", *option.split(),
                 work=copied / "work")
    assert result.code == 0, result.err
    (warning,) = result.lines("warning:")
    assert warning == f"{option} has no effect: only CAMs are thresholded, and these are masks"


def test_a_map_of_another_run_is_refused(copied: Path, run: Run) -> None:
    work = copied / "work"
    assert run("cam", "--method", "dense", work=work).code == 0
    path = shutil.copy(work / "cams/text-dense/train/scene2.safetensors",
                       work / "cams/text/train/scene2.safetensors")
    result = run("eval", "--split", "train", "--what", "cams/text", work=work)
    assert result.code == 1
    (error,) = result.lines("error:")
    assert f"{path} comes from a different run than its folder" in error
    assert "method was dense, now gradcam" in error
    (hint,) = result.lines("hint:")
    assert "delete it" in hint
    assert "vpltool cam --prototypes text --method gradcam --split train" in hint


def test_a_mask_of_another_run_is_refused_and_a_corrected_one_is_taken(copied: Path, run: Run
                                                                       ) -> None:
    work = copied / "work"
    path = work / "masks/text-refined/train/scene2.png"
    shutil.copy(work / "masks/text-refined-full/train/scene2.png", path)
    result = run("eval", "--split", "train", "--what", "masks/text-refined", work=work)
    assert result.code == 1
    assert f"{path} comes from a different run" in result.lines("error:")[0]
    # An image editor keeps the pixels, not the header.
    Image.fromarray(TRAIN[2].mask).save(path)
    report = evaluate(run, copied, "masks/text-refined")
    assert report["photos"] == 6


def test_a_label_above_the_last_class_is_named(copied: Path, run: Run) -> None:
    path = copied / "work/masks/text-refined/train/scene2.png"
    Image.fromarray(np.full((40, 48), 9, np.uint8)).save(path)
    result = run("eval", "--split", "train", "--what", "masks/text-refined", work=copied / "work")
    assert result.code == 1
    assert f"{path}: a label above 3" in result.lines("error:")[0]
    assert "correct it, or delete it: vpltool crf --" in result.lines("hint:")[0]


def test_eval_prints_a_table_that_says_what_was_scored(copied: Path, run: Run) -> None:
    result = run("eval", "--split", "train", "--what", "cams/text", "--sweep", work=copied / "work")
    assert result.code == 0
    for part in ("disc", "mIoU", "cams-text on `train`: 6 photos", "best of the sweep",
                 "scores/cams-text-train.json"):
        assert part in result.out


def test_eval_without_true_masks(copied: Path, run: Run) -> None:
    path = copied / "work/images.jsonl"
    lines = [json.loads(line) | {"mask": None} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = run("eval", "--split", "train", "--what", "cams/text", work=copied / "work")
    assert result.code == 1
    assert "has a true mask" in result.lines("error:")[0]
    assert result.lines("hint:") == ["--masks DIR of prepare names a folder of true masks"]
    masks = run("eval", "--split", "train", "--what", "masks/text-refined", work=copied / "work")
    hint, = masks.lines("hint:")
    line = hint.partition(" compares")[0]
    assert line.endswith("eval --what masks/text-refined --split train --against tags")
    assert run(*shlex.split(line)[1:], work=copied / "work").code == 0


def test_eval_names_a_split_with_true_masks(copied: Path, run: Run) -> None:
    path = copied / "work/images.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["mask"] = line["mask"] if "val" in line["splits"] else None
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = run("eval", "--split", "train", work=copied / "work")
    assert result.lines("hint:") == ["--split val has true masks"]


def test_true_mask_of_another_size(copied: Path, run: Run) -> None:
    Image.new("L", (3, 3)).save(copied / "masks/scene0.png")
    result = run("eval", "--split", "train", "--what", "masks/text-refined", work=copied / "work")
    assert result.code == 1
    assert "scene0.png" in result.lines("error:")[0]


def test_scores_side_by_side(copied: Path, run: Run) -> None:
    work = copied / "work"
    for what in ("cams/text", "cams/text-refined"):
        assert run("eval", "--split", "train", "--what", what, work=work).code == 0
    names = ["cams-text-train.json", "cams-text-refined-train.json"]
    values = [100 * json.loads((work / "scores" / name).read_text())["miou"] for name in names]
    result = run("scores", f"both=scores/{names[0]},scores/{names[1]}", f"one=scores/{names[0]}",
                 work=work)
    assert result.code == 0, result.err
    both, one = (line for line in result.out.splitlines() if line.startswith(("both", "one")))
    assert f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" in both
    assert f"{values[0]:.1f}" in one
    assert "±" not in one
    table = run("scores", "--markdown", work=work).out.splitlines()
    assert len(table) == 4
    assert all(line.startswith("|") and line.endswith("|") for line in table)
    assert run("scores", "one=scores/none.json", work=work).code == 1


def test_scores_of_files_that_are_others_now(copied: Path, run: Run) -> None:
    """Made again, or pasted: the row says so until `eval` has scored them."""
    work = copied / "work"
    for what in ("masks/text-refined", "cams/text"):
        assert run("eval", "--split", "train", "--what", what, work=work).code == 0
    assert "changed since" not in run("scores", work=work).out
    path = work / "masks/text-refined/train/scene0.png"
    with Image.open(path) as image:
        image.load()
    image.putpixel((0, 0), 255)
    image.save(path)
    result = run("scores", work=work)
    assert "masks-text-refined (changed since)" in result.out
    assert "cams-text (changed" not in result.out
    assert "not the files that were scored" in result.lines("warning:")[0]
    assert run("report", "--split", "train", "--out", work / "page", work=work).code == 0
    pages = [page.read_text() for page in (work / "page").rglob("*.html")]
    assert any("masks-text-refined (changed since)" in page for page in pages)
    assert run("eval", "--split", "train", "--what", "masks/text-refined", work=work).code == 0
    assert "changed since" not in run("scores", work=work).out
    (work / "cams/text/train/scene1.safetensors").unlink()
    assert "cams-text (changed since)" in run("scores", work=work).out


@pytest.mark.parametrize("against", ["masks", "tags"])
def test_a_class_that_is_only_predicted_has_no_score(against: str, copied: Path, run: Run) -> None:
    """It would count as 0 in `foreground`, and be printed as 0 though no mean counts it."""
    work, scene = copied / "work", TRAIN[0]
    absent = next(index for index in range(1, len(SHAPES) + 1) if index not in scene.mask)
    labels = scene.mask.copy()
    labels[:20] = absent
    Image.fromarray(labels).save(work / f"masks/text-refined/train/{scene.id}.png")
    result = run("eval", "--split", "train", "--what", "masks/text-refined", "--limit", 1,
                 "--against", against, "--out", work / "scores/a.json", work=work)
    assert result.code == 0, result.err
    (row,) = [line for line in result.out.splitlines() if line.startswith(SHAPES[absent - 1])]
    assert row.split()[-1] == "-"
    assert "-: no " in result.out and "the mean does not count it" in result.out
    report = json.loads((work / "scores/a.json").read_text())
    shown = run("scores", work=work).out.splitlines()[1].split()
    if against == "tags":
        assert report["mean"] == {"precision": 1, "recall": 1, "f1": 1}
        return
    own = [report["iou"][SHAPES[index - 1]] for index in np.unique(scene.mask) if index]
    assert shown[-2] == f"{100 * np.mean(own):.1f}"
    assert f"{SHAPES[absent - 1]} -" in report["worst"][0]["why"]


def test_a_photo_without_a_tag_should_show_no_class(copied: Path, run: Run) -> None:
    work, file = copied / "work", copied / "work/images.jsonl"
    photos = [json.loads(line) for line in file.read_text().splitlines()]
    (negative,) = [photo for photo in photos if photo["id"] == TRAIN[0].id]
    negative["labels"] = []
    call = ("eval", "--split", "train", "--what", "masks/text-refined", "--against", "tags")
    for labels, why in ((TRAIN[0].mask, "predicted "), (0 * TRAIN[0].mask, "")):
        file.write_text("".join(f"{json.dumps(photo)}\n" for photo in photos))
        Image.fromarray(labels).save(work / f"masks/text-refined/train/{TRAIN[0].id}.png")
        result = run(*call, work=work)
        assert "1 photo has no tag, and should show no class" in result.out, result.err
        report = json.loads((work / "scores/masks-text-refined-train-tags.json").read_text())
        assert (report["photos"], report["untagged"]) == (len(TRAIN), 1)
        first = report["worst"][0] if report["worst"] else {"id": "", "why": ""}
        assert (first["id"] == TRAIN[0].id and first["why"].startswith(why)) == bool(why)
    # With `prepare --untagged`, nobody may have looked at it.
    lines = (work / "changes.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    last["call"]["untagged"] = True
    (work / "changes.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
    assert run(*call, work=work).code == 0
    report = json.loads((work / "scores/masks-text-refined-train-tags.json").read_text())
    assert (report["photos"], report.get("untagged", 0)) == (len(TRAIN) - 1, 0)
    # Where no photo has a tag, nothing is known of any.
    file.write_text("".join(f"{json.dumps(photo | {'labels': []})}\n" for photo in photos))
    assert "no photo of `train` has a tag" in run(*call, work=work).lines("error:")[0]


def test_scores_against_tags_are_a_table_of_their_own(copied: Path, run: Run) -> None:
    work = copied / "work"
    assert "--against tags" in run("scores", work=work).lines("hint:")[0]
    call = ("eval", "--split", "train", "--what", "masks/text-refined")
    assert run(*call, "--against", "tags", work=work).code == 0
    alone = run("scores", work=work).out.splitlines()
    assert alone[0].split() == ["against", "tags", "split", "photos", "precision", "recall", "F1"]
    mean = json.loads((work / "scores/masks-text-refined-train-tags.json").read_text())["mean"]
    assert alone[1].split()[-1] == f"{100 * mean['f1']:.1f}"
    assert run(*call, work=work).code == 0
    both = run("scores", work=work).out
    assert both.split("\n\n")[1].splitlines() == alone
    assert "mIoU" in both.split("\n\n")[0]
    mixed = run("scores", "x=scores/masks-text-refined-train*.json", work=work)
    assert "against masks and tags" in mixed.lines("error:")[0]


def test_scores_takes_the_names_of_its_own_table(copied: Path, run: Run) -> None:
    work = copied / "work"
    for what in ("cams/text", "cams/text-refined"):
        for more in ((), ("--out", work / "scores/text-again.json")):
            call = ("eval", "--split", "train", "--what", what, "--limit", 2, *more)
            assert run(*call, work=work).code == 0
    table = {line.split()[0]: line for line in run("scores", work=work).out.splitlines()[1:]}
    for name, titles in (("cams-text", ["cams-text"]), ("cams/text", ["cams-text"]),
                         ("cams-text-refined-train", ["cams-text-refined"]),
                         ("cams-text-refined", ["cams-text-refined"] * 2)):
        lines = run("scores", name, work=work).out.splitlines()[1:]
        assert [line.split() for line in lines] == [table[title].split() for title in titles]
    assert run("scores", "mine=cams-text", work=work).out.splitlines()[1].startswith("mine ")
    assert run("scores", "cams-tex", work=work).lines("error:") == ["cams-tex does not exist"]


def test_inspect_knows_every_file(ready: Path, run: Run) -> None:
    seen = set()
    for path in sorted((ready / "work").rglob("*")):
        if path.is_file():
            result = run("inspect", path, "--json")
            assert result.code == 0, f"{path}: {result.err}"
            found = json.loads(result.out)
            assert found["kind"] in KINDS, path
            seen.add(found["kind"])
            if path.suffix in (".safetensors", ".png"):
                assert found["made by"].startswith("vpltool ")
                assert found["inputs"] is not None
            assert run("inspect", path).code == 0
    assert seen == {"workspace", "images", "changes", "features", "head", "prototypes", "cams",
                    "masks"}


def test_inspect_of_a_folder(ready: Path, run: Run) -> None:
    found = json.loads(run("inspect", ready / "work/cams/text/train", "--json").out)
    assert (found["photos"], found["complete"], found["options"]["method"]) == (6, True, "gradcam")
    whole = json.loads(run("inspect", ready / "work", "--json").out)
    assert whole["splits"] == {"train": 6, "val": 2}
    assert whole["with true masks"] == 8


@pytest.mark.parametrize("name", ["a.safetensors", "a.png", "a.json", "a.jpg"])
def test_inspect_of_garbage(name: str, tmp_path: Path, run: Run) -> None:
    (tmp_path / name).write_bytes(b"garbage and more garbage")
    result = run("inspect", tmp_path / name)
    assert result.code == 1
    assert name in result.lines("error:")[0]


def test_inspect_leaves_out_json_whose_kind_is_no_word(run: Run, tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text('{"kind": ["scores"]}')
    (tmp_path / "known.json").write_text('{"kind": "scores"}')
    found = json.loads(run("inspect", tmp_path, "--json").out)
    assert list(found["holds"]) == ["known.json"]


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(("reader", "read"), [("head -1", ["kind: features"]), ("true", [])])
def test_inspect_into_head_is_no_error(reader: str, read: list[str], unbuffered: str, ready: Path
                                       ) -> None:
    """`true` reads nothing at all: writing to it is an error in any case."""
    path = ready / "work/features/train/scene0.safetensors"
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m vpltool inspect {path} | {reader}; "
                       "echo ${PIPESTATUS[0]}"],
        capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(Path(vpltool.__file__).parents[1]), "PATH": "/usr/bin:/bin",
             "PYTHONUNBUFFERED": unbuffered})
    assert done.stdout.splitlines() == [*read, "0"]
    assert done.stderr == ""


def test_inspect_of_a_folder_in_the_workspace_lists_what_it_holds(
    copied: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copied / "work")
    result = run("inspect", "cams")
    assert result.code == 0, result.err
    assert result.out.splitlines() == [
        "kind: folder", "holds:", "  text-refined/train: cams, 6 photos, made by refine",
        "  text-refined/val: cams, 2 photos, made by refine",
        "  text/train: cams, 6 photos, made by cam", "  text/val: cams, 2 photos, made by cam"]
    assert run("inspect", "cams/text").out.splitlines()[2].startswith("  train: cams, 6 photos")
    assert "text.safetensors: prototypes, made by text-prototypes" in (
        run("inspect", "prototypes").out)
    monkeypatch.chdir(copied)
    assert run("inspect", "cams", work=copied / "work").out == result.out
    nothing = run("inspect", "photos")
    assert nothing.code == 1
    assert "photos holds nothing that vpltool wrote" in nothing.lines("error:")[0]
    assert run("inspect", "work/cam").lines("hint:") == ["did you mean `cams`?"]


def test_inspect_says_that_a_folder_of_some_photos_is_not_complete(copied: Path, run: Run) -> None:
    work = copied / "work"
    assert run("cam", "--method", "dense", "--limit", 3, work=work).code == 0
    found = json.loads(run("inspect", work / "cams/text-dense/train", "--json").out)
    assert (found["photos"], found["complete"]) == (3, False)
    assert "text-dense/train: cams, 3 photos, not complete" in run("inspect", work / "cams").out
    assert run("cam", "--method", "dense", work=work).code == 0
    found = json.loads(run("inspect", work / "cams/text-dense/train", "--json").out)
    assert (found["photos"], found["complete"]) == (6, True)


def test_inspect_tells_settings_and_where_inputs_were(copied: Path, run: Run) -> None:
    work = copied / "work"
    made = run("cam", "--method", "dense", "--tau", 0.1, work=work)
    assert made.code == 0, made.err
    folder = work / "cams/text-dense/train"
    found = json.loads(run("inspect", folder, "--json").out)
    assert found["settings"] == {"method": "dense", "tau": 0.1}
    assert found["sources"] == {"features": "features/train",
                                "prototypes": "prototypes/text.safetensors"}
    said = run("inspect", folder).out
    hashes = found["inputs"]
    for line in ("settings:", "  tau: 0.1",
                 f"  features: features/train (config {hashes['features']})",
                 f"  prototypes: prototypes/text.safetensors (content {hashes['prototypes']})",
                 f"  classes: the class names (hash {hashes['classes']})"):
        assert line in said.splitlines()


def test_inspect_tells_many_tensors_in_groups(tmp_path: Path, run: Run) -> None:
    """A checkpoint holds weights and the state of the optimizer: hundreds of tensors."""
    names = [f"{part}.blocks.{block}.{name}.weight" for part in ("weights", "momentum")
             for block in range(8) for name in ("qkv", "out", "fc", "proj")]
    tensors = {name: torch.zeros(2, 3) for name in names} | {"step": torch.tensor(7)}
    path = tmp_path / "x.checkpoint.safetensors"
    write_tensors(path, Header(kind="decoder", command="train-decoder"), tensors)
    said = run("inspect", path).out.splitlines()
    at = said.index("tensors:")
    assert said[at + 1:] == [
        *(f"  momentum.blocks.{block}.*: 4 tensors, 24 numbers, F32" for block in range(8)),
        "  step: I64 scalar",
        *(f"  weights.blocks.{block}.*: 4 tensors, 24 numbers, F32" for block in range(8))]
    assert len(json.loads(run("inspect", path, "--json").out)["tensors"]) == 65


def test_inspect_loads_nothing_heavy(ready: Path) -> None:
    code = ("import sys\nfrom vpltool.cli import build_app\n"
            "try:\n    build_app()(['inspect', sys.argv[1]])\nexcept SystemExit as stop:\n"
            "    assert not stop.code\n"
            "heavy = {'torch', 'numpy', 'PIL', 'open_clip', 'safetensors', 'tqdm'}\n"
            "print('LOADED', sorted(heavy & set(sys.modules)))\n")
    path = ready / "work/features/train/scene0.safetensors"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True,
                          check=True, env={"PYTHONPATH": str(Path(vpltool.__file__).parents[1])})
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_show_draws_a_sheet(copied: Path, run: Run) -> None:
    result = run("show", "cams/text", "masks/text-refined", "--id", "scene0,scene3",
                 work=copied / "work")
    assert result.code == 0, result.err
    with Image.open(result.out.strip()) as page:
        first = page.size
        assert len(page.getcolors(maxcolors=1 << 20) or []) > 100
    shutil.rmtree(copied / "masks")
    less = run("show", "cams/text", "--id", "scene0", "--no-truth", work=copied / "work")
    assert less.code == 0, less.err
    with Image.open(less.out.strip()) as page:
        assert page.size[0] < first[0]
        assert page.size[1] < first[1]
    for wanted, hint in (("scene6", "--id scene6 --split val?"), ("scene06", "--id scene6 --spl"),
                         ("scene00", "`scene0`?"), ("other", "one of: scene0, ")):
        unknown = run("show", "--id", wanted, work=copied / "work")
        assert unknown.code == 1 and hint in unknown.lines("hint:")[0], unknown.err


def colours_of(path: str | Path) -> set[Any]:
    with Image.open(path) as page:
        return {colour for _, colour in page.convert("RGB").getcolors(maxcolors=1 << 24) or []}


def class_colour(index: int) -> tuple[int, ...]:
    return tuple(class_palette()[3 * index: 3 * index + 3])


def test_a_photo_that_cannot_be_read_takes_no_row_unless_it_is_asked_for(copied: Path, run: Run
                                                                         ) -> None:
    (copied / "photos/scene1.png").write_bytes(b"no picture")
    work, sizes = copied / "work", []
    for wanted in (("--limit", 6), ("--id", "scene0,scene2,scene3,scene4,scene5"),
                   ("--id", "scene0,scene1,scene2,scene3,scene4,scene5")):
        result = run("show", "cams/text", *wanted, "--out", work / "sheet.png", work=work)
        assert result.code == ("scene1" in wanted[1] if isinstance(wanted[1], str) else 1)
        with Image.open(work / "sheet.png") as page:
            sizes.append(page.size)
    assert sizes[0] == sizes[1] != sizes[2]


def test_show_takes_its_photos_from_those_that_are_made(copied: Path, run: Run) -> None:
    """Of a command that stopped, or had `--limit`, nothing is missing on the sheet."""
    folder = copied / "work/cams/text/train"
    for path in sorted(folder.glob("*.safetensors"))[2:]:
        path.unlink()
    result = run("show", "cams/text", "--limit", 2, work=copied / "work")
    assert (result.code, result.err) == (0, "")
    one = run("show", "cams/text", "--id", "scene3", work=copied / "work")
    assert one.code == 1 and "holds none of the photos" in one.err


def test_show_of_other_columns_keeps_an_earlier_picture(copied: Path, run: Run) -> None:
    lines: tuple[tuple[object, ...], ...] = (
        (), ("--no-truth",), ("cams/text", "masks/text-refined"), ("cams/text",),
        ("cams/text", "--no-truth"), ("cams/text", "--id", "scene0"),
        (copied / "work/cams/text-refined/train",))
    made = [run("show", *line, work=copied / "work").out.strip() for line in lines]
    assert len(set(made)) == len(lines)
    assert Path(made[0]).name == "train.png"
    assert Path(made[3]).name == "train_cams-text.png"
    assert all(Path(path).parent == copied / "work/pictures" for path in made)
    many = run("show", *[f"cams/text{'/train' * (number % 2)}" for number in range(20)],
               work=copied / "work")
    assert many.code == 0, many.err
    assert Path(many.out.strip()).exists()


def test_show_draws_the_maps_of_all_tags_and_names_their_colours(copied: Path, run: Run) -> None:
    """scene3 shows a bar and a box; until now only the first tag's map was drawn."""
    two = run("show", "cams/text", "--id", "scene3", "--no-truth", work=copied / "work")
    assert two.code == 0, two.err
    # Only a legend shows a colour unmixed.
    assert {class_colour(1), class_colour(2)} <= colours_of(two.out.strip())
    assert class_colour(3) not in colours_of(two.out.strip())
    one = run("show", "cams/text", "--id", "scene2", "--no-truth", work=copied / "work")
    assert class_colour(3) in colours_of(one.out.strip())
    assert class_colour(1) not in colours_of(one.out.strip())


@pytest.mark.parametrize("broken", ["photos/scene0.png", "masks/scene0.png",
                                    "work/cams/text/train/scene0.safetensors",
                                    "work/masks/text-refined/train/scene0.png"])
def test_one_broken_file_does_not_end_the_sheet(broken: str, copied: Path, run: Run) -> None:
    line = ("show", "cams/text", "masks/text-refined", "--id", "scene0,scene1")
    whole = run(*line, work=copied / "work")
    assert whole.code == 0, whole.err
    with Image.open(whole.out.strip()) as page:
        size = page.size
    (copied / broken).write_bytes(b"garbage and more garbage")
    result = run(*line, work=copied / "work")
    assert result.code == 1
    (error,) = result.lines("error:")
    assert "1 of 2 photos was not fully drawn" in error
    assert "scene0" in error
    assert result.lines("hint:")
    assert result.out == whole.out, "the sheet is there, and its path is printed"
    with Image.open(result.out.strip()) as page:
        assert page.size[0] == size[0]
        assert (222, 224, 227) in colours_of(result.out.strip()), "a grey panel with the reason"


def test_a_photo_that_failed_earlier_is_told_in_its_panel(copied: Path, run: Run) -> None:
    (copied / "photos/scene1.png").write_bytes(b"")
    work = copied / "work"
    assert run("extract", "--overwrite", "--workers", 0, work=work).code == 1
    assert run("cam", "--overwrite", work=work).code == 0
    result = run("show", "cams/text", "--id", "scene0,scene1", work=work)
    assert result.code == 1
    assert "scene1: scene1.png: the file is empty" in result.lines("error:")[0]


def test_show_of_a_folder_of_photos_and_one_of_masks(copied: Path, run: Run) -> None:
    """No photo of the workspace is meant; masks of one's own have no header."""
    (copied / "photos").rename(copied / "holiday")
    (copied / "masks").rename(copied / "drawn")
    (copied / "drawn/scene1.png").unlink()
    result = run("show", copied / "holiday", copied / "drawn", work=copied / "work")
    assert result.code == 0, result.err
    assert Path(result.out.strip()).name.startswith("holiday_")
    assert {class_colour(index) for index in (1, 2, 3)} <= colours_of(result.out.strip())
    again = run("show", "--photos", copied / "holiday", copied / "drawn", "--id", "scene0",
                "--split", "val", work=copied / "work")
    assert again.code == 0, again.err
    assert again.lines("warning:") == [
        "--split val has no effect: the photos are not the workspace's"]
    missing = run("show", copied / "holiday", copied / "drawn", "--id", "scene1",
                  work=copied / "work")
    assert missing.code == 1
    assert "no photo `scene1`" in missing.lines("error:")[0]


def test_show_of_masks_of_ones_own_beside_others(copied: Path, run: Run) -> None:
    shutil.copytree(copied / "masks", copied / "drawn")
    result = run("show", copied / "drawn", "masks/text-refined", work=copied / "work")
    assert result.code == 0, result.err
    assert result.out.strip().endswith("drawn_masks-text-refined.png")


def test_show_says_which_folder_holds_none_of_the_photos(copied: Path, run: Run) -> None:
    """Until now its column was left out without a word."""
    folder = copied / "work/cams/text/val"
    result = run("show", "cams/text-refined", folder, work=copied / "work")
    assert result.code == 1
    assert f"{folder} holds none of the photos" in result.lines("error:")[0]
    assert "--split" in result.lines("hint:")[0]


def test_show_of_predictions_of_new_photos(layered: Path, tmp_path: Path, tiny_clip: Path, run: Run
                                           ) -> None:
    """Until now the column was left out, and the sheet replaced that of the split."""
    base = copy_workspace(layered, tmp_path / "base", tiny_clip)
    work, holiday = base / "work", tmp_path / "holiday"
    holiday.mkdir()
    for scene in draw_scenes(3, seed=5):
        Image.fromarray(scene.photo).save(holiday / f"{scene.id}.jpg")
    single = [Path(shutil.copy(holiday / "scene0.jpg", tmp_path / f"{name}.jpg"))
              for name in ("one", "two")]
    # Two runs into one folder: each file knows its own photo.
    for images in ([holiday], single[:1], single[1:], [holiday, "--out", tmp_path / "elsewhere"]):
        made = run("predict", *images, "--workers", 0, work=work)
        assert made.code == 0, made.err
    shown = {}
    for name, rows in (("predictions/tiny/holiday", 3), ("predictions/tiny/files", 2),
                       (tmp_path / "elsewhere", 3)):
        result = run("show", name, "--split", "val", work=work)
        assert result.code == 0, result.err
        assert result.lines("warning:") == [
            "--split val has no effect: the photos are not the workspace's"]
        with Image.open(result.out.strip()) as page:
            shown[str(name)] = Path(result.out.strip()).name
            width = 2 * (260 + 8) + 8
            assert page.height > -(-rows // 2) * 180
            assert page.width == (2 * width + 16 if rows == 3 else width)
    assert len(set(shown.values())) == 3
    assert shown["predictions/tiny/holiday"] == "holiday_predictions-tiny-holiday.png"
    mixed = run("show", "predictions/tiny/holiday", "cams/text", work=work)
    assert mixed.code == 1
    assert "predictions/tiny/holiday and cams/text are of different photos" in (
        mixed.lines("error:")[0])
    (holiday / "scene1.jpg").unlink()
    moved = run("show", "predictions/tiny/holiday", work=work)
    assert moved.code == 1
    assert "scene1: the photo does not exist" in moved.lines("error:")[0]
    assert Path(moved.out.strip()).exists()
