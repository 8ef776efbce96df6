"""Exports with photos: those that cannot be read, copies that were edited, new ones, metadata."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Run, run_in_process
from drawn_masks import EXACT, FORMATS, draw_labels, draw_made, hide_secrets, masks_of
from PIL import Image

from vpltool.core.photos import photo_size, read_photo
from vpltool.formats import Header, open_output, open_workspace, read_labels, write_labels
from vpltool.methods.labels import find_reader

pytest.importorskip("cv2")
pytest.importorskip("pycocotools")
yaml = pytest.importorskip("yaml")

OWNER = "alice-secret"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_made(tmp_path_factory.mktemp("made"))


@pytest.fixture
def work(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made.parent, tmp_path / OWNER)
    return tmp_path / OWNER / "work"


def exported(run: Run, work: Path, form: str, *options: object) -> Path:
    result = run("export", form, "--what", "drawn", "--split", "train", *options, work=work)
    assert result.code == 0, result.err
    return Path(result.out.splitlines()[0])


def predict_by_hand(work: Path, split: str, keys: list[str], images: str = "") -> None:
    """Predictions as `predict` writes them, of a split or of a folder of photos."""
    workspace = open_workspace(work)
    output = open_output(work / "predictions/segmenter" / split, Header(
        kind="predictions", command="predict", options={"split": split},
        inputs={"classes": workspace.classes_identity},
        sources={"images": images} if images else {}), keys)
    output.begin()
    root = work / (images or workspace.root)
    for seed, key in enumerate(keys):
        path = next(root.glob(f"{key}.*"))
        output.write_labels(key, draw_labels(*photo_size(path), seed))
    output.finish()


# One photo that cannot be read.

@pytest.mark.parametrize("form", [*FORMATS, "masks", "coco-rle"])
@pytest.mark.parametrize("how", ["failed before", "torn now"])
def test_one_bad_photo_blocks_no_export(how: str, form: str, work: Path, run: Run) -> None:
    if how == "torn now":
        (work.parent / "photos/scene2.png").write_bytes(b"\x89PNG")
    else:
        manifest = work / "masks/drawn/train/artifact.json"
        content = json.loads(manifest.read_text())
        manifest.write_text(json.dumps(content | {"failed": {"scene2": "scene2.png: torn"}}))
        (manifest.parent / "scene2.png").unlink()
    result = run("export", form, "--what", "drawn", "--split", "train", work=work)
    assert result.code == 1
    assert "1 of 6 photos cannot be exported: scene2.png: " in result.lines("error:")[0]
    assert "fix them, and run vpltool" in result.lines("hint:")[0]
    path = Path(result.out.splitlines()[0])
    text = "\n".join(str(file) for file in path.rglob("*")) + (
        path.read_text() if path.is_file() else "")
    assert path.exists() and "scene2" not in text


def test_a_photo_without_a_mask_is_no_photo_that_failed(work: Path, run: Run) -> None:
    """Something is not finished then, and the hint finishes it."""
    (work / "masks/drawn/train/scene2.png").unlink()
    result = run("export", "yolo", "--what", "drawn", work=work)
    assert result.code == 1
    assert "1 of 6 photos of `train` has no prediction" in result.lines("error:")[0]
    assert not (work / "exports").exists()


# Corrections.

def test_corrections_lie_over_what_is_exported(work: Path, run: Run) -> None:
    labels = np.zeros_like(read_labels(work / "masks/drawn/train/scene2.png"))
    labels[4:20, 4:20] = 1
    header = Header(kind="corrections", command="prepare",
                    facts={"classes": ["bar", "box", "disc"]})
    write_labels(work / "corrections/scene2.png", labels, header)
    for form, file in (("mmseg", "ann_dir/train/scene2.png"), ("masks", "scene2.png")):
        result = run("export", form, "--what", "drawn", "--split", "train", work=work)
        assert result.code == 0, result.err
        assert "1 corrected mask takes the place of computed ones" in result.err
        assert (read_labels(Path(result.out.strip()) / file) == labels).all()
        computed = exported(run, work, form, "--no-corrections", "--out", work / f"computed-{form}")
        assert (read_labels(computed / file)
                == read_labels(work / "masks/drawn/train/scene2.png")).all()


# New photos.

@pytest.mark.parametrize("form", [*FORMATS, "masks", "coco-rle"])
@pytest.mark.parametrize("call", [("--what", "predictions/segmenter/new"),
                                  ("--what", "segmenter", "--split", "new")])
def test_predictions_of_new_photos_are_exported(call: tuple[str, ...], form: str, work: Path,
                                                run: Run) -> None:
    new = work.parent / "new"
    new.mkdir()
    for number in range(2):
        shutil.copy(work.parent / "photos/scene3.png", new / f"fresh{number}.png")
    predict_by_hand(work, "new", ["fresh0", "fresh1"], "../new")
    result = run("export", form, *call, work=work)
    assert result.code == 0, result.err
    path = Path(result.out.splitlines()[0])
    assert path.name.startswith("segmenter-new")
    if form in FORMATS:
        assert find_reader(path) is not None
        assert len([file for file in path.rglob("fresh*.png") if "photo" not in file.parts]) >= 2
    assert str(work.parent) not in "".join(
        file.read_text() for file in [path, *path.rglob("*")] if file.suffix in (".json", ".xml"))


# Polygons.

def points_of_yolo(path: Path) -> Iterator[set[tuple[str, str]]]:
    for file in path.rglob("*.txt"):
        for line in file.read_text().splitlines():
            words = line.split()[1:]
            yield set(zip(words[::2], words[1::2], strict=True))


def points_of_coco(path: Path) -> Iterator[set[tuple[float, float]]]:
    for entry in json.loads(next(path.rglob("instances_*.json")).read_text())["annotations"]:
        if isinstance(entry["segmentation"], list):
            for polygon in entry["segmentation"]:
                yield set(zip(polygon[::2], polygon[1::2], strict=True))


@pytest.mark.parametrize("options", [(), ("--min-area", 0), ("--min-area", 0, "--tolerance", 2)])
def test_no_polygon_is_degenerate(options: tuple[object, ...], work: Path, run: Run) -> None:
    for points in (points_of_yolo(exported(run, work, "yolo", *options)),
                   points_of_coco(exported(run, work, "coco", "--shape", "polygon", *options))):
        sizes = [len(polygon) for polygon in points]
        assert len(sizes) > 10
        assert min(sizes) >= 3


@pytest.mark.parametrize("form", ["yolo", "coco"])
def test_specks_are_merged_unless_that_is_turned_off(form: str, work: Path, run: Run) -> None:
    count = {"yolo": points_of_yolo, "coco": points_of_coco}[form]
    few, all_of_them = (len(list(count(exported(run, work, form, *options, "--out", work / name))))
                        for options, name in (((), "few"), (EXACT[form], "all")))
    assert 0 < few < all_of_them / 3


def test_data_yaml_of_one_split_says_so(work: Path, run: Run) -> None:
    path = exported(run, work, "yolo")
    assert "# Ultralytics wants `val`, and there is only one split" in (
        path / "data.yaml").read_text()
    assert yaml.safe_load((path / "data.yaml").read_text())["val"] == "images/train"
    exported(run, work, "yolo", "--split", "val", "--out", path)
    assert "#" not in (path / "data.yaml").read_text()


# Edited copies.

def test_an_edited_copy_of_a_photo_is_not_replaced(work: Path, run: Run) -> None:
    path = exported(run, work, "coco")
    copy = path / "images/train/scene2.png"
    Image.new("RGB", (4, 4)).save(copy)
    before = copy.read_bytes()
    result = run("export", "coco", "--what", "drawn", "--split", "train", work=work)
    assert result.code == 1
    assert "1 file in" in result.lines("error:")[0] and "scene2.png" in result.lines("error:")[0]
    assert copy.read_bytes() == before


def test_a_mask_in_a_review_that_was_only_saved_again_is_replaced(work: Path, run: Run) -> None:
    predict_by_hand(work, "train", [photo.id for photo in open_workspace(work).photos("train")])
    review = ("export", "review", "--what", "predictions/segmenter", "--by", "random")
    mask = Path(run(*review, work=work).out.strip()) / "masks/scene2.png"
    with Image.open(mask) as image:
        image.load()
    before = mask.read_bytes()
    image.save(mask, compress_level=0)
    result = run(*review, work=work)
    assert result.code == 0, result.err
    assert mask.read_bytes() == before
    # Also where the workspace has computed others since.
    image.save(mask, compress_level=0)
    shutil.rmtree(work / "predictions")
    predict_by_hand(work, "train", [
        photo.id for photo in open_workspace(work).photos("train")][::-1])
    result = run(*review, work=work)
    assert result.code == 0, result.err


def test_an_edited_copy_in_a_review_is_not_replaced(work: Path, run: Run) -> None:
    predict_by_hand(work, "train", [photo.id for photo in open_workspace(work).photos("train")])
    review = ("export", "review", "--what", "predictions/segmenter", "--by", "random")
    path = Path(run(*review, work=work).out.strip())
    assert run(*review, work=work).code == 0
    Image.new("RGB", (4, 4)).save(path / "photos/scene2.png")
    result = run(*review, work=work)
    assert result.code == 1
    (error,) = result.lines("error:")
    assert "was changed since vpltool wrote it, such as photos/scene2.png" in error


# Photos that lie on their side, and have places and owners.

def test_copies_look_as_the_photos_do(work: Path, run: Run) -> None:
    hide_secrets(work)
    folder = exported(run, work, "imagefolder") / "train/images"
    workspace = open_workspace(work)
    for photo in workspace.photos("train"):
        copy, = folder.glob(f"{photo.id.replace('/', '__')}.*")
        assert (read_photo(copy) == read_photo(workspace.image_path(photo))).all(), copy.name


def test_a_round_trip_with_turned_photos(work: Path, run: Run) -> None:
    hide_secrets(work)
    path = exported(run, work, "yolo", *EXACT["yolo"])
    taken = run_in_process("prepare", "labelled", path, "--corrections", path,
                           work=work.parent / "again")
    assert taken.code == 0, taken.err
    found = masks_of(work.parent / "again/corrections")
    for key, labels in masks_of(work / "masks/drawn/train").items():
        assert (found[key.replace("/", "__")] == np.where(labels == 255, 0, labels)).all()
