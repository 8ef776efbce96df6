"""Masks out to labelling tools and trainers, and back as corrections: the same pixels."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Result, Run, run_in_process
from drawn_masks import EXACT, FORMATS, KEEPS_IGNORED, draw_made, masks_of
from PIL import Image
from reference.small_regions import without_small_regions

from vpltool.engine.labelling import read_corrections
from vpltool.errors import VplError
from vpltool.formats import Header, open_workspace, read_labels, write_labels
from vpltool.pictures.colours import class_palette

pytest.importorskip("cv2")
pytest.importorskip("pycocotools")

@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_made(tmp_path_factory.mktemp("made"))


@pytest.fixture
def work(made: Path, tmp_path: Path) -> Path:
    """A copy of it, which a test may change."""
    shutil.copytree(made.parent, tmp_path / "base", symlinks=True)
    return tmp_path / "base/work"


@pytest.fixture(scope="module")
def exports(made: Path) -> Path:
    """Each format's export, without photos."""
    for form in FORMATS:
        result = run_in_process("export", form, "--what", "drawn", "--split", "train", "--photos",
                                "none", "--out", made / "each" / form,
                                *EXACT.get(form, ()), work=made)
        assert result.code == 0, result.err
    return made / "each"


def exported(run: Run, work: Path, form: str, *options: object) -> Path:
    result = run("export", form, "--what", "drawn", "--split", "train", *options, work=work)
    assert result.code == 0, result.err
    return Path(result.out.strip())


def take_back(work: Path, path: Path, *, edited: bool = True) -> Result:
    """Import an export, as if all of it were `edited`: no computed mask is like it."""
    if edited:
        (work / "masks").rename(work / "aside")
        (work / "exchanged.jsonl").unlink(missing_ok=True)
    try:
        return _take_back(work, path)
    finally:
        if edited:
            (work / "aside").rename(work / "masks")


def _take_back(work: Path, path: Path) -> Result:
    return run_in_process("prepare", "folder", work.parent / "photos", "--labels",
                          work.parent / "tags.csv", "--corrections", path, work=work)


@pytest.mark.parametrize("form", FORMATS)
def test_there_and_back(form: str, work: Path, run: Run) -> None:
    """Holes, islands, parts and single pixels: not one pixel is lost."""
    path = exported(run, work, form, *EXACT.get(form, ()))
    result = take_back(work, path)
    assert result.code == 0, result.err
    assert "6 corrected masks are imported, 6 in total" in result.err
    wanted, found = masks_of(work / "masks/drawn/train"), masks_of(work / "corrections")
    assert wanted.keys() == found.keys() and "sub/scene0" in found
    for key, labels in wanted.items():
        kept = labels if form in KEEPS_IGNORED else np.where(labels == 255, 0, labels)
        assert (found[key] == kept).all(), key


@pytest.mark.parametrize("form", FORMATS)
def test_photos_that_have_gone_since_are_skipped(form: str, made: Path, exports: Path) -> None:
    """Somebody may delete photos while others annotate; a file of other photos is refused."""
    workspace = replace(open_workspace(made), path=made.parent / "empty")
    photos = [photo for photo in open_workspace(made).photos() if photo.id != "scene2"]
    root = made / open_workspace(made).root
    with pytest.warns(UserWarning, match=r"1 photo of \S+ is not in the workspace, and skipped: "):
        found = read_corrections(workspace, photos, exports / form, root)
    assert len(found) == 5 and "scene2" not in found
    with pytest.raises(VplError, match="is not in the workspace"):
        read_corrections(workspace, [replace(photos[0], id="other", image="other.png")],
                         exports / form, root)


