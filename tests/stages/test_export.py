"""Exports: what VOC's and COCO's servers take, the same bytes each time, and nothing half."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from PIL import Image

from vpltool.datasets.words import COCO, COCO_IDS, VOC, ClassFile, read_classes
from vpltool.formats import (
    Header,
    Photo,
    Workspace,
    open_output,
    voc_palette,
)
from vpltool.formats.workspace import write_workspace

SIZE = (12, 9)


def build(base: Path, name: str, classes: Sequence[str], ids: Sequence[str], split: str) -> Path:
    """A workspace with photos and predictions: label 1 above, the last class below, some 255."""
    work = base / "work"
    photos = [Photo(key, f"{key}.png", (), (split,)) for key in ids]
    for photo in photos:
        Image.new("RGB", SIZE[::-1]).save(base / photo.image)
    workspace = Workspace(work, name, "..", tuple(classes), (), "m", "p")
    write_workspace(workspace, photos)
    output = open_output(work / "predictions/vision" / split, Header(
        kind="predictions", command="predict", options={"split": split},
        inputs={"classes": workspace.classes_identity}), ids)
    output.begin()
    for key in ids:
        output.write_labels(key, predicted(len(classes)))
    output.finish()
    return work


def predicted(last: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    labels = np.zeros(SIZE, np.uint8)
    labels[:3] = 1
    labels[8:] = last
    labels[5, 5] = 255
    return labels


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return build(tmp_path, "voc", VOC.classes, ["2008_000006", "2008_000011"], "test")


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return build(tmp_path, "coco", COCO.classes,
                 ["COCO_val2014_000000000042", "COCO_val2014_000000581929"], "val")


def exported(run: Run, work: Path, name: str, *options: object) -> Path:
    result = run("export", name, *options, work=work)
    assert result.code == 0, result.err
    return Path(result.out.strip())


def test_voc_server(voc: Path, run: Run) -> None:
    path = exported(run, voc, "voc-server")
    assert path == voc / "exports/vision-test.tgz"
    with tarfile.open(path, "r:gz") as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == [
            f"results/VOC2012/Segmentation/comp6_test_cls/{key}.png"
            for key in ("2008_000006", "2008_000011")]
        for member in members:
            assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
            file = archive.extractfile(member)
            assert file is not None
            image = Image.open(io.BytesIO(file.read()))
            assert image.mode == "P"
            # Pillow drops the palette's unused end.
            palette = image.getpalette() or []
            assert palette == voc_palette()[: len(palette)]
            assert len(palette) >= 3 * 21
            assert not image.info, "nothing but pixels goes to the server"
            labels = np.asarray(image)
            wanted = predicted(20)
            assert (labels == np.where(wanted == 255, 0, wanted)).all()


@pytest.mark.parametrize("name", ["voc-server", "coco-rle", "coco-panoptic"])
def test_the_same_bytes_each_time(name: str, tmp_path: Path, run: Run,
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "coco-rle":
        pytest.importorskip("pycocotools")
    arguments = (("voc", VOC.classes, ["2008_1"], "test") if name == "voc-server"
                 else ("coco", COCO.classes, ["COCO_val2014_42"], "val"))
    first = exported(run, build(tmp_path, *arguments), name)
    before = first.read_bytes()
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert exported(run, first.parent.parent, name).read_bytes() == before
    other = exported(run, first.parent.parent, name, "--out", tmp_path / first.name)
    assert other.read_bytes() == before


def test_coco_rle(coco: Path, run: Run) -> None:
    mask = pytest.importorskip("pycocotools.mask")
    path = exported(run, coco, "coco-rle")
    assert path == coco / "exports/vision-val-rle.json"
    entries = json.loads(path.read_text())
    assert [(entry["image_id"], entry["category_id"]) for entry in entries] == [
        (42, 1), (42, 90), (581929, 1), (581929, 90)]
    for entry in entries:
        inside = mask.decode(entry["segmentation"]).astype(bool)
        label = COCO_IDS.index(entry["category_id"]) + 1
        assert (inside == (predicted(80) == label)).all()


def test_coco_rle_is_read_by_pycocotools(coco: Path, run: Run) -> None:
    api = pytest.importorskip("pycocotools.coco")
    path = exported(run, coco, "coco-rle")
    truth = api.COCO()
    truth.dataset = {"info": {}, "categories": [], "annotations": [], "images": [
        {"id": 42}, {"id": 581929}]}
    truth.createIndex()
    results = truth.loadRes(str(path))
    assert len(results.getAnnIds(imgIds=[42], catIds=[90])) == 1


def test_coco_panoptic(coco: Path, run: Run) -> None:
    path = exported(run, coco, "coco-panoptic")
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [
            "vision-val-panoptic/000000000042.png", "vision-val-panoptic/000000581929.png",
            "vision-val-panoptic.json"]
        entries = json.loads(archive.read("vision-val-panoptic.json"))["annotations"]
        for entry, number in zip(entries, (42, 581929), strict=True):
            assert (entry["image_id"], entry["file_name"]) == (number, f"{number:012}.png")
            image = Image.open(io.BytesIO(archive.read(f"vision-val-panoptic/{number:012}.png")))
            red, green, blue = np.asarray(image, dtype=np.uint32).transpose(2, 0, 1)
            segments = red + 256 * green + 65536 * blue
            # As panopticapi checks it: each segment is in both, and void is 0.
            assert {segment["id"] for segment in entry["segments_info"]} == set(
                np.unique(segments).tolist()) - {0}
            owner = {segment["id"]: segment["category_id"] for segment in entry["segments_info"]}
            wanted = predicted(80)
            assert {owner[key] for key in np.unique(segments[wanted == 80]).tolist()} == {90}
            assert {owner[key] for key in np.unique(segments[wanted == 1]).tolist()} == {1}
            assert not segments[(wanted == 0) | (wanted == 255)].any()


def test_none_is_written_if_one_is_missing(voc: Path, run: Run) -> None:
    (voc / "predictions/vision/test/2008_000011.png").unlink()
    result = run("export", "voc-server", work=voc)
    assert result.code == 1
    assert "1 of 2 photos of `test` has no prediction" in result.lines("error:")[0]
    assert "2008_000011" in result.lines("error:")[0]
    assert result.lines("hint:") == ["vpltool predict --split test"]
    assert not (voc / "exports").exists()


def rewrite(work: Path, labels: np.ndarray[tuple[int, int], np.dtype[np.uint8]]) -> None:
    Image.fromarray(labels).save(work / "predictions/vision/test/2008_000011.png")


@pytest.mark.parametrize(("labels", "said"), [
    (np.zeros((9, 12), np.uint8), "is 9×12 (height×width), its photo 12×9"),
    (np.full(SIZE, 21, np.uint8), "the label 21, above the last class 20")])
def test_nothing_wrong_is_sent(labels: np.ndarray[tuple[int, int], np.dtype[np.uint8]], said: str,
                               voc: Path, run: Run) -> None:
    before = exported(run, voc, "voc-server").read_bytes()
    rewrite(voc, labels)
    result = run("export", "voc-server", work=voc)
    assert result.code == 1
    assert "2008_000011.png" in result.lines("error:")[0]
    assert said in result.lines("error:")[0]
    assert [path.read_bytes() for path in (voc / "exports").iterdir()] == [before]


def test_a_torn_prediction_is_named(voc: Path, run: Run) -> None:
    path = voc / "predictions/vision/test/2008_000006.png"
    path.write_bytes(path.read_bytes()[:-30])
    result = run("export", "voc-server", work=voc)
    assert result.code == 1
    assert "2008_000006.png" in result.lines("error:")[0]
    assert list((voc / "exports").iterdir()) == []


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Classes of one's own, and photos in folders, without numbers."""
    (tmp_path / "own/sub").mkdir(parents=True)
    return build(tmp_path / "own", "own", ("bar", "stop sign"), ["cat", "sub/dog"], "val")


