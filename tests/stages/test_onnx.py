"""An ONNX file says what torch says, at any size, and says how it wants to be asked."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHAPES, TRAIN, Run, copy_workspace, run_chain
from PIL import ExifTags, Image
from reference.small_regions import without_small_regions

from vpltool import Segmenter
from vpltool.engine.segmenters import open_segmenter
from vpltool.formats import open_workspace
from vpltool.methods.inputs import TrainedSegmenter

ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")

PATCH = 8


@pytest.fixture(scope="module")
def work(layered: Path, tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    """As `layered`, with an attention decoder that reads patches too, and a linear segmenter."""
    base = copy_workspace(layered, tmp_path_factory.mktemp("onnx") / "base", tiny_clip)
    run_chain(base, ((*TRAIN, "--name", "attention", "--residual"), (
        "train-decoder", "--masks", "text-refined", "--prototypes", "text", "--method", "linear",
        "--lambda-rsc", 0, "--iters", 40, "--crop", 3, "--name", "linear"),
        *(("export", "onnx", "--what", name, "--max-side", 40)
          for name in ("attention", "linear"))))
    return base


def session(path: Path) -> Any:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def trained(work: Path, name: str) -> TrainedSegmenter:
    """A decoder of the workspace with its encoder."""
    return open_segmenter(work / f"work/decoder/{name}.safetensors").trained(
        open_workspace(work / "work"), torch.device("cpu"))


def torch_says(segmenter: TrainedSegmenter, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits (1, classes, 4h, 4w), and labels at the size of the pixels, by other calls."""
    from vpltool.core.segment import labels_of, logits_of

    seen = segmenter.encoder.vision(
        torch.from_numpy(pixels), attention=False, layers=segmenter.network.layers,
        patches="block" if segmenter.network.reads_patches else "none")
    grid = (pixels.shape[2] // PATCH, pixels.shape[3] // PATCH)
    logits = logits_of(segmenter.network, seen.layers, seen.patches, grid)
    return logits.numpy(), labels_of(logits.softmax(1)[0], (pixels.shape[2], pixels.shape[3]))


@pytest.mark.parametrize("name", ["attention", "linear"])
def test_logits_and_labels_are_torch_s(name: str, work: Path) -> None:
    """Also on the tower's own grid, 4×4, where positions are not resampled, and on one patch."""
    run_onnx = session(work / f"work/exports/{name}.onnx")
    segmenter = trained(work, name)
    same = total = 0
    for grid in ((5, 6), (4, 4), (1, 1), (2, 9), (13, 3)):
        pixels = np.random.default_rng(grid[0]).standard_normal(
            (1, 3, grid[0] * PATCH, grid[1] * PATCH)).astype(np.float32)
        logits, labels = run_onnx.run(None, {"pixels": pixels})
        wanted, wanted_labels = torch_says(segmenter, pixels)
        assert logits.shape == wanted.shape == (1, 4, 4 * grid[0], 4 * grid[1])
        assert np.abs(logits - wanted).max() < 1e-3
        assert labels.dtype == np.uint8
        assert labels.shape == (1, *pixels.shape[2:])
        same, total = same + (labels[0] == wanted_labels).sum(), total + labels.size
    assert same / total > 0.999


@pytest.mark.parametrize("name", ["attention", "linear"])
def test_it_holds_no_absolute_path(name: str, work: Path) -> None:
    """Neither of the workspace nor of the code that torch has followed."""
    content = (work / f"work/exports/{name}.onnx").read_bytes()
    for place in ("pytest-of", str(Path.home()) + "/", str(Path(torch.__file__).parent),
                  str(Path(__file__).parents[2])):
        assert place.encode() not in content, place


def as_the_metadata_says(photo: Image.Image, said: dict[str, Any]) -> np.ndarray:
    """What someone writes who has only the file: `resize`, then mean and std."""
    shrink = min(1, said["max_side"] / max(photo.size))
    patch = said["patch"]
    size = [int(np.ceil((side * shrink - 1e-6) / patch)) * patch for side in photo.size]
    rgb = np.asarray(photo.convert("RGB").resize(size, Image.Resampling.BICUBIC)) / 255
    return ((rgb - said["mean"]) / said["std"]).transpose(2, 0, 1)[None].astype(np.float32)


@pytest.mark.parametrize("name", ["attention", "linear"])
def test_by_its_metadata_alone_it_gives_predict_s_labels(name: str, work: Path, run: Run,
                                                         tmp_path: Path) -> None:
    """Likeliest class of the probabilities, enlarged to the photo, against the PNGs of predict."""
    path = work / f"work/exports/{name}.onnx"
    runs = session(path)
    said = {key: json.loads(value)
            for key, value in runs.get_modelmeta().custom_metadata_map.items()}
    assert said["classes"] == ["background", *SHAPES]
    assert said["palette"][:2] == [[0, 0, 0], [128, 0, 0]]
    assert len(said["palette"]) == 4
    assert run("predict", work / "photos", "--decoder", name, "--max-side", 40, "--workers", 0,
               "--out", tmp_path / "predicted", work=work / "work").code == 0
    same = total = 0
    for file in sorted((work / "photos").iterdir()):
        with Image.open(file) as photo:
            logits, _ = runs.run(None, {"pixels": as_the_metadata_says(photo, said)})
            likely = torch.from_numpy(logits).softmax(1)
            whole = torch.nn.functional.interpolate(likely, photo.size[::-1], mode="bilinear")
        with Image.open(tmp_path / "predicted" / f"{file.stem}.png") as predicted:
            labels = np.asarray(predicted)
        same += (whole.argmax(1)[0].numpy() == labels).sum()
        total += labels.size
    assert same / total > 0.999


def test_the_program_of_the_page_runs(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                      ) -> None:
    """docs/deploy.md's: without torch and vpltool, from a JPEG to a palette PNG."""
    text = (Path(__file__).parents[2] / "docs/deploy.md").read_text("utf-8")
    (program,) = (block for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
                  if "onnxruntime" in block)
    (tmp_path / "segmenter.onnx").symlink_to(work / "work/exports/linear.onnx")
    with Image.open(work / "photos/scene6.png") as photo:
        # As phones store it: lying, with a note to turn it.
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        photo.resize((111, 70)).rotate(90, expand=True).save(tmp_path / "photo.jpg", quality=95,
                                                             exif=exif)
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "deploy.md", "exec"), {})  # noqa: S102 - our own page
    labels = Segmenter.load(work / "work/decoder/linear.safetensors", max_side=40)(
        tmp_path / "photo.jpg").labels
    with Image.open("labels.png") as made:
        assert (made.mode, made.size) == ("P", (111, 70))
        assert (np.asarray(made) == labels).mean() > 0.97


