"""`train-decoder --method linear`: trained, stopped and gone on, used; and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run, copy_workspace
from PIL import Image
from stopping import stop_after

from vpltool.core import training
from vpltool.formats import describe, read_tensors

TRAIN = ("train-decoder", "--method", "linear", "--masks", "text-refined", "--prototypes", "text",
         "--lambda-rsc", 0, "--optimizer", "adamw", "--lr", "0.05", "--crop", 3, "--batch-size", 2)


@pytest.fixture(scope="module")
def work(layered: Path, tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    return copy_workspace(layered, tmp_path_factory.mktemp("linear") / "base", tiny_clip) / "work"


@pytest.mark.parametrize("source", ["features", "photos"])
def test_stopped_and_gone_on_is_uninterrupted(source: str, run: Run, work: Path, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    options = (*TRAIN, "--source", source, "--iters", 5)
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    assert run(*options, "--out", whole, work=work).code == 0
    with monkeypatch.context() as patched:
        stop_after(3, patched, training, "train")
        assert run(*options, "--checkpoint-every", 2, "--out", parts, work=work).code == 130
    again = run(*options, "--out", parts, work=work)
    assert again.code == 0, again.err
    assert "resuming from step 2 of 5" in again.err
    assert parts.read_bytes() == whole.read_bytes()


def test_it_learns_the_masks_and_predict_uses_it(run: Run, work: Path) -> None:
    """The loss falls from that of equal scores; features and photos give the same labels."""
    result = run(*TRAIN, "--iters", 150, "--name", "linear", "--layers", "0,1",
                 work=work)
    assert result.code == 0, result.err
    header, tensors = read_tensors(work / "decoder/linear.safetensors", "decoder")
    assert header.facts["segmenter"] == "linear"
    assert header.facts["reads"] == ["layers"]
    assert header.options["layers"] == [0, 1]
    assert tensors["classifier.weight"].shape == (4, 64)
    curve = torch.tensor(header.facts["curve"])
    assert curve[-1, 1] < 0.5 * torch.tensor(4.0).log()
    seen = []
    for source in ("features", "photos"):
        out = work / "from" / source
        result = run("predict", "--decoder", "linear", "--source", source, "--workers", 0, "--out",
                     out, work=work)
        assert result.code == 0, result.err
        seen.append({path.name: np.asarray(Image.open(path)) for path in out.glob("*.png")})
    assert seen[0].keys() == seen[1].keys() != set()
    differ = [np.mean(seen[0][name] != seen[1][name]) for name in seen[0]]
    assert max(differ) < 0.01, "stored layers are in half precision"
    assert any(len(np.unique(labels)) > 1 for labels in seen[0].values())


@pytest.mark.parametrize(("options", "hint"), [
    (("--lambda-rsc", 1), "--lambda-rsc 0"), (("--lambda-aff", "0.1"), "--lambda-aff 0"),
    (("--iters", 0), "--iters 300")])
def test_what_it_lacks_is_said_before_the_work(options: tuple[object, ...], hint: str, run: Run,
                                               work: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    result = run(*TRAIN, "--iters", 2, *options, "--out", out, work=work)
    assert result.code == 1
    assert str(options[0]) in result.lines("error:")[0]
    assert hint in result.lines("hint:")[0]
    assert not out.exists()


def test_it_begins_with_another_one_s_weights(run: Run, work: Path, tmp_path: Path) -> None:
    """A classifier of other layers is refused."""
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    assert run(*TRAIN, "--iters", 3, "--out", first, work=work).code == 0
    result = run(*TRAIN, "--iters", 2, "--start", first, "--out", second, work=work)
    assert result.code == 0, result.err
    assert describe(second).header is not None
    refused = run(*TRAIN, "--iters", 2, "--start", first, "--layers", 1, "--out",
                  tmp_path / "x.safetensors", work=work)
    assert refused.code == 1
    assert "another shape" in refused.lines("error:")[0]
