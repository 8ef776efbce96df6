"""`tag`, and the way from a folder and a list of names to tags that other commands read."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from conftest import SHAPES, Run, draw_scenes, write_scenes
from PIL import Image

from vpltool.formats import open_input, open_workspace, read_tensors


@pytest.fixture
def own(tmp_path: Path, tiny_clip: Path, run: Run) -> Path:
    """photos/, names.txt, and work/ up to `text-prototypes`; no photo has a tag."""
    write_scenes(tmp_path, draw_scenes())
    (tmp_path / "tags.csv").unlink()
    (tmp_path / "names.txt").write_text("\n".join(SHAPES) + "\n")
    work = tmp_path / "work"
    result = run("prepare", "folder", tmp_path / "photos", "--classes", tmp_path / "names.txt",
                 "--pretrained", tiny_clip, work=work)
    assert result.code == 0, result.err
    assert result.lines("warning:") == [
        "no photo has a tag; after vpltool text-prototypes, vpltool tag finds some"]
    assert run("text-prototypes", work=work).code == 0
    return tmp_path


def tag(run: Run, own: Path, *words: object) -> list[dict[str, str]]:
    result = run("tag", "--workers", 0, "--crop", 16, *words, work=own / "work")
    assert result.code == 0, result.err
    with (own / "work/tags/train.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_photo_has_the_tags_of_its_scores(run: Run, own: Path) -> None:
    rows = tag(run, own)
    assert [row["id"] for row in rows] == [f"scene{number}" for number in range(8)]
    for row in rows:
        path = own / f"work/tags/train/{row['id']}.safetensors"
        scores = read_tensors(path, "tags")[1]["scores"].tolist()
        cut = (min(scores) + max(scores)) / 2
        wanted = sorted((name for name, score in zip(SHAPES, scores, strict=True) if score >= cut),
                        key=lambda name: -scores[SHAPES.index(name)])
        assert row["labels"].split(";") == wanted
        assert row["split"] == "train"
        assert dict(part.rsplit(" ", 1) for part in row["scores"].split(";")) == {
            name: f"{score:.3f}" for name, score in zip(SHAPES, scores, strict=True)}


def test_thresholds_need_no_encoder(run: Run, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tag(run, own)
    monkeypatch.setattr("vpltool.clip.load.load_clip", None)
    assert all(row["labels"].count(";") == 2 for row in tag(run, own, "--share", 0))
    assert not any(row["labels"] for row in tag(run, own, "--least", 1))


def test_settings_are_recorded_and_others_are_refused(run: Run, own: Path) -> None:
    tag(run, own)
    header = open_input(own / "work/tags/train", ("tags",)).header
    assert header.options == {
        "prototypes": "text", "tau": 0.01, "background": True, "patches": "alone", "blocks": 3,
        "votes": 4, "rescore": True, "crop": 16, "max_side": 512, "split": "train"}
    result = run("tag", "--crop", 16, "--no-rescore", work=own / "work")
    assert result.code == 1
    assert "rescore" in result.lines("error:")[0]
    tag(run, own, "--no-rescore", "--overwrite")
    result = run("tag", "--crop", 16, "--no-rescore", work=own / "work")
    assert result.lines("warning:") == [
        "--crop 16 has no effect with --no-rescore: nothing is cut out"]


def test_prepare_takes_them_and_later_photos(run: Run, own: Path) -> None:
    """A photo that is added has no tag until it is tagged."""
    rows, work = tag(run, own), own / "work"
    command = ("prepare", "folder", own / "photos", "--labels", work / "tags/train.csv")
    assert run(*command, work=work).code == 0
    photos = open_workspace(work).photos("train")
    assert {photo.id: list(photo.tags) for photo in photos} == {
        row["id"]: row["labels"].split(";") for row in rows}
    Image.fromarray(draw_scenes(9, seed=5)[8].photo).save(own / "photos/later.png")
    result = run(*command, work=work)
    assert "1 of 9 photos" in result.lines("warning:")[0]
    assert run(*command, "--untagged", work=work).code == 0
    assert {photo.id: photo.tags for photo in open_workspace(work).photos()}["later"] == ()
    assert [row["id"] for row in tag(run, own)][-1] == "later"


def test_a_photo_that_cannot_be_read(run: Run, own: Path) -> None:
    (own / "photos/scene0.png").write_bytes(b"no photo")
    result = run("tag", "--workers", 0, "--crop", 16, work=own / "work")
    assert result.code == 1
    assert "scene0" in result.lines("error:")[0]
    assert "7 photos" in result.err
    assert "scene0" not in (own / "work/tags/train.csv").read_text()


def test_neither_tags_nor_names(run: Run, own: Path, tiny_clip: Path) -> None:
    result = run("prepare", "folder", own / "photos", "--pretrained", tiny_clip, work=own / "new")
    assert result.code == 1
    assert result.lines("error:") == ["neither tags nor class names are given"]
    assert "--classes FILE" in result.lines("hint:")[0]


def test_two_photos_of_one_name(run: Run, own: Path, tiny_clip: Path) -> None:
    Image.fromarray(draw_scenes()[0].photo).save(own / "photos/scene0.jpg")
    result = run("prepare", "folder", own / "photos", "--classes", own / "names.txt",
                 "--pretrained", tiny_clip, work=own / "new")
    assert result.code == 1
    assert "would both be the photo scene0" in result.lines("error:")[0]


def test_it_is_made_again_when_the_words_change(run: Run, own: Path) -> None:
    tag(run, own)
    work = own / "work"
    (own / "words.txt").write_text("bar: a long bar\n")
    assert run("text-prototypes", "--words", own / "words.txt", "--overwrite", work=work).code == 0
    assert "tags/train" in run("status", "--stale", work=work).out
    assert run("update", work=work).code == 0
    assert run("status", "--stale", work=work).out.strip() == "no result is stale"