@pytest.mark.parametrize("form", FORMATS)
def test_what_nobody_edited_is_no_correction(form: str, work: Path, run: Run) -> None:
    """Nor does it replace one; but in Label Studio a person has submitted it."""
    corrected = work / "corrections/scene3.png"
    write_labels(corrected, np.zeros(read_labels(work / "masks/drawn/train/scene3.png").shape,
                                     np.uint8), Header(kind="corrections", command="prepare"))
    before = corrected.read_bytes()
    path = exported(run, work, form, "--no-corrections",
                    *(EXACT[form] if form == "label-studio" else ()))
    result = take_back(work, path, edited=False)
    if form == "label-studio":
        assert "6 corrected masks are imported, 1 in place of earlier ones, " in result.err
        return
    assert result.code == 1
    assert "no mask was changed since vpltool wrote it" in result.lines("error:")[0]
    assert corrected.read_bytes() == before


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "label-studio"])
def test_what_nobody_edited_is_known_when_masks_are_computed_anew(form: str, work: Path, run: Run
                                                                  ) -> None:
    """As after `update`; whatever was left out of the polygons."""
    rough = ("--tolerance", 1) if form in ("coco", "labelme", "yolo") else ()
    path = exported(run, work, form, *rough)
    (work / "masks").rename(work / "aside")
    result = _take_back(work, path)
    assert result.code == 1, result.err
    assert "no mask was changed since vpltool wrote it" in result.lines("error:")[0]


def test_an_older_export_does_not_replace_a_newer_correction(work: Path, run: Run) -> None:
    path = exported(run, work, "yolo")
    edited = path / "labels/train/scene2.txt"
    edited.write_text("0 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9\n")
    assert _take_back(work, path).code == 0
    newer = work.parent / "newer"
    newer.mkdir()
    labels = np.full(read_labels(work / "corrections/scene2.png").shape, 2, np.uint8)
    Image.fromarray(labels).save(newer / "scene2.png")
    assert _take_back(work, newer).code == 0
    for folder in (path, newer):
        result = _take_back(work, folder)
        assert result.code == 0, result.err
        assert "was imported before, and is skipped" in result.err
        assert (masks_of(work / "corrections")["scene2"] == 2).all()
    (work / "corrections/scene2.png").unlink()
    assert "1 corrected mask is imported" in _take_back(work, path).err


def test_as_it_was_exported_does_not_undo_a_correction_unsaid(work: Path, run: Run) -> None:
    path = exported(run, work, "mmseg")
    edited = path / "ann_dir/train/scene2.png"
    before = edited.read_bytes()
    Image.fromarray(np.full(read_labels(edited).shape, 1, np.uint8)).save(edited)
    assert _take_back(work, path).code == 0
    edited.write_bytes(before)
    result = _take_back(work, path)
    assert result.code == 1
    assert "is as it was exported, and its correction stays" in result.err


def test_an_export_of_a_workspace_that_cannot_be_written(work: Path, run: Run, tmp_path: Path
                                                         ) -> None:
    (work / "exchanged.jsonl").unlink(missing_ok=True)
    (work / "exchanged.jsonl").mkdir()
    result = run("export", "masks", "--what", "drawn", "--split", "train", "--out",
                 tmp_path / "out", work=work)
    assert result.code == 0, result.err
    assert "cannot remember this export" in result.lines("warning:")[0]


def test_what_somebody_edited_is_a_correction(work: Path, run: Run) -> None:
    path = exported(run, work, "yolo")
    (path / "labels/train/scene2.txt").write_text("0 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9\n")
    result = take_back(work, path, edited=False)
    assert result.code == 0, result.err
    assert "5 of 6 masks in" in result.err and "are unchanged, and are skipped" in result.err
    assert masks_of(work / "corrections").keys() == {"scene2"}


@pytest.mark.parametrize(("form", "options"), [
    ("coco", ("--shape", "rle")), ("coco", ("--shape", "polygon")), ("coco", ("--parts", "joined")),
    ("cvat", ("--shape", "polygon"))])
def test_other_shapes_lose_nothing(form: str, options: tuple[str, ...], work: Path, run: Run
                                   ) -> None:
    assert take_back(work, exported(run, work, form, *options, *EXACT.get(form, ()))).code == 0
    found = masks_of(work / "corrections")
    for key, labels in masks_of(work / "masks/drawn/train").items():
        assert (found[key] == np.where(labels == 255, 0, labels)).all(), key


def test_formats_without_255_say_so(work: Path, run: Run) -> None:
    result = run("export", "yolo", "--what", "drawn", work=work)
    assert result.lines("warning:") == [
        "6 of 6 photos have pixels of no known class (255); this format cannot express "
        "that: they become background"]
    assert not run("export", "mmseg", "--what", "drawn", work=work).lines("warning:")


