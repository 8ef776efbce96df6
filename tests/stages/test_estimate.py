"""`estimate`: measured, said in a line, and proportional to the photos."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from torch import Tensor

from vpltool.clip import encoders
from vpltool.core import joint, training
from vpltool.core.segmenter import SegmenterNetwork
from vpltool.core.training import CropBatch, TrainingSettings
from vpltool.errors import VplError
from vpltool.formats import Header, write_tensors
from vpltool.stages import estimate


def test_a_student_that_is_missing_is_named_as_such(
        run: Run, ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise VplError("timm cannot load it", "download it: `encoder='timm:x,FILE'`")

    monkeypatch.setattr(encoders, "load_encoder", missing)
    result = run("estimate", "--new", "--student", "small", work=ready / "work")
    assert result.lines("hint:") == ["download it: --student timm:x,FILE"]


def test_it_says_how_long_and_how_much(run: Run, ready: Path) -> None:
    result = run("estimate", "--iters", 10, "--crop", 4, "--width", 16, "--layers", 2,
                 work=ready / "work")
    assert result.code == 0, result.err
    assert result.out == ""
    assert result.err.startswith("6 photos: about ")
    assert "GB of features" in result.err
    report = json.loads(run("estimate", "--iters", 10, "--crop", 4, "--width", 16, "--layers", 2,
                            "--json", work=ready / "work").out)
    assert set(report["seconds"]) == {"extract", "crf", "train-decoder"}
    assert all(value >= 0 for value in report["seconds"].values())
    # 48×40 pixels are 6×5 patches of 8; 2 bytes each for 2 layers of 32 and an embedding of 16.
    assert report["patches"] == 30
    assert report["bytes"] == 6 * 2 * 30 * (2 * 32 + 16)


def test_the_steps_are_those_of_the_segmenter_that_is_named(run: Run, ready: Path,
                                                           monkeypatch: pytest.MonkeyPatch
                                                           ) -> None:
    seen = []
    losses = training.step_losses

    def watched(network: SegmenterNetwork, batch: CropBatch, settings: TrainingSettings,
                *others: Any) -> tuple[Tensor, ...]:
        seen.append((type(network).__name__, len(batch.labels), settings.lambda_rsc))
        return losses(network, batch, settings, *others)

    monkeypatch.setattr(training, "step_losses", watched)
    few = ("--iters", 10, "--crop", 4, "--width", 16, "--layers", 2)
    assert run("estimate", *few, work=ready / "work").code == 0
    assert set(seen) == {("Decoder", 6, 1.0)}
    seen.clear()
    assert run("estimate", *few, "--segmenter", "linear", "--batch-size", 3,
               work=ready / "work").code == 0
    assert set(seen) == {("LinearSegmenter", 3, 0.0)}
    refused = run("estimate", "--segmenter", "liner", work=ready / "work")
    assert refused.code != 0
    assert "linear" in refused.err


@pytest.mark.cpu
def test_it_is_multiplied_by_the_photos_and_steps(run: Run, ready: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_encoder_seconds", lambda *_: 0.5)
    monkeypatch.setattr(estimate, "_crf_seconds", lambda *_: 4.0)
    monkeypatch.setattr(estimate, "_step_seconds", lambda *_: 0.25)
    monkeypatch.setattr("vpltool.parallel.device.default_workers", lambda: 1)
    report = json.loads(run("estimate", "--iters", 100, "--json", work=ready / "work").out)
    assert report["seconds"] == {"extract": 3.0, "crf": 12.0, "train-decoder": 25.0}
    assert report["total"] == 40.0


def test_training_of_encoders_counts_where_it_is_asked_for(
        run: Run, ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = ("--iters", 10, "--crop", 4, "--width", 16, "--layers", 2, "--json")
    network = "timm:vit_tiny_patch16_224"

    def random_encoder(source: Any, device: torch.device) -> encoders.Encoder:
        made = encoders.random_encoder(source, 0)
        made.vision.to(device)
        return made

    monkeypatch.setattr(encoders, "load_encoder", random_encoder)
    seen: list[tuple[int, int]] = []
    losses = joint._losses

    def watched(pair: joint.Pair, batch: joint.PixelBatch, *others: Any) -> tuple[Tensor, ...]:
        seen.append((len(pair.now.blocks), batch.pixels.shape[-1]))
        return losses(pair, batch, *others)

    monkeypatch.setattr(joint, "_losses", watched)
    result = run("estimate", *few, "--finetune", 10, "--student", network, "--student-iters", 5,
                 work=ready / "work")
    assert result.code == 0, result.err
    seconds = json.loads(result.out)["seconds"]
    assert seconds["train-student"] > 0
    assert seconds["finetune"] > 0
    # The tiny CLIP has three blocks of patches of 8; the student sees crops of 16 patches of 16.
    assert seen == [(0, 256)] * 3 + [(0, 32)] * 3


@pytest.mark.cpu
def test_only_new_photos_count(run: Run, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = copied / "work"
    done = run("estimate", "--new", work=work)
    assert (done.code, done.out, done.err) == (0, "", "")
    for name in ("scene0", "scene3"):
        (work / f"features/train/{name}.safetensors").unlink()
    result = run("estimate", "--new", "--iters", 10, "--crop", 4, "--width", 16, work=work)
    assert result.err.startswith("2 photos: about ")
    report = json.loads(run("estimate", "--new", "--iters", 10, "--crop", 4, "--width", 16,
                            "--json", work=work).out)
    monkeypatch.setattr(estimate, "_encoder_seconds", lambda *_: 1.0)
    monkeypatch.setattr(estimate, "_crf_seconds", lambda *_: 10.0)
    monkeypatch.setattr("vpltool.parallel.device.default_workers", lambda: 1)
    shutil.rmtree(work / "masks", ignore_errors=True)
    report = json.loads(run("estimate", "--new", "--iters", 0, "--json", work=work).out)
    # None of the six has a mask, whoever has features: an interrupted job needs these, too.
    assert report["seconds"] == {"extract": 2.0, "crf": 30.0, "train-decoder": 0.0}


def test_photos_that_cannot_be_read_are_named(run: Run, copied: Path) -> None:
    for photo in (copied / "photos").iterdir():
        photo.write_bytes(b"no photo")
    result = run("estimate", work=copied / "work")
    assert result.code == 1
    assert "no photo can be read" in result.lines("error:")[0]


def test_new_photos_that_cannot_be_read_leave_nothing_to_encode(run: Run, copied: Path) -> None:
    """The others have their features: a recipe goes on."""
    work = copied / "work"
    for name, content in (("scene0", b""), ("scene3", b"no photo")):
        (work / f"features/train/{name}.safetensors").unlink()
        (copied / f"photos/{name}.png").write_bytes(content)
    result = run("estimate", "--new", work=work)
    assert (result.code, result.out) == (0, ""), result.err
    said = result.err.strip()
    assert said.startswith("nothing remains to be encoded: 2 new photos cannot be read: "
                           "scene0.png: the file is empty; scene3.png: ")
    report = json.loads(run("estimate", "--new", "--json", work=work).out)
    assert report["photos"] == 0
    (work / "features/train/scene4.safetensors").unlink()
    result = run("estimate", "--new", "--iters", 10, "--crop", 4, "--width", 16, work=work)
    assert result.err.startswith("1 photo: about ")


def test_the_crf_is_timed_as_it_would_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the method, with the backend that it takes by itself."""
    from vpltool.methods.label_refiners import densecrf

    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr(densecrf, "refine_labels", lambda *given: seen.append(given))
    assert estimate._crf_seconds(64 * 64, torch.device("cpu")) >= 0
    photos, used, device = seen[0]
    assert photos[0].scores.shape == (2, 64, 64)
    assert (used.backend, device.type) == ("auto", "cpu")


