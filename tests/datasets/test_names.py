"""Names that no result can have, that people cannot tell apart, or that spreadsheets would run."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result, run_in_process
from PIL import Image

from vpltool.datasets.layouts import named_photos
from vpltool.datasets.tags import read_tags
from vpltool.datasets.words import find_prompts, read_attributes, read_classes
from vpltool.errors import VplError
from vpltool.formats.storage import expect_header, read_json
from vpltool.methods import Method
from vpltool.names import csv_id, id_of_csv, spelled, without_home
from vpltool.preset import read_preset
from vpltool.recipes.parse import read_recipe


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for name in ("a", "b"):
        photo(tmp_path, f"{name}.png")
    (tmp_path / "tags.csv").write_text("id,labels\na,cat\nb,dog\n")
    return tmp_path


def photo(base: Path, name: str) -> None:
    number = len(list((base / "photos").iterdir()))
    Image.new("RGB", (8, 8), (number, 0, 0)).save(base / "photos" / name)


def prepare(base: Path, *more: object) -> Result:
    return run_in_process("prepare", "folder", base / "photos", "--labels", base / "tags.csv",
                          "--untagged", *more, work=base / "work")


def ids(base: Path) -> list[str]:
    return [json.loads(line)["id"] for line in (base / "work/images.jsonl").open()]


def spoil(folder: Path, how: str) -> str:
    """Put something among photos that is none; say how it is named."""
    if how == "bytes":
        name = os.fsdecode(b"caf\xe9.png")
        (folder / name).write_bytes((folder / "a.png").read_bytes())
        return "caf\\udce9.png is not UTF-8"
    if how == "long":
        (folder / f"{'x' * 250}.png").write_bytes((folder / "a.png").read_bytes())
        return "x.png has more than 243 bytes before its suffix"
    if how == "newline":
        (folder / "a\nb.png").write_bytes((folder / "a.png").read_bytes())
        return "a\\nb.png has control characters"
    if how == "fifo":
        os.mkfifo(folder / "pipe.png")
        return "pipe.png is not a file"
    if how == "link":
        (folder / "link.png").symlink_to("nowhere")
        return "link.png leads nowhere"
    (folder / "folder.png").mkdir()
    return "folder.png is a folder"


@pytest.mark.parametrize("how", ["bytes", "long", "newline", "fifo", "link", "folder"])
def test_what_is_no_photo_is_named_and_skipped(how: str, base: Path) -> None:
    said = spoil(base / "photos", how)
    result = prepare(base)
    assert result.code == 0, result.err
    assert any(said in line for line in result.lines("warning:")), result.err
    assert ids(base) == ["a", "b"]
    # `predict` looks for photos in the same way.
    assert sorted(named_photos([base / "photos"])) == ["a", "b"]


def test_a_pipe_that_is_named_to_predict(base: Path) -> None:
    spoil(base / "photos", "fifo")
    with pytest.raises(VplError, match=r"pipe\.png is not a file"):
        named_photos([base / "photos/pipe.png"])


@pytest.mark.parametrize(("disk", "table"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_an_accent_in_another_spelling_means_the_same_photo(disk: str, table: str, base: Path
                                                            ) -> None:
    name = unicodedata.normalize(disk, "café")  # type: ignore[arg-type]
    photo(base, f"{name}.png")
    row = unicodedata.normalize(table, "café")  # type: ignore[arg-type]
    (base / "tags.csv").write_text(f"id,labels\na,cat\n{row},dog\n", "utf-8")
    result = prepare(base)
    assert result.code == 0, result.err
    entry = next(json.loads(line) for line in (base / "work/images.jsonl").open() if "caf" in line)
    assert (entry["id"], entry["labels"]) == (name, ["dog"])


def test_a_name_with_outer_spaces(base: Path) -> None:
    photo(base, " c.png")
    (base / "tags.csv").write_text("id,labels\na,cat\n c,dog\n")
    assert prepare(base).code == 0
    assert " c" in ids(base)


def test_twins_are_told_apart(base: Path) -> None:
    for form in ("NFC", "NFD"):
        photo(base, f"{unicodedata.normalize(form, 'café')}.png")  # type: ignore[arg-type]
    line = " ".join(prepare(base).lines("warning:"))
    assert "names of different photos look the same: cafe\\u0301.png and café.png" in line


def test_labels_that_look_the_same_are_told_apart(base: Path) -> None:
    twin = unicodedata.normalize("NFD", "café")
    (base / "tags.csv").write_text(f"id,labels\na,café\nb,{twin}\n", "utf-8")
    assert "`cafe\\u0301` (1 photo) and `café` (1 photo)" in " ".join(
        prepare(base).lines("warning:"))


def test_a_formula_is_an_id_for_spreadsheets(base: Path) -> None:
    """What we write with an apostrophe is read without it."""
    assert csv_id("=cmd|x") == "'=cmd|x" and csv_id("cat") == "cat"
    assert id_of_csv("'=cmd|x") == "=cmd|x" and id_of_csv("'tis") == "'tis"
    (base / "tags.csv").write_text("id,labels\n'=cmd|x,cat\n")
    assert read_tags(base / "tags.csv")[0][0].id == "=cmd|x"


def test_spelling() -> None:
    assert spelled("photos/Käse 1.jpg") == "photos/Käse 1.jpg"
    assert spelled("a\u200bb") == "a\\u200bb"


def test_class_files(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (base / "classes.txt").write_text("Cat\ncat\ndog\n")
    result = prepare(base, "--classes", base / "classes.txt")
    assert result.code == 0, result.err
    assert any("names that look like one class are two: `Cat` and `cat`" in line
               for line in result.lines("warning:"))
    (base / "classes.txt").write_text("do;g\ncat\n")
    with pytest.raises(VplError, match="`do;g` has a semicolon"):
        read_classes(base / "classes.txt")


@pytest.mark.parametrize(("text", "read"), [
    ("background\ncat", lambda path: read_classes(path).names == ("cat",)),
    ("a photo of a {}.", lambda path: find_prompts(str(path)) == ("a photo of a {}.",)),
    ('{"cat": ["a pet"]}', lambda path: read_attributes(path, ["cat"]) == {"cat": ["a pet"]}),
    ("# A job.\nvpltool cam", lambda path: read_recipe(path).title == "A job"),
    ("[refine]\nlambda = 0.4", lambda path: read_preset(str(path)).defaults),
    ('{"kind": "x"}', lambda path: read_json(path, "") == {"kind": "x"}),
    ('"""What it does."""', lambda path: Method("", "", path).docstring == "What it does."),
])
def test_a_byte_order_mark_is_no_text(text: str, read: Callable[[Path], object], tmp_path: Path
                                      ) -> None:
    """Windows' editors put one before the first letter."""
    path = tmp_path / "file"
    path.write_text(text, "utf-8-sig")
    assert read(path)


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    """The command that makes it could not put a file there either."""
    (tmp_path / "text.safetensors").mkdir()
    with pytest.raises(VplError, match="is a folder, and should be a file") as caught:
        expect_header(tmp_path / "text.safetensors", "prototypes")
    assert caught.value.hint.startswith("move it away; then ")


@pytest.mark.parametrize(("value", "name", "moved"), [
    ("/a/k.json", "k.json", "<k.json>"), ("timm:vit,/a/x.pt", "timm:vit,x.pt", "timm:vit,<x.pt>"),
    ("dino:/a/x.pth", "dino:x.pth", "dino:<x.pth>"), (["/a/b", "c"], ["b", "c"], ["<b>", "c"]),
    *((same, same, same) for same in ("weclip", "hf:org/name", "../w/x.pt", 3, None,
                                      "s3://bucket/x", "a photo of a {} and/or a cat"))])
def test_absolute_paths_do_not_get_into_headers(value: object, name: object, moved: object
                                                ) -> None:
    assert without_home(value) == name
    assert without_home(value, lambda path: f"<{path.name}>") == moved