def test_points_left_out_cost_little(work: Path, run: Run) -> None:
    exact, rough = (exported(run, work, "yolo", *EXACT["yolo"], "--tolerance", tolerance, "--out",
                             work / name) for tolerance, name in ((0, "exact"), (1, "rough")))
    sizes = [sum(len(file.read_bytes()) for file in path.rglob("*.txt"))
             for path in (exact, rough)]
    assert sizes[1] < 0.8 * sizes[0]
    assert take_back(work, rough).code == 0
    found, wanted = masks_of(work / "corrections"), masks_of(work / "masks/drawn/train")
    same = [(found[key] == np.where(wanted[key] == 255, 0, wanted[key])).mean() for key in wanted]
    assert 0.9 < min(same) < 1


@pytest.mark.parametrize("small", ["drop", "merge"])
def test_small_regions_go(small: str, work: Path, run: Run) -> None:
    path = exported(run, work, "mmseg", "--min-area", 4, "--small", small)
    before = masks_of(work / "masks/drawn/train")["sub/scene0"]
    after = read_labels(path / "ann_dir/train/sub__scene0.png")
    assert (after == without_small_regions(before, 4, merge=small == "merge")).all()
    assert (after != before).any()


def test_two_splits_in_one_folder(work: Path, run: Run) -> None:
    yaml = pytest.importorskip("yaml")
    for split in ("train", "val"):
        result = run("export", "yolo", "--what", "drawn", "--split", split, "--out", work / "both",
                     work=work)
        assert result.code == 0, result.err
    data = yaml.safe_load((work / "both/data.yaml").read_text())
    assert (data["train"], data["val"]) == ("images/train", "images/val")
    assert len(list((work / "both/labels").rglob("*.txt"))) == 8
    assert len(list((work / "both/images").rglob("*.*"))) == 8


def test_a_changed_export_is_not_overwritten(work: Path, run: Run) -> None:
    path = exported(run, work, "yolo")
    assert exported(run, work, "yolo") == path
    (path / "labels/train/scene2.txt").write_text("")
    result = run("export", "yolo", "--what", "drawn", work=work)
    assert result.code == 1
    assert "1 file in" in result.lines("error:")[0] and "scene2.txt" in result.lines("error:")[0]
    assert f"--corrections {path}" in result.lines("hint:")[0]
    (path / "labels/train/scene2.txt").unlink()
    (path / "notes.doc").write_text("mine")
    assert "did not make, such as notes.doc" in run(
        "export", "yolo", "--what", "drawn", work=work).lines("error:")[0]


def test_photos_in_the_suffixes_that_others_take(work: Path, run: Run) -> None:
    """Ultralytics knows BMP, and no GIF; mmsegmentation wants one suffix; sizes stay."""
    for name, suffix in (("scene2", "bmp"), ("scene3", "gif")):
        with Image.open(work.parent / f"photos/{name}.png") as image:
            image.convert("RGB").save(work.parent / f"photos/{name}.{suffix}")
        text = (work / "images.jsonl").read_text()
        (work / "images.jsonl").write_text(text.replace(f"{name}.png", f"{name}.{suffix}"))
    photos = exported(run, work, "yolo") / "images/train"
    assert sorted(file.suffix for file in photos.iterdir()) == [".bmp", *[".png"] * 5]
    photos = exported(run, work, "mmseg") / "img_dir/train"
    assert {file.suffix for file in photos.iterdir()} == {".png"}
    with Image.open(photos / "scene3.png") as image:
        assert image.size == (40, 48)


PAGE = (Path(__file__).parents[2] / "docs/labelling.md").read_text("utf-8")


def test_the_lines_of_the_page_run(work: Path, run: Run, exports: Path,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """With the drawn masks in place of its own."""
    monkeypatch.chdir(work)
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) >= 14
    shutil.copy(exports / "label-studio/tasks.json", work / "project-1-at-2026-11-22.json")
    for folder in ("photos", "tags.csv"):
        (work / folder).symlink_to(Path("..") / folder)
    for line in lines:
        words, here = shlex.split(line)[1:], work
        if words[0] == "-C":
            words, here = words[2:], work / words[1]
        if words[0] == "export":
            words = [*re.sub(r" --what \S+", "", " ".join(words)).split(), "--what", "drawn"]
        # Somebody edits a file before it is imported.
        edited = {file: file.read_bytes() for file in [*(work / "exports/yolo").rglob("*.txt")][:1]
                  if "--corrections" in words}
        for file in edited:
            file.write_text("0 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9\n")
        result = run(*words, work=here)
        assert result.code == 0, f"{line}: {result.err}"
        for file, content in edited.items():
            file.write_bytes(content)