def test_other_classes_are_refused_by_servers(voc: Path, own: Path, run: Run) -> None:
    for name, work in (("coco-panoptic", voc), ("coco-panoptic", own), ("voc-server", own)):
        result = run("export", name, "--split", "test", work=work)
        assert result.code == 1
        assert result.lines("hint:") == [
            "vpltool export masks and vpltool export coco-rle take any classes"]
        assert not (work / "exports").exists()
    error, = result.lines("error:")
    assert "2 classes (bar, stop sign, …), the server knows 20 (aeroplane, bicycle, bird," in error


def test_own_classes_as_plain_masks(own: Path, run: Run) -> None:
    """Nothing but pixels in the PNGs; the class file is one that `prepare` takes."""
    path = exported(run, own, "masks")
    assert path == own / "exports/vision-val"
    assert sorted(file.relative_to(path).as_posix() for file in path.rglob("*.*")) == [
        "cat.png", "classes.txt", "palette.gpl", "sub/dog.png", "vpltool-export.json"]
    for key in ("cat", "sub/dog"):
        image = Image.open(path / f"{key}.png")
        assert (image.mode, image.info) == ("P", {})
        assert (np.asarray(image) == predicted(2)).all(), "255 stays 255"
        assert (image.getpalette() or [])[:9] == voc_palette()[:9]
    assert read_classes(path / "classes.txt") == ClassFile(("bar", "stop sign"), {})
    assert (path / "palette.gpl").read_text().splitlines() == [
        "GIMP Palette", "Name: vision", "#", "  0   0   0\tbackground", "128   0   0\tbar",
        "  0 128   0\tstop sign"]


