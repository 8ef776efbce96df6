"""`calibrate` and `predict --abstain`: what a segmenter is sure of, by tags of held-out photos."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run, copy_workspace
from PIL import Image

from vpltool.core.agreement import fit_temperature, kept_at, spread, tempered
from vpltool.formats import read_tensors


@pytest.fixture
def work(layered: Path, tmp_path: Path, tiny_clip: Path) -> Path:
    return copy_workspace(layered, tmp_path / "copy", tiny_clip) / "work"


@pytest.mark.parametrize("true", [0.5, 1.0, 2.5])
def test_the_temperature_of_partial_labels_is_found(true: float) -> None:
    """Labels are drawn from softmax(z); what is said is softmax(z·t). The temperature is t."""
    chance = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(40_000, 4, generator=chance)
    drawn = torch.multinomial(logits.softmax(dim=1), 1, generator=chance)[:, 0]
    allowed = torch.zeros(40_000, 4, dtype=torch.bool)
    allowed[torch.arange(40_000), drawn] = True
    assert fit_temperature((logits * true).softmax(dim=1), allowed) == pytest.approx(true, rel=0.08)


def test_what_is_left_at_each_level() -> None:
    probabilities = torch.tensor([[0.1, 0.9], [0.4, 0.6], [0.8, 0.2], [0.05, 0.95]])
    allowed = torch.tensor([[True, True], [True, False], [True, False], [True, False]])
    low, high = kept_at(probabilities, allowed, 1.0, (0.5, 0.85))
    assert (low["share"], low["right"]) == (1.0, pytest.approx(1 / 3))
    assert (high["share"], high["right"]) == (0.5, 0.5)
    assert fit_temperature(probabilities[2:3], allowed[2:3]) == 1.0
    assert torch.equal(tempered(probabilities, 1.0), probabilities)
    assert torch.allclose(tempered(probabilities.T, 0.5)[:, 1], torch.tensor([0.16, 0.36]) / 0.52)


def test_classes_that_were_not_stored_share_the_rest() -> None:
    whole = spread(torch.tensor([0.7, 0.2]).view(2, 1, 1), torch.tensor([0, 2]), 4)
    assert torch.allclose(whole[:, 0, 0], torch.tensor([0.7, 0.05, 0.2, 0.05]))


def test_unsure_pixels_are_left_out(run: Run, work: Path, tmp_path: Path) -> None:
    """The labels of `--abstain` are those without it, but for pixels that are less sure."""
    refused = run("predict", "--decoder", "tiny", "--abstain", "0.5", work=work)
    assert refused.code == 1
    assert refused.lines("hint:")[0].startswith("vpltool calibrate --decoder tiny")
    missing = run("calibrate", work=work)
    assert missing.code == 1
    assert missing.lines("hint:") == ["vpltool predict --decoder tiny --split val"]
    assert run("predict", "--decoder", "tiny", work=work).code == 0
    result = run("calibrate", work=work)
    assert result.code == 0, result.err
    assert "temperature" in result.out
    found = json.loads((work / "calibration/tiny.json").read_text())
    assert found["photos"] == 2
    assert [row["level"] for row in found["kept"]] == [0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
    stored = read_tensors(work / "probabilities/tiny/val/scene6.safetensors", "probabilities")[1]
    level = float(stored["probabilities"].amax(dim=0).float().median())
    out = tmp_path / "unsure"
    result = run("predict", "--decoder", "tiny", "--abstain", level, "--out", out, work=work)
    assert result.code == 0, result.err
    plain = np.asarray(Image.open(work / "predictions/tiny/val/scene6.png"))
    unsure = np.asarray(Image.open(out / "scene6.png"))
    assert 0 < (unsure == 255).mean() <= 1
    assert np.array_equal(unsure[unsure != 255], plain[unsure != 255])


def test_photos_without_a_tag_allow_only_the_background(run: Run, work: Path) -> None:
    assert run("predict", "--decoder", "tiny", work=work).code == 0
    file = work / "images.jsonl"
    photos = [json.loads(line) for line in file.read_text().splitlines()]
    next(photo for photo in photos if photo["splits"] == ["val"])["labels"] = []
    file.write_text("".join(f"{json.dumps(photo)}\n" for photo in photos))
    result = run("calibrate", work=work)
    assert result.code == 0, result.err
    assert json.loads((work / "calibration/tiny.json").read_text())["photos"] == 2


def test_a_calibration_of_an_earlier_decoder_does_not_count(run: Run, work: Path) -> None:
    assert run("predict", "--decoder", "tiny", work=work).code == 0
    assert run("calibrate", work=work).code == 0
    path = work / "calibration/tiny.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"decoder": "0" * 16}))
    result = run("predict", "--decoder", "tiny", "--abstain", "0.5", "--overwrite", work=work)
    assert result.code == 1
    assert "it is not known how sure" in result.err
