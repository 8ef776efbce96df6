"""What other programs read of an export is what was exported, read by those programs themselves.

pycocotools and mmsegmentation's rule run here. The others need packages that do not go with ours
(Label Studio's SDK takes another typer, Datumaro an older Pillow), so each runs in an environment
of its own: `make readers` makes them, and sets `VPLTOOL_READERS` to their folder.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from conftest import SHAPES, run_in_process
from drawn_masks import EXACT, KEEPS_IGNORED, Labels, draw_made, masks_of
from PIL import Image, ImageDraw

READERS = Path(__file__).parents[1] / "readers"
ENVIRONMENTS = os.environ.get("VPLTOOL_READERS", "")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_made(tmp_path_factory.mktemp("made"))


def exported(work: Path, form: str, *options: object) -> Path:
    exact = EXACT[form] if form in ("coco", "labelme", "yolo") else ()
    result = run_in_process("export", form, "--what", "drawn", "--split", "train", "--out",
                            work / "-".join(["out", form, *map(str, options)]), *options, *exact,
                            work=work)
    assert result.code == 0, result.err
    return Path(result.out.strip())


def wanted(work: Path, form: str) -> dict[str, Labels]:
    return {key.replace("/", "__"): labels if form in KEEPS_IGNORED
            else np.where(labels == 255, 0, labels)
            for key, labels in masks_of(work / "masks/drawn/train").items()}


def same_share(found: dict[str, npt.NDArray[np.uint8]], masks: dict[str, Labels]) -> float:
    """Share of all pixels that have the same label."""
    assert found.keys() == masks.keys()
    assert all(found[key].shape == labels.shape for key, labels in masks.items())
    same = sum(int((found[key] == labels).sum()) for key, labels in masks.items())
    return same / sum(labels.size for labels in masks.values())


@pytest.mark.parametrize("options", [(), ("--shape", "rle"), ("--shape", "polygon"),
                                     ("--parts", "joined")])
def test_coco_as_pycocotools_reads_it(options: tuple[str, ...], made: Path) -> None:
    api = pytest.importorskip("pycocotools.coco")
    path = exported(made, "coco", *options)
    truth = api.COCO(str(path / "annotations/instances_train.json"))
    found = {}
    for image in truth.imgs.values():
        with Image.open(path / "images/train" / image["file_name"]) as photo:
            assert photo.size == (image["width"], image["height"])
        canvas = np.zeros((image["height"], image["width"]), np.uint8)
        for entry in truth.loadAnns(truth.getAnnIds(imgIds=[image["id"]])):
            inside = truth.annToMask(entry).astype(bool)
            assert inside.sum() == entry["area"]
            assert not canvas[inside].any(), "instances do not overlap"
            canvas[inside] = entry["category_id"]
        found[Path(image["file_name"]).stem] = canvas
    assert same_share(found, wanted(made, "coco")) == 1


def test_mmsegmentation_by_its_rule(made: Path) -> None:
    """BaseSegDataset: all files with `img_suffix`, and the same name with `seg_map_suffix`."""
    path = exported(made, "mmseg")
    (call,) = [node.value for node in ast.parse((path / "dataset.py").read_text()).body
               if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
               and ast.unparse(node.targets[0]) == "train_dataset"]
    said = {word.arg: word.value for word in call.keywords}
    prefix = {str(word.arg): ast.literal_eval(word.value)
              for word in said["data_prefix"].keywords}  # type: ignore[attr-defined]
    suffix, other = (ast.literal_eval(said[name]) for name in ("img_suffix", "seg_map_suffix"))
    assert ast.literal_eval(said["reduce_zero_label"]) is False
    found = {}
    for photo in sorted((path / prefix["img_path"]).rglob(f"*{suffix}")):
        relative = photo.relative_to(path / prefix["img_path"]).as_posix()
        with Image.open(path / prefix["seg_map_path"] / relative.replace(suffix, other)) as image:
            assert image.mode == "L"
            found[photo.stem] = np.asarray(image)
    assert same_share(found, wanted(made, "mmseg")) == 1


def test_labelme_by_its_rule(made: Path) -> None:
    """labelme.utils.shape_to_mask: Pillow's polygon with its outline; later shapes are on top."""
    path = exported(made, "labelme")
    found = {}
    for file in path.glob("s*.json"):
        content = json.loads(file.read_text("utf-8"))
        with Image.open(path / content["imagePath"]) as photo:
            assert photo.size == (content["imageWidth"], content["imageHeight"])
            canvas = Image.new("L", photo.size)
        for shape in content["shapes"]:
            points = [tuple(point) for point in shape["points"]]
            assert shape["shape_type"] == "polygon" and len(points) > 2
            ImageDraw.Draw(canvas).polygon(points, fill=1 + SHAPES.index(shape["label"]),
                                           outline=1 + SHAPES.index(shape["label"]))
        found[file.stem] = np.asarray(canvas)
    assert same_share(found, wanted(made, "labelme")) == 1


OTHERS = [
    ("yolo", (), "ultralytics", ()),
    ("yolo-semantic", (), "ultralytics", ()),
    ("label-studio", (), "label-studio-sdk", ()),
    ("cvat", (), "datumaro", ("cvat",)),
    ("cvat", ("--shape", "polygon"), "datumaro", ("cvat",)),
    ("coco", (), "datumaro", ("coco",)),
    ("imagefolder", (), "datasets", ()),
]
"""Format, options of the export, the package that reads it, and words for its script."""


@pytest.mark.parametrize(("form", "options", "package", "words"), OTHERS)
def test_as_others_read_it(form: str, options: tuple[str, ...], package: str,
                           words: tuple[str, ...], made: Path, tmp_path: Path) -> None:
    python = Path(ENVIRONMENTS) / package / "bin/python"
    if not ENVIRONMENTS or not python.exists():
        pytest.skip(f"no environment with {package}: make readers")
    path = exported(made, form, *options)
    command = [python, READERS / f"{package.replace('-', '_')}_labels.py", *words, path,
               tmp_path / "found.npz"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "found.npz") as archive:
        found = dict(archive)
    assert same_share(found, wanted(made, form)) >= 0.999