def test_plain_masks_replace_an_export(own: Path, run: Run) -> None:
    path = exported(run, own, "masks")
    before = {file: file.read_bytes() for file in path.rglob("*.*")}
    assert exported(run, own, "masks") == path
    assert {file: file.read_bytes() for file in path.rglob("*.*")} == before
    # A label that is no class: the earlier export stays whole.
    Image.fromarray(np.full(SIZE, 3, np.uint8)).save(own / "predictions/vision/val/sub/dog.png")
    result = run("export", "masks", work=own)
    assert "the label 3, above the last class 2" in result.lines("error:")[0]
    assert {file: file.read_bytes() for file in path.rglob("*.*")} == before
    assert [file.name for file in path.parent.iterdir()] == ["vision-val"], "nothing half"


@pytest.mark.parametrize("change", [
    lambda path: (path / "mine.png").write_bytes(b"ten hours of work"),
    lambda path: (path / "sub/dog.png").write_bytes(b"painted"),
    lambda path: (path / "classes.txt").write_text("my notes")])
def test_masks_that_somebody_painted_are_not_replaced(change: Callable[[Path], object], own: Path,
                                                      run: Run) -> None:
    path = exported(run, own, "masks")
    change(path)
    before = {file: file.read_bytes() for file in path.rglob("*.*")}
    result = run("export", "masks", work=own)
    assert result.code == 1
    assert "vpltool" in result.lines("error:")[0] and "--out DIR" in result.lines("hint:")[0]
    assert {file: file.read_bytes() for file in path.rglob("*.*")} == before


@pytest.mark.parametrize("names", [["thesis.doc"], ["a.png"], ["classes.txt", "a.png"]])
def test_plain_masks_take_no_folder_of_others(names: list[str], own: Path, run: Run,
                                              tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in names:
        (mine / name).write_text("ten years of work")
    result = run("export", "masks", "--out", mine, work=own)
    assert result.code == 1
    assert "did not make" in result.lines("error:")[0]
    assert "--out DIR" in result.lines("hint:")[0]
    assert sorted(file.name for file in mine.iterdir()) == sorted(names)


def test_own_classes_as_run_lengths(own: Path, run: Run) -> None:
    """Numbered from 1; a second JSON says what the numbers mean, as pycocotools reads it."""
    mask = pytest.importorskip("pycocotools.mask")
    api = pytest.importorskip("pycocotools.coco")
    result = run("export", "coco-rle", work=own)
    assert result.code == 0, result.err
    regions, meaning = (Path(line) for line in result.out.splitlines())
    assert [path.name for path in (regions, meaning)] == [
        "vision-val-rle.json", "vision-val-rle-categories.json"]
    entries = json.loads(regions.read_text())
    assert [(entry["image_id"], entry["category_id"]) for entry in entries] == [
        (1, 1), (1, 2), (2, 1), (2, 2)]
    for entry in entries:
        inside = mask.decode(entry["segmentation"]).astype(bool)
        assert (inside == (predicted(2) == entry["category_id"])).all()
    truth = api.COCO(str(meaning))
    assert {entry["id"]: entry["name"] for entry in truth.dataset["categories"]} == {
        1: "bar", 2: "stop sign"}
    assert truth.imgs[2] == {"id": 2, "file_name": "sub/dog.png", "height": 12, "width": 9}
    assert len(truth.loadRes(str(regions)).getAnnIds(imgIds=[2], catIds=[2])) == 1


def test_photos_without_numbers(tmp_path: Path, run: Run) -> None:
    work = build(tmp_path, "coco", COCO.classes, ["holiday"], "val")
    result = run("export", "coco-panoptic", work=work)
    assert result.code == 1
    assert "photo holiday has no number" in result.lines("error:")[0]


def test_without_pycocotools(coco: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    result = run("export", "coco-rle", work=coco)
    assert result.code == 1
    assert result.lines("hint:") == ["pip install 'vpltool[coco]'"]
    exported(run, coco, "coco-panoptic")
