"""`train-decoder`: from features and photos, stopped and gone on, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TRAIN, Run, copy_workspace
from torch import Tensor

from vpltool.core import training
from vpltool.core.photos import fit_size, read_photo, to_pixels
from vpltool.core.training import (
    CropBatch,
    TrainingSettings,
    chosen_photos,
    generator_of,
    labels_at,
)
from vpltool.formats import describe, open_input, open_workspace, read_tensors
from vpltool.stages._lessons import Lessons, crop_batches, frozen_layers


def header_of(path: Path) -> Any:
    found = describe(path).header
    assert found is not None
    return found


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C after some steps."""
    train = training.train

    def stopped(*args: Any, **options: Any) -> Iterator[training.StepRecord]:
        for done, record in enumerate(train(*args, **options)):
            if done == steps:
                raise KeyboardInterrupt
            yield record

    monkeypatch.setattr(training, "train", stopped)


def test_decoder_of_features(layered: Path) -> None:
    path = layered / "work/decoder/tiny.safetensors"
    header = header_of(path)
    assert header.options["source"] == "features"
    assert header.options["layers"] == [0, 1]
    assert set(header.inputs) == {"masks", "prototypes", "features", "classes", "tags"}
    assert header.facts["config"]["shape"]["input_width"] == 32
    assert [entry[0] for entry in header.facts["curve"]] == [1, 2, 3, 4, 5]
    assert not list(path.parent.glob("*.checkpoint*"))
    _, tensors = read_tensors(path, "decoder")
    _, text = read_tensors(layered / "work/prototypes/text.safetensors", "prototypes")
    assert torch.equal(tensors["prototypes"], text["prototypes"])


def test_decoder_of_photos(run: Run, layered: Path, tmp_path: Path) -> None:
    out = tmp_path / "photos.safetensors"
    result = run(*TRAIN, "--source", "photos", "--layers", "0,2", "--out", out,
                 work=layered / "work")
    assert result.code == 0, result.err
    assert result.out.splitlines() == [str(out)]
    header = header_of(out)
    assert header.options["source"] == "photos"
    assert header.options["layers"] == [0, 2]
    assert set(header.inputs) == {"masks", "prototypes", "classes", "tags"}
    assert header.model == header_of(layered / "work/decoder/tiny.safetensors").model


def test_without_layers_it_reads_photos(run: Run, ready: Path, tmp_path: Path) -> None:
    out = tmp_path / "photos.safetensors"
    assert run(*TRAIN, "--iters", 1, "--out", out, work=ready / "work").code == 0
    assert header_of(out).options["source"] == "photos"
    refused = run(*TRAIN, "--source", "features", "--out", out, work=ready / "work")
    assert refused.code == 1
    assert "--keep tokens,patches,attention,layers" in refused.lines("hint:")[0]


