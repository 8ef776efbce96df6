"""What `export` measures of a segmenter's file, and the card that it writes beside it."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run, copy_workspace
from PIL import Image

from vpltool.formats import describe

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def work(layered: Path, tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path, run: Run
         ) -> Path:
    """A scored and calibrated discriminant, and a convolutional student of it."""
    work = copy_workspace(layered, tmp_path_factory.mktemp("card") / "base", tiny_clip) / "work"
    for command in (
            ("train-decoder", "--method", "discriminant", "--masks", "text-refined",
             "--prototypes", "text", "--name", "plain"),
            ("predict", "--decoder", "plain", "--split", "val"),
            ("eval", "--what", "predictions/plain", "--split", "val"),
            ("eval", "--what", "predictions/plain", "--split", "val", "--against", "tags"),
            ("calibrate", "--decoder", "plain"),
            ("predict", "--decoder", "plain", "--split", "train"),
            ("eval", "--what", "predictions/plain", "--split", "train", "--against", "tags"),
            ("train-student", "--teacher", "plain", "--begin", "random", "--max-side", 64,
             "--encoder", "timm:test_resnet", "--layers", "0,1", "--iters", 2, "--batch-size", 2,
             "--crop", 3)):
        result = run(*command, work=work)
        assert result.code == 0, f"{command}: {result.err}"
    return work


def test_the_card_of_a_bundle(run: Run, work: Path) -> None:
    """Counts, scores, calibration and what was measured on held-out photos; no name of a photo."""
    result = run("export", "bundle", "--what", "plain", "--measure", 3, work=work)
    assert result.code == 0, result.err
    assert "on 2 photos: 100.00 % of the pixels agree with predict" in result.err
    bundle = Path(result.out.strip())
    text = bundle.with_name("plain.safetensors.md").read_text()
    for words in ("6 photos; supervision: tags", "bar 2, box 3, disc 2", "without tags",
                  "mIoU against its labels 100.00", "| background |", "Temperature",
                  "## Agreement with the tags of 2 photos of `val`", "F1 ",
                  "## Limits", "s a photo, the fastest of 3 runs",
                  "On 2 photos of the workspace, held out, on a CPU, by one process with"):
        assert words in text
    assert "scene" not in text
    assert "tags of 6 photos of `train`" not in text  # it has learned these
    header = describe(bundle).header
    assert header is not None
    assert header.facts["about"]["calibration"]["photos"] == 2
    pushed = run("push", "me/plain", "--card", "--segmenter", bundle, work=work)
    for words in ("6 photos; supervision: tags", "mIoU against its labels 100.00", "## Licences"):
        assert words in pushed.out
    photo = work.parent / "photos/scene7.png"
    out = work / "unsure.png"
    result = run("predict", photo, "--segmenter", bundle, "--abstain", "0.99", "--out", out,
                 work=work)
    assert result.code == 0, result.err
    assert (np.asarray(Image.open(out)) == 255).any()


def test_scores_of_another_decoder_are_not_in_the_card(run: Run, work: Path) -> None:
    path = work / "scores/predictions-plain-val.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | {"config": "0" * 16}))
    try:
        assert run("export", "bundle", "--what", "plain", "--measure", 0, work=work).code == 0
    finally:
        path.write_text(before)
    text = (work / "exports/plain.safetensors.md").read_text()
    assert "mIoU" not in text
    assert "a photo;" not in text


def check_8_bits(graph: Any) -> None:
    """Ranges are fixed; the first product, the last, and those of activations are in float32."""
    assert not any(node.op_type == "DynamicQuantizeLinear" for node in graph.node)
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    weights = {weight.name for weight in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Conv")]
    eight = [made_by.get(node.input[0]) == "DequantizeLinear" for node in products]
    with_weights = [node.input[1] in weights or made_by.get(node.input[1]) == "DequantizeLinear"
                    for node in products]
    assert sum(eight) >= 2
    assert all(weighted for low, weighted in zip(eight, with_weights, strict=True) if low)
    of_weights = [low for low, weighted in zip(eight, with_weights, strict=True) if weighted]
    assert not of_weights[0]
    assert not of_weights[-1]


@pytest.mark.parametrize(("name", "allowed"), [("plain", -1.0), ("student", 1.0)])
def test_static_int8_is_calibrated_and_measured(name: str, allowed: float, run: Run, work: Path,
                                                tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                ) -> None:
    """What 8 bits cost is measured beside float32 and said; a warning, if it is much."""
    monkeypatch.setattr("vpltool.stages._card._MOST_LOST", allowed)
    import onnx

    # The exporter takes many seconds and gives the same graph each time: it runs once.
    method = importlib.import_module("vpltool.methods.exports.onnx")
    graph_of, made = method.graph_of, list[bytes]()

    def graph_made_once(*given: Any) -> onnx.ModelProto:
        made or made.append(graph_of(*given).SerializeToString())
        return onnx.load_from_string(made[0])

    monkeypatch.setattr(method, "graph_of", graph_made_once)
    whole, small = tmp_path / "whole.onnx", tmp_path / "small.onnx"
    result = run("export", "onnx", "--what", name, "--out", whole, "--measure", 2, work=work)
    assert result.code == 0, result.err
    assert re.search(r"(100\.00|99\.\d\d) % of the pixels", result.err), result.err
    photo = next(iter(sorted((work.parent / "photos").glob("*.png"))))
    content = photo.read_bytes()
    photo.write_bytes(b"torn")
    try:
        result = run("export", "onnx", "--what", name, "--int8", "--out", small, work=work)
    finally:
        photo.write_bytes(content)
    assert result.code == 0, result.err
    assert f"{photo.name}: " in result.err
    check_8_bits(onnx.load(small).graph)
    assert "agree with predict (mIoU" in result.err
    assert re.search(r"8 bits cost up to -?[\d.]+ points of mIoU \(.* float32 scores ", result.err)
    assert [("`--calibrate 0`" in line or "--calibrate 0" in line)
            for line in result.lines("warning:") if photo.name not in line
            ] == [True] * (allowed < 0)
    card = (tmp_path / "small.onnx.md").read_text()
    assert card.count("MB") == 1
    assert re.search(r"its labels [\d.]+, without 8 bits (100\.00|99\.\d\d)\.", card)


@pytest.mark.parametrize(("options", "said"), [
    (("--calibrate", 3), "is for 8 bits"),
    (("--int8", "--calibrate", 3, "--anylabeling", 16), "of any size")])
def test_what_a_calibration_needs(options: tuple[object, ...], said: str, run: Run, work: Path
                                  ) -> None:
    result = run("export", "onnx", "--what", "plain", *options, work=work)
    assert result.code == 1
    assert said in result.err


@pytest.mark.parametrize(("form", "package", "suffix"), [
    ("openvino", "openvino", ".xml"), ("tflite", "litert_torch", ".tflite")])
def test_other_runtimes_say_what_predict_says(form: str, package: str, suffix: str, run: Run,
                                              work: Path, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """And the program of docs/deploy.md runs without vpltool."""
    pytest.importorskip(package)
    out = tmp_path / f"segmenter{suffix}"
    result = run("export", form, "--what", "plain", "--out", out, "--measure", 2, "--max-side", 64,
                 work=work)
    assert result.code == 0, result.err
    said = re.search(r"photos: ([\d.]+) % of the pixels", result.err)
    assert said
    assert float(said[1]) > 98
    text = (Path(__file__).parents[2] / "docs/deploy.md").read_text("utf-8")
    (program,) = (block for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
                  if out.name in block)
    Image.open(work.parent / "photos/scene6.png").convert("RGB").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "deploy.md", "exec"), {})  # noqa: S102 - our own page
    with Image.open("labels.png") as made:
        assert made.mode == "P"


@pytest.mark.parametrize(("form", "package"), [
    ("openvino", "openvino"), ("tflite", "litert_torch")])
def test_without_the_converter(form: str, package: str, run: Run, work: Path,
                               monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec",
                        lambda name, *more: None if name == package else found(name, *more))
    result = run("export", form, "--what", "plain", work=work)
    assert result.code == 1
    assert result.lines("hint:") == [f"pip install 'vpltool[{form}]'"]


def test_the_time_of_a_photo_is_that_of_its_fastest_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may be busy: here every run but one, of five photos' first three."""
    from vpltool.stages import _card

    runs = iter(range(1, 100))
    clock = iter(value for number in runs for value in (0.0, 1.0 if number % 3 == 2 else 50.0))
    monkeypatch.setattr(_card, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(_card.segment, "photo_logits", lambda *_: torch.zeros(1, 4, 2, 2))
    monkeypatch.setattr(_card, "photo_pixels", lambda *_: [((2, 2), torch.zeros(1))] * 5)
    segmenter: Any = SimpleNamespace(encoder=SimpleNamespace(vision=None), network=None,
                                     classes=("a", "b", "c"))
    assert [found[2] for found in _card._against_predict(segmenter, [], [Path()] * 5, 0, "")] == [
        1.0]