def test_tagging_counts_where_it_is_asked_for(run: Run, copied: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    work = copied / "work"
    few = ("--iters", 10, "--crop", 4, "--width", 16, "--json")
    rows = (copied / "tags.csv").read_text().splitlines()
    (copied / "tags.csv").write_text("\n".join(
        row.replace(row.split(",")[1], "") if row.startswith(("scene0,", "scene2,")) else row
        for row in rows) + "\n")
    assert run("prepare", "folder", copied / "photos", "--labels", copied / "tags.csv",
               work=work).code == 0
    assert "tag" not in json.loads(run("estimate", *few, work=work).out)["seconds"]
    assert json.loads(run("estimate", *few, "--tag", work=work).out)["seconds"]["tag"] >= 0
    monkeypatch.setattr(estimate, "_tag_seconds", lambda *_: 3.0)
    assert json.loads(run("estimate", *few, "--tag", work=work).out)["seconds"]["tag"] == 6.0


def test_a_training_that_has_no_result_counts_though_nothing_is_new(
        run: Run, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = copied / "work"
    monkeypatch.setattr(estimate, "_student_seconds", lambda *_: 2.0)
    asked = ("estimate", "--new", "--student", "timm:x", "--student-iters", 30)
    assert run(*asked, work=work).err == "about 60 s on this machine (train-student 60 s)\n"
    made = work / "decoder/student.safetensors"
    write_tensors(made, Header("decoder", "train-student"), {"weight": torch.ones(1)})
    assert run(*asked, work=work).err == ""
