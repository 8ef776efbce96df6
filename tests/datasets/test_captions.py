"""Captions of photos: several of each, from a CSV or COCO's JSON; what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, draw_scenes, write_scenes

from vpltool.datasets.captions import read_captions, with_captions
from vpltool.errors import VplError
from vpltool.formats import Photo, open_workspace
from vpltool.formats.changes import explain_change
from vpltool.formats.workspace import read_images

PHOTOS = [Photo("a", "a.jpg", ("cat",), ("train",)), Photo("sub/b", "sub/b.jpg", (), ("train",)),
          Photo("c", "c.jpg", (), ("train",)), Photo("d/a", "d/a.jpg", (), ("val",))]


def coco(path: Path, pairs: list[tuple[Any, str]], names: dict[Any, str], **dump: Any) -> Path:
    """Write captions in COCO's layout, photos behind the annotations."""
    path.write_text(json.dumps({
        "info": {"year": 2014},
        "annotations": [{"image_id": image, "id": number, "caption": caption}
                        for number, (image, caption) in enumerate(pairs)],
        "images": [{"id": key, "file_name": name} for key, name in names.items()]}, **dump))
    return path


@pytest.mark.parametrize("text", [
    'id,caption\na,one cat\nsub/b.jpg,"a dog, asleep"\na,"the ""king"" of cats"\n',
    'caption;ID\none cat;a\n"a dog, asleep";sub\\b\n"the ""king"" of cats";a.jpg\none cat;a\n',
    'id\tcaption\r\na\tone \t\r\nb.jpg\ta dog, asleep\r\na\tthe "king" of cats\r\n',
    'id,caption\na,"one\n  cat"\nb.jpg,"a dog,\r\nasleep"\na,"the ""king"" of cats"\n',
])
def test_several_captions_of_a_photo(tmp_path: Path, text: str) -> None:
    path = tmp_path / "captions.csv"
    path.write_text(text.replace("one \t", "one cat"), newline="")
    photos, remarks = with_captions(PHOTOS, [path])
    assert [photo.captions for photo in photos] == [
        ("one cat", 'the "king" of cats'), ("a dog, asleep",), (), ()]
    assert remarks == ["2 of 4 photos have no caption: c, d/a"]
    assert photos[0] == Photo("a", "a.jpg", ("cat",), ("train",), captions=photos[0].captions)


@pytest.mark.parametrize("ascii_only", [True, False])
def test_captions_in_cocos_layout(tmp_path: Path, ascii_only: bool) -> None:
    path = coco(tmp_path / "captions_train2014.json",
                [(7, " Ein Kätzchen\n"), (8, "a dog"), (7, "a cat")],
                {7: "a.jpg", 8: "b.jpg"}, ensure_ascii=ascii_only)
    # `a.jpg` is the path of one photo and the name of another; the path goes before.
    photos, remarks = with_captions(PHOTOS, [path])
    assert photos[0].captions == ("Ein Kätzchen", "a cat")
    assert photos[1].captions == ("a dog",)
    assert photos[3].captions == ()
    assert len(remarks) == 1


def test_files_add_up_and_what_is_wrong_is_named_and_counted(tmp_path: Path) -> None:
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    one.write_text("id,caption\na,one cat\nx,a ghost\na,\nx,two ghosts\n,\nsub/b, \n")
    other.write_text("id,caption\na,two cats\na,one cat\nc,a cow\nd/a,a duck\n")
    photos, remarks = with_captions(PHOTOS, [one, other])
    assert photos[0].captions == ("one cat", "two cats")
    assert remarks == [
        f"2 of 5 captions of {one} name no photo that is taken, and are skipped: x",
        f"2 captions of {one} are empty and are skipped: a (line 4), sub/b (line 7)",
        "1 of 4 photos has no caption: sub/b"]


def test_all_rows_that_cannot_be_used_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text("id,caption\n,a cat\na,a cat, asleep\nb,a dog\n")
    with pytest.raises(VplError, match=r"2 rows cannot be used: line 2 has no id; line 3: the row"):
        with_captions(PHOTOS, [path])


