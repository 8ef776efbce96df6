"""Without true masks: `eval --against tags`, `show --worst`, and photos to correct."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TRAIN, Run, copy_workspace
from PIL import Image

from vpltool.formats import describe, read_labels, write_labels

EVAL = ("eval", "--what", "predictions/tiny", "--against", "tags")


@pytest.fixture
def work(layered: Path, tmp_path: Path, tiny_clip: Path, run: Run) -> Path:
    work = copy_workspace(layered, tmp_path / "base", tiny_clip) / "work"
    for split in ("train", "val"):
        assert run("predict", "--decoder", "tiny", "--split", split, work=work).code == 0
    return work


def predict_by_hand(work: Path, split: str, said: dict[str, int]) -> None:
    """Predict a class in the upper half of photos, in the place of the segmenter."""
    for key, value in said.items():
        path = work / f"predictions/tiny/{split}/{key}.png"
        labels = np.zeros_like(read_labels(path))
        labels[: len(labels) // 2] = value
        header = describe(path).header
        assert header is not None
        write_labels(path, labels, header)


def tags_of(work: Path) -> dict[str, list[str]]:
    return {photo["id"]: photo["labels"]
            for photo in map(json.loads, (work / "images.jsonl").open())}


def test_classes_against_tags(work: Path, run: Run) -> None:
    """scene6 shows a bar, scene7 a box and a disc; both are said to show a bar (class 1)."""
    assert [tags_of(work)[key] for key in ("scene6", "scene7")] == [["bar"], ["box", "disc"]]
    predict_by_hand(work, "val", {"scene6": 1, "scene7": 1})
    result = run(*EVAL, work=work)
    assert result.code == 0, result.err
    report = json.loads((work / "scores/predictions-tiny-val-tags.json").read_text())
    assert report["classes"]["bar"] == {
        "tagged": 1, "predicted": 2, "precision": 0.5, "recall": 1.0, "f1": 0.666667}
    assert report["classes"]["box"] == {
        "tagged": 1, "predicted": 0, "precision": None, "recall": 0.0, "f1": 0.0}
    assert report["mean"]["f1"] == pytest.approx(2 / 9, abs=1e-6)
    assert report["worst"] == [
        {"id": "scene7", "score": 0.0, "why": "predicted bar, tagged box, disc"}]
    assert report["photos_agreeing"] == 0.5
    assert report["foreground"] == 0.5
    assert sum(entry["pairs"] for entry in report["calibration"]["bins"]) == 6
    assert "scene7: predicted bar, tagged box, disc" in result.out
    assert "only 2 photos: a single photo can change these scores by many points" in result.out
    assert "probability" not in result.out, "ten bins for two photos"


def test_calibration_is_shown_of_enough_photos(work: Path, run: Run,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vpltool.stages._against_tags.ENOUGH", 2)
    said = run(*EVAL, work=work).out
    assert "calibration error" in said and "0.9 to 1.0" in said
    assert "few" not in said


def test_a_class_counts_from_a_share_on(work: Path, run: Run) -> None:
    predict_by_hand(work, "val", {"scene6": 1, "scene7": 2})
    assert json.loads(run(*EVAL, "--share", 0.5, "--json", work=work).out)["classes"]["bar"][
        "predicted"] == 1
    assert json.loads(run(*EVAL, "--share", 0.51, "--json", work=work).out)["classes"]["bar"][
        "predicted"] == 0


def test_no_mask_is_opened(work: Path, run: Run) -> None:
    first = run(*EVAL, "--json", work=work)
    for path in (work.parent / "masks").iterdir():
        path.write_bytes(b"no mask")
    assert run(*EVAL, "--json", work=work).out == first.out
    assert run("eval", "--what", "predictions/tiny", work=work).code == 1


def test_scores_of_an_earlier_segmenter_are_marked(work: Path, run: Run) -> None:
    """Also without true masks, and if there are more photos now, of which only some were scored."""
    assert run("prepare", "folder", work.parent / "photos", "--masks", "", work=work).code == 0
    assert run(*EVAL, work=work).code == 0
    assert "changed since" not in run("scores", work=work).out
    predict_by_hand(work, "val", {"scene6": 1})
    assert "predictions-tiny (changed since)" in run("scores", work=work).out
    assert run(*EVAL, "--limit", 1, work=work).code == 0
    assert "changed since" not in run("scores", work=work).out
    assert run("predict", "--decoder", "tiny", "--split", "val", "--scales", "1,2", "--overwrite",
               work=work).code == 0
    assert "predictions-tiny (changed since)" in run("scores", work=work).out


def test_without_probabilities_there_is_no_calibration(work: Path, run: Run) -> None:
    shutil.rmtree(work / "probabilities")
    result = run(*EVAL, work=work)
    assert result.code == 0
    assert "no probabilities beside the predictions" in result.out


def test_photos_that_taught_it_are_told(work: Path, run: Run) -> None:
    assert not run(*EVAL, work=work).lines("warning:")
    learned = run(*EVAL, "--split", "train", work=work)
    assert "was trained on the photos of `train`" in learned.lines("warning:")[0]


@pytest.mark.parametrize(("options", "said"), [
    (("--what", "cams/text"), "holds CAMs, which are made from the tags"),
    (("--what", "predictions/tinny"), "no predictions or masks or cams called")])
def test_what_cannot_be_compared_is_refused(options: tuple[str, ...], said: str, work: Path,
                                            run: Run) -> None:
    result = run("eval", "--against", "tags", *options, work=work)
    assert result.code == 1
    assert said in result.lines("error:")[0]


@pytest.mark.parametrize("against", ["tags", "masks"])
def test_the_worst_are_drawn(against: str, work: Path, run: Run) -> None:
    predict_by_hand(work, "val", {"scene6": 1, "scene7": 1})
    assert run("eval", "--what", "predictions/tiny", "--against", against, work=work).code == 0
    shown = run("show", "predictions/tiny", "--split", "val", "--worst", 1, work=work)
    assert shown.code == 0, shown.err
    with Image.open(shown.out.strip()) as picture:
        one = picture.size
    name = f"predictions-tiny-val{'-tags' * (against == 'tags')}.json"
    from_file = run("show", "--worst", 5, "--scores", work / "scores" / name, work=work)
    assert from_file.code == 0, from_file.err
    with Image.open(from_file.out.strip()) as picture:
        assert (picture.size[1] > one[1]) == (against == "masks")


def test_the_lowest_iou_comes_first(work: Path, run: Run) -> None:
    assert run("eval", "--what", "predictions/tiny", work=work).code == 0
    listed = json.loads((work / "scores/predictions-tiny-val.json").read_text())["worst"]
    assert {entry["id"] for entry in listed} == {"scene6", "scene7"}
    assert listed[0]["score"] <= listed[1]["score"]
    assert listed[0]["why"].startswith(f"mIoU {100 * listed[0]['score']:.1f}: background ")


def test_worst_needs_scores(work: Path, run: Run) -> None:
    result = run("show", "predictions/tiny", "--split", "val", "--worst", 3, work=work)
    assert result.code == 1
    assert "no scores of" in result.lines("error:")[0]
    assert "--against tags" in result.lines("hint:")[0]
    assert run("eval", "--what", "cams/text", "--split", "val", work=work).code == 0
    refused = run("show", "--worst", 3, "--scores", work / "scores/cams-text-val.json", work=work)
    assert "does not say which photos are the worst" in refused.lines("error:")[0]


REVIEW = ("export", "review", "--what", "predictions/tiny", "--count", 3)


def listed(folder: Path) -> list[dict[str, Any]]:
    with (folder / "review.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("by", ["entropy", "margin", "random"])
def test_review(by: str, work: Path, run: Run) -> None:
    result = run(*REVIEW, "--by", by, work=work)
    assert result.code == 0, result.err
    folder = Path(result.out.strip())
    assert folder == work / "exports/tiny-train-review"
    rows = listed(folder)
    assert len(rows) == 3
    unsure = [float(row["uncertainty"]) for row in rows]
    assert unsure == sorted(unsure, reverse=True)
    for row in rows:
        key = row["id"]
        assert (folder / row["photo"]).read_bytes() == (
            work.parent / f"photos/{key}.png").read_bytes()
        assert np.array_equal(read_labels(folder / f"masks/{key}.png"),
                              read_labels(work / f"predictions/tiny/train/{key}.png"))
    assert (folder / "classes.txt").read_text().split() == ["background", "bar", "box", "disc"]
    assert "--corrections" in (folder / "README.md").read_text()
    again = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert run(*REVIEW, "--by", by, work=work).code == 0
    assert again == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_corrected_masks_are_not_lost_and_not_asked_for_again(
    work: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Review, correct, take, learn, review: others are asked for."""
    monkeypatch.chdir(work.parent)
    folder = Path(run(*REVIEW, work=work).out.strip())
    first = [row["id"] for row in listed(folder)]
    path = folder / f"masks/{first[1]}.png"
    with Image.open(path) as image:
        # As Pillow and some editors do: the text chunks stay.
        text, labels = dict(image.info), np.asarray(image).copy()
    labels[:5] = 2
    write_with(path, labels, text["vpltool"])
    lost = run(*REVIEW, work=work)
    assert lost.code == 1
    assert "1 mask in" in lost.lines("error:")[0]
    line, = (line.strip() for line in (folder / "README.md").read_text().splitlines()
             if "--corrections" in line)
    assert lost.lines("hint:")[0].startswith(
        f"vpltool {line.split(maxsplit=3)[3]} imports")
    taken = run(*shlex.split(line)[3:], work=work)
    assert taken.code == 0, taken.err
    assert "1 corrected mask is imported, 1 in total" in taken.err
    assert taken.err.strip().endswith("update trains on it")
    # Its masks are in the workspace now, so nothing is lost.
    assert run(*REVIEW, work=work).code == 0
    assert [mask.stem for mask in (work / "corrections").iterdir()] == [first[1]]
    assert run(*TRAIN, "--name", "tiny", "--corrected-times", 3, "--overwrite", work=work).code == 0
    assert run("predict", "--decoder", "tiny", "--split", "train", "--overwrite",
               work=work).code == 0
    second = run(*REVIEW, "--out", work / "second", "--count", 99, work=work)
    assert second.code == 0
    assert "there are only 5 photos to review" in second.err
    assert first[1] not in {row["id"] for row in listed(work / "second")}