def test_without_photos(work: Path, run: Run) -> None:
    path = exported(run, work, "cvat", "--photos", "none")
    assert sorted(file.name for file in path.iterdir()) == ["annotations.xml",
                                                            "vpltool-export.json"]


# What comes back wrong is named, and nothing is written.

Change = Callable[[Path], None]


def replaced(name: str, old: str, new: str) -> Change:
    def change(path: Path) -> None:
        file = path / name
        text = file.read_text("utf-8")
        assert re.search(old, text)
        file.write_text(re.sub(old, new, text, count=1), "utf-8")
    return change


def resized(name: str) -> Change:
    return lambda path: Image.fromarray(np.zeros((5, 4), np.uint8)).save(path / name)


LINE = "labels/train/scene2.txt"
WRONG: list[tuple[str, Change, str]] = [
    ("yolo", replaced("data.yaml", "bar", "bat"), "data.yaml: `bat` is not a class"),
    ("yolo", replaced("data.yaml", "names:", "names: ["), "data.yaml:5: not YAML"),
    ("yolo", replaced(LINE, r"^\d", "9"), "scene2.txt:1: the class 9 is not in data.yaml"),
    ("yolo", replaced(LINE, r"\n(\d) ", r"\n\1 x "), "scene2.txt:2: not a polygon"),
    ("yolo", replaced(LINE, r"^.*", "0 .5 .5 .1 .1"), "scene2.txt:1: 4 numbers after the class "),
    ("yolo", replaced(LINE, r"^(\d) ", r"\1 nan "), "scene2.txt:1"),
    ("coco", replaced("annotations/instances_train.json", '"bar"', '"bat"'),
     "instances_train.json: `bat` is not a class"),
    ("coco", replaced("annotations/instances_train.json", '"height": ', '"height": 9'),
     "instances_train.json: image 1: 9"),
    ("coco", replaced("annotations/instances_train.json", '"images"', '\n"images" x'),
     "instances_train.json:2: not JSON"),
    ("coco", replaced("annotations/instances_train.json", '"segmentation"', '"segments"'),
     "annotation 1: its segmentation cannot be read"),
    ("coco", replaced("annotations/instances_train.json", '"file_name"', '"file"'),
     "an entry lacks 'file_name'"),
    ("coco", replaced("annotations/instances_train.json", '"image_id": 1', '"image_id": 77'),
     "annotation 1 belongs to image 77"),
    ("label-studio", replaced("tasks.json", '"bar"|"box"|"disc"', '"bat"'),
     "tasks.json: task 1: `bat` is not a class"),
    ("label-studio", replaced("tasks.json", '"original_height": ', '"original_height": 9'),
     "tasks.json: task 1: 9"),
    ("label-studio", replaced("tasks.json", '"rle": \\[', '"rle": [1, '),
     "tasks.json: task 1: the run lengths"),
    ("label-studio", replaced("tasks.json", "}", ""), "tasks.json:1: not JSON"),
    ("cvat", replaced("annotations.xml", 'label="[a-z]*"', 'label="bat"'),
     "annotations.xml:6: `bat` is not a class"),
    ("cvat", replaced("annotations.xml", "</image>", "</imago>"), "not XML (mismatched tag"),
    ("cvat", replaced("annotations.xml", 'rle="', 'rle="9999, '),
     "annotations.xml:6: the mask cannot be read"),
    ("cvat", replaced("annotations.xml", r"width=\"\d+", 'width="7'), "annotations.xml:5: "),
    ("cvat", replaced("annotations.xml", "<annotations>",
                      '<!DOCTYPE a [<!ENTITY b "c">]><annotations>'),
     "annotations.xml:2: a document type"),
    ("mmseg", resized("ann_dir/train/scene2.png"), "scene2.png: 5×4 (height×width), its photo"),
    ("mmseg", replaced("dataset.py", "'bar'", "'bat'"), "dataset.py: `bat` is not a class"),
    ("mmseg", replaced("dataset.py", "'bar',", "'bar' +"), "dataset.py:4: `classes` is not a list"),
    ("yolo-semantic", resized("masks/train/scene2.png"), "scene2.png: 5×4"),
    ("yolo-semantic", replaced("data.yaml", r"  3: .*\n", ""),
     "has the value 3, which is not a class"),
    ("imagefolder", replaced("train/metadata.jsonl", "\n{", "\n"), "metadata.jsonl:2: not JSON"),
    ("imagefolder", replaced("train/metadata.jsonl", "mask_file_name", "mask"),
     "metadata.jsonl:1: it has no `mask_file_name`"),
    ("labelme", replaced("scene2.json", '"(bar|box|disc)"', '"bat"'),
     "scene2.json: shape 1: `bat` is not a class"),
    ("labelme", replaced("scene2.json", '"imageHeight": ', '"imageHeight": 9'),
     "scene2.json: 9"),
    ("labelme", replaced("scene2.json", '"polygon"', '"line"'),
     "scene2.json: shape 1: a line has no region"),
    ("labelme", replaced("scene2.json", '"polygon"', '"mask"'),
     "scene2.json: shape 1: the mask cannot be read"),
    ("labelme", replaced("scene2.json", '"points": \\[\\[', '"points": [[1e30, 1], ['),
     "shape 1: the polygon cannot be read (its points are not"),
    ("labelme", replaced("scene2.json", '"imagePath"', '"path"'),
     "scene2.json is not as LabelMe writes it (KeyError('imagePath'))"),
    ("labelme", replaced("scene2.json", "}", ""), "scene2.json:"),
]


