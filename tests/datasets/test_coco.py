"""COCO 2014: tags from the instances, true masks made of them, and what is said of a wrong tree."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run
from PIL import Image

from vpltool.core.outlines import label_map
from vpltool.datasets.words import COCO, COCO_IDS
from vpltool.errors import VplError
from vpltool.formats import read_labels
from vpltool.formats.streams import read_spans, stream_objects
from vpltool.formats.workspace import read_images
from vpltool.methods.sources.coco import read_coco

pycocotools = pytest.importorskip("pycocotools.mask")

ID = dict(zip(COCO.classes, COCO_IDS, strict=True))
SIZE = (30, 40)


def square(left: int, top: int, side: int) -> list[list[int]]:
    return [[left, top, left + side, top, left + side, top + side, left, top + side]]


def crowd(left: int, top: int, side: int) -> dict[str, Any]:
    """Uncompressed run lengths, column by column, as COCO has its crowds."""
    inside = np.zeros(SIZE, bool)
    inside[top : top + side, left : left + side] = True
    flat = inside.T.ravel()
    edges = np.flatnonzero(np.diff(np.r_[False, flat, ~flat[-1]]))
    return {"size": list(SIZE), "counts": np.diff(np.r_[0, edges]).tolist()}


def instance(photo: int, name: str, outline: Any, area: float, iscrowd: int = 0) -> dict[str, Any]:
    return {"image_id": photo, "category_id": ID[name], "segmentation": outline, "area": area,
            "iscrowd": iscrowd, "bbox": [0, 0, 1, 1]}


# A photo of train with overlaps and a crowd, one without any instance; a photo of val.
INSTANCES = {
    "train": [instance(9, "toothbrush", square(10, 10, 8), 64),
              instance(9, "person", square(0, 0, 20), 400),
              instance(9, "person", crowd(15, 15, 12), 144, 1)],
    "val": [instance(42, "dining table", square(5, 5, 10), 100),
            instance(42, "dining table", [*square(20, 5, 3), *square(30, 5, 3)], 18)],
}
IMAGES = {"train": [9, 25], "val": [42]}


def write_split(root: Path, split: str, naming: str = "COCO_{split}2014_{number:012}.jpg") -> None:
    content = {
        "info": {"year": 2014, "description": "drawn"},
        "images": [{"id": number, "file_name": naming.format(split=split, number=number),
                    "height": SIZE[0], "width": SIZE[1]} for number in IMAGES[split]],
        "licenses": [{"id": 1, "name": "none"}],
        "annotations": INSTANCES[split],
        "categories": [{"supercategory": "thing", "id": number, "name": name}
                       for name, number in ID.items()],
    }
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / f"annotations/instances_{split}2014.json").write_text(json.dumps(content))


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    root = tmp_path / "COCO"
    for split, numbers in IMAGES.items():
        write_split(root, split)
        (root / f"{split}2014").mkdir()
        for number in numbers:
            Image.new("RGB", SIZE[::-1]).save(
                root / f"{split}2014/COCO_{split}2014_{number:012}.jpg")
    return root


def test_tags_and_splits(coco: Path) -> None:
    photos, remarks, outlines = read_coco(coco, COCO.classes)
    assert [(photo.id, photo.image, photo.tags, photo.splits) for photo in photos] == [
        ("COCO_train2014_000000000009", "train2014/COCO_train2014_000000000009.jpg",
         ("person", "toothbrush"), ("train",)),
        ("COCO_val2014_000000000042", "val2014/COCO_val2014_000000000042.jpg",
         ("dining table",), ("val",))]
    assert "1 photo of train has no instance" in remarks[0]
    assert outlines["train"].labels[90] == 80, "labels are contiguous, ids are not"
    kept, remarks, _ = read_coco(coco, COCO.classes, empty=True)
    assert [photo.tags for photo in kept] == [("person", "toothbrush"), (), ("dining table",)]
    assert remarks == []


def test_labels_csv_wins(coco: Path) -> None:
    (coco / "labels.csv").write_text(
        "id,labels\nCOCO_train2014_000000000009,cat\nCOCO_val2014_000000000042,dining table;\n"
        "COCO_val2014_7,dog\n")
    photos, remarks, _ = read_coco(coco, COCO.classes)
    assert [photo.tags for photo in photos] == [("cat",), ("dining table",)]
    assert "COCO_val2014_7" in remarks[-1]
    for path in (coco / "annotations").iterdir():
        path.unlink()
    photos, _, outlines = read_coco(coco, COCO.classes)
    assert [photo.tags for photo in photos] == [("cat",), ("dining table",)]
    assert outlines == {}


@pytest.mark.parametrize("base", ["images", "JPEGImages", "coco2014"])
def test_photos_in_a_folder_of_their_own(coco: Path, base: str) -> None:
    (coco / base).mkdir()
    for split in ("train2014", "val2014"):
        (coco / split).rename(coco / base / split)
    assert read_coco(coco, COCO.classes)[0][0].image.startswith(f"{base}/train2014/")


def prepared(run: Run, coco: Path, *options: object) -> Path:
    work = coco.parent / "work"
    result = run("prepare", "coco", coco, "--workers", 0, *options, work=work)
    assert result.code == 0, result.err
    assert set(result.out.split()) == {str(work / name) for name in (
        "workspace.json", "ground-truth/train", "ground-truth/val")}
    return work


def expected(name: str, overlap: str, crowds: str) -> np.ndarray[Any, Any]:
    labels = np.zeros(SIZE, np.uint8)
    if name == "val":
        for left, side in ((5, 10), (20, 3), (30, 3)):
            labels[5 : 5 + side, left : left + side] = 61
        return labels
    labels[:20, :20] = 1
    labels[10:18, 10:18] = 255 if overlap == "ignore" else 80
    crowded = np.zeros(SIZE, bool)
    crowded[15:27, 15:27] = True
    if crowds == "ignore":
        labels[crowded & (labels == 0)] = 255
    else:
        labels[crowded & (labels == 0)] = 1
    return labels


@pytest.mark.parametrize(("overlap", "crowds"), [
    ("smallest", "class"), ("smallest", "ignore"), ("ignore", "class"), ("ignore", "ignore")])
def test_true_masks(coco: Path, run: Run, overlap: str, crowds: str) -> None:
    work = prepared(run, coco, "--overlap", overlap, "--crowd", crowds)
    lines = [json.loads(line) for line in (work / "images.jsonl").read_text().splitlines()]
    for line in lines:
        path = coco / line["mask"]
        assert path.resolve().parent.parent == (work / "ground-truth").resolve()
        assert Image.open(path).mode == "P"
        assert (read_labels(path) == expected(line["splits"][0], overlap, crowds)).all()


painted = functools.partial(label_map, overlap="smallest", crowd="class")


def test_the_small_lies_on_top_whatever_the_order() -> None:
    large, small = instance(9, "cat", square(0, 0, 10), 100), instance(9, "dog", square(2, 2, 3), 9)
    labels = {number: place for place, number in enumerate(COCO_IDS, 1)}
    first, second = (painted(order, labels, SIZE) for order in ((large, small), (small, large)))
    assert (first == second).all()
    assert np.unique(first).tolist() == [0, 16, 17]
    # Of equals the first counts, as in the field's own masks.
    same = instance(9, "dog", square(0, 0, 10), 100)
    assert np.unique(painted((large, same), labels, SIZE)).tolist() == [0, 16]


def test_odd_outlines() -> None:
    """No polygon, one of four numbers (pycocotools takes that for a box), a compressed one."""
    inside = np.zeros(SIZE, np.uint8)
    inside[3:6, 7:9] = 1
    packed = pycocotools.encode(np.asfortranarray(inside))
    packed["counts"] = packed["counts"].decode()
    labels = {ID["cat"]: 16}
    for outline in ([], [[1, 2, 30, 20]]):
        assert not painted([instance(9, "cat", outline, 9)], labels, SIZE).any()
    made = painted([instance(9, "cat", packed, 6),
                      instance(9, "cat", [[1, 2, 30, 20], *square(20, 20, 4)], 16)], labels, SIZE)
    assert made.astype(bool).sum() == 6 + 16
    with pytest.raises(ValueError, match="an outline has"):
        painted([instance(9, "cat", packed, 6)], labels, (40, 30))


def test_tags_do_not_hang_on_the_masks(coco: Path, run: Run) -> None:
    """With masks, without, or with others: but for their names the same bytes."""
    work = prepared(run, coco)
    first = [json.loads(line) | {"mask": None} for line in (work / "images.jsonl").open()]
    for number, options in enumerate((["--no-truth"], ["--crowd", "ignore"])):
        other = coco.parent / f"other{number}"
        assert run("prepare", "coco", coco, *options, work=other).code == 0
        assert [json.loads(line) | {"mask": None}
                for line in (other / "images.jsonl").open()] == first
        assert (other / "workspace.json").read_bytes() == (work / "workspace.json").read_bytes()


def test_stopped_and_run_again(coco: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from vpltool.methods.sources import coco as source

    write, written = source.formats.write_labels, []

    def stop_at_second(path: Path, *rest: Any) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write(path, *rest)

    work = coco.parent / "work"
    with monkeypatch.context() as patched:
        patched.setattr(source.formats, "write_labels", stop_at_second)
        result = run("prepare", "coco", coco, "--workers", 0, work=work)
    assert result.code == 130
    assert not (work / "workspace.json").exists(), "the workspace comes last"
    before = written[0].stat().st_mtime_ns
    assert prepared(run, coco) == work
    assert written[0].stat().st_mtime_ns == before
    times = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
    prepared(run, coco)
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()} == times
    refused = run("prepare", "coco", coco, "--crowd", "ignore", work=work)
    assert refused.code == 1
    assert "crowd was class, now ignore" in refused.lines("error:")[0]
    prepared(run, coco, "--crowd", "ignore", "--overwrite")


def test_again_with_more_photos(coco: Path, run: Run) -> None:
    """Options are not repeated; masks of the new annotations are made without --overwrite."""
    work = prepared(run, coco, "--crowd", "ignore", "--overlap", "ignore")
    before = (work / "images.jsonl").read_text().splitlines()
    IMAGES["val"].append(77)
    INSTANCES["val"].append(instance(77, "cat", square(2, 2, 9), 81))
    try:
        write_split(coco, "val")
    finally:
        del IMAGES["val"][1:], INSTANCES["val"][2:]
    Image.new("RGB", SIZE[::-1]).save(coco / "val2014/COCO_val2014_000000000077.jpg")
    prepared(run, coco)
    after = [json.loads(line) for line in (work / "images.jsonl").open()]
    assert [json.loads(line) for line in before] == after[:-1]
    assert (read_labels(coco / after[0]["mask"]) == expected("train", "ignore", "ignore")).all()
    assert np.unique(read_labels(coco / after[-1]["mask"])).tolist() == [0, 16]


def test_again_without_masks(coco: Path, run: Run) -> None:
    work = coco.parent / "work"
    assert run("prepare", "coco", coco, "--no-truth", "--empty", work=work).code == 0
    files = {path: path.read_bytes() for path in work.rglob("*")}
    assert run("prepare", "coco", coco, work=work).code == 0
    assert {path: path.read_bytes() for path in work.rglob("*")} == files
    prepared(run, coco, "--truth")


def test_worker_processes_give_the_same_bytes(coco: Path, run: Run) -> None:
    IMAGES["train"] += range(100, 106)
    try:
        write_split(coco, "train")
        for number in IMAGES["train"]:
            Image.new("RGB", SIZE[::-1]).save(
                coco / f"train2014/COCO_train2014_{number:012}.jpg")
        work = prepared(run, coco, "--empty")
        shared = coco.parent / "shared"
        assert run("prepare", "coco", coco, "--empty", "--workers", 2, work=shared).code == 0
    finally:
        del IMAGES["train"][2:]
    files = sorted(path.relative_to(work) for path in work.rglob("*.png"))
    assert len(files) == 9
    assert all((work / file).read_bytes() == (shared / file).read_bytes() for file in files)


def test_a_bad_outline_is_named_and_the_others_go_on(coco: Path, run: Run) -> None:
    INSTANCES["val"].append(instance(42, "cat", {"size": [1, 1], "counts": [1]}, 1))
    try:
        write_split(coco, "val")
    finally:
        INSTANCES["val"].pop()
    work = coco.parent / "work"
    result = run("prepare", "coco", coco, work=work)
    assert result.code == 1
    assert "COCO_val2014_000000000042: instances_val2014.json" in result.lines("error:")[0]
    lines = [json.loads(line) for line in (work / "images.jsonl").open()]
    assert [bool(line["mask"]) for line in lines] == [True, False]
    again = run("prepare", "coco", coco, work=work)
    assert again.code == 1, "it is tried again"


def test_eval_takes_them(coco: Path, run: Run) -> None:
    work = prepared(run, coco)
    for split in ("train", "val"):
        result = run("eval", "--split", split, "--what", f"ground-truth/{split}", "--json",
                     work=work)
        assert result.code == 0, result.err
        assert json.loads(result.out)["miou"] == 1


def test_without_pycocotools(coco: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    work = coco.parent / "work"
    result = run("prepare", "coco", coco, work=work)
    assert result.code == 1
    assert "pip install 'vpltool[coco]'" in result.lines("hint:")[0]
    assert not work.exists()
    assert run("prepare", "coco", coco, "--no-truth", work=work).code == 0


def rename_as_2017(coco: Path) -> None:
    for path in (coco / "train2014").iterdir():
        path.rename(path.with_name(path.name.removeprefix("COCO_train2014_")))


def only_2017(coco: Path) -> None:
    for name in ("train2014", "val2014"):
        (coco / name).rename(coco / name.replace("2014", "2017"))
    for path in (coco / "annotations").iterdir():
        path.rename(path.with_name(path.name.replace("2014", "2017")))


def swap(coco: Path) -> None:
    (coco / "val2014").rename(coco / "x")
    (coco / "train2014").rename(coco / "val2014")
    (coco / "x").rename(coco / "train2014")


def truncate(coco: Path) -> None:
    path = coco / "annotations/instances_val2014.json"
    path.write_bytes(path.read_bytes()[:-300])


def other_categories(coco: Path) -> None:
    path = coco / "annotations/instances_val2014.json"
    path.write_text(path.read_text().replace('"dining table"', '"diningtable"'))


def foreign_instances(coco: Path) -> None:
    path = coco / "annotations/instances_val2014.json"
    path.write_text(path.read_text().replace('"image_id": 42', '"image_id": 43'))


def foreign_category(coco: Path) -> None:
    path = coco / "annotations/instances_val2014.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 999
    path.write_text(json.dumps(content))


def test_captions_of_photos_that_are_taken(coco: Path, run: Run) -> None:
    path = coco / "annotations/captions_train2014.json"
    path.write_text(json.dumps({
        "images": [{"id": number, "file_name": f"COCO_train2014_{number:012}.jpg"}
                   for number in IMAGES["train"]],
        "annotations": [{"image_id": number, "id": 7, "caption": f"{words} photo {number} "}
                        for number in IMAGES["train"] for words in ("a", "one")]}))
    work = coco.parent / "work"
    result = run("prepare", "coco", coco, "--no-truth", "--captions", path, work=work)
    assert result.code == 0, result.err
    assert "2 of 4 captions" in result.err, "a photo without any instance is skipped"
    assert [photo.captions for photo in read_images(work / "images.jsonl")] == [
        ("a photo 9", "one photo 9"), ()]


def captions(coco: Path) -> None:
    path = coco / "annotations/instances_val2014.json"
    path.write_text(json.dumps({"images": [{"id": 42, "file_name": "a.jpg", "height": 1,
                                            "width": 1}],
                                "annotations": [{"image_id": 42, "caption": "a table"}]}))


WRONG: dict[str, tuple[Callable[[Path], Any], list[str], str]] = {
    "json of 2017": (lambda coco: write_split(coco, "train", "{number:012}.jpg"),
                     ["COCO 2017 does (000000000009)", "COCO_train2014_0"], "COCO 2014"),
    "photos of 2017": (rename_as_2017, ["COCO 2014 does", "000000000009.jpg"], "COCO 2014"),
    "all of 2017": (only_2017, ["COCO 2017", "train2017"], "train2014.zip"),
    "train for val": (swap, ["2 of 2 photos", "COCO_train2014_000000000009",
                             "COCO_val2014_000000000042"], "train2014.zip"),
    "half of the photos": (
        lambda coco: (coco / "train2014/COCO_train2014_000000000025.jpg").unlink(),
        ["1 of 2 photos", "COCO_train2014_000000000025"], "extract train2014.zip again"),
    "another case": (
        lambda coco: (coco / "train2014/COCO_train2014_000000000025.jpg").rename(
            coco / "train2014/coco_train2014_000000000025.JPG"),
        ["1 of 2 photos"], "did you mean `coco_train2014_000000000025`?"),
    "no annotations": (lambda coco: (coco / "annotations").rename(coco / "Annotations"),
                       ["instances_train2014.json does not exist", "Annotations, train2014"],
                       "annotations_trainval2014.zip"),
    "no photos": (lambda coco: (coco / "val2014").rename(coco / "val"),
                  ["val2014 does not exist", "train2014, val"], "val2014.zip"),
    "truncated": (truncate, ["instances_val2014.json is truncated"], "extract it again"),
    "categories": (other_categories, ["`diningtable`"], "`dining table`"),
    "foreign instances": (foreign_instances, ["1 photo that it does not list"],
                          "instances_val2014.json"),
    "foreign category": (foreign_category, ["instances of the category 999"],
                         "instances_val2014.json"),
    "captions": (captions, ["an entry of annotations is damaged: it has no `category_id`"],
                 "instances_val2014.json"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_tree_is_explained_before_the_work(case: str, coco: Path, run: Run) -> None:
    change, said, hint = WRONG[case]
    change(coco)
    result = run("prepare", "coco", coco, work=coco.parent / "work")
    assert result.code == 1
    error, = result.lines("error:")
    for part in said:
        assert part in error
    assert hint in result.lines("hint:")[0]
    assert not (coco.parent / "work").exists()


def test_one_split_alone(coco: Path) -> None:
    (coco / "train2014").rename(coco.parent / "elsewhere")
    (coco / "annotations/instances_train2014.json").unlink()
    photos, remarks, _ = read_coco(coco, COCO.classes)
    assert {photo.splits for photo in photos} == {("val",)}
    assert "no split `train`" in remarks[0]


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
def test_stream_is_json(coco: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """However the file is cut into pieces; places lead back to the elements."""
    monkeypatch.setattr("vpltool.formats.streams._CHUNK", chunk)
    path = coco / "file.json"
    content = {"a": 12345, "b": [{"x": "ä ]}, \\\" ☃", "y": [1.5, None]}, {}, {"x": -1e-7}],
               "c": {"d": [1, 2]}, "e": [], "f": [{"last": True}],
               "g": [1.5, 2e-7, 3e25, 4]}
    for spaces in (None, 1):
        encoding = "utf-8-sig" if spaces else "utf-8"
        path.write_text(json.dumps(content, indent=spaces, ensure_ascii=False), encoding)
        found = list(stream_objects(path))
        entries = [(part, entry) for part in "bfg"
                   for entry in content[part]]  # type: ignore[attr-defined]
        assert [(part, entry) for part, _, _, entry in found] == entries
        spans = [place for _, *span, _ in found for place in span]
        assert read_spans(path, spans) == [entry for _, entry in entries]
    whole = path.read_bytes()
    for end in (0, 1, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:end])
        with pytest.raises(VplError, match="truncated"):
            list(stream_objects(path))
    path.write_text("[1, 2]")
    with pytest.raises(VplError, match="begin"):
        list(stream_objects(path))
