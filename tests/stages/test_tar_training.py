"""`train-groups --pairs`: pairs from tars, in order, resumed in the middle, whatever is damaged."""

from __future__ import annotations

import io
import os
import signal
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from PIL import Image
from torch import Tensor

from vpltool.core import group_training
from vpltool.datasets.webdataset import find_tars
from vpltool.errors import VplError
from vpltool.formats import describe
from vpltool.stages._pairs import Plan, TarPairs

wds = pytest.importorskip("webdataset")

TRAIN = ("train-groups", "--side", 16, "--patch", 4, "--width", 12, "--heads", 2, "--depths",
         "1,1,1", "--groups", "4,2", "--hidden", 8, "--npr-hidden", 8, "--iters", 6,
         "--batch-size", 3, "--lr", 1e-2, "--window", 4, "--workers", 0)


def photo_of(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (20, 24, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars of five pairs; one photo is damaged, one caption empty, one photo has none."""
    folder = tmp_path_factory.mktemp("tars")
    for tar in range(2):
        with wds.TarWriter(str(folder / f"{tar}.tar")) as writer:
            for number in range(5):
                key = f"{tar}{number}"
                writer.write({"__key__": key, "png": photo_of(int(key)),
                              "txt": f"a photo of {key}\nthe number {key}"})
            if tar:
                writer.write({"__key__": "x", "png": photo_of(7)[:300], "txt": "damaged"})
                writer.write({"__key__": "y", "png": photo_of(7), "txt": " "})
                writer.write({"__key__": "z", "png": photo_of(7)})
    return folder


PLAN = Plan(16, 0.5, True, share=3, iterations=30, seed=0)


def source_of(tars: Path) -> TarPairs:
    return TarPairs(find_tars([f"{tars}/{{0..1}}.tar"], allow_pipe=False), 4)


def test_each_pair_comes_once_an_epoch_with_one_of_its_captions(tars: Path) -> None:
    source = source_of(tars)
    steps = list(islice(source.steps(replace(PLAN, workers=2), 0), 10))
    assert all(step.pixels.shape == (3, 3, 16, 16) for step in steps)
    said = [text.split()[-1] for step in steps for text in step.captions]
    keys = [f"{tar}{number}" for tar in range(2) for number in range(5)]
    for epoch in range(3):
        assert sorted(said[10 * epoch : 10 * epoch + 10]) == keys
    assert {text.split()[0] for step in steps for text in step.captions} == {"a", "the"}
    told = source.flaws.remarks()
    assert len(told) == 3
    assert any(line.startswith("skipped 1 photos that cannot be read") and "1.tar: x.png" in line
               for line in told)
    assert f"skipped 1 empty captions: {tars}/1.tar: y" in told
    assert f"skipped 1 photos without a caption: {tars}/1.tar: z" in told


@pytest.mark.parametrize("rank", [0, 1])
def test_from_a_cursor_on_the_steps_are_the_same(tars: Path, rank: int) -> None:
    whole, plan = source_of(tars), replace(PLAN, rank=rank, ranks=2)
    steps, cursors = [], []
    for step in islice(whole.steps(plan, 0), 9):
        steps.append(step)
        cursors.append(whole.cursor)
    for stop in (0, 3, 6):
        later = source_of(tars)
        later.cursor = cursors[stop]
        again = list(islice(later.steps(replace(plan, workers=2), stop + 1), 2))
        for one, other in zip(steps[stop + 1 :], again, strict=False):
            assert one.captions == other.captions
            assert torch.equal(one.pixels, other.pixels)


def test_a_stopped_run_ends_in_the_same_bytes(tars: Path, run: Run, copied: Path, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    work, train = copied / "work", (*TRAIN, "--pairs", tars)
    whole, target = tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"
    result = run(*train, "--out", whole, work=work)
    assert result.code == 0, result.err
    assert "skipped 1 photos that cannot be read" in result.err
    step, taken = group_training.Objective.forward, []

    def stopped(self: Any, pixels: Tensor, texts: Tensor) -> Any:
        taken.append(1)
        if len(taken) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, pixels, texts)

    with monkeypatch.context() as patched:
        patched.setattr(group_training.Objective, "forward", stopped)
        assert run(*train, "--out", target, work=work).code == 130
    header = describe(tmp_path / "stopped.checkpoint.safetensors").header
    assert header is not None
    assert header.facts["cursors"][0].keys() == {"epoch", "tar", "item", "done"}
    result = run(*train, "--out", target, "--workers", 2, work=work)
    assert "resuming from step 3 of 6" in result.err
    assert target.read_bytes() == whole.read_bytes()


def test_what_is_refused_or_warned_of(tars: Path, run: Run, copied: Path, tmp_path: Path) -> None:
    work = copied / "work"
    result = run(*TRAIN, "--pairs", tars / "{1..2}.tar", work=work)
    assert result.code == 1
    assert "2.tar does not exist" in result.lines("error:")[0]
    assert not (work / "groups").exists()
    result = run(*TRAIN, "--pairs", tars, "--split", "val", "--iters", 1, work=work)
    assert result.code == 0, result.err
    assert "`split='val'`" in result.err or "--split val has no effect" in result.err
    (tmp_path / "other.tar").write_bytes((tars / "0.tar").read_bytes())
    other = run(*TRAIN, "--pairs", tmp_path / "other.tar", "--iters", 1, work=work)
    assert other.code == 1
    assert "groups.safetensors" in other.lines("error:")[0]


def test_photos_that_cannot_be_read_do_not_go_on_for_ever(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vpltool.stages._pairs._MAX_BROKEN", 5)
    with wds.TarWriter(str(tmp_path / "0.tar")) as writer:
        for number in range(3):
            writer.write({"__key__": f"{number}", "png": b"no photo", "txt": "words"})
    source = TarPairs(find_tars([str(tmp_path)], allow_pipe=False), 4)
    with pytest.raises(VplError, match="5 photos in a row cannot be read"):
        list(source.steps(PLAN, 0))
