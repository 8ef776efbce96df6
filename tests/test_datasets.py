"""Layouts of data sets: what `prepare` takes, what it refuses, and that it opens no mask."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Run
from PIL import Image

from vpltool.datasets.layouts import read_classes, read_folder, read_voc
from vpltool.datasets.prompts import PROMPTS, find_prompts
from vpltool.datasets.words import COCO, VOC
from vpltool.errors import VplError

CLASSES = ("cat", "dog", "dining table")


def photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3)).save(path)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "VOC2012"
    tags = {"2007_01": ("dog", "cat", "dog"), "2007_02": (), "2007_03": ("cat",)}
    for name, objects in tags.items():
        photo(root / "JPEGImages" / f"{name}.jpg")
        spelled = "".join(f"<object><name>{item}</name><difficult>1</difficult></object>"
                          for item in objects)
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{spelled}</annotation>")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_03\n2007_01\n\n")
    (lists / "val.txt").write_text("2007_02\n")
    (lists / "trainval.txt").write_text("2007_01\n2007_02\n2007_03\n")
    (root / "SegmentationClass").mkdir()
    # True masks are named by `prepare`, never opened: garbage must do.
    for name in ("2007_01", "2007_03"):
        (root / "SegmentationClass" / f"{name}.png").write_bytes(b"garbage")
    return root


def test_voc_with_xml(voc: Path) -> None:
    first, second, third = read_voc(voc, CLASSES)
    assert (first.id, first.image) == ("2007_01", "JPEGImages/2007_01.jpg")
    assert first.labels == ("cat", "dog")
    assert first.splits == ("train", "trainval")
    assert first.mask == "SegmentationClass/2007_01.png"
    assert (second.labels, second.splits, second.mask) == ((), ("trainval", "val"), None)
    assert third.labels == ("cat",)


def test_voc_labels_csv_wins(voc: Path) -> None:
    (voc / "labels.csv").write_text("id,labels\n2007_01,dining table;cat\n2007_02,dog\n2007_03,\n")
    for xml in (voc / "Annotations").iterdir():
        xml.write_text("not even XML")
    labels = [entry.labels for entry in read_voc(voc, CLASSES)]
    assert labels == [("dining table", "cat"), ("dog",), ()]


def test_voc_lists_of_files(voc: Path) -> None:
    """The augmented lists name paths, not ids."""
    (voc / "ImageSets/Segmentation/train_aug.txt").write_text(
        "/JPEGImages/2007_02.jpg /SegmentationClassAug/2007_02.png\n")
    assert "train_aug" in read_voc(voc, CLASSES)[1].splits


def test_voc_through_the_command_opens_no_mask(voc: Path, tmp_path: Path, run: Run) -> None:
    classes = tmp_path / "classes.txt"
    classes.write_text("background\ncat\ndog\n")
    result = run("prepare", "voc", voc, "--classes", classes, work=tmp_path / "work")
    assert result.code == 0, result.err
    assert result.out.strip() == str(tmp_path / "work/workspace.json")
    content = json.loads((tmp_path / "work/workspace.json").read_text())
    assert content["classes"] == ["cat", "dog"]
    assert content["root"] == "../VOC2012"
    lines = [json.loads(line) for line in (tmp_path / "work/images.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["2007_01", "2007_02", "2007_03"]
    assert lines[0]["mask"] == "SegmentationClass/2007_01.png"
    assert "1 photos have no tag" in result.err


def refused(root: Path, *said: str) -> VplError:
    with pytest.raises(VplError) as caught:
        read_voc(root, CLASSES)
    for part in said:
        assert part in caught.value.message
    assert caught.value.hint
    return caught.value


def test_voc_unknown_tag(voc: Path) -> None:
    (voc / "labels.csv").write_text("id,labels\n2007_01,dgo\n2007_02,dog\n2007_03,cat\n")
    assert "`dog`" in refused(voc, "2007_01", "`dgo`").hint


def test_voc_half_extracted(voc: Path) -> None:
    (voc / "JPEGImages/2007_03.jpg").unlink()
    refused(voc, "1 of 3", "2007_03", "JPEGImages")


def test_voc_without_a_row(voc: Path) -> None:
    (voc / "labels.csv").write_text("id,labels\n2007_01,dog\n")
    refused(voc, "labels.csv", "2007_02")


@pytest.mark.parametrize("content", [None, "<annotation><object>"])
def test_voc_without_a_readable_xml(voc: Path, content: str | None) -> None:
    path = voc / "Annotations/2007_03.xml"
    path.unlink() if content is None else path.write_text(content)
    refused(voc, "2007_03.xml")


def test_voc_somewhere_else(tmp_path: Path) -> None:
    (tmp_path / "VOCdevkit").mkdir()
    refused(tmp_path, "JPEGImages", "VOCdevkit")
    refused(tmp_path / "nowhere", "nowhere")


def test_voc_lists_nothing(voc: Path) -> None:
    for path in (voc / "ImageSets/Segmentation").iterdir():
        path.unlink()
    refused(voc, "Segmentation")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.PNG", "sub/c.jpeg", "sub/a.tif"):
        photo(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("no photo")
    return tmp_path


def read(folder: Path, text: str, *, masks: Path | None = None, encoding: str = "utf-8",
         ) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]], tuple[str, ...]]:
    (folder / "tags.csv").write_text(text, encoding)
    photos, classes = read_folder(folder / "photos", folder / "tags.csv", masks)
    return ({entry.id: entry.labels for entry in photos},
            {entry.id: entry.splits for entry in photos}, classes)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv_with_semicolons_and_spaces(folder: Path, encoding: str) -> None:
    """A field with a `;` is split there; one without, at spaces. A byte order mark is no letter."""
    labels, splits, classes = read(
        folder, 'id,labels\na,dining table; cat\nb,dog cat\nsub/c, "hot dog;"\nsub/a,\n',
        encoding=encoding)
    assert labels == {"a": ("dining table", "cat"), "b": ("dog", "cat"), "sub/c": ("hot dog",),
                      "sub/a": ()}
    assert set(splits.values()) == {("train",)}
    assert classes == ("cat", "dining table", "dog", "hot dog")


def test_csv_with_splits_and_suffixes(folder: Path) -> None:
    labels, splits, _ = read(folder, "split, id ,labels\nval,a.jpg,cat\n,b,cat\n"
                                     "val;test,sub/c.jpeg,é\n")
    assert labels["sub/c"] == ("é",)
    assert splits == {"a": ("val",), "b": ("train",), "sub/c": ("val", "test")}


def test_csv_masks(folder: Path) -> None:
    (folder / "masks/sub").mkdir(parents=True)
    (folder / "masks/sub/c.png").write_bytes(b"garbage")
    (folder / "tags.csv").write_text("id,labels\na,cat\nsub/c,dog\n")
    photos, _ = read_folder(folder / "photos", folder / "tags.csv", folder / "masks")
    assert [entry.mask for entry in photos] == [None, "../masks/sub/c.png"]


CSV_ERRORS = {
    "missing photo": ("id,labels\na,cat\nsub/d,dog\n", ["tags.csv", "sub/d"]),
    "twice": ("id,labels\na,cat\nb,cat\na.jpg,dog\n", ["tags.csv", "a stands there twice"]),
    "columns": ("name,tags\na,cat\n", ["tags.csv", "name", "tags"]),
    "columns and no rows": ("name,tags\n", ["tags.csv"]),
    "empty": ("", ["tags.csv"]),
    "commas between labels": ("id,labels\na,cat,dog\n", ["tags.csv", "dog"]),
}


@pytest.mark.parametrize("case", CSV_ERRORS)
def test_csv_errors_name_file_and_value(folder: Path, case: str) -> None:
    text, said = CSV_ERRORS[case]
    with pytest.raises(VplError) as caught:
        read(folder, text)
    for part in said:
        assert part in caught.value.message
    assert caught.value.hint


def test_csv_that_is_none(folder: Path) -> None:
    (folder / "tags.csv").write_bytes(b"\xff\xfe\x00i\x00d")
    for labels in ("tags.csv", "none.csv"):
        with pytest.raises(VplError, match=labels):
            read_folder(folder / "photos", folder / labels, None)
    with pytest.raises(VplError, match="nowhere"):
        read_folder(folder / "nowhere", folder / "tags.csv", None)


def test_masks_of_other_photos(folder: Path) -> None:
    (folder / "masks").mkdir()
    (folder / "tags.csv").write_text("id,labels\na,cat\n")
    photos, _ = read_folder(folder / "photos", folder / "tags.csv", folder / "masks")
    assert [photo.mask for photo in photos] == [None]


def test_names_are_kept_whatever_the_locale(folder: Path) -> None:
    """images.jsonl is UTF-8, also where the terminal is not."""
    (folder / "tags.csv").write_text("id,labels\na,Kätzchen\n", "utf-8")
    code = ("from pathlib import Path\nfrom vpltool.datasets.layouts import read_folder\n"
            "from vpltool.formats import Workspace, write_workspace\n"
            "photos, classes = read_folder(Path('photos'), Path('tags.csv'), None)\n"
            "write_workspace(Workspace(Path('.'), 'a', '.', classes, (), 'm', 'p'), photos)\n")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(Path(__file__).parents[1]), "LC_ALL": "POSIX", "PYTHONUTF8": "0",
             "PYTHONCOERCECLOCALE": "0"})
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "images.jsonl").read_text("utf-8"))["labels"] == ["Kätzchen"]


def test_classes_file(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("background\n cat \n\ndog\n")
    assert read_classes(path) == ("cat", "dog")
    path.write_text("cat\ndog\ncat\n")
    with pytest.raises(VplError, match="`cat`"):
        read_classes(path)
    path.write_text("\n")
    with pytest.raises(VplError, match="empty"):
        read_classes(path)


def test_words_and_prompts_are_the_papers() -> None:
    assert (len(VOC.classes), len(VOC.background)) == (20, 25)
    assert (len(COCO.classes), len(COCO.background)) == (80, 23)
    for words in (VOC, COCO):
        assert set(words.synonyms) <= set(words.classes)
        assert not set(words.classes) & set(words.background)
    assert {name: len(set(prompts)) for name, prompts in PROMPTS.items()} == {
        "single": 1, "origami": 1, "seven": 7, "ensemble": 80}
    assert all(prompt.count("{}") == 1 for prompts in PROMPTS.values() for prompt in prompts)


def test_prompts_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a {}.\nthe {} there\n")
    assert find_prompts(str(path)) == ("a {}.", "the {} there")
    path.write_text("a cat\n")
    with pytest.raises(VplError, match="a cat"):
        find_prompts(str(path))
    with pytest.raises(VplError, match="origmai"):
        find_prompts("origmai")