@pytest.mark.parametrize(("form", "change", "said"), WRONG,
                         ids=[f"{form}-{number}" for number, (form, _, _) in enumerate(WRONG)])
def test_what_is_wrong_is_named(form: str, change: Change, said: str, made: Path, exports: Path,
                                tmp_path: Path) -> None:
    shutil.copytree(exports / form, tmp_path / form)
    change(tmp_path / form)
    workspace = open_workspace(made)
    with pytest.raises(VplError, match=re.escape(said)) as caught:
        read_corrections(workspace, workspace.photos(), tmp_path / form, made / workspace.root)
    assert str(tmp_path) in caught.value.message
    assert caught.value.hint


def test_nothing_is_written_if_something_is_wrong(work: Path, exports: Path, tmp_path: Path
                                                  ) -> None:
    shutil.copytree(exports / "yolo", tmp_path / "yolo")
    (tmp_path / "yolo/labels/train/scene5.txt").write_text("0 oh\n")
    before = (work / "workspace.json").read_bytes(), (work / "images.jsonl").read_bytes()
    result = take_back(work, tmp_path / "yolo")
    assert result.code == 1
    assert "scene5.txt:1: not a polygon" in result.lines("error:")[0]
    assert not (work / "corrections").exists()
    assert before == ((work / "workspace.json").read_bytes(),
                      (work / "images.jsonl").read_bytes())