def typed_in(folder: Path, first: str) -> list[str]:
    """The command lines of a README, from one that begins like this."""
    lines = [line.strip() for line in (folder / "README.md").read_text().splitlines()]
    found = next(number for number, line in enumerate(lines) if line.startswith(first))
    return lines[found:lines.index("", found)]


def test_masks_of_held_out_photos_score(work: Path, run: Run, monkeypatch: pytest.MonkeyPatch
                                        ) -> None:
    """They are not trained on, which is told if they are imported, too."""
    monkeypatch.chdir(work.parent)
    result = run(*REVIEW, "--split", "val", work=work)
    folder = Path(result.out.strip())
    assert (f"then {folder / 'README.md'} says how to score with them: vpltool -C work prepare "
            "folder photos --masks true-masks\n") in result.err
    correct(folder / "masks/scene6.png")
    (work.parent / "true-masks").mkdir()
    shutil.copy(folder / "masks/scene6.png", work.parent / "true-masks")
    for line in typed_in(folder, "vpltool"):
        assert run(*shlex.split(line)[3:], work=work).code == 0
    report = json.loads((work / "scores/predictions-tiny-val.json").read_text())
    assert report["photos"] == 1 and report["miou"] < 1
    for split, key in (("train", "scene0"), ("val", "scene6")):
        correct(work.parent / f"mine/{key}.png", work / f"predictions/tiny/{split}/{key}.png")
    taken = run("prepare", "folder", "photos", "--corrections", "mine", work=work)
    assert "2 in total; vpltool -C " in taken.err
    assert "trains on 1 of them: 1 is of a photo not in `train`; --masks DIR" in taken.err


