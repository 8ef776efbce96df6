"""Layouts of data sets: what `prepare` takes, what it refuses, and that it opens no mask."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Run
from PIL import Image

from vpltool.datasets.layouts import check_labels, read_folder
from vpltool.datasets.words import (
    COCO,
    COCO_IDS,
    PROMPTS,
    VOC,
    ClassFile,
    find_prompts,
    read_classes,
)
from vpltool.errors import VplError
from vpltool.formats import Photo
from vpltool.methods.sources.voc import read_voc
from vpltool.shell import to_shell

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


def photos_of(root: Path, *lists: Path) -> dict[str, Photo]:
    return {entry.id: entry for entry in read_voc(root, CLASSES, lists)[0]}


def test_voc_with_xml(voc: Path) -> None:
    (first, second, third), remarks = read_voc(voc, CLASSES)
    assert (first.id, first.image) == ("2007_01", "JPEGImages/2007_01.jpg")
    assert first.tags == ("cat", "dog")
    assert first.splits == ("train", "trainval")
    assert first.mask == "SegmentationClass/2007_01.png"
    assert (second.tags, second.splits, second.mask) == ((), ("trainval", "val"), None)
    assert third.tags == ("cat",)
    assert remarks == []


def test_voc_labels_csv_wins(voc: Path) -> None:
    (voc / "labels.csv").write_text("id,labels\n2007_01,dining table;cat\n2007_02,dog\n2007_03,\n")
    for xml in (voc / "Annotations").iterdir():
        xml.write_text("not even XML")
    labels = [entry.tags for entry in photos_of(voc).values()]
    assert labels == [("dining table", "cat"), ("dog",), ()]


@pytest.mark.parametrize(("place", "name", "line"), [
    ("ImageSets/Segmentation", "train_aug", "{0}"),
    ("ImageSets/Segmentation", "trainaug", "{0}"),
    ("ImageSets/SegmentationAug", "train_aug",
     "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png"),
    ("../lists", "train_aug", "JPEGImages/{0}.jpg 3 7"),
])
def test_voc_augmented(voc: Path, place: str, name: str, line: str) -> None:
    """Ids or file names, in the devkit's folder, in DeepLab's, or elsewhere."""
    photo(voc / "JPEGImages/2008_09.jpg")
    (voc / "Annotations/2008_09.xml").write_text(
        "<annotation><object><name>dog</name></object></annotation>")
    (voc / "SegmentationClassAug").mkdir()
    for key in ("2007_03", "2008_09"):
        (voc / "SegmentationClassAug" / f"{key}.png").write_bytes(b"garbage")
    listing = voc / place / f"{name}.txt"
    listing.parent.mkdir(exist_ok=True)
    listing.write_text("".join(line.format(key) + "\n" for key in ("2007_03", "2008_09")))
    found = photos_of(voc, *([listing] if place.startswith("..") else []))
    assert found["2008_09"].tags == ("dog",)
    assert found["2008_09"].splits == (name,)
    assert found["2008_09"].mask == "SegmentationClassAug/2008_09.png"
    assert name in found["2007_03"].splits
    # VOC's own mask wins over the augmented one.
    assert found["2007_03"].mask == "SegmentationClass/2007_03.png"


def test_voc_train_must_not_hold_val(voc: Path) -> None:
    """As the lists of SBD do."""
    (voc / "ImageSets/Segmentation/train_aug.txt").write_text("2007_01\n2007_02\n")
    remark, = read_voc(voc, CLASSES)[1]
    assert "1 photo of train_aug.txt is in val.txt" in remark


def test_voc_test_photos_have_no_tags(voc: Path) -> None:
    photo(voc / "JPEGImages/2008_test.jpg")
    (voc / "ImageSets/Segmentation/test.txt").write_text("2008_test\n")
    # The devkit's XML of such a photo, if there is any, is for another task.
    (voc / "Annotations/2008_test.xml").write_text("<annotation><object><part/></object>")
    found = photos_of(voc)["2008_test"]
    assert (found.tags, found.splits, found.mask) == ((), ("test",), None)


def test_voc_without_the_photos_of_test(voc: Path) -> None:
    (voc / "ImageSets/Segmentation/test.txt").write_text("2008_test\n")
    photos, (remark,) = read_voc(voc, CLASSES)
    assert len(photos) == 3
    assert "`test` is skipped" in remark


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
    assert "1 photo has no tag" in result.err
    assert "1 of 1 photos of `val` has no true mask" in result.err


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
    error = refused(voc, "1 of 2", "train.txt", "2007_03", "JPEGImages")
    assert "VOCtrainval_11-May-2012.tar" in error.hint


def test_voc_truncated_photos_are_warned_of(voc: Path, tmp_path: Path, run: Run) -> None:
    whole = (voc / "JPEGImages/2007_03.jpg").read_bytes()
    (voc / "JPEGImages/2007_03.jpg").write_bytes(whole[:-20])
    (voc / "JPEGImages/2007_01.jpg").write_bytes(b"")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    result = run("prepare", "voc", voc, "--classes", tmp_path / "classes.txt", work=tmp_path / "w")
    assert result.code == 0
    warning, = (line for line in result.lines("warning:") if "cannot be read" in line)
    assert "2 of 3 photos cannot be read" in warning
    assert "2007_01.jpg (the file is empty), " in warning
    assert "2007_03.jpg (this is not a readable image)" in warning


def test_intact_photos_are_never_called_truncated(voc: Path, tmp_path: Path, run: Run) -> None:
    """A PNG with the name of a JPEG, and a JPEG with a film behind it, as of phones."""
    with Image.open(voc / "JPEGImages/2007_01.jpg") as photo:
        photo.save(voc / "JPEGImages/2007_01.jpg", "PNG")
    with (voc / "JPEGImages/2007_03.jpg").open("ab") as file:
        file.write(bytes(200_000))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    result = run("prepare", "voc", voc, "--classes", tmp_path / "classes.txt", work=tmp_path / "w")
    assert not [line for line in result.lines("warning:") if "cannot be read" in line]


def test_voc_without_a_row(voc: Path) -> None:
    (voc / "labels.csv").write_text("id,labels\n2007_01,dog\n")
    refused(voc, "labels.csv", "2007_02")


def test_voc_without_xml(voc: Path) -> None:
    (voc / "Annotations/2007_03.xml").unlink()
    error = refused(voc, "no tags for 1 of 3 photos", "2007_03.xml")
    assert "labels.csv" in error.hint
    assert "never come from masks" in error.hint


def test_voc_without_a_readable_xml(voc: Path) -> None:
    (voc / "Annotations/2007_03.xml").write_text("<annotation><object>")
    assert "labels.csv" in refused(voc, "2007_03.xml").hint


def test_voc_somewhere_else(tmp_path: Path, voc: Path) -> None:
    (tmp_path / "VOCdevkit").mkdir()
    error = refused(tmp_path, "JPEGImages", "VOCdevkit")
    assert to_shell(error.hint) == f"vpltool prepare voc {voc}", "it lies one folder deeper"
    assert "found: nothing" in refused(tmp_path / "VOCdevkit").message
    refused(tmp_path / "nowhere", "nowhere")


def test_voc_lists(voc: Path, tmp_path: Path) -> None:
    lists = voc / "ImageSets/Segmentation"
    (lists / "train.txt").unlink()
    remark, = read_voc(voc, CLASSES)[1]
    assert "no train.txt" in remark
    assert "trainval, val" in remark
    with pytest.raises(VplError, match="train_aug.txt"):
        read_voc(voc, CLASSES, [tmp_path / "train_aug.txt"])
    (lists / "val.txt").write_text("\n")
    refused(voc, "val.txt is empty")
    for path in lists.iterdir():
        path.unlink()
    refused(voc, "Segmentation", "lists no photo")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.PNG", "sub/c.jpeg", "sub/a.tif"):
        photo(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("no photo")
    return tmp_path


def read(folder: Path, text: str, *, masks: Path | None = None, encoding: str = "utf-8",
         ) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]], tuple[str, ...]]:
    (folder / "tags.csv").write_text(text, encoding)
    photos, classes, *_ = read_folder(folder / "photos", folder / "tags.csv", masks)
    return ({entry.id: entry.tags for entry in photos},
            {entry.id: entry.splits for entry in photos}, classes)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv_with_semicolons_and_spaces(folder: Path, encoding: str) -> None:
    """Fields are split at `;` if any has several labels, else at spaces; a BOM is no letter."""
    for first, wanted in (("dining table; cat", ("dining table", "cat")),
                          ("dining table;", ("dining table",))):
        labels, splits, classes = read(
            folder, f'id,labels\na,{first}\nb,{"dog; cat" if ";" in first[:-1] else "dog cat"}\n'
                    'sub/c, "hot dog;"\nsub/a,\n', encoding=encoding)
        assert labels == {"a": wanted, "b": ("dog", "cat"), "sub/c": ("hot dog",), "sub/a": ()}
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
    photos, *_ = read_folder(folder / "photos", folder / "tags.csv", folder / "masks")
    assert [entry.mask for entry in photos] == [None, "../masks/sub/c.png"]


CSV_ERRORS = {
    "no photo": ("id,labels\nd,cat\nsub/d,dog\n", ["tags.csv", "matches a photo", "d, sub/d"]),
    "twice": ("id,labels\na,cat\nb,cat\na.jpg,dog\n", ["tags.csv", "a is listed twice"]),
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
    photos, *_ = read_folder(folder / "photos", folder / "tags.csv", folder / "masks")
    assert [photo.mask for photo in photos] == [None]


def test_names_are_kept_whatever_the_locale(folder: Path) -> None:
    """images.jsonl is UTF-8, also where the terminal is not."""
    (folder / "tags.csv").write_text("id,labels\na,Kätzchen\n", "utf-8")
    code = ("from pathlib import Path\nfrom vpltool.datasets.layouts import read_folder\n"
            "from vpltool.formats import Workspace\n"
            "from vpltool.formats.workspace import write_workspace\n"
            "photos, classes, *_ = read_folder(Path('photos'), Path('tags.csv'), None)\n"
            "write_workspace(Workspace(Path('.'), 'a', '.', classes, (), 'm', 'p'), photos)\n")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "LC_ALL": "POSIX", "PYTHONUTF8": "0",
             "PYTHONCOERCECLOCALE": "0"})
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "images.jsonl").read_text("utf-8"))["labels"] == ["Kätzchen"]


@pytest.mark.parametrize(("case", "hint"), [
    ("A.jpg,cat", "did you mean `a.jpg`?"), ("B,cat", "did you mean `b`?"),
    ("SUB/c,cat", "did you mean `sub/c`?")])
def test_csv_in_another_case(folder: Path, case: str, hint: str) -> None:
    with pytest.raises(VplError) as caught:
        read(folder, f"id,labels\n{case}\n")
    assert caught.value.hint.startswith(hint)
    assert "case" in caught.value.hint


def test_labels_in_another_case_or_torn_apart(folder: Path) -> None:
    read(folder, "id,labels\na,DOG\n")
    photos, *_ = read_folder(folder / "photos", folder / "tags.csv", None)
    with pytest.raises(VplError) as caught:
        check_labels(photos, CLASSES)
    assert caught.value.hint.startswith("did you mean `dog`?")
    (folder / "tags.csv").write_text("id,labels\na,dining table\n")
    photos, *_ = read_folder(folder / "photos", folder / "tags.csv", None)
    with pytest.raises(VplError) as caught:
        check_labels(photos, CLASSES)
    assert "`dining table;`" in caught.value.hint


def test_a_folder_without_photos(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.heic").touch()
    (tmp_path / "tags.csv").write_text("id,labels\na,cat\n")
    with pytest.raises(VplError, match="holds no photo; found: a.heic") as caught:
        read_folder(tmp_path / "photos", tmp_path / "tags.csv", None)
    assert "convert .heic to JPEG" in caught.value.hint


@pytest.mark.parametrize(("text", "names", "values"), [
    ("background\n cat \n\ndog\n", ("cat", "dog"), {}),
    ("cat\ndog\n", ("cat", "dog"), {}),
    # ADE20K: 0 is what has no class.
    ("ignore\nwall\nfloor\n", ("wall", "floor"), {0: 255, 1: 1, 2: 2}),
    ("0 ignore\n1 wall\n2 floor\n", ("wall", "floor"), {0: 255, 1: 1, 2: 2}),
    # Cityscapes' train ids: no background, classes from 0.
    ("0 road\n1 traffic light\n", ("road", "traffic light"), {0: 1, 1: 2}),
    ("0: background\n1: wall\n255: ignore\n", ("wall",), {}),
    # Gaps, and two values of one class.
    ("7 road\n8 walk\n9 road\n200 ignore\n", ("road", "walk"), {7: 1, 8: 2, 9: 1, 200: 255}),
    ("1 cat\n2 2 wheeler\n", ("cat", "2 wheeler"), {}),
])
def test_classes_file(tmp_path: Path, text: str, names: tuple[str, ...],
                      values: dict[int, int]) -> None:
    path = tmp_path / "classes.txt"
    path.write_text(text)
    assert read_classes(path) == ClassFile(names, values)


@pytest.mark.parametrize(("text", "said"), [
    ("cat\ndog\ncat\n", "`cat`"), ("\n", "empty"), ("1 cat\n1 dog\n", "`1`"),
    ("0 background\n", "names no class, only background"),
    ("6 ignore\n", "names no class, only ignore"), ("1 cat\n65536 dog\n", "`65536 dog`"),
    ("cat\ndog\n6 ignore\n", "`6 ignore` has a value, `cat` has none"),
    ("1 cat\nbike\n", "`1 cat` has a value, `bike` has none"),
    ("".join(f"c{number}\n" for number in range(65_535)), "65535 classes")])
def test_classes_file_errors(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "classes.txt"
    path.write_text(text)
    with pytest.raises(VplError, match=said):
        read_classes(path)


def test_words_and_prompts_are_the_papers() -> None:
    assert (len(VOC.classes), len(VOC.background)) == (20, 25)
    assert (len(COCO.classes), len(COCO.background)) == (80, 23)
    for words in (VOC, COCO):
        assert set(words.synonyms) <= set(words.classes)
        assert not set(words.classes) & set(words.background)
    assert {name: len(set(prompts)) for name, prompts in PROMPTS.items()} == {
        "single": 1, "origami": 1, "seven": 7, "ensemble": 80}
    assert len(set(COCO_IDS)) == 80
    ids = dict(zip(COCO.classes, COCO_IDS, strict=True))
    assert [ids[name] for name in ("person", "stop sign", "bench", "backpack", "bottle",
                                   "dining table", "tv", "book", "toothbrush")] == [
        1, 13, 15, 27, 44, 67, 72, 84, 90]
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


def test_pages_and_halves_of_files_are_told(tmp_path: Path, tiny_clip: Path, run: Run) -> None:
    """Only the first page of a TIFF is a photo; PNGs and TIFFs may be truncated like JPEGs."""
    photos = tmp_path / "photos"
    photos.mkdir()
    drawn = [Image.effect_noise((40, 40), 50) for _ in range(3)]
    drawn[0].save(photos / "stack.tif", save_all=True, append_images=drawn[1:])
    for suffix in ("tif", "png"):
        for name in ("whole", "half"):
            drawn[0].save(photos / f"{name}-{suffix}.{suffix}")
    for path in photos.glob("half*"):
        path.write_bytes(path.read_bytes()[:700])
    (tmp_path / "tags.csv").write_text(
        "id,labels\n" + "".join(f"{path.name},cat\n" for path in photos.iterdir()))
    result = run("prepare", "folder", photos, "--labels", tmp_path / "tags.csv",
                 "--pretrained", tiny_clip, work=tmp_path / "w")
    assert result.code == 0, result.err
    damaged, = (line for line in result.lines("warning:") if "cannot be read" in line)
    assert "2 of 5 photos" in damaged
    assert "half-png.png (" in damaged
    assert "half-tif.tif (the file is truncated)" in damaged
    stacks, = (line for line in result.lines("warning:") if "pages" in line)
    assert "1 of 5 photos has several pages" in stacks
    assert "stack.tif (3)" in stacks
