"""`train-decoder --method finetune`: begins as the discriminant, stopped and gone on, and used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run, copy_workspace
from PIL import Image
from stopping import stop_after
from trainings import training_with

from vpltool.core import joint
from vpltool.engine import opening
from vpltool.engine.features import open_features
from vpltool.engine.masks import Masks
from vpltool.engine.models import load_main
from vpltool.errors import VplError
from vpltool.formats import open_workspace, read_tensors
from vpltool.stages._joint import PixelData, TrainingPhoto, pixel_batches

BASE = ("--masks", "text-refined", "--prototypes", "text", "--layers", "1,2")
FINETUNE = ("train-decoder", "--method", "finetune", *BASE, "--crop", 3, "--batch-size", 2,
            "--blocks", 2, "--source", "photos")


@pytest.fixture(scope="module")
def work(layered: Path, tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path, run: Run
         ) -> Path:
    base = copy_workspace(layered, tmp_path_factory.mktemp("finetune") / "base", tiny_clip)
    result = run("train-decoder", "--method", "discriminant", *BASE, "--source", "photos",
                 "--name", "first", work=base / "work")
    assert result.code == 0, result.err
    return base / "work"


def labels_of(run: Run, work: Path, decoder: object, out: Path) -> dict[str, np.ndarray[Any, Any]]:
    result = run("predict", "--decoder", decoder, "--source", "photos", "--workers", 0, "--out",
                 out, work=work)
    assert result.code == 0, result.err
    return {path.name: np.asarray(Image.open(path)) for path in out.glob("*.png")}


@pytest.mark.parametrize("options", [(), ("--rank", 2)], ids=["whole", "low-rank"])
def test_it_begins_at_the_score_of_the_discriminant(options: tuple[object, ...], run: Run,
                                                    work: Path, tmp_path: Path) -> None:
    """With steps of almost no length it says what the discriminant says; with long ones it not."""
    small, large = tmp_path / "small.safetensors", tmp_path / "large.safetensors"
    for out, rate in ((small, "1e-12"), (large, "0.05")):
        result = run(*FINETUNE, *options, "--iters", 3, "--lr", rate, "--out", out, work=work)
        assert result.code == 0, result.err
    first = labels_of(run, work, "first", tmp_path / "a")
    same = labels_of(run, work, small, tmp_path / "b")
    other = labels_of(run, work, large, tmp_path / "c")
    assert first.keys() == same.keys() != set()
    assert all(np.array_equal(first[name], same[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("options", [(), ("--rank", 2), ("--blocks", 0)],
                         ids=["blocks", "low-rank", "all"])
def test_stopped_and_gone_on_is_uninterrupted(options: tuple[object, ...], run: Run, work: Path,
                                              tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                              ) -> None:
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    command = (*FINETUNE, *options, "--iters", 5)
    assert run(*command, "--out", whole, work=work).code == 0
    with monkeypatch.context() as patched:
        stop_after(3, patched, joint, "train_jointly")
        assert run(*command, "--checkpoint-every", 2, "--out", parts, work=work).code == 130
    again = run(*command, "--out", parts, work=work)
    assert again.code == 0, again.err
    assert "resuming from step 2 of 5" in again.err
    assert parts.read_bytes() == whole.read_bytes()


def test_only_the_last_blocks_change(run: Run, work: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    result = run(*FINETUNE, "--iters", 2, "--lr", "0.01", "--start", "first", "--out", out,
                 work=work)
    assert result.code == 0, result.err
    header, tensors = read_tensors(out, "decoder")
    assert "start" in header.inputs
    before = load_main(open_workspace(work), torch.device("cpu")).vision.state_dict()
    changed = {name.split(".")[0] + "." + name.split(".")[1] for name in before
               if not torch.equal(before[name], tensors[f"tower.{name}"].float())}
    assert changed == {"blocks.1", "head.block"}


def test_a_low_rank_update_is_of_low_rank(run: Run, work: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    assert run(*FINETUNE, "--rank", 2, "--iters", 3, "--lr", "0.01", "--out", out,
               work=work).code == 0
    tensors = read_tensors(out, "decoder")[1]
    before = load_main(open_workspace(work), torch.device("cpu")).vision.state_dict()
    change = tensors["tower.blocks.1.fc.weight"].float() - before["blocks.1.fc.weight"]
    values = torch.linalg.svdvals(change)
    assert values[1] > 1e-4 > 10 * values[2]
    assert torch.equal(tensors["tower.blocks.1.ln_1.weight"].float(),
                       before["blocks.1.ln_1.weight"])


@pytest.mark.parametrize(("options", "said"), [
    (("--blocks", 9), "the encoder has 3"),
    (("--blocks", 0, "--rank", 2), "trains the whole encoder"),
    (("--start", "tiny"), "does not hold a map"),
    (("--batch-size", 2, "--name", "first", "--start", "first"), "would be written")])
def test_what_it_lacks_is_said_before_the_work(options: tuple[object, ...], said: str, run: Run,
                                               work: Path) -> None:
    result = run(*FINETUNE, *options, work=work)
    assert result.code == 1
    assert said in result.err


def test_a_method_of_layers_refuses_a_decoder_with_its_own_encoder(run: Run, work: Path,
                                                                   tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    assert run(*FINETUNE, "--iters", 1, "--out", out, work=work).code == 0
    workspace = open_workspace(work)
    features = open_features(workspace, None, "train")
    with pytest.raises(VplError, match="has an encoder of its own"):
        opening._find_decoder(workspace, str(out), features)
    assert opening._find_decoder(workspace, "tiny", features).stem == "tiny"


def test_crops_keep_pixels_and_labels_together(work: Path) -> None:
    """Mirrored, scaled and cut, a label still lies on the pixels that it was drawn on."""
    workspace = open_workspace(work)
    photos = list(workspace.photos("train"))
    folder = work.parent / "drawn"
    folder.mkdir()
    for photo in photos:
        pixels = np.asarray(Image.open(workspace.image_path(photo))).astype(int)
        # What is strongly coloured: the shapes.
        drawn = (pixels.max(axis=2) - pixels.min(axis=2) > 100).astype(np.uint8)
        Image.fromarray(drawn).save(folder / f"{photo.id}.png")
    encoder = load_main(workspace, torch.device("cpu"))
    data = PixelData(workspace, [TrainingPhoto(photo) for photo in photos],
                     Masks(folder, "drawn", [photo.id for photo in photos]), encoder, 0)
    settings = training_with(iters=6, batch_size=2, crop=3)
    agreed, seen = 0, 0
    for batch in pixel_batches(data, settings, 0, workers=0):
        mean, std = torch.tensor([encoder.mean, encoder.std]).view(2, 1, 3, 1, 1)
        pixels = (batch.pixels * std + mean) * 255
        small = torch.nn.functional.interpolate(pixels, batch.labels.shape[1:], mode="area")
        coloured = (small.amax(dim=1) - small.amin(dim=1) > 85).to(torch.uint8)
        known = batch.labels != 255
        agreed += int((coloured == batch.labels)[known].sum())
        seen += int(known.sum())
    assert seen
    assert agreed / seen > 0.9
    again = list(pixel_batches(replace(data, rank=1, ranks=2), settings, 5, workers=0))
    assert torch.equal(again[0].pixels, batch.pixels[1:])
