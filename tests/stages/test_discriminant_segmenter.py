"""`train-decoder --method discriminant`: fitted, used, the same for any number of threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run, copy_workspace
from PIL import Image
from reference import discriminant as reference
from reference import linear

from vpltool.core.training import labels_at
from vpltool.formats import read_labels, read_tensors

FIT = ("train-decoder", "--method", "discriminant", "--masks", "text-refined", "--prototypes",
       "text")


@pytest.fixture(scope="module")
def work(layered: Path, tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    return copy_workspace(layered, tmp_path_factory.mktemp("fitted") / "base", tiny_clip) / "work"


def test_it_is_the_reference_over_the_workspace(run: Run, work: Path, tmp_path: Path) -> None:
    out = tmp_path / "fitted.safetensors"
    result = run(*FIT, "--layers", "0,1", "--shrinkage", "0.2", "--out", out, work=work)
    assert result.code == 0, result.err
    header, found = read_tensors(out, "decoder")
    assert header.facts["segmenter"] == "discriminant"
    assert "iters" not in header.options
    tokens, shares = [], []
    for mask in sorted((work / "masks/text-refined/train").glob("*.png")):
        _, features = read_tensors(work / f"features/train/{mask.stem}.safetensors", "features")
        height, width = features["grid"].tolist()
        tokens.append(np.concatenate([
            [linear.token(patch) for patch in layer.tolist()]
            for layer in features["layers"][:2].float()], axis=1))
        labels = labels_at(read_labels(mask), (height, width)).numpy()
        shares.append(reference.shares_of(labels, len(found["classifier.bias"])))
    weight, bias = reference.discriminant(np.concatenate(tokens), np.concatenate(shares), 0.2, 0.5)
    np.testing.assert_allclose(found["classifier.weight"], weight, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found["classifier.bias"], bias, rtol=1e-3, atol=1e-3)


def test_threads_change_nothing_and_predict_uses_it(run: Run, work: Path, tmp_path: Path) -> None:
    """Photos that are encoded on the way give the same labels as stored layers."""
    made = []
    for workers in (0, 2):
        made.append(tmp_path / f"{workers}.safetensors")
        result = run(*FIT, "--workers", workers, "--out", made[-1], work=work)
        assert result.code == 0, result.err
    assert made[0].read_bytes() == made[1].read_bytes()
    encoded = tmp_path / "photos.safetensors"
    assert run(*FIT, "--source", "photos", "--max-side", 0, "--out", encoded, work=work).code == 0
    labels = []
    for file in (made[0], encoded):
        out = tmp_path / file.stem
        assert run("predict", "--decoder", file, "--out", out, work=work).code == 0
        labels.append(torch.cat([torch.from_numpy(np.array(Image.open(path))).flatten()
                                 for path in sorted(out.glob("*.png"))]))
    assert len(labels[0].unique()) > 1
    assert (labels[0] != labels[1]).float().mean() < 0.02, "stored layers are in half precision"


def test_what_has_no_effect_is_said(run: Run, work: Path, tmp_path: Path) -> None:
    result = run(*FIT, "--iters", 10, "--lambda-rsc", 1, "--out", tmp_path / "x.safetensors",
                 work=work)
    assert result.code == 0, result.err
    assert len([line for line in result.lines("warning:") if "no effect" in line]) == 2
    again = run(*FIT, "--out", tmp_path / "x.safetensors", work=work)
    assert again.code == 0, again.err


def test_masks_without_a_label_are_refused(run: Run, work: Path, tmp_path: Path) -> None:
    masks = tmp_path / "blank"
    masks.mkdir()
    for mask in (work / "masks/text-refined/train").glob("*.png"):
        with Image.open(mask) as image:
            Image.new("L", image.size, 255).save(masks / mask.name)
    out = tmp_path / "x.safetensors"
    result = run(*FIT, "--masks", masks, "--out", out, work=work)
    assert result.code == 1
    assert "no patch of the masks has a label" in result.lines("error:")[0]
    assert not out.exists()