def test_new_photos_are_added(work: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the lines of the README, once a person has filled in the tags."""
    monkeypatch.chdir(work.parent)
    (work.parent / "new").mkdir()
    for number in (0, 1, 2):
        shutil.copy(work.parent / f"photos/scene{number}.png", work.parent / f"new/new{number}.png")
    assert run("predict", "new", "--decoder", "tiny", work=work).code == 0
    shown = run("show", "predictions/tiny/new", "--worst", 1, work=work)
    assert "export review --what predictions/tiny/new chooses" in shown.lines("hint:")[0]
    review = ("export", "review", "--what", "predictions/tiny/new", "--count", 2)
    refused = run(*review, work=work)
    words = shlex.split(refused.lines("hint:")[0].partition(" stores them")[0])
    assert run(*words[words.index("predict"):], work=work).code == 0
    folder = Path(run(*review, work=work).out.strip())
    empty = (folder / "tags.csv").read_text()
    keys = [row["id"] for row in listed(folder)]
    assert empty == f"id,labels\n{keys[0]},\n{keys[1]},\n"
    correct(folder / f"masks/{keys[0]}.png")
    (folder / "tags.csv").write_text(f"id,labels\n{keys[0]},box\n")
    for line in typed_in(folder, "cp "):
        words = shlex.split(line)
        done = (run(*words[3:], work=work) if words[0] == "vpltool" else
                subprocess.run(line, shell=True, check=True))
        assert isinstance(done, subprocess.CompletedProcess) or done.code == 0
    assert tags_of(work)[keys[0]] == ["box"] and keys[1] not in tags_of(work)
    assert [path.stem for path in (work / "corrections").iterdir()] == [keys[0]]
    shutil.copy("new/new0.png", "new/scene5.png")
    assert run("predict", "new", "--decoder", "tiny", "--labels-only", work=work).code == 0
    known = run(*review, "--by", "random", "--count", 9, "--out", "again", work=work)
    assert "1 photo has the name of a photo of the workspace: scene5" in known.err


def correct(path: Path, shown: Path | None = None) -> None:
    """Paint over the top of a mask, as a paint program without text chunks would."""
    labels = read_labels(shown or path).copy()
    labels[:5] = 2
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(labels).save(path)


def write_with(path: Path, labels: Any, header: str) -> None:
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("vpltool", header)
    Image.fromarray(labels).save(path, pnginfo=text)


def test_review_needs_probabilities(work: Path, run: Run) -> None:
    shutil.rmtree(work / "probabilities/tiny/train")
    refused = run(*REVIEW, work=work)
    assert refused.code == 1
    assert "no probabilities" in refused.lines("error:")[0]
    assert run(*REVIEW, "--by", "random", work=work).code == 0


def test_probabilities_of_an_earlier_run_say_nothing(work: Path, run: Run) -> None:
    """The predictions are newer: they are from other photos, or another segmenter."""
    result = run("predict", "--decoder", "tiny", "--split", "train", "--labels-only", "--scales",
                 "1,2", "--overwrite", work=work)
    assert result.code == 0, result.err
    for line in (REVIEW, ("review", "--what", "predictions/tiny", "--split", "train", "--order",
                          "uncertain")):
        refused = run(*line, work=work)
        assert refused.code == 1
        assert "no probabilities of the same run as" in refused.lines("error:")[0]


def test_a_folder_of_others_is_left_alone(work: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    refused = run(*REVIEW, "--out", tmp_path / "mine", work=work)
    assert refused.code == 1
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
