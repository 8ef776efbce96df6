"""`train-student`: small networks that learn from a segmenter, stopped and gone on, and used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from conftest import Run, copy_workspace
from PIL import Image
from reference import dino
from stopping import stop_after

from vpltool import Segmenter
from vpltool import Workspace as Notebook
from vpltool.core import joint
from vpltool.formats import describe, open_workspace, read_tensors, write_tensors
from vpltool.names import short_path
from vpltool.state import read_state

STUDENT = ("train-student", "--teacher", "tiny", "--begin", "random", "--max-side", 64,
           "--batch-size", 2, "--crop", 3)
CONVOLUTIONAL = (*STUDENT, "--encoder", "timm:mobilenetv3_small_050")
TRANSFORMER = (*STUDENT, "--encoder", "timm:vit_tiny_patch16_224")


@pytest.fixture(scope="module")
def base(layered: Path, tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path, run: Run
         ) -> Path:
    """A workspace whose decoder has said what the photos show. Leave it as it is."""
    base = copy_workspace(layered, tmp_path_factory.mktemp("student") / "base", tiny_clip)
    assert run("predict", "--split", "train", "--decoder", "tiny", work=base / "work").code == 0
    return base


@pytest.fixture
def work(base: Path, tmp_path: Path, tiny_clip: Path) -> Path:
    return copy_workspace(base, tmp_path / "copy", tiny_clip) / "work"


@pytest.mark.parametrize("student", [CONVOLUTIONAL, TRANSFORMER], ids=["conv", "vit"])
def test_stopped_and_gone_on_is_uninterrupted(student: tuple[object, ...], run: Run, base: Path,
                                              tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                              ) -> None:
    options = (*student, "--iters", 4)
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    result = run(*options, "--out", whole, work=base / "work")
    assert result.code == 0, result.err
    with monkeypatch.context() as patched:
        stop_after(2, patched, joint, "train_jointly")
        assert run(*options, "--checkpoint-every", 2, "--out", parts,
                   work=base / "work").code == 130
    again = run(*options, "--out", parts, work=base / "work")
    assert again.code == 0, again.err
    assert "resuming from step 2 of 4" in again.err
    assert parts.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.checkpoint*"))


def test_a_convolutional_student_is_used_as_any_segmenter(run: Run, work: Path, tmp_path: Path
                                                          ) -> None:
    """predict, eval, a bundle and the Python API, without the encoder of the workspace."""
    result = run(*CONVOLUTIONAL, "--iters", 3, work=work)
    assert result.code == 0, result.err
    header = describe(work / "decoder/student.safetensors").header
    assert header is not None
    assert header.model["name"] == "timm:mobilenetv3_small_050"
    assert {"teacher", "probabilities", "masks", "tags", "photo-files"} <= set(header.inputs)
    assert [len(entry) for entry in header.facts["curve"]] == [3, 3, 3]
    description = work / "workspace.json"
    content = json.loads(description.read_text())
    description.write_text(json.dumps(content | {"pretrained": "gone"}))
    result = run("predict", "--split", "val", "--decoder", "student", "--workers", 0, work=work)
    assert result.code == 0, result.err
    assert "the segmenter has an encoder of its own" in result.err
    assert run("eval", "--what", "predictions/student", "--split", "val", work=work).code == 0
    bundle = tmp_path / "student.safetensors"
    result = run("export", "bundle", "--what", "student", "--out", bundle, work=work)
    assert result.code == 0, result.err
    photo = work.parent / "photos/scene7.png"
    labels = Segmenter.load(bundle)(photo).labels
    predicted = np.asarray(Image.open(work / "predictions/student/val/scene7.png"))
    assert np.array_equal(labels, predicted)
    # The trained file itself works in a folder that is no workspace.
    alone = shutil.copy(work / "decoder/student.safetensors", tmp_path / "alone.safetensors")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    result = run("predict", photo, "--segmenter", alone, "--out", tmp_path / "alone.png",
                 work=elsewhere)
    assert result.code == 0, result.err
    assert np.array_equal(np.asarray(Image.open(tmp_path / "alone.png")), predicted)
    result = run("predict", "--segmenter", alone, work=elsewhere)
    assert result.code == 1
    assert "is for photos that are named" in result.err


def test_what_it_says_does_not_depend_on_the_encoder_of_the_workspace(run: Run, work: Path
                                                                      ) -> None:
    assert run(*CONVOLUTIONAL, "--iters", 1, work=work).code == 0
    assert run("predict", "--decoder", "student", "--workers", 0, work=work).code == 0
    assert run("crf", "--what", "predictions/student", "--split", "val", "--workers", 0,
               work=work).code == 0
    stale = {entry["name"]: entry["stale"] for entry in Notebook(work).status()}
    for name in ("predictions/student/val", "predictions/student-crf/val"):
        assert not [why for why in stale[name] if "no longer" in why]


def test_it_learns_what_its_teacher_says(run: Run, work: Path) -> None:
    """The loss falls; a class that a photo is not tagged with is taught nowhere."""
    result = run(*TRANSFORMER, "--iters", 60, "--lr", "0.001", "--masks", "none", work=work)
    assert result.code == 0, result.err
    header, tensors = read_tensors(work / "decoder/student.safetensors", "decoder")
    curve = torch.tensor(header.facts["curve"])
    assert curve[-5:, 1].mean() < 0.8 * curve[:3, 1].mean()
    assert curve.shape[1] == 2, "without masks there is one loss"
    assert header.call["masks"] == "none", "`update` trains without masks again"
    assert any(name.startswith("tower.") for name in tensors)


def test_the_folder_of_its_encoder_stays_private(
        run: Run, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is recorded; `update` finds the file; files that hold the folder go on working."""
    weights = tmp_path / "alice" / "dino.pth"
    weights.parent.mkdir()
    torch.save(dino.random_state(patch=8, scaled=True), weights)
    line = ("train-student", "--teacher", "tiny", "--max-side", 64, "--batch-size", 2, "--crop", 3,
            "--encoder", weights, "--iters", 1)
    path, bundle = work / "decoder/student.safetensors", tmp_path / "bundle.safetensors"
    assert run(*line, work=work).code == 0
    content = path.read_bytes()
    assert str(tmp_path).encode() not in content
    header = describe(path).header
    assert header is not None and header.options["encoder"] == "dino.pth"
    assert header.call["encoder"] == "../../alice/dino.pth"
    monkeypatch.chdir("/")
    assert read_state(open_workspace(work)).artifacts["decoder/student.safetensors"].call()[
        "encoder"] == short_path(weights)

    with safetensors.safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    options = header.options | {"encoder": str(weights)}
    write_tensors(path, replace(header, options=options, call=header.call | {
        "encoder": str(weights)}), tensors)
    old = path.read_bytes()
    assert str(weights).encode() in old
    assert "made with the same settings" in run(*line, work=work).err
    assert run("export", "bundle", "--what", "student", "--out", bundle, work=work).code == 0
    assert str(tmp_path).encode() not in bundle.read_bytes()


