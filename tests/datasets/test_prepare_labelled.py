"""A workspace that begins with a labelled set: what went out comes in again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Run, draw_scenes, prepare, write_scenes
from PIL import Image

from vpltool.formats import Header, open_output, read_labels, write_labels
from vpltool.formats.workspace import open_workspace, read_images

pytest.importorskip("cv2")
pytest.importorskip("pycocotools")
pytest.importorskip("yaml")

BOTH = ("yolo", "yolo-semantic", "coco", "mmseg", "imagefolder")
"""Formats that hold several splits."""
TRUE = {scene.id: scene for scene in draw_scenes()}


@pytest.fixture(scope="module")
def sets(run: Run, tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    """The masks of the drawn scenes in every format, in DIR/FORMAT."""
    base = tmp_path_factory.mktemp("sets")
    (base / "clip").symlink_to(tiny_clip)
    write_scenes(base, list(TRUE.values()))
    assert prepare(base).code == 0
    workspace = open_workspace(base / "work")
    for split in ("train", "val"):
        ids = [key for key, scene in TRUE.items() if scene.split == split]
        header = Header(kind="masks", command="crf", options={"split": split},
                        inputs={"classes": workspace.classes_identity})
        output = open_output(workspace.path / "masks/drawn" / split, header, ids)
        output.begin()
        for key in ids:
            write_labels(output.path_of(key), TRUE[key].mask, header)
        output.finish()
    for name in (*BOTH, "cvat", "label-studio"):
        submitted = ("--kind", "annotations") if name == "label-studio" else ()
        for split in ("train", "val") if name in BOTH else ("train",):
            result = run("export", name, "--what", "masks/drawn", "--split", split, "--out",
                         base / "sets" / name, *submitted, work=base / "work")
            assert result.code == 0, result.err
    return base / "sets"


def begin(run: Run, path: Path, work: Path, clip: Path, *options: object) -> list[str]:
    result = run("prepare", "labelled", path, "--pretrained", clip, *options, work=work)
    assert result.code == 0, result.err
    return result.lines("warning:")


@pytest.mark.parametrize("name", [*BOTH, "cvat", "label-studio"])
def test_tags_and_true_masks_are_those_that_went_out(name: str, sets: Path, run: Run,
                                                     tmp_path: Path, tiny_clip: Path) -> None:
    work = tmp_path / "work"
    begin(run, sets / name, work, tiny_clip)
    classes = open_workspace(work).classes
    photos = {photo.id: photo for photo in read_images(work / "images.jsonl")}
    assert photos.keys() == {key for key, scene in TRUE.items()
                             if name in BOTH or scene.split == "train"}
    for key, photo in photos.items():
        assert set(photo.tags) == set(TRUE[key].tags)
        assert photo.splits == (TRUE[key].split,)
        assert (photo.mask is not None) == (TRUE[key].split == "val")
        if photo.mask:
            labels = read_labels(work / "ground-truth/val" / f"{key}.png")
            names = np.array(["background", *classes])[labels]
            wanted = np.array(["background", "bar", "box", "disc"])[TRUE[key].mask]
            assert (names == wanted).mean() > 0.999


def test_a_workspace_like_any_other(sets: Path, run: Run, tmp_path: Path, tiny_clip: Path) -> None:
    """Its masks of train teach where they are given as corrections; a second call changes nothing.
    """
    work = tmp_path / "work"
    begin(run, sets / "yolo", work, tiny_clip)
    before = (work / "images.jsonl").read_bytes()
    begin(run, sets / "yolo", work, tiny_clip, "--corrections", sets / "yolo")
    assert (work / "images.jsonl").read_bytes() == before
    assert len(list((work / "corrections").glob("*.png"))) == len(TRUE)
    for line in (("text-prototypes", "--prompts", "single"), ("extract", "--split", "val"),
                 ("cam", "--split", "val"), ("eval", "--what", "cams/text", "--split", "val")):
        result = run(*line, work=work)
        assert result.code == 0, result.err
    assert "mIoU" in result.out


def test_photos_may_lie_elsewhere(sets: Path, run: Run, tmp_path: Path, tiny_clip: Path) -> None:
    exported = sets / "label-studio"
    begin(run, exported / "tasks.json", tmp_path / "work", tiny_clip, "--images",
          exported / "images", "--hold-out", 3)
    photos = read_images(tmp_path / "work/images.jsonl")
    held = [photo for photo in photos if photo.splits == ("val",)]
    assert len(held) == 2
    assert all(photo.mask for photo in held)


def test_tasks_that_nobody_has_submitted_are_no_set(sets: Path, run: Run, tmp_path: Path,
                                                    tiny_clip: Path) -> None:
    shutil.copytree(sets / "label-studio", tmp_path / "tasks")
    file = tmp_path / "tasks/tasks.json"
    file.write_text(file.read_text().replace('"annotations"', '"predictions"'))
    result = run("prepare", "labelled", tmp_path / "tasks", "--pretrained", tiny_clip,
                 work=tmp_path / "work")
    assert result.code == 1
    assert "holds no region of any photo" in result.lines("error:")[0]
    assert "submit the annotations in Label Studio" in result.lines("hint:")[0]


def test_what_cannot_be_taken_is_named(sets: Path, run: Run, tmp_path: Path, tiny_clip: Path
                                       ) -> None:
    for folder in ("train", "val"):
        (tmp_path / "two/images" / folder).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "two/images" / folder / "same.jpg")
    (tmp_path / "two/data.yaml").write_text("names: {0: bar}\n")
    (tmp_path / "two/labels").mkdir()
    (tmp_path / "two/labels/same.txt").write_text("0 0.1 0.1 0.9 0.1 0.9 0.9\n")
    (tmp_path / "empty").mkdir()
    for path, said in ((tmp_path / "two", "would both be the photo same"),
                       (tmp_path / "empty", "is in no known format"),
                       (tmp_path / "absent", "does not exist")):
        result = run("prepare", "labelled", path, "--pretrained", tiny_clip,
                     work=tmp_path / "work")
        assert result.code == 1
        assert said in result.lines("error:")[0]
        assert not (tmp_path / "work/workspace.json").exists()
