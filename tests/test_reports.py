"""What is said about results: eval, scores, inspect, show."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.nn.functional as F
from conftest import SHAPES, Run, draw_scenes
from PIL import Image

import vpltool
from vpltool.formats import KINDS, read_labels, read_tensors

TRAIN = [scene for scene in draw_scenes() if scene.split == "train"]


def slow_iou(pairs: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]) -> list[float | None]:
    """IoU per class from sets of pixels."""
    found: list[float | None] = []
    for index in range(len(SHAPES) + 1):
        both = either = 0
        for truth, label in pairs:
            label = np.where(label == 255, 0, label)
            both += int(((truth == index) & (label == index)).sum())
            either += int(((truth == index) | (label == index)).sum())
        found.append(both / either if either else None)
    return found


def evaluate(run: Run, base: Path, what: str, *options: object) -> dict[str, Any]:
    out = base / "scores.json"
    result = run("eval", "--split", "train", "--what", what, "--json", "--out", out, *options,
                 work=base / "work")
    assert result.code == 0, result.err
    report: dict[str, Any] = json.loads(result.out)
    assert report == json.loads(out.read_text())
    return report


def test_eval_of_masks_is_counting_pixels(copied: Path, run: Run) -> None:
    report = evaluate(run, copied, "masks/text-refined")
    folder = copied / "work/masks/text-refined/train"
    wanted = slow_iou([(scene.mask, read_labels(folder / f"{scene.id}.png")) for scene in TRAIN])
    assert list(report["iou"].values()) == pytest.approx(wanted, abs=1e-6)
    assert list(report["iou"]) == ["background", *SHAPES]
    counted = [value for value in wanted if value is not None]
    assert report["miou"] == pytest.approx(np.mean(counted), abs=1e-6)
    assert np.sum(report["confusion"]) == sum(scene.mask.size for scene in TRAIN)
    assert (report["split"], report["photos"], report["scored"]) == ("train", 6, "masks")


@pytest.mark.parametrize("threshold", [0.2, 0.55])
def test_eval_of_cams_at_a_threshold(copied: Path, run: Run, threshold: float) -> None:
    report = evaluate(run, copied, "cams/text", "--threshold", threshold)
    pairs = []
    for scene in TRAIN:
        tensors = read_tensors(copied / f"work/cams/text/train/{scene.id}.safetensors", "cams")[1]
        cam = F.interpolate(tensors["cam"].float()[None], size=scene.mask.shape, mode="bilinear",
                            align_corners=False)[0].numpy()
        label = tensors["classes"].numpy()[cam.argmax(axis=0)]
        pairs.append((scene.mask, np.where(cam.max(axis=0) >= threshold, label, 0)))
    assert list(report["iou"].values()) == pytest.approx(slow_iou(pairs), abs=1e-6)
    assert report["threshold_chosen_by"] == "given"


def test_the_best_of_the_sweep_is_said_to_be_so(copied: Path, run: Run) -> None:
    report = evaluate(run, copied, "cams/text")
    assert report["threshold_chosen_by"] == "best of the sweep"
    assert report["miou"] == max(report["sweep"].values())
    fixed = evaluate(run, copied, "cams/text", "--threshold", report["threshold"])
    assert fixed["miou"] == report["miou"]


def test_eval_prints_a_table_that_says_what_was_scored(copied: Path, run: Run) -> None:
    result = run("eval", "--split", "train", "--what", "cams/text", "--sweep", work=copied / "work")
    assert result.code == 0
    for part in ("disc", "mIoU", "cams-text on `train`: 6 photos", "best of the sweep",
                 "scores/cams-text-train.json"):
        assert part in result.out


def test_eval_without_true_masks(copied: Path, run: Run) -> None:
    path = copied / "work/images.jsonl"
    lines = [json.loads(line) | {"mask": None} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = run("eval", "--split", "train", work=copied / "work")
    assert result.code == 1
    assert "has a true mask" in result.lines("error:")[0]


def test_true_mask_of_another_size(copied: Path, run: Run) -> None:
    Image.new("L", (3, 3)).save(copied / "masks/scene0.png")
    result = run("eval", "--split", "train", "--what", "masks/text-refined", work=copied / "work")
    assert result.code == 1
    assert "scene0.png" in result.lines("error:")[0]


def test_scores_side_by_side(copied: Path, run: Run) -> None:
    work = copied / "work"
    for what in ("cams/text", "cams/text-refined"):
        assert run("eval", "--split", "train", "--what", what, work=work).code == 0
    names = ["cams-text-train.json", "cams-text-refined-train.json"]
    values = [100 * json.loads((work / "scores" / name).read_text())["miou"] for name in names]
    result = run("scores", f"both=scores/{names[0]},scores/{names[1]}", f"one=scores/{names[0]}",
                 work=work)
    assert result.code == 0, result.err
    both, one = (line for line in result.out.splitlines() if line.startswith(("both", "one")))
    assert f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" in both
    assert f"{values[0]:.1f}" in one
    assert "±" not in one
    table = run("scores", "--markdown", work=work).out.splitlines()
    assert len(table) == 4
    assert all(line.startswith("|") and line.endswith("|") for line in table)
    assert run("scores", "one=scores/none.json", work=work).code == 1


def test_inspect_knows_every_file(ready: Path, run: Run) -> None:
    seen = set()
    for path in sorted((ready / "work").rglob("*")):
        if path.is_file():
            result = run("inspect", path, "--json")
            assert result.code == 0, f"{path}: {result.err}"
            found = json.loads(result.out)
            assert found["kind"] in KINDS, path
            seen.add(found["kind"])
            if path.suffix in (".safetensors", ".png"):
                assert found["made by"].startswith("vpltool ")
                assert found["inputs"] is not None
            assert run("inspect", path).code == 0
    assert seen == {"workspace", "images", "features", "head", "prototypes", "cams", "masks"}


def test_inspect_of_a_folder(ready: Path, run: Run) -> None:
    found = json.loads(run("inspect", ready / "work/cams/text/train", "--json").out)
    assert (found["photos"], found["complete"], found["options"]["method"]) == (6, True, "gradcam")
    whole = json.loads(run("inspect", ready / "work", "--json").out)
    assert whole["splits"] == {"train": 6, "val": 2}
    assert whole["with true masks"] == 8


@pytest.mark.parametrize("name", ["a.safetensors", "a.png", "a.json", "a.jpg"])
def test_inspect_of_garbage(name: str, tmp_path: Path, run: Run) -> None:
    (tmp_path / name).write_bytes(b"garbage and more garbage")
    result = run("inspect", tmp_path / name)
    assert result.code == 1
    assert name in result.lines("error:")[0]


def test_inspect_loads_nothing_heavy(ready: Path) -> None:
    code = ("import sys\nfrom vpltool.cli import build_app\n"
            "try:\n    build_app()(['inspect', sys.argv[1]])\nexcept SystemExit as stop:\n"
            "    assert not stop.code\n"
            "heavy = {'torch', 'numpy', 'PIL', 'open_clip', 'safetensors', 'tqdm'}\n"
            "print('LOADED', sorted(heavy & set(sys.modules)))\n")
    path = ready / "work/features/train/scene0.safetensors"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True,
                          check=True, env={"PYTHONPATH": str(Path(vpltool.__file__).parents[1])})
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_show_draws_a_sheet(copied: Path, run: Run) -> None:
    result = run("show", "cams/text", "masks/text-refined", "--id", "scene0,scene3",
                 work=copied / "work")
    assert result.code == 0, result.err
    with Image.open(result.out.strip()) as page:
        first = page.size
        assert len(page.getcolors(maxcolors=1 << 20) or []) > 100
    shutil.rmtree(copied / "masks")
    less = run("show", "cams/text", "--id", "scene0", "--no-truth", work=copied / "work")
    assert less.code == 0, less.err
    with Image.open(less.out.strip()) as page:
        assert page.size[0] < first[0]
        assert page.size[1] < first[1]
    assert run("show", "--id", "scene9", work=copied / "work").code == 1
