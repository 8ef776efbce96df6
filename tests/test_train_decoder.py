"""`train-decoder`: from features and photos, stopped and gone on, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TRAIN, Run, copy_workspace

from vpltool.core import training
from vpltool.formats import describe, read_tensors


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
        result = run(*options, "--checkpoint-every", 2, "--out", parts, work=layered / "work")
    assert result.code == 130
    assert "run the same command again" in result.err
    checkpoint = tmp_path / "parts.checkpoint.safetensors"
    assert header_of(checkpoint).facts["checkpoint"] == 2
    assert not parts.exists()
    again = run(*options, "--out", parts, work=layered / "work")
    assert again.code == 0, again.err
    assert "going on from step 2 of 5" in again.err
    assert parts.read_bytes() == whole.read_bytes()
    assert not checkpoint.exists()


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