@pytest.mark.parametrize("source", ["features", "photos"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_stopped_and_gone_on_is_uninterrupted(
    source: str, optimizer: str, run: Run, layered: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = (*TRAIN, "--source", source, "--optimizer", optimizer, "--residual")
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    assert run(*options, "--out", whole, work=layered / "work").code == 0
    with monkeypatch.context() as patched:
        stop_after(3, patched)
        result = run(*options, "--checkpoint-every", 2, "--workers", 3, "--out", parts,
                     work=layered / "work")
    assert result.code == 130
    assert "run the same command again" in result.err
    checkpoint = tmp_path / "parts.checkpoint.safetensors"
    assert header_of(checkpoint).facts["checkpoint"] == 2
    assert not parts.exists()
    again = run(*options, "--workers", 0, "--out", parts, work=layered / "work")
    assert again.code == 0, again.err
    assert "going on from step 2 of 5" in again.err
    assert parts.read_bytes() == whole.read_bytes()
    assert not checkpoint.exists()


@pytest.mark.parametrize("source", ["features", "photos"])
def test_the_number_of_workers_changes_nothing(source: str, run: Run, layered: Path,
                                               tmp_path: Path) -> None:
    """Neither losses nor decoder, to the byte; nor is it in the header."""
    made = []
    for workers in (0, 1, 3):
        out = tmp_path / f"{workers}.safetensors"
        result = run(*TRAIN, "--source", source, "--iters", 12, "--workers", workers, "--out", out,
                     work=layered / "work")
        assert result.code == 0, result.err
        made.append(out.read_bytes())
    assert made[0] == made[1] == made[2]
    assert len(header_of(out).facts["curve"]) == 12
    assert "workers" not in header_of(out).options


def lessons_of(layered: Path, source: str, *, residual: bool) -> Lessons:
    workspace = open_workspace(layered / "work")
    photos = workspace.photos("train", 0)
    masks = open_input(layered / "work/masks/text-refined/train", ("masks",))
    frozen = frozen_layers(workspace, source, "0,1", "train", photos, "cpu", "fp32")
    return Lessons(workspace, masks, photos, frozen, residual)


def slow_window(image: Tensor, labels: Tensor, side: int, unit: int, rng: np.random.Generator
                ) -> tuple[Tensor, Tensor, Tensor]:
    """Mirror all of it, then cut, then pad; image (C, h, w)."""
    if rng.random() < 0.5:
        image, labels = image.flip(2), labels.flip(1)
    height, width = image.shape[1] // unit, image.shape[2] // unit
    top = int(rng.integers(0, max(height - side, 0) + 1))
    left = int(rng.integers(0, max(width - side, 0) + 1))
    fields = [(image, unit, 0.0), (labels[None], 4, 255.0), (torch.ones(1, height, width), 1, 0.0)]
    cut = []
    for field, each, padding in fields:
        part = field[:, top * each : (top + side) * each, left * each : (left + side) * each]
        cut.append(F.pad(part, (0, side * each - part.shape[2], 0, side * each - part.shape[1]),
                         value=padding))
    return cut[0], cut[1][0], cut[2].bool().flatten()


@pytest.mark.parametrize("crop", [3, 7])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("source", ["features", "photos"])
def test_crops_are_cut_of_whole_photos(source: str, residual: bool, crop: int, layered: Path
                                       ) -> None:
    """As if a photo were scaled, normalised and mirrored as a whole; stored layers likewise."""
    lessons = lessons_of(layered, source, residual=residual)
    settings = TrainingSettings(iterations=6, batch_size=3, crop=crop)
    batches = crop_batches(lessons, settings, 2, device=torch.device("cpu"), workers=2)
    whole = True
    for iteration, found in zip(range(2, 6), batches, strict=True):
        rng = generator_of(settings, iteration)
        photos = [lessons.photos[number] for number in chosen_photos(
            len(lessons.photos), settings, iteration)]
        parts = []
        for photo in photos:
            labels = lessons.masks.read_labels(photo.id)
            if source == "photos":
                clip = lessons.frozen.clip
                pixels = read_photo(lessons.workspace.image_path(photo))
                patch = clip.vision.patch
                size = fit_size((pixels.shape[0], pixels.shape[1]), patch,
                                scale=float(rng.uniform(0.5, 2)))
                image = to_pixels(pixels, size, clip.mean, clip.std)
                grid = (size[0] // patch, size[1] // patch)
            else:
                assert lessons.frozen.features is not None
                tensors = lessons.frozen.features.read_tensors(photo.id)
                patch, grid = 1, tuple(tensors["grid"].tolist())
                image = torch.cat([*tensors["layers"], tensors["patches"]], dim=-1).T.unflatten(
                    1, grid)
            parts.append(slow_window(image, labels_at(labels, grid), crop, patch, rng))
        image, labels, valid = map(torch.stack, zip(*parts, strict=True))
        assert torch.equal(found.labels, labels)
        assert torch.equal(found.valid, valid)
        whole &= bool(valid.all())
        assert [tags.tolist() for tags in found.tags] == [
            lessons.workspace.indices_of(photo) for photo in photos]
        if source == "photos":
            seen = lessons.frozen.clip.vision(image, attention=False, layers=(0, 1))
            layers, patches = seen.layers, seen.patches
        else:
            field = image.flatten(2).transpose(1, 2)
            layers = torch.stack([field[..., :32], field[..., 32:64]], dim=1)
            patches = field[..., 64:]
        assert torch.equal(found.layers, layers)
        assert (found.patches is not None) == residual
        if residual:
            assert found.patches is not None
            assert torch.equal(found.patches, patches)
    assert whole == (crop == 3)


@pytest.mark.parametrize(("device", "pinned"), [("cuda:1", True), ("cpu", False)])
def test_crops_are_pinned_for_a_gpu_alone(device: str, pinned: bool, layered: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of pixels, not floats of them; without a GPU there is no such memory."""
    shapes = []

    def pin(self: Tensor) -> Tensor:
        shapes.append((self.dtype, tuple(self.shape)))
        return self

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    lessons = lessons_of(layered, "photos", residual=True)
    side = 3 * lessons.frozen.clip.vision.patch
    batches: list[CropBatch] = list(crop_batches(
        lessons, TrainingSettings(iterations=1, batch_size=2, crop=3), 0,
        device=torch.device(device), workers=1))
    assert len(batches) == 1
    assert shapes == ([(torch.uint8, (2, 3, side, side)), (torch.uint8, (2, 12, 12)),
                       (torch.bool, (2, 9))] if pinned else [])


def test_the_encoder_runs_in_the_precision_asked_for(run: Run, layered: Path, tmp_path: Path
                                                     ) -> None:
    """It is recorded where it is not the default, and the decoder is another."""
    found = {}
    for precision in ("fp32", "bf16"):
        out = tmp_path / f"{precision}.safetensors"
        result = run(*TRAIN, "--source", "photos", "--precision", precision, "--out", out,
                     work=layered / "work")
        assert result.code == 0, result.err
        assert result.lines("warning:") == []
        header = header_of(out)
        found[precision] = header.options.get("precision"), header.facts["curve"]
        assert read_tensors(out, "decoder")[1]["fuse.weight"].dtype == torch.float32
    assert (found["fp32"][0], found["bf16"][0]) == (None, "bf16")
    assert found["fp32"][1] != found["bf16"][1]
    torch.testing.assert_close(torch.tensor(found["fp32"][1]), torch.tensor(found["bf16"][1]),
                               atol=0.1, rtol=0)
    refused = run(*TRAIN, "--source", "photos", "--precision", "int8", "--out", tmp_path / "x",
                  work=layered / "work")
    assert refused.code == 1
    assert "--precision fp32" in refused.lines("hint:")[0]


def test_a_loss_that_is_not_finite_is_told_with_its_step(
    run: Run, layered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses are read some steps late; no checkpoint is written behind the step that failed."""
    step_losses, done = training.step_losses, []

    def diverging(*args: Any) -> tuple[Tensor, Tensor]:
        mask, contrast = step_losses(*args)
        done.append(mask)
        return mask * (float("nan") if len(done) == 68 else 1), contrast

    monkeypatch.setattr(training, "step_losses", diverging)
    out = tmp_path / "x.safetensors"
    result = run(*TRAIN, "--iters", 300, "--checkpoint-every", 66, "--out", out,
                 work=layered / "work")
    assert result.code == 1
    assert result.lines("error:") == ["the loss is not finite at step 67"]
    assert 68 < len(done) < 80
    assert header_of(tmp_path / "x.checkpoint.safetensors").facts["checkpoint"] == 66
    assert not out.exists()


def test_a_checkpoint_of_other_settings_is_neither_used_nor_lost(
    run: Run, layered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, plain = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    with monkeypatch.context() as patched:
        stop_after(2, patched)
        assert run(*TRAIN, "--checkpoint-every", 1, "--out", out, work=layered / "work").code == 130
    checkpoint = tmp_path / "a.checkpoint.safetensors"
    before = checkpoint.read_bytes()
    result = run(*TRAIN, "--seed", 1, "--out", out, work=layered / "work")
    assert result.code == 1
    assert "seed was 0, now 1" in result.lines("error:")[0]
    assert checkpoint.read_bytes() == before
    result = run(*TRAIN, "--seed", 1, "--out", out, "--overwrite", work=layered / "work")
    assert result.code == 0, result.err
    assert run(*TRAIN, "--seed", 1, "--out", plain, work=layered / "work").code == 0
    assert out.read_bytes() == plain.read_bytes()


def test_unfinished_decoder(run: Run, layered: Path, tmp_path: Path, tiny_clip: Path,
                            monkeypatch: pytest.MonkeyPatch) -> None:
    work = copy_workspace(layered, tmp_path / "base", tiny_clip) / "work"
    shutil.rmtree(work / "decoder")
    with monkeypatch.context() as patched:
        stop_after(2, patched)
        assert run(*TRAIN, "--checkpoint-every", 1, work=work).code == 130
    none = run("predict", work=work)
    assert none.code == 1
    assert "train-decoder" in none.lines("hint:")[0]
    for choice in ("text-refined.checkpoint",
                   work / "decoder/text-refined.checkpoint.safetensors"):
        result = run("predict", "--decoder", choice, work=work)
        assert result.code == 1
        assert "run that was stopped" in result.lines("error:")[0]
        assert "train-decoder" in result.lines("hint:")[0]
    assert not (work / "predictions").exists()


def test_a_second_run_does_no_work_and_another_is_refused(
    run: Run, layered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = layered / "work/decoder/tiny.safetensors"
    before = path.stat().st_mtime_ns
    stop_after(0, monkeypatch)
    again = run(*TRAIN, "--name", "tiny", work=layered / "work")
    assert again.code == 0, again.err
    assert again.out.splitlines() == [str(path)]
    for options in (("--lambda-rsc", 0), ("--balanced",), ("--residual",), ("--tau", "0.1"),
                    ("--source", "photos"), ("--seed", 4)):
        refused = run(*TRAIN, "--name", "tiny", *options, work=layered / "work")
        assert refused.code == 1, options
        assert "was" in refused.lines("error:")[0]
        assert "--overwrite" in refused.lines("hint:")[0]
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(("options", "hint"), [
    (("--optimizer", "adam"), "adamw"),
    (("--source", "feature"), "features"),
    (("--layers", "2"), "--layers 2"),
    (("--layers", "one"), "--layers"),
    (("--layers", "7", "--source", "photos"), "--layers"),
    (("--masks", "text-refind"), "text-refined"),
    (("--prototypes", "vision"), "learn-prototypes"),
    (("--width", "40"), "--width"),
    (("--split", "test"), ""),
])
def test_refused(options: tuple[str, ...], hint: str, run: Run, layered: Path,
                 tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    result = run(*TRAIN, *options, "--out", out, work=layered / "work")
    assert result.code == 1, result.err
    assert len(result.lines("error:")) == 1
    assert hint in result.lines("hint:")[0]
    assert not out.exists()


def test_a_photo_that_broke_since_is_an_error_with_its_name(run: Run, copied: Path) -> None:
    (copied / "photos/scene1.png").write_bytes(b"")
    result = run(*TRAIN, "--source", "photos", "--batch-size", 6, work=copied / "work")
    assert result.code == 1
    assert "scene1" in result.lines("error:")[0]
    assert result.lines("hint:")


def test_prototypes_of_another_model_are_refused(run: Run, layered: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from vpltool.formats import write_tensors

    header, tensors = read_tensors(layered / "work/prototypes/text.safetensors", "prototypes")
    other = tmp_path / "other.safetensors"
    write_tensors(other, replace(header, model={**header.model, "fingerprint": "0" * 16}), tensors)
    for source in ("features", "photos"):
        result = run(*TRAIN, "--prototypes", other, "--source", source, "--out",
                     tmp_path / "x.safetensors", work=layered / "work")
        assert result.code == 1
        assert "different models" in result.lines("error:")[0]


def test_inspect_tells_of_the_decoder(run: Run, layered: Path) -> None:
    result = run("inspect", layered / "work/decoder/tiny.safetensors", "--json")
    assert result.code == 0
    found = json.loads(result.out)
    assert found["kind"] == "decoder"
    assert found["options"]["iterations"] == 5
