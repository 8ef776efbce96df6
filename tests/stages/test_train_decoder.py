"""`train-decoder`: from features and photos, stopped and gone on, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TRAIN, Run, copy_workspace
from PIL import Image
from stopping import stop_after
from torch import Tensor
from trainings import training_with

from vpltool.core import training
from vpltool.core.photos import fit_size, read_photo, to_pixels
from vpltool.core.segmenter import Decoder, DecoderShape
from vpltool.core.training import (
    CropBatch,
    chosen_photos,
    generator_of,
    labels_at,
)
from vpltool.formats import describe, open_workspace, read_tensors, write_labels
from vpltool.methods import SegmenterMethod, load_method
from vpltool.parallel import device
from vpltool.stages._training_inputs import (
    TrainDecoderSettings,
    TrainingData,
    crop_batches,
    find_training_inputs,
)


def header_of(path: Path) -> Any:
    found = describe(path).header
    assert found is not None
    return found


def test_decoder_of_features(layered: Path) -> None:
    path = layered / "work/decoder/tiny.safetensors"
    header = header_of(path)
    assert header.options["source"] == "features"
    assert header.options["layers"] == [0, 1]
    assert set(header.inputs) == {"masks", "prototypes", "features", "classes", "tags",
                                  "photo-files"}
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
    assert set(header.inputs) == {"masks", "prototypes", "classes", "tags", "photo-files"}
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
        stop_after(3, patched, training, "train")
        result = run(*options, "--checkpoint-every", 2, "--workers", 3, "--out", parts,
                     work=layered / "work")
    assert result.code == 130
    assert "run the same command again" in result.err
    checkpoint = tmp_path / "parts.checkpoint.safetensors"
    assert header_of(checkpoint).facts["checkpoint"] == 2
    assert not parts.exists()
    again = run(*options, "--workers", 0, "--out", parts, work=layered / "work")
    assert again.code == 0, again.err
    assert "resuming from step 2 of 5" in again.err
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


def training_data_of(layered: Path, source: str, *, residual: bool, max_side: int = 0
                     ) -> TrainingData:
    workspace = open_workspace(layered / "work")
    inputs = find_training_inputs(
        workspace, TrainDecoderSettings(masks="text-refined", prototypes="text", source=source,
                                        device="cpu"), load_method(SegmenterMethod, "weclip"))
    assert inputs.photos == list(workspace.photos("train"))
    assert inputs.frozen.layers == (0, 1)
    return TrainingData(workspace, inputs.masks, inputs.photos, inputs.frozen, residual, max_side)


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
@pytest.mark.parametrize(("source", "max_side"), [("features", 0), ("photos", 0), ("photos", 32)])
def test_crops_are_cut_of_whole_photos(source: str, max_side: int, residual: bool, crop: int,
                                       layered: Path) -> None:
    """As if a photo were scaled, normalised and mirrored as a whole; stored layers likewise."""
    data = training_data_of(layered, source, residual=residual, max_side=max_side)
    settings = training_with(iters=6, batch_size=3, crop=crop)
    batches = crop_batches(data, settings, 2, device=torch.device("cpu"), workers=2)
    whole = True
    for iteration, found in zip(range(2, 6), batches, strict=True):
        rng = generator_of(settings, iteration)
        photos = [data.photos[number] for number in chosen_photos(
            len(data.photos), settings, iteration)]
        parts = []
        for photo in photos:
            labels = data.masks.read_labels(photo.id)
            if source == "photos":
                clip = data.frozen.encoder
                pixels = read_photo(data.workspace.image_path(photo))
                patch = clip.vision.patch
                size = fit_size((pixels.shape[0], pixels.shape[1]), patch,
                                scale=float(rng.uniform(0.5, 2)), max_side=max_side)
                image = to_pixels(pixels, size, clip.mean, clip.std)
                grid = (size[0] // patch, size[1] // patch)
            else:
                assert data.frozen.features is not None
                tensors = data.frozen.features.read_tensors(photo.id)
                patch, grid = 1, tuple(tensors["grid"].tolist())
                image = torch.cat([*tensors["layers"], tensors["patches"]], dim=-1).T.unflatten(
                    1, grid)
            parts.append(slow_window(image, labels_at(labels, grid), crop, patch, rng))
        image, labels, valid = map(torch.stack, zip(*parts, strict=True))
        assert torch.equal(found.labels, labels)
        assert torch.equal(found.valid, valid)
        whole &= bool(valid.all())
        assert [tags.tolist() for tags in found.tags] == [
            data.workspace.indices_of(photo) for photo in photos]
        if source == "photos":
            seen = data.frozen.encoder.vision(image, attention=False, layers=(0, 1))
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
    assert whole == (crop == 3 and not max_side)


@pytest.mark.parametrize(("device", "pinned"), [("cuda:1", True), ("cpu", False)])
def test_crops_are_pinned_for_a_gpu_alone(device: str, pinned: bool, layered: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of pixels, not floats of them; without a GPU there is no such memory."""
    shapes = []

    def pin(self: Tensor) -> Tensor:
        shapes.append((self.dtype, tuple(self.shape)))
        return self

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    data = training_data_of(layered, "photos", residual=True)
    side = 3 * data.frozen.encoder.vision.patch
    batches: list[CropBatch] = list(crop_batches(
        data, training_with(iters=1, batch_size=2, crop=3), 0,
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
    assert refused.code == 2
    assert "fp32" in refused.err


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
    assert result.lines("error:") == [
        f"the loss is not finite at step 68; {tmp_path / 'x.checkpoint.safetensors'} holds the "
        "network of step 66"]
    assert 68 < len(done) < 80
    assert header_of(tmp_path / "x.checkpoint.safetensors").facts["checkpoint"] == 66
    assert not out.exists()


def test_a_checkpoint_of_other_settings_is_neither_used_nor_lost(
    run: Run, layered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, plain = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    with monkeypatch.context() as patched:
        stop_after(2, patched, training, "train")
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
        stop_after(2, patched, training, "train")
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
    stop_after(0, monkeypatch, training, "train")
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


def test_spread_layers(run: Run, layered: Path, tmp_path: Path, tiny_clip: Path) -> None:
    """Of stored layers they are taken where the features say how many blocks the model has."""
    work = copy_workspace(layered, tmp_path / "copy", tiny_clip) / "work"
    spread = (*TRAIN, "--iters", 1, "--layers", "spread")

    def layers(name: str) -> list[int]:
        result = run(*spread, "--name", name, work=work)
        assert result.code == 0, result.err
        return list(header_of(work / f"decoder/{name}.safetensors").options["layers"])

    # As they are: the default of `extract`, which stores all blocks but the last.
    refused = run(*spread, "--name", "default", work=work)
    assert refused.code == 1
    assert "holds the layers 0,1, not 0,1,2" in refused.lines("error:")[0]
    assert "--layers spread" in refused.lines("hint:")[0]
    extract = ("extract", "--overwrite", "--workers", 0, "--keep",
               "tokens,patches,attention,layers")
    assert run(*extract, "--layers", "0,2", work=work).code == 0
    refused = run(*spread, "--name", "listed", work=work)
    assert refused.code == 1
    assert "holds the layers 0,2 and does not say how many blocks" in refused.lines("error:")[0]
    assert refused.lines("hint:")[0].startswith("--layers 0,2 takes these; or vpltool")
    assert run(*spread, "--source", "photos", "--name", "photos", work=work).code == 0
    assert run(*extract, "--layers", "spread", work=work).code == 0
    assert layers("spread") == [0, 1, 2]
    assert header_of(work / "decoder/photos.safetensors").options["layers"] == [0, 1, 2]


@pytest.mark.parametrize(("option", "value", "known"), [
    ("--optimizer", "adam", "adamw"), ("--source", "feature", "features")])
def test_a_choice_that_is_none_is_a_usage_error(option: str, value: str, known: str, run: Run,
                                                layered: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    result = run(*TRAIN, option, value, "--out", out, work=layered / "work")
    assert result.code == 2
    assert f"'{value}'" in result.err
    assert f"'{known}'" in result.err
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
    assert found["options"]["iters"] == 5


@pytest.fixture
def work(layered: Path, tmp_path: Path, tiny_clip: Path) -> Path:
    return copy_workspace(layered, tmp_path / "base", tiny_clip) / "work"


def correct_by_hand(path: Path) -> None:
    """As in an editor: other pixels, and nothing of vpltool's in the file."""
    with Image.open(path) as image:
        labels = np.asarray(image).copy()
    labels[: len(labels) // 2] = 3
    Image.fromarray(labels).save(path)


def test_masks_corrected_by_hand_are_learned_from(run: Run, work: Path) -> None:
    assert run(*TRAIN, work=work).code == 0
    path = work / "decoder/text-refined.safetensors"
    before = path.read_bytes()
    mask = work / "masks/text-refined/train/scene1.png"
    correct_by_hand(mask)
    os.utime(mask, (time.time() + 60,) * 2)
    refused = run(*TRAIN, work=work)
    assert refused.code == 1
    assert "masks/text-refined/train has changed" in refused.lines("error:")[0]
    assert "1 of 6 masks is newer" in refused.lines("error:")[0]
    assert "update" in refused.lines("hint:")[0]
    assert path.read_bytes() == before
    updated = run(*TRAIN, "--update", work=work)
    assert updated.code == 0, updated.err
    assert "masks/text-refined/train: supervised by tags and 1 corrected mask" in updated.err
    assert path.read_bytes() != before
    assert "already exists" in run(*TRAIN, work=work).err


def test_a_checkpoint_of_other_masks_is_begun_anew_at_an_update(
    run: Run, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        stop_after(2, patched, training, "train")
        assert run(*TRAIN, "--checkpoint-every", 1, work=work).code == 130
    correct_by_hand(work / "masks/text-refined/train/scene1.png")
    refused = run(*TRAIN, work=work)
    assert refused.code == 1
    assert "checkpoint" in refused.lines("error:")[0]
    assert "masks/text-refined/train has changed" in refused.lines("error:")[0]
    result = run(*TRAIN, "--update", work=work)
    assert result.code == 0, result.err
    assert "going on" not in result.err
    assert not list((work / "decoder").glob("*checkpoint*"))


@pytest.mark.parametrize("source", ["features", "photos"])
def test_a_mask_with_a_value_that_is_no_class_is_refused(source: str, run: Run, work: Path) -> None:
    path = work / "masks/text-refined/train/scene4.png"
    with Image.open(path) as image:
        labels = np.asarray(image).copy()
    labels[3, 5] = 77
    Image.fromarray(labels).save(path)
    result = run(*TRAIN, "--source", source, work=work)
    assert result.code == 1
    assert str(path) in result.lines("error:")[0]
    assert "the value 77 is not a class; the workspace has 1 to 3" in result.lines("error:")[0]
    assert result.lines("hint:")
    assert not (work / "decoder/text-refined.safetensors").exists()


@pytest.mark.parametrize("source", ["features", "photos"])
def test_a_mask_of_another_size_is_refused(source: str, run: Run, work: Path) -> None:
    path = work / "masks/text-refined/train/scene4.png"
    Image.fromarray(np.ones((100, 100), np.uint8)).save(path)
    result = run(*TRAIN, "--source", source, work=work)
    assert result.code == 1
    assert f"{path} is 100×100 (height×width), its photo 40×48" in result.lines("error:")[0]
    assert not (work / "decoder/text-refined.safetensors").exists()


def test_masks_of_ones_own(run: Run, work: Path, tmp_path: Path) -> None:
    """Any folder of PNGs that are named as photos; what has none is left out."""
    own = tmp_path / "mine"
    own.mkdir()
    for number in (0, 1, 3):
        with Image.open(work / f"masks/text-refined/train/scene{number}.png") as image:
            Image.fromarray(np.asarray(image)).save(own / f"scene{number}.png")
    train = ("train-decoder", "--masks", own, *TRAIN[3:])
    result = run(*train, work=work)
    assert result.code == 0, result.err
    assert result.lines("warning:") == [
        f"3 of 6 photos have no mask in {own}; they are skipped"]
    header = header_of(work / "decoder/mine.safetensors")
    assert header.sources["masks"] == os.path.relpath(own, work)
    (own / "scene0.png").rename(own / "other.png")
    (own / "scene1.png").unlink()
    (own / "scene3.png").unlink()
    refused = run(*train, "--name", "none", work=work)
    assert refused.code == 1
    assert "holds no mask" in refused.lines("error:")[0]
    assert "scene0.png" in refused.lines("hint:")[0]


def test_masks_without_any_class_are_told(run: Run, work: Path, tmp_path: Path) -> None:
    own = tmp_path / "empty"
    own.mkdir()
    for path in (work / "masks/text-refined/train").glob("*.png"):
        with Image.open(path) as image:
            Image.new("L", image.size).save(own / path.name)
    result = run("train-decoder", "--masks", own, *TRAIN[3:], work=work)
    assert result.code == 0, result.err
    warning, = result.lines("warning:")
    assert warning.startswith(f"{own}: no mask shows ")


@pytest.mark.parametrize("started", [False, True])
def test_mostly_empty_masks_ask_for_a_larger_alpha(started: bool, run: Run, work: Path) -> None:
    paths = sorted((work / "masks/text-refined/train").glob("*.png"))
    if started:
        (work / "recipe.json").write_text(json.dumps({
            "recipe": "own-photos", "done": False, "words": ["run", "own-photos"]}))
    for count, more in ((1, False), (3, True)):
        for path in paths[:count]:
            write_labels(path, 0 * np.asarray(Image.open(path)), header_of(path))
        result = run(*TRAIN, "--overwrite", work=work)
        assert result.code == 0, result.err
        (told,) = [line for line in result.err.splitlines() if "show no class" in line
                   or "shows no class" in line]
        assert told.endswith("shows them first") != more
        assert (f"vpltool -C {work} run own-photos alpha=4`" in told) == (more and started)
        assert ("--method densecrf --alpha 4 --split" in told) == (more and not started)


@pytest.mark.parametrize("linked", [False, True])
def test_true_masks_are_not_learned_from(linked: bool, run: Run, work: Path, tmp_path: Path
                                         ) -> None:
    folder = work.parent / "masks"
    if linked:
        (tmp_path / "link").symlink_to(folder)
        folder = tmp_path / "link"
    result = run("train-decoder", "--masks", folder, *TRAIN[3:], work=work)
    assert result.code == 1
    assert "holds the true masks" in result.lines("error:")[0]


@pytest.mark.parametrize("max_side", [0, 1024])
def test_large_photos_are_cut_before_they_are_scaled(max_side: int, run: Run, work: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """A crop costs no more than its own pixels, and shows as much of a photo as predict sees."""
    for number in range(6):
        for folder in ("photos", "work/masks/text-refined/train"):
            path = work.parent / folder / f"scene{number}.png"
            with Image.open(path) as image:
                image.resize((image.width * 40, image.height * 40), 0).save(path)
    # Masks of other photos are refused otherwise.
    path = work / "masks/text-refined/train/artifact.json"
    manifest = json.loads(path.read_text())
    del manifest["photos"]
    path.write_text(json.dumps(manifest))
    data = training_data_of(work.parent, "photos", residual=False, max_side=max_side)
    settings = training_with(iters=2, batch_size=3, crop=20)
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, size, *rest, **more: (
        sizes.append(size), resize(self, size, *rest, **more))[1])
    found = list(crop_batches(data, settings, 0, device=torch.device("cpu"), workers=0))
    assert len(found) == 2
    assert max(max(size) for size in sizes) <= 20 * data.frozen.encoder.vision.patch
    monkeypatch.undo()
    patch, seen = data.frozen.encoder.vision.patch, []
    for iteration in range(2):
        rng = generator_of(settings, iteration)
        for number in chosen_photos(6, settings, iteration):
            pixels = read_photo(data.workspace.image_path(data.photos[number]))
            size = fit_size(pixels.shape[:2], patch, scale=float(rng.uniform(0.5, 2)),
                            max_side=max_side)
            image = to_pixels(pixels, size, (0, 0, 0), (1, 1, 1))
            labels = labels_at(data.masks.read_labels(data.photos[number].id),
                               (size[0] // patch, size[1] // patch))
            seen.append(slow_window(image, labels, 20, patch, rng))
    with monkeypatch.context() as patched:
        patched.setattr("vpltool.stages._training_inputs._encoded", lambda data, batches: batches)
        cut = list(crop_batches(data, settings, 0, device=torch.device("cpu"), workers=0))
    for number, (image, labels, _) in enumerate(seen):
        batch = cut[number // 3]
        assert batch.layers is not None
        assert (batch.layers[number % 3].float() / 255 - image).abs().max() < 3 / 255
        assert torch.equal(batch.labels[number % 3], labels)


def test_max_side_is_recorded_where_it_counts(run: Run, layered: Path, tmp_path: Path) -> None:
    found = {}
    for words in ((), ("--max-side", 24), ("--source", "photos", "--max-side", 24)):
        out = tmp_path / f"{len(words)}.safetensors"
        result = run(*TRAIN, "--iters", 1, *words, "--out", out, work=layered / "work")
        assert result.code == 0, result.err
        found[len(words)] = header_of(out).options.get("max_side"), result.lines("warning:")
    assert found[0] == (None, [])
    assert found[2] == (None, ["--max-side 24 has no effect: no encoder is run; --source photos "
                               "runs it"])
    assert found[4] == (24, [])


@pytest.mark.parametrize(("options", "why"), [
    (("--precision", "bf16", "--method", "discriminant"),
     "no encoder is run; --source photos runs it"),
    (("--precision", "fp16", "--iters", 1), "steps are not computed in fp16; --precision bf16")])
def test_precision_without_an_encoder_is_told(options: tuple[object, ...], why: str, run: Run,
                                              layered: Path, tmp_path: Path) -> None:
    result = run("train-decoder", "--prototypes", "text", *options, "--out", tmp_path / "x",
                 work=layered / "work")
    assert result.code == 0, result.err
    warning, = [line for line in result.lines("warning:") if "precision" in line]
    assert warning.startswith(f"--precision {options[1]}")
    assert why in warning
    assert "precision" not in header_of(tmp_path / "x").options


@pytest.mark.cpu
@pytest.mark.parametrize("source", ["features", "photos"])
def test_steps_in_a_slow_format_are_warned_of_once(source: str, run: Run, layered: Path,
                                                   tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "slowdown_of", lambda _precision: 12.0)
    result = run("train-decoder", "--prototypes", "text", "--precision", "bf16", "--iters", 1,
                 "--source", source, "--workers", 0, "--out", tmp_path / "x",
                 work=layered / "work")
    assert result.code == 0, result.err
    warning, = [line for line in result.lines("warning:") if "bf16" in line]
    assert "about 12 times slower than fp32" in warning


@pytest.mark.parametrize("method", ["weclip", "linear"])
def test_steps_in_bf16_follow_those_in_float32(method: str, run: Run, layered: Path, tmp_path: Path
                                               ) -> None:
    """Losses to a hundredth; parameters stay in float32, and the header says so."""
    curves = {}
    for precision in ("fp32", "bf16"):
        out = tmp_path / f"{precision}.safetensors"
        result = run("train-decoder", "--method", method, "--prototypes", "text", "--iters", 30,
                     "--crop", 3, "--lambda-rsc", int(method == "weclip"), "--precision",
                     precision, "--out", out, work=layered / "work")
        assert (result.code, result.lines("warning:")) == (0, []), result.err
        header, tensors = read_tensors(out, "decoder")
        assert header.options.get("precision") == (None if precision == "fp32" else "bf16")
        assert {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()} == {
            torch.float32}
        curves[precision] = torch.tensor(header.facts["curve"])
    assert not torch.equal(curves["fp32"], curves["bf16"])
    assert float(curves["fp32"][0, 1] - curves["fp32"][-1, 1]) > 0.1
    torch.testing.assert_close(curves["bf16"], curves["fp32"], atol=0.01, rtol=0.01)


def test_the_folded_layers_are_the_reduced_and_fused_ones() -> None:
    """In training two linear maps are one: the same values, and the same gradients."""
    torch.manual_seed(0)
    shape = DecoderShape((0, 1, 2), 24, 16, width=8, blocks=1, heads=1, residual=False)
    decoder = Decoder(shape, torch.randn(4, 16), torch.tensor([1, 2, 0, 0]), 0.07).double()
    layers = torch.randn(2, 3, 5, 24, dtype=torch.double)
    found, gradients = [], []
    for reduce in (decoder._reduce, decoder._reduce_folded):
        decoder.zero_grad()
        fused = reduce(layers)
        (fused ** 2).sum().backward()
        found.append(fused.detach())
        gradients.append([part.grad.clone() for part in [*decoder.reduce.parameters(),
                                                         *decoder.fuse.parameters()]])
    torch.testing.assert_close(found[1], found[0])
    for own, wanted in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(own, wanted)


def test_an_untrained_decoder_is_kept_only_where_it_means_something(
    run: Run, layered: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.safetensors"
    refused = run(*TRAIN, "--iters", 0, "--out", out, work=layered / "work")
    assert refused.code == 1
    assert "--iters 0" in refused.lines("error:")[0]
    assert "--residual" in refused.lines("hint:")[0]
    assert not out.exists()
    result = run(*TRAIN, "--iters", 0, "--residual", "--out", out, work=layered / "work")
    assert result.code == 0, result.err
    assert header_of(out).facts["curve"] == []


def test_an_interrupt_keeps_the_steps_that_are_done(run: Run, layered: Path, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """Long before a checkpoint is due by steps; the step at work is finished first."""
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    assert run(*TRAIN, "--out", whole, work=layered / "work").code == 0
    with monkeypatch.context() as patched:
        step_losses, done = training.step_losses, []

        def interrupted(*args: Any) -> tuple[Tensor, Tensor]:
            done.append(1)
            if len(done) == 3:
                os.kill(os.getpid(), signal.SIGINT)
            return step_losses(*args)

        patched.setattr(training, "step_losses", interrupted)
        result = run(*TRAIN, "--out", parts, work=layered / "work")
    assert result.code == 130
    assert header_of(tmp_path / "parts.checkpoint.safetensors").facts["checkpoint"] == 3
    again = run(*TRAIN, "--out", parts, work=layered / "work")
    assert again.code == 0, again.err
    assert "resuming from step 3 of 5" in again.err
    assert parts.read_bytes() == whole.read_bytes()


def test_checkpoints_come_by_time_too(run: Run, layered: Path, tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step takes half a minute by this clock."""
    now = iter(range(0, 10**6, 30))
    monkeypatch.setattr("vpltool.engine.checkpoints.CheckpointRule.__init__.__defaults__",
                        (60.0, lambda: next(now)))
    stop_after(4, monkeypatch, training, "train")
    result = run(*TRAIN, "--out", tmp_path / "x.safetensors", work=layered / "work")
    assert result.code == 130
    assert header_of(tmp_path / "x.checkpoint.safetensors").facts["checkpoint"] == 3


def test_a_decoder_says_what_it_is(layered: Path) -> None:
    """Enough to share it: the class names, the method, and how photos are normalised."""
    header = header_of(layered / "work/decoder/tiny.safetensors")
    assert header.facts["classes"] == ["bar", "box", "disc"]
    assert header.facts["segmenter"] == "weclip"
    assert header.facts["normalise"] == "model"
    assert header.facts["reads"] == ["layers"]
    assert set(header.model) >= {"name", "pretrained", "fingerprint"}


def test_nothing_is_lost_to_a_typo(run: Run, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        stop_after(2, patched, training, "train")
        assert run(*TRAIN, "--checkpoint-every", 1, work=work).code == 130
    before = {path: path.read_bytes() for path in (work / "decoder").iterdir()}
    assert len(before) == 2
    for words in (("--device", "cuda:9"), ("--width", 40), ("--layers", 9)):
        result = run(*TRAIN, "--overwrite", *words, work=work)
        assert result.code == 1, words
        assert {path: path.read_bytes() for path in (work / "decoder").iterdir()} == before


TOY = """'''A linear layer on patch embeddings, for a test.'''

from dataclasses import dataclass

import torch
from torch import nn

from vpltool import settings
from vpltool.core.segmenter import SegmenterNetwork
from vpltool.settings import setting

READS = ("patches",)


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    sharpness: float = setting(20.0, "How sure it is.", low=1)


class Linear(SegmenterNetwork):
    serves_untrained = True

    def __init__(self, prototypes, class_index, sharpness):
        super().__init__(prototypes, class_index, 1 / sharpness, reads_patches=True)
        self.linear = nn.Linear(prototypes.shape[1], prototypes.shape[1])
        nn.init.eye_(self.linear.weight)

    @property
    def config(self):
        return {"sharpness": 1 / self.tau, "shape": list(self.prototypes.shape)}

    def embeddings(self, layers, patches, grid):
        assert layers is None
        return nn.functional.normalize(self.linear(patches), dim=-1)


def build(parts, settings):
    assert parts.layers == () and parts.input_width == 0
    return Linear(parts.prototypes, parts.class_index, settings.sharpness)


def rebuild(config):
    rows, dim = config["shape"]
    return Linear(torch.zeros(rows, dim), torch.zeros(rows, dtype=torch.long),
                  config["sharpness"])
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "methods/segmenters").mkdir(parents=True)
    (tmp_path / "methods/segmenters/toy.py").write_text(TOY)
    monkeypatch.setenv("VPLTOOL_METHODS", str(tmp_path / "methods"))


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("source", ["features", "photos"])
def test_a_segmenter_in_a_file_of_its_own(source: str, run: Run, work: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained, stopped and gone on, and found again by predict from what its file says."""
    train = ("train-decoder", "--method", "toy", *TRAIN[1:7], "--batch-size", 2, "--iters", 4,
             "--source", source, "--optimizer", "adamw", "--lr", "0.1")
    assert run(*train, "--name", "whole", work=work).code == 0
    with monkeypatch.context() as patched:
        stop_after(3, patched, training, "train")
        assert run(*train, "--name", "toy", "--checkpoint-every", 2, work=work).code == 130
    result = run(*train, "--name", "toy", work=work)
    assert result.code == 0, result.err
    assert "resuming from step 2 of 4" in result.err
    path = work / "decoder/toy.safetensors"
    parts, whole = (read_tensors(work / f"decoder/{name}.safetensors", "decoder")[1]
                    for name in ("toy", "whole"))
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    header = header_of(path)
    assert header.facts["segmenter"] == "toy"
    assert header.options["sharpness"] == 20.0
    assert "layers" not in header.options
    for seen in ("features", "photos"):
        result = run("predict", "--decoder", "toy", "--source", seen, "--workers", 0,
                     "--out", work / "from" / seen, work=work)
        assert result.code == 0, result.err
    first, second = (np.asarray(Image.open(work / "from" / seen / "scene6.png"))
                     for seen in ("features", "photos"))
    assert (first == second).mean() > 0.98
    untrained = run(*train, "--iters", 0, "--name", "untrained", work=work)
    assert untrained.code == 0, untrained.err


@pytest.mark.usefixtures("toy")
def test_a_segmenter_whose_method_is_gone_is_named(run: Run, work: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("train-decoder", "--method", "toy", *TRAIN[1:7], "--iters", 1, "--name", "toy",
               work=work).code == 0
    monkeypatch.delenv("VPLTOOL_METHODS")
    result = run("predict", "--decoder", "toy", "--workers", 0, work=work)
    assert result.code == 1
    assert "toy" in result.lines("error:")[0]


def test_a_decoder_that_names_no_method(run: Run, work: Path) -> None:
    from dataclasses import replace

    from vpltool.formats import write_tensors

    header, tensors = read_tensors(work / "decoder/tiny.safetensors", "decoder")
    facts = {key: header.facts[key] for key in ("classes", "config", "curve")}
    path = work / "decoder/nameless.safetensors"
    write_tensors(path, replace(header, facts=facts), tensors)
    result = run("predict", "--decoder", "nameless", "--workers", 0, "--out", work / "x", work=work)
    assert result.code == 1
    assert result.lines("error:") == [f"{path} does not name the method of its network"]
    assert result.lines("hint:")[0].startswith("vpltool train-decoder ")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_affinity_loss_is_recorded_learned_from_and_gone_on_with(
    optimizer: str, run: Run, layered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = (*TRAIN, "--optimizer", optimizer)
    plain, whole, parts = (tmp_path / f"{name}.safetensors" for name in ("plain", "whole", "parts"))
    assert run(*base, "--out", plain, work=layered / "work").code == 0
    assert "lambda_aff" not in header_of(plain).options
    result = run(*base, "--lambda-aff", 0.1, "--out", whole, work=layered / "work")
    assert result.code == 0, result.err
    assert "affinity" in result.err
    assert header_of(whole).options["lambda_aff"] == 0.1
    assert [len(row) for row in header_of(whole).facts["curve"]] == [4] * 5
    assert whole.read_bytes() != plain.read_bytes()
    with monkeypatch.context() as patched:
        stop_after(3, patched, training, "train")
        assert run(*base, "--lambda-aff", 0.1, "--checkpoint-every", 2, "--out", parts,
                   work=layered / "work").code == 130
    assert run(*base, "--lambda-aff", 0.1, "--out", parts, work=layered / "work").code == 0
    assert parts.read_bytes() == whole.read_bytes()


def test_a_decoder_begins_with_the_weights_of_another(run: Run, layered: Path, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """Its prototypes and its masks are its own; going on after a stop is exact."""
    work, started = layered / "work", tmp_path / "started.safetensors"
    base = (*TRAIN, "--start", "tiny", "--residual")
    result = run(*base, "--out", started, work=work)
    assert result.code == 1
    assert "has another shape" in result.lines("error:")[0]
    assert "--width 16" in result.lines("hint:")[0]
    base = (*TRAIN, "--start", "tiny", "--lr", 1e-9, "--optimizer", "adamw")
    assert run(*base, "--out", started, work=work).code == 0
    first, other = (read_tensors(path, "decoder")[1]
                    for path in (work / "decoder/tiny.safetensors", started))
    for name, tensor in first.items():
        torch.testing.assert_close(other[name], tensor, atol=1e-6, rtol=0)
    header = header_of(started)
    assert header.sources["start"] == "decoder/tiny.safetensors"
    assert "start" in header.inputs
    parts = tmp_path / "parts.safetensors"
    with monkeypatch.context() as patched:
        stop_after(3, patched, training, "train")
        assert run(*base, "--checkpoint-every", 2, "--out", parts, work=work).code == 130
    assert run(*base, "--out", parts, work=work).code == 0
    assert parts.read_bytes() == started.read_bytes()


def test_a_decoder_does_not_begin_with_itself(run: Run, layered: Path) -> None:
    work = layered / "work"
    result = run(*TRAIN, "--start", "tiny", "--name", "tiny", "--overwrite", work=work)
    assert result.code == 1
    assert result.lines("error:") == ["--start tiny is the decoder that would be written"]
    assert (work / "decoder/tiny.safetensors").exists()
