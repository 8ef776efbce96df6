"""What a lack of memory does to a run; and that memory does not grow with the number of photos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TRAIN, Run

from vpltool.core import affinity, gradcam, phase_one, segment, training
from vpltool.core.vit import VisionTower

PREDICT = ("predict", "--decoder", "tiny", "--split", "train", "--workers", 0)

HALVED: dict[str, tuple[tuple[object, ...], Any, str, int]] = {
    "extract": (("extract", "--workers", 0), VisionTower, "forward", 1),
    "cam": (("cam",), gradcam, "gradcam", 1),
    "cam dense": (("cam", "--method", "dense"), gradcam, "dense_cam", 0),
    "predict photos": ((*PREDICT, "--source", "photos"), VisionTower, "forward", 1),
    "predict features": ((*PREDICT, "--source", "features"), segment, "probabilities_of", 1),
}
"""Commands that take photos in batches; the function that runs a batch, and its place there."""


def leave_room(room: int, owner: Any, name: str, place: int,
               monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a function fail as a GPU does where its batch is larger than `room`."""
    run: Callable[..., Any] = getattr(owner, name)

    def short(*args: Any, **options: Any) -> Any:
        if len(args[place]) > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return run(*args, **options)

    monkeypatch.setattr(owner, name, short)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("scene*")}


@pytest.mark.parametrize("name", HALVED)
def test_a_batch_too_large_is_halved(name: str, run: Run, layered: Path, tmp_path: Path,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is that of the smaller batch size, to the byte; one line says which it is."""
    command, *where = HALVED[name]
    small = run(*command, "--batch-size", 2, "--out", tmp_path / "small", work=layered / "work")
    assert small.code == 0, small.err
    leave_room(2, *where, monkeypatch)
    result = run(*command, "--batch-size", 8, "--out", tmp_path / "halved", work=layered / "work")
    assert result.code == 0, result.err
    assert len(files_of(tmp_path / "small")) == 6
    assert files_of(tmp_path / "halved") == files_of(tmp_path / "small")
    (told,) = result.lines("warning:")
    assert "out of memory with 3 photos of " in told
    assert told.endswith("--batch-size 2")


@pytest.mark.parametrize("name", HALVED)
def test_one_photo_too_large_names_its_size_and_the_option(
    name: str, run: Run, layered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, *where = HALVED[name]
    leave_room(0, *where, monkeypatch)
    result = run(*command, "--batch-size", 8, "--out", tmp_path / "x", work=layered / "work")
    assert result.code == 1
    (error,), (hint,) = result.lines("error:"), result.lines("hint:")
    size = "48×40 pixels" if name in ("extract", "predict photos") else "6×5 patches"
    assert error == f"out of memory with a photo of {size}"
    assert "--max-side" in hint
    assert files_of(tmp_path / "x") == {}


TOLD: dict[str, tuple[tuple[object, ...], Any, str, str, str]] = {
    "refine": (("refine", "--cams", "text"), affinity, "refine", "a photo of 6×5 patches",
               "--max-side 512"),
    "learn-prototypes": (("learn-prototypes", "--iters", 1), phase_one, "learn", "180 pixels",
                         "--max-pixels 90"),
    "train-decoder": (TRAIN, training, "step_losses", "2 crops of 3×3 patches", "--batch-size 1"),
}
"""Commands that cannot halve without another result: what did not fit, and what to lower."""


@pytest.mark.parametrize("name", TOLD)
def test_what_cannot_be_halved_is_told(name: str, run: Run, layered: Path, tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    command, owner, function, what, lower = TOLD[name]

    def short(*_args: Any, **_options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(owner, function, short)
    result = run(*command, "--out", tmp_path / "x.safetensors", work=layered / "work")
    assert result.code == 1
    assert result.lines("error:") == [f"out of memory with {what}"]
    assert lower in result.lines("hint:")[0]


@pytest.mark.parametrize(("error", "said"), [
    (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "worker"),
    (RuntimeError("A process in the process pool was terminated abruptly while the future was "
                  "running or pending."), "worker"),
    (MemoryError(), "out of memory"), (RuntimeError("CUDA out of memory. Tried"), "out of memory")])
def test_elsewhere_it_is_one_line_and_a_hint(error: Exception, said: str, run: Run, ready: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_args: Any, **_options: Any) -> None:
        raise error

    monkeypatch.setattr("vpltool.commands.eval.find_folder", short)
    result = run("eval", work=ready / "work")
    assert result.code == 1
    assert said in result.lines("error:")[0]
    assert result.lines("hint:")
