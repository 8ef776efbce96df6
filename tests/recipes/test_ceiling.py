"""The ceiling: the same segmenter, true masks; beside it nothing changes in the workspace."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Run, copy_workspace
from PIL import Image

from vpltool.formats import expect_header
from vpltool.papers.ceiling import main


@pytest.fixture(scope="module")
def work(layered: Path, tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    return copy_workspace(layered, tmp_path_factory.mktemp("bounded") / "base", tiny_clip) / "work"


def test_it_is_trained_as_the_other_one_but_for_the_masks(
        work: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    learned = run("train-decoder", "--method", "discriminant", "--masks", "text-refined",
                  "--prototypes", "text", "--shrinkage", "0.3", "--name", "weak", work=work)
    assert learned.code == 0, learned.err
    before = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    assert main([str(work), "--decoder", "weak", "--score", "val"]) == 0
    printed = capsys.readouterr().out
    found = json.loads((work / "tables/ceiling/weak-val.json").read_text())
    assert found["share"] == pytest.approx(found["from_tags"] / found["from_true_masks"])
    assert f"{100 * found['from_true_masks']:.1f}" in printed
    weak, full = (expect_header(path, "decoder") for path in (
        work / "decoder/weak.safetensors", work / "tables/ceiling/weak.safetensors"))
    assert full.options == weak.options
    assert "masks of one's own" in full.supervision
    assert weak.supervision == ""
    assert {path: path.read_bytes() for path in before} == before
    # Run again, nothing is trained anew.
    stamp = (work / "tables/ceiling/weak.safetensors").stat().st_mtime_ns
    assert main([str(work), "--decoder", "weak", "--score", "val"]) == 0
    assert (work / "tables/ceiling/weak.safetensors").stat().st_mtime_ns == stamp


def test_its_masks_are_the_true_ones(work: Path) -> None:
    for path in (work / "tables/ceiling/masks/train").glob("*.png"):
        np.testing.assert_array_equal(
            np.asarray(Image.open(path)), np.asarray(Image.open(work.parent / "masks" / path.name)))


@pytest.mark.parametrize(("options", "said"), [
    (("--decoder", "wek"), "no segmenter called `wek`"),
    (("--decoder", "weak", "--score", "train"), "was trained on the split `train`"),
    (("--decoder", "weak", "--score", "tset"), "tset")])
def test_what_cannot_be_measured_is_said(options: tuple[str, ...], said: str, work: Path,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(work), *options]) == 1
    assert said in capsys.readouterr().err
