"""The benchmarks run, at toy size; and the fast ways say what the plain ones say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import bench  # noqa: E402
import disk  # noqa: E402
import gpu  # noqa: E402
import measure  # noqa: E402
import plain  # noqa: E402
import world as worlds  # noqa: E402
from stages import STAGES, TOY  # noqa: E402

from vpltool.core.decoder import Decoder  # noqa: E402
from vpltool.core.metrics import confusion, scores  # noqa: E402
from vpltool.formats import read_labels, read_tensors  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting processes takes longer than toy photos do."""
    monkeypatch.setattr("vpltool.core.device.worker_count", lambda _asked: 0)


def test_every_stage_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    rows, head = bench.run(STAGES, TOY, CPU, "fp32")
    assert "GFLOP/s" in head
    assert {name: sum(row.stage.startswith(name) for row in rows) for name in (
        "extract", "cam", "learn-prototypes", "crf", "train-decoder", "predict", "eval")} == {
        "extract": 1, "cam": 1, "learn-prototypes": 2, "crf": 1, "train-decoder": 1, "predict": 1,
        "eval": 1}
    for row in rows:
        assert row.value > 0
        assert min(row.rates) > 0
        assert row.spread[0] <= row.spread[1]
        assert "cpu" in row.aim
        assert row.reason or row.aim["cpu"] == 5
    same = {row.stage.split(",")[0].split(" ")[0]: row.same for row in rows if row.same is not None}
    assert set(same) == {"extract", "crf", "predict", "eval"}
    assert same["eval"] == pytest.approx(1, abs=1e-6)
    # The rounding of half precision moves a box of a toy's CAM here and there.
    assert same.pop("extract") >= 0.98
    assert min(same.values()) >= 0.995
    assert "NOT REACHED" not in "".join(row.check for row in rows)


def test_table_tells_what_falls_short() -> None:
    row = measure.Row("s", 2.0, (1.0, 3.0), {"cpu": 3}, (1, 2), (10, 20), 2.5e6, 0.5, "a reason",
                      "a check")
    text = measure.table([row], "cpu")
    assert "| s | 2x (1 to 3) | ≥ 3x **short** | 1 | 2 | 2.5 MB | 10 / 20 | 50% |" in text
    assert "falls short: a reason." in text
    assert "a check." in text
    assert "short" not in measure.table([row], "cuda")


def test_gpu_script(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--device", "cpu", "--quick", "--precision", "fp32", "--only", "crf,idle"]
    assert gpu.main(asked) == 0
    told = capsys.readouterr().out
    assert gpu.UNMEASURED in told
    assert "encoder waits for decoded photos" in told
    assert "10,582 photos" in told


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_script_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 0
    assert capsys.readouterr().out.strip() == gpu.UNMEASURED


def test_bytes_are_those_of_real_files(layered: Path) -> None:
    """All but the header, and the padding in front of it."""
    for path in (layered / "work/features/train").glob("*.safetensors"):
        tensors = read_tensors(path, "features")[1]
        count, width = tensors["tokens"].shape
        guess = disk.bytes_a_photo(("tokens", "patches", "attention", "layers"), count - 1,
                                   width=width, dim=tensors["patches"].shape[1],
                                   layers=len(tensors["layer_index"]))
        header = int.from_bytes(path.read_bytes()[:8], "little")
        assert path.stat().st_size == 8 + header + guess
        assert header < 2000


def test_the_page_has_these_tables() -> None:
    assert disk.tables() in (ROOT / "docs/performance.md").read_text("utf-8")


@pytest.fixture(scope="module")
def demo_world(tmp_path_factory: pytest.TempPathFactory) -> worlds.World:
    """Photos of VOC's size, a trained CLIP, and a decoder that is its dense CAM."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vpltool.core.device.worker_count", lambda _asked: 0)
        world = worlds.make_world(tmp_path_factory.mktemp("demo") / "w", 4, CPU, model="demo")
        world.run("extract")
        world.run("cam")
        world.run("crf", "--what", "text", "--workers", 0)
        world.run("train-decoder", "--masks", "text", "--prototypes", "text", "--name", "dense",
                  "--residual", "--iters", 0)
    return world


def predict(world: worlds.World, out: Path, *options: object) -> dict[str, np.ndarray[Any, Any]]:
    world.run("predict", "--decoder", "dense", "--split", "train", "--out", out, "--source",
              "photos", *options)
    return {key: read_labels(out / f"{key}.png") for key in world.photos}


def miou(world: worlds.World, said: dict[str, np.ndarray[Any, Any]]) -> float:
    counts = sum(confusion(read_labels(world.masks[key]), said[key], 21) for key in said)
    return scores(np.asarray(counts)).miou


def agreement(first: dict[str, np.ndarray[Any, Any]],
              second: dict[str, np.ndarray[Any, Any]]) -> float:
    return float(np.concatenate([(first[key] == second[key]).ravel() for key in first]).mean())


def test_predictions_are_those_of_the_plain_way(demo_world: worlds.World, tmp_path: Path) -> None:
    """99.5 % of the labels, and the mIoU within 0.1; in bf16 as many of those in float32.

    Plain takes the softmax at the photo's size, ours at a quarter of a patch.
    """
    world = demo_world
    ours = predict(world, tmp_path / "ours")
    half = predict(world, tmp_path / "half", "--precision", "bf16")
    header, tensors = read_tensors(world.work / "decoder/dense.safetensors", "decoder")
    decoder = Decoder.from_config(header.facts["config"])
    decoder.load_state_dict(tensors)
    encoder = plain.load(Path(worlds.vpltool.demo.__path__[0]) / "clip", CPU)
    plain.predict(encoder, decoder.eval(), world.photos.values(), [1.0], tmp_path / "plain",
                  mirror=False)
    slow = {key: read_labels(tmp_path / f"plain/{key}.png") for key in ours}
    assert len(np.unique(np.concatenate([part.ravel() for part in slow.values()]))) > 5
    assert agreement(ours, slow) >= 0.995
    assert agreement(half, ours) >= 0.995
    for said in (ours, half):
        assert abs(miou(world, said) - miou(world, slow)) < 0.001


def test_masks_do_not_depend_on_the_way(demo_world: worlds.World, tmp_path: Path) -> None:
    """Photo by photo in C++ or torch, or in batches as on a GPU."""
    from vpltool.commands import crf
    from vpltool.core.crf import PRESETS
    from vpltool.formats import open_input

    world = demo_world
    source = open_input(world.work / "cams/text/train", ("cams",))
    jobs = [*world.first(2).items(), ("none", tmp_path / "none.jpg")]
    found = {}
    for backend in ("torch", "pydensecrf"):
        if backend == "pydensecrf":
            pytest.importorskip("pydensecrf")
        task = crf._Task(source, PRESETS["clip-es"], backend, alpha=1.0, wrap_image=False,
                         device="cpu", confidences=(0.95, 0.0))
        crf._start(task)
        found[backend] = dict(map(crf._one_photo, jobs))
        if backend == "torch":
            found["batches"] = dict(crf._run_batches(task, jobs, 3))
    for results in found.values():
        assert results.keys() == dict(jobs).keys()
        assert results["none"] == "none.jpg: the photo is not there"
        for key in world.first(2):
            for ours, wanted in zip(results[key], found["torch"][key], strict=True):
                assert (ours == wanted).mean() >= 0.999