def test_photos_without_tags_teach_too(run: Run, work: Path, tmp_path: Path) -> None:
    more = tmp_path / "more"
    more.mkdir()
    for number in (6, 7):
        shutil.copy(work.parent / f"photos/scene{number}.png", more / f"new{number}.png")
    refused = run(*CONVOLUTIONAL, "--iters", 1, "--also", more, work=work)
    assert refused.code == 1
    assert refused.lines("hint:")[0].startswith(
        f"vpltool predict {more} --decoder tiny --probabilities")
    assert run("predict", more, "--decoder", "tiny", "--probabilities", "--workers", 0,
               work=work).code == 0
    assert len(list((work / "probabilities/tiny/more").glob("*.safetensors"))) == 2
    result = run(*CONVOLUTIONAL, "--iters", 1, "--also", more, work=work)
    assert result.code == 0, result.err
    header = describe(work / "decoder/student.safetensors").header
    assert header is not None
    assert "also-probabilities" in header.inputs


def test_what_it_lacks_is_said_before_the_work(run: Run, work: Path) -> None:
    shutil.rmtree(work / "probabilities")
    missing = run(*CONVOLUTIONAL, work=work)
    assert missing.code == 1
    assert missing.lines("hint:")[0].startswith("vpltool predict --decoder tiny --split train")
    itself = run(*CONVOLUTIONAL, "--name", "tiny", work=work)
    assert itself.code == 1
    assert not list((work / "decoder").glob("student*"))


def test_a_teacher_of_other_classes_is_refused(run: Run, work: Path) -> None:
    path = work / "workspace.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"classes": ["bar", "box", "ring"]}))
    result = run(*CONVOLUTIONAL, work=work)
    assert result.code == 1
    assert "ring" in result.err


def test_little_to_learn_from_and_a_coarse_grid_are_said(run: Run, work: Path) -> None:
    result = run(*CONVOLUTIONAL, "--iters", 1, "--limit", 2, "--max-side", 32, work=work)
    assert result.code == 0, result.err
    said = "\n".join(result.lines("warning:"))
    assert "only 2 photos for a network" in said
    assert "no photo is tagged disc" in said
    assert "small objects will be lost" in said


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(run: Run, work: Path,
                                                             monkeypatch: pytest.MonkeyPatch
                                                             ) -> None:
    train = joint.train_jointly

    def broken(*args: Any, **options: Any) -> Iterator[tuple[torch.Tensor, ...]]:
        for step, losses in enumerate(train(*args, **options)):
            yield losses if step < 2 else (torch.tensor(torch.nan),) * 2

    monkeypatch.setattr(joint, "train_jointly", broken)
    result = run(*CONVOLUTIONAL, "--iters", 4, "--checkpoint-every", 2, work=work)
    assert result.code == 1
    assert "not finite at step 3" in result.err
    assert "holds the network of step 2" in result.err
    assert (work / "decoder/student.checkpoint.safetensors").exists()
    assert not (work / "decoder/student.safetensors").exists()


def test_soft_labels_that_tags_veto() -> None:
    """Only labels that agree with the teacher sharpen it; doubted ones are ignored."""
    soft = torch.tensor([0.2, 0.8, 0.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    labels = torch.tensor([[[1, 2], [255, 1]]], dtype=torch.uint8)
    assert joint.agreeing(labels, soft).tolist() == [[[1, 255], [255, 1]]]
    kept = joint.undoubted(labels, soft, 0.3)
    assert kept.tolist() == [[[1, 255], [255, 1]]]


def test_tags_of_what_a_crop_may_show() -> None:
    """An untagged class is pushed down, a shown one up; of one that is lost nothing is known."""
    logits = torch.zeros(1, 4, 6, 6, requires_grad=True)
    shown = torch.tensor([[True, True, False, False]])
    possible = torch.tensor([[True, True, True, False]])
    terms, known = joint.tag_terms(logits, torch.ones(1, 6, 6, dtype=torch.bool), shown, possible)
    assert known.tolist() == [[True, False, True]]
    loss = terms[known].mean()
    loss.backward()
    assert logits.grad is not None
    # One pixel in twenty counts, the likeliest.
    gradient = logits.grad.sum(dim=(2, 3))[0]
    assert gradient[1] < 0 < gradient[3]
    expected = -(torch.tensor(0.25).log() + torch.tensor(0.75).log()) / 2
    assert torch.isclose(loss, expected)