def test_the_program_sees_a_large_photo_in_tiles(work: Path, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's second block, after the first; with tiles that this small photo needs."""
    text = (Path(__file__).parents[2] / "docs/deploy.md").read_text("utf-8")
    first, tiles = (block for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
                    if "onnxruntime" in block or "starts(grid" in block)
    (tmp_path / "segmenter.onnx").symlink_to(work / "work/exports/attention.onnx")
    scenes = [np.asarray(Image.open(path).convert("RGB").resize((48, 40)))
              for path in sorted((work / "photos").glob("*.png"))[:8]]
    large = np.concatenate([np.concatenate(scenes[row : row + 4], axis=1) for row in (0, 4)])
    Image.fromarray(large[:77, :187]).save(tmp_path / "photo.jpg", quality=95)
    monkeypatch.chdir(tmp_path)
    program = first.split("photo =")[0] + tiles.replace("448", "40")
    names: dict[str, Any] = {}
    exec(compile(program, "deploy.md", "exec"), names)  # noqa: S102 - our own page
    segmenter = Segmenter.load(work / "work/decoder/attention.safetensors", max_side=0)
    tiled, whole = (segmenter(tmp_path / "photo.jpg", tile=tile).field.numpy()
                    for tile in (40, ""))
    found = names["total"] / names["total"].sum(axis=0)
    np.testing.assert_allclose(found, tiled, atol=1e-4)
    assert np.abs(found - whole).max() > 1e-3
    with Image.open("labels.png") as made:
        assert (made.mode, made.size) == ("P", (187, 77))


def test_it_says_what_it_takes_and_gives(work: Path) -> None:
    model = onnx.load(work / "work/exports/linear.onnx")
    onnx.checker.check_model(model)
    shapes = {value.name: [axis.dim_param or axis.dim_value
                           for axis in value.type.tensor_type.shape.dim]
              for value in (*model.graph.input, *model.graph.output)}
    assert shapes == {"pixels": [1, 3, "8*rows", "8*columns"],
                      "logits": [1, 4, "4*rows", "4*columns"],
                      "labels": [1, "8*rows", "8*columns"]}


def test_int8_is_smaller_and_says_nearly_the_same(work: Path, tmp_path: Path) -> None:
    """As the export does it: the exporter itself takes seconds, and is run above."""
    from vpltool.methods.exports import _int8

    whole = work / "work/exports/linear.onnx"
    small = tmp_path / "int8.onnx"
    onnx.save_model(_int8.dynamic(onnx.load(whole)), small)
    assert small.stat().st_size < 0.6 * whole.stat().st_size
    pixels = np.random.default_rng(0).standard_normal((1, 3, 48, 40)).astype(np.float32)
    first, second = (session(path).run(None, {"pixels": pixels})[0] for path in (whole, small))
    assert 0 < np.abs(first - second).max() < 0.2 * np.ptp(first)
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.97


@pytest.mark.parametrize(("factor", "spoiled"), [(1, set()), (1000, {"second"})])
def test_a_product_with_outliers_is_found(factor: int, spoiled: set[str]) -> None:
    """One channel of one patch that is a thousand times as large leaves the rest no steps."""
    from onnx import helper, numpy_helper

    from vpltool.methods.exports._int8 import products_with_outliers

    drawn = np.random.default_rng(0)
    outlier = np.ones((50, 64), np.float32)
    outlier[7, 3] = factor
    weights = {"a": drawn.standard_normal((8, 64), np.float32), "outlier": outlier,
               "b": drawn.standard_normal((64, 4), np.float32)}
    model = helper.make_model(helper.make_graph(
        [helper.make_node("MatMul", ["pixels", "a"], ["hidden"], "first"),
         helper.make_node("Mul", ["hidden", "outlier"], ["large"], "scale"),
         helper.make_node("MatMul", ["large", "b"], ["logits"], "second")],
        "two", [helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, [50, 8])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [50, 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()]),
        opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    photos = [{"pixels": drawn.standard_normal((50, 8), np.float32)} for _ in range(2)]
    assert products_with_outliers(model, photos) == spoiled


def test_as_x_anylabeling_takes_it(work: Path, run: Run, tmp_path: Path) -> None:
    """The rule of its YOLO26 service, written out: a square of the model's side, values in [0, 1],
    rows above the threshold, sigmoid of coefficients times masks; the model's name by the YAML."""
    import yaml

    result = run("export", "onnx", "--what", "linear", "--anylabeling", 160, "-o",
                 tmp_path / "shapes.onnx", work=work / "work")
    assert result.code == 0, result.err
    model, config = (Path(line) for line in result.out.split())
    said = yaml.safe_load(config.read_text())
    assert {"type", "name", "display_name", "model_path", "classes"} <= said.keys()
    assert said["type"] == "yolo26_seg"
    assert re.fullmatch("[A-Za-z0-9._-]+", said["name"])
    assert said["classes"] == [*SHAPES]
    assert config.parent / said["model_path"] == model
    runs = session(model)
    side = runs.get_inputs()[0].shape[-2:]
    assert side == [160, 160]
    segmenter, seen = trained(work, "linear"), 0
    for path in sorted((work / "photos").glob("*.png")):
        with Image.open(path) as photo:
            rgb = np.asarray(photo.convert("RGB").resize(side, Image.Resampling.BILINEAR)) / 255
        rows, masks = runs.run(None, {"pixels": rgb.transpose(2, 0, 1)[None].astype(np.float32)})
        drawn = np.zeros(masks.shape[2:], np.uint8)
        for row in rows[0][rows[0][:, 4] > said["conf_threshold"]]:
            assert (row[:4] == (0, 0, 160, 160)).all()
            inside = np.tensordot(row[6:], masks[0], 1) > 0
            assert inside.sum() >= 16 and not drawn[inside].any()
            drawn[inside] = row[5] + 1
            seen += 1
        pixels = ((rgb - segmenter.encoder.mean) / segmenter.encoder.std).transpose(2, 0, 1)[None]
        wanted = torch_says(segmenter, pixels.astype(np.float32))[0][0].argmax(axis=0)
        assert (drawn == without_small_regions(wanted.astype(np.uint8), 16, merge=False)).all()
    assert seen >= 2


@pytest.mark.parametrize(("options", "said", "hint"), [
    (("--anylabeling", 41), "not a multiple of the patch, 8", "--anylabeling 48"),
    (("--what", "none"), "no segmenter called `none`", ""),
])
def test_what_is_refused(options: tuple[object, ...], said: str, hint: str, work: Path, run: Run,
                         tmp_path: Path) -> None:
    result = run("export", "onnx", "--what", "linear", *options, "-o", tmp_path / "x.onnx",
                 work=work / "work")
    assert result.code == 1
    assert said in result.lines("error:")[0]
    assert hint in result.lines("hint:")[0]
    assert not list(tmp_path.iterdir())


def test_without_the_package(work: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before the CLIP is loaded."""
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec",
                        lambda name, *rest: None if name == "onnxscript" else find(name, *rest))
    monkeypatch.setattr("vpltool.engine.segmenters.SegmenterFile.trained", None)
    result = run("export", "onnx", "--what", "linear", work=work / "work")
    assert result.lines("error:") == ["the package onnxscript is not installed"]
    assert result.lines("hint:") == ["pip install 'vpltool[onnx]'"]