WRONG: dict[str, tuple[str, str, str, str]] = {
    "no row": ("c.csv", "id,caption\n", "has no captions", "id,caption"),
    "another data set": ("c.csv", "id,caption\nx,a cat\n", "no caption has a photo, "
                         "such as x", "such as a"),
    "other case": ("c.csv", "id,caption\nA.JPG,a cat\n", "such as A.JPG", "`a.jpg`"),
    "no id": ("c.csv", "id,caption\n,a cat\n", ":2 has no id", "file name"),
    "a comma": ("c.csv", "id,caption\na,a cat, asleep\n", ":2: the row of a has more", "quotes"),
    "an open quote": ("c.csv", 'id,caption\na,a cat\nc,"a dog\na,a cat\n', ":3 cannot be read",
                      "close each quotation mark"),
    "other columns": ("c.csv", "file,text\na,b\n", "lacks the columns id and caption",
                      "must be: id,caption"),
    "json as csv": ("c.csv", "{}", "is JSON, not a CSV", "must be: id,caption"),
    "instances": ("c.json", '{"annotations": [{"image_id": 1, "category_id": 2}]}',
                  "an entry of annotations is damaged: it has no `caption`",
                  "captions_train2014.json"),
    "a torn json": ("c.json", '{"annotations": [{"image_id"', "truncated", "extract it again"),
    "missing": ("", "", "does not exist", "id,caption"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_will_not_do_is_told_what_it_is(tmp_path: Path, case: str) -> None:
    name, text, said, hint = WRONG[case]
    path = tmp_path / (name or "none.csv")
    if name:
        path.write_text(text)
    with pytest.raises(VplError) as caught:
        with_captions(PHOTOS, [path])
    assert str(path) in caught.value.message
    assert said in caught.value.message
    assert hint in caught.value.hint


def test_captions_are_read_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text("id,caption\na,one\na,two\n")
    rows = read_captions(path)
    assert next(rows)[2] == "one"
    assert next(rows)[0] == "line 3"


def test_lines_are_read_and_written(tmp_path: Path) -> None:
    line = json.dumps({"id": "a", "image": "a.jpg", "labels": [], "splits": [], "mask": None,
                       "captions": ["a cat"], "camera": "a phone"})
    photo = Photo.from_json(line)
    assert photo == Photo("a", "a.jpg", (), (), None, ("a cat",), {"camera": "a phone"})
    assert Photo.from_json(photo.to_json()) == photo
    assert '"captions": ["a cat"]' in photo.to_json()
    assert "caption" not in Photo("a", "a.jpg", (), ()).to_json()
    (tmp_path / "images.jsonl").write_text(line.replace('["a cat"]', '"a"'))
    with pytest.raises(VplError, match=r"images.jsonl:1 is not a photo \(`captions` is not"):
        read_images(tmp_path / "images.jsonl")


def test_captions_that_change_are_read_again(tmp_path: Path, run: Run, tiny_clip: Path) -> None:
    write_scenes(tmp_path, draw_scenes())
    (tmp_path / "captions.csv").write_text("id,caption\nscene0,a bar\n")
    work = tmp_path / "work"
    call = ("prepare", "folder", tmp_path / "photos", "--labels", tmp_path / "tags.csv")
    result = run(*call, "--pretrained", tiny_clip, "--captions", tmp_path / "captions.csv",
                 work=work)
    assert result.lines("warning: 7 of 8 photos have no caption") != []
    assert "1 photo with captions, 1 in all" in result.err
    before = open_workspace(work).captions_identity("train")
    (tmp_path / "captions.csv").write_text("id,caption\nscene0,two bars\n")
    assert "captions of 1 photo changed" in run(*call, work=work).err
    assert read_images(work / "images.jsonl")[0].captions == ("two bars",)
    assert explain_change(work, "captions", before) == "captions of 1 photo changed"
    assert explain_change(work, "captions", open_workspace(work).captions_identity("train")) == ""
    assert explain_change(work, "tags", open_workspace(work).tags_identity("train")) == ""