def test_unknown_formats_and_missing_files(work: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("x")
    for name, said in (("none.json", "does not exist"),
                       ("thesis.doc", "in no known format")):
        result = take_back(work, tmp_path / name)
        assert result.code == 1
        assert said in result.lines("error:")[0]


def test_label_studio_as_it_comes_back(work: Path, run: Run) -> None:
    """Only what was submitted; the newest annotation; photos by their address; polygons."""
    path = exported(run, work, "label-studio")
    tasks = json.loads((path / "tasks.json").read_text())
    assert "holds no region of any photo" in take_back(work, path).lines("error:")[0]
    strokes = tasks[2]["predictions"][0]["result"]
    square = {"type": "polygonlabels", "original_width": strokes[0]["original_width"],
              "original_height": strokes[0]["original_height"],
              "value": {"points": [[0, 0], [50, 0], [50, 50], [0, 50]], "polygonlabels": ["disc"]}}
    tasks[2]["data"] = {"image": "/data/upload/1/0a1b2c3d-scene2.png"}
    tasks[2]["annotations"] = [
        {"result": [], "updated_at": "2026-01-01T00:00:00Z"},
        {"result": [square], "updated_at": "2026-01-02T00:00:00Z"},
        {"result": strokes, "updated_at": "2026-01-03T00:00:00Z", "was_cancelled": True}]
    back = path.parent / "project-1.json"
    back.write_text(json.dumps(tasks))
    result = take_back(work, back)
    assert result.code == 0, result.err
    ((name, labels),) = masks_of(work / "corrections").items()
    height, width = labels.shape
    assert name == "scene2"
    assert (labels[: height // 2, : width // 2] == 3).all()
    assert not labels[height // 2 :].any() and not labels[:, width // 2 :].any()


def test_what_nobody_has_submitted_does_not_count(work: Path, run: Run) -> None:
    result = take_back(work, exported(run, work, "label-studio"))
    assert result.code == 1
    assert "holds no region of any photo" in result.lines("error:")[0]
    assert "submit the annotations in Label Studio" in result.lines("hint:")[0]


@pytest.mark.parametrize(("form", "file"), [("label-studio", "config.xml"),
                                            ("cvat", "annotations.xml")])
def test_classes_have_the_colours_of_pictures(form: str, file: str, exports: Path) -> None:
    """Seen over photos: VOC's first colours are dark."""
    text = (exports / form / file).read_text()
    wanted = [f"#{bytes(class_palette()[3 * index:3 * index + 3]).hex()}" for index in (1, 2, 3)]
    assert re.findall("#[0-9a-f]{6}", text) == wanted


def test_shapes_of_labelme_and_x_anylabeling(made: Path, exports: Path, tmp_path: Path) -> None:
    """Rectangles of two points and of four, circles, masks; photos by a path of Windows."""
    part = io.BytesIO()
    Image.fromarray(np.array([[255, 0], [0, 255]], np.uint8)).save(part, format="PNG")
    shapes = [{"label": "disc", "points": [[20, 20], [20, 24]], "shape_type": "circle"},
              {"label": "box", "points": [[8.5, 6], [2, 3]], "shape_type": "rectangle"},
              {"label": "bar", "points": [[2, 9], [8, 9], [8, 12], [2, 12]],
               "shape_type": "rectangle"},
              {"label": "bar", "points": [[20, 20], [21, 21]], "shape_type": "mask",
               "mask": base64.b64encode(part.getvalue()).decode()},
              {"label": "background", "points": [[2, 3], [3, 3], [3, 4], [2, 4]],
               "shape_type": None}]
    (tmp_path / "scene2.json").write_text(json.dumps(
        {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": "..\\photos\\scene2.png",
         "imageData": None}))
    workspace = open_workspace(made)
    for path in (tmp_path, tmp_path / "scene2.json"):
        ((key, labels),) = read_corrections(workspace, workspace.photos(), path,
                                            made / workspace.root).items()
        wanted = np.zeros(labels().shape, np.uint8)
        rows, columns = np.ogrid[: wanted.shape[0], : wanted.shape[1]]
        wanted[np.hypot(rows - 20, columns - 20) <= 4] = 3
        wanted[3:7, 2:9], wanted[9:13, 2:9] = 2, 1
        wanted[20, 20] = wanted[21, 21] = 1
        wanted[3:5, 2:4] = 0
        assert key == "scene2" and (labels() == wanted).all()


def test_cvat_as_a_zip_and_in_its_order(work: Path, run: Run, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "back.zip", "w") as archive:
        archive.writestr("annotations.xml", """<annotations><version>1.1</version>
<image id="0" name="sub/scene0.png" width="48" height="40">
<box label="bar" xtl="0" ytl="0" xbr="8" ybr="8" z_order="1"></box>
<polygon label="disc" points="4,0;12,0;12,8;4,8" z_order="0"></polygon>
</image></annotations>""")
    result = take_back(work, tmp_path / "back.zip")
    assert result.code == 0, result.err
    labels = masks_of(work / "corrections")["sub/scene0"]
    assert (labels[:8, :8] == 1).all() and (labels[:8, 8:12] == 3).all()
    assert int((labels > 0).sum()) == 96


def test_photos_that_nobody_looked_at_are_left_out(work: Path, run: Run) -> None:
    path = exported(run, work, "yolo")
    (path / "labels/train/scene2.txt").write_text("")
    result = take_back(work, path)
    assert result.code == 0
    assert "1 photo has tags, but no region, and is skipped" in " ".join(result.lines("warning:"))
    assert "scene2" not in masks_of(work / "corrections")


@pytest.mark.parametrize("form", FORMATS)
def test_formats_without_255_take_the_full_masks(form: str, copied: Path, run: Run) -> None:
    result = run("export", form, "--split", "train", "--photos", "none", work=copied / "work")
    assert result.code == 0, result.err
    assert not result.lines("warning:")
    name = Path(result.out.strip()).name
    assert name.startswith("text-refined-train" if form in KEEPS_IGNORED else
                           "text-refined-full-train")
