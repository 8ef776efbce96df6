"""What a lack of memory does to a run; and that memory does not grow with the number of photos."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TRAIN, Run, draw_scenes, prepare, run_chain, save_clip, write_scenes
from PIL import Image

import vpltool
from vpltool.core import crf as core_crf
from vpltool.core import phase_one, segment, training
from vpltool.core.vit import VisionTower
from vpltool.engine.photo_work import Failed
from vpltool.engine.scored import Scores
from vpltool.methods.cams import dense, gradcam
from vpltool.methods.refiners import attention
from vpltool.parallel.processes import run_jobs
from vpltool.pictures.overlays import SheetPanel, sheet
from vpltool.stages import crf

PREDICT = ("predict", "--decoder", "tiny", "--split", "train", "--workers", 0)

HALVED: dict[str, tuple[tuple[object, ...], Any, str, int]] = {
    "extract": (("extract", "--workers", 0), VisionTower, "forward", 1),
    "cam": (("cam",), gradcam, "make_cams", 0),
    "cam dense": (("cam", "--method", "dense"), dense, "make_cams", 0),
    "predict photos": ((*PREDICT, "--source", "photos"), VisionTower, "forward", 1),
    "predict features": ((*PREDICT, "--source", "features"), segment, "probabilities_of", 1),
}
"""Commands that take photos in batches; the function that runs a batch, and its place there."""
REFINE: tuple[tuple[object, ...], Any, str, int] = (
    ("refine", "--cams", "text"), attention, "refine", 0)
"""The same of a command that runs photos one by one."""


def leave_room(room: int, owner: Any, name: str, place: int,
               monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a function fail as a GPU does where its batch is larger than `room`."""
    run: Callable[..., Any] = getattr(owner, name)

    def short(*args: Any, **options: Any) -> Any:
        if len(getattr(args[place], "ids", args[place])) > room:
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


@pytest.mark.parametrize("name", [*HALVED, "refine"])
def test_one_photo_too_large_names_its_size_and_the_option(
    name: str, run: Run, layered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are made."""
    command, owner, function, place = HALVED.get(name) or REFINE
    made: Callable[..., Any] = getattr(owner, function)
    calls = []

    def short(*args: Any, **options: Any) -> Any:
        calls.append(args[place])
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return made(*args, **options)

    monkeypatch.setattr(owner, function, short)
    result = run(*command, "--batch-size", 1, "--out", tmp_path / "x", work=layered / "work")
    assert result.code == 1
    (error,) = result.lines("error:")
    size = "48×40 pixels" if name in ("extract", "predict photos") else "6×5 patches"
    assert error.startswith("1 of 6 photos failed, the others are done: scene")
    assert f": out of memory with a photo of {size}; try " in error and "--max-side" in error
    assert len(files_of(tmp_path / "x")) == 5


TOLD: dict[str, tuple[tuple[object, ...], Any, str, str, str]] = {
    "learn": (("learn-prototypes", "--iters", 1), phase_one, "learn", "180 pixels",
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
    (MemoryError(), "out of memory"), (RuntimeError("CUDA out of memory. Tried"), "out of memory"),
    (RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be"),
     "the device has failed: CUDA error: unspecified launch failure"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "the device has failed")])
def test_elsewhere_it_is_one_line_and_a_hint(error: Exception, said: str, run: Run, ready: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_args: Any, **_options: Any) -> None:
        raise error

    monkeypatch.setattr("vpltool.formats.find_folder", short)
    result = run("eval", work=ready / "work")
    assert result.code == 1
    assert said in result.lines("error:")[0]
    assert result.lines("hint:")


def test_a_photo_too_large_for_the_crf_is_named_with_its_size(
    run: Run, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are done: each is alone in its process."""
    mean_fields = core_crf.mean_fields

    def short(photos: Any, *args: Any, **options: Any) -> Any:
        if photos[0].shape[:2] == (48, 40):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return mean_fields(photos, *args, **options)

    monkeypatch.setattr(core_crf, "mean_fields", short)
    result = run("crf", "--workers", 0, "--overwrite", work=copied / "work")
    assert result.code == 1
    (error,) = result.lines("error:")
    assert "3 of 6 photos failed" in error
    assert "scene1: out of memory with 40×48 pixels of scene1.png; try --device cpu" in error


def test_the_crfs_batches_are_halved(ready: Path, monkeypatch: pytest.MonkeyPatch,
                                     tmp_path: Path) -> None:
    """As on a GPU: those that do not fit are taken apart, and so are all later ones."""
    from vpltool.formats import open_input, open_workspace

    mean_fields, sizes = core_crf.mean_fields, []

    def short(photos: Any, *args: Any, **options: Any) -> Any:
        sizes.append(len(photos))
        if len(photos) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return mean_fields(photos, *args, **options)

    monkeypatch.setattr(core_crf, "mean_fields", short)
    # A photo that one label fills is not worked on at all.
    monkeypatch.setattr(core_crf, "decided", lambda *_: None)
    workspace = open_workspace(ready / "work")
    jobs = [(photo.id, workspace.image_path(photo)) for photo in workspace.photos("train")]
    source = open_input(ready / "work/cams/text-refined/train", ("cams",))
    worker = crf._Worker(Scores(source, 1.0, 2048), "densecrf", {"backend": "torch"}, "cpu", (0.0,),
                         3)
    found = dict(crf._run_batches(worker, [*jobs, ("gone", tmp_path / "gone.png")], 2))
    assert found.keys() == {*dict(jobs), "gone"}
    assert found["gone"] == Failed("gone.png: the photo does not exist")
    assert all(not isinstance(found[key], Failed) for key, _ in jobs)
    assert sizes.count(2) == 1
    assert sizes.count(1) == len(jobs)


def test_crf_keeps_few_jobs_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many photos there are, four results a process are held, and the rest not begun."""
    begun = 0

    class Pool:
        """Does each job at once, as processes much faster than the writer would."""

        def __init__(self, *_args: Any, **_options: Any) -> None: ...

        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_args: object) -> None: ...

        def submit(self, _job: Any, item: tuple[str, Path]) -> Future[tuple[str, str]]:
            nonlocal begun
            begun += 1
            done: Future[tuple[str, str]] = Future()
            done.set_result((item[0], "done"))
            return done

    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", Pool)
    jobs = [(f"p{number}", Path()) for number in range(100)]
    most, seen = 0, set()
    for key, _ in run_jobs(crf._Worker.refine_alone, jobs, 3):  # type: ignore[arg-type]
        seen.add(key)
        most = max(most, begun - len(seen) + 1)
    assert seen == {key for key, _ in jobs}
    assert most <= 12


def test_show_holds_one_row_at_a_time() -> None:
    """Photos are large, the panels of a sheet are not."""
    rows: list[weakref.ref[Any]] = []

    def photos() -> Iterator[list[SheetPanel]]:
        for _ in range(5):
            assert sum(row() is not None for row in rows) <= 1
            photo = np.zeros((300, 400, 3), np.uint8)
            rows.append(weakref.ref(photo))
            yield [SheetPanel("photo", photo)]
            del photo

    assert sheet(photos()).height > 3 * 165, "five rows, in two columns"


FEW, MANY = 30, 120

SLACK = 4.0
"""MB that a run over MANY photos may take more than one over FEW: 46 KB for each of them more."""

LEAK = 64 * 1024
"""Bytes a photo of a leak that must be seen. Pixels, features and maps are larger, here too."""

MEASURE = """
import contextlib, json, os, sys
from vpltool import console
from vpltool.cli import main
from vpltool.clip.load import import_open_clip

import_open_clip()
lines, leak = map(json.loads, sys.argv[1:])
progress, held = console.progress, []

@contextlib.contextmanager
def leaking(title, total):
    with progress(title, total) as advance:
        def hold(steps=1, text=""):
            held.append(b"x" * (steps * leak))
            advance(steps, text)
        yield hold

for words, leaks in lines:
    child = os.fork()
    if not child:
        console.progress = leaking if leaks else progress
        sys.argv[:] = ["vpltool", *words]
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        os._exit(code)
    _, status, usage = os.wait4(child, 0)
    print(json.dumps(["PEAK", os.waitstatus_to_exitcode(status), usage.ru_maxrss]), flush=True)
"""
"""Runs command lines, each in a process of its own that has torch loaded, and prints its peak."""

COMMANDS: dict[str, tuple[str, ...]] = {
    "extract": ("extract", "--workers", "1"), "cam": ("cam",),
    "refine": ("refine", "--cams", "text"),
    "learn": ("learn-prototypes", "--iters", "2", "--max-pixels", "1000"),
    "learn seeds": ("learn-prototypes", "--pixels", "seeds", "--cams", "text", "--iters", "2",
                    "--max-pixels", "1000"),
    "predict": ("predict", "--split", "train", "--source", "photos", "--workers", "1"),
    "eval": ("eval", "--split", "train", "--what", "cams/text")}
"""In the order in which they are run: each reads what those before it wrote."""


@pytest.fixture(scope="module")
def growth(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """MB by which the peak of each command rises from FEW to MANY photos.

    All are one photo under many names: nothing but their number differs. `leak` is one that leaks.
    """
    if sys.platform != "linux":
        pytest.skip("the peak is counted in other units, and freed blocks are kept otherwise")
    base = tmp_path_factory.mktemp("many")
    save_clip(base / "clip", vision={"width": 128, "head_width": 64, "layers": 2}, dim=128)
    write_scenes(base, draw_scenes(1))
    for folder in ("photos", "masks"):
        first = base / folder / "scene0.png"
        with Image.open(first) as image:
            image.resize((128, 128), Image.Resampling.NEAREST).save(first)
        for number in range(MANY):
            os.link(first, base / folder / f"p{number:03}.png")
    rows = [f"p{number:03},bar,train" for number in range(MANY)]
    (base / "photos/scene0.png").unlink()
    (base / "tags.csv").write_text("\n".join(["id,labels,split", *rows, ""]))
    assert prepare(base, "--masks", base / "masks").code == 0
    run_chain(base, (("text-prototypes", "--prompts", "single"),))
    # What predict needs is made when the CAMs are there, in the same chain of processes.
    needed = {"predict": (
        ("crf", "--what", "text", "--limit", "1", "--workers", "0"),
        ("train-decoder", "--masks", "text", "--prototypes", "text", "--limit", "1", "--iters",
         "0", "--residual", "--width", "16", "--source", "photos"))}
    lines: list[tuple[str, tuple[str, ...], bool]] = []
    for name, command in (*COMMANDS.items(), ("leak", COMMANDS["eval"])):
        lines += [("", words, False) for words in needed.get(name, ())]
        few = ("--limit", str(FEW), "--out", str(base / "few" / name))
        many = ("--out", str(base / "many" / name)) if name in ("learn seeds", "leak") else ()
        lines += [(name, (*command, *words), name == "leak") for words in (few, many)]
    peaks = _peaks(base / "work", [(words, leaks) for _, words, leaks in lines])
    found: dict[str, list[float]] = {name: [] for name, _, _ in lines}
    for (name, _, _), peak in zip(lines, peaks, strict=True):
        found[name].append(peak)
    return {name: pair[1] - pair[0] for name, pair in found.items()}


def _peaks(work: Path, lines: list[tuple[tuple[str, ...], bool]]) -> list[float]:
    """Peak of the resident memory of each command, in MB."""
    # Freed blocks go back to the system at once: what is measured is what is held.
    settings = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536",
                "CUDA_VISIBLE_DEVICES": "",
                "PYTHONPATH": str(Path(vpltool.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps(
            [(("-C", str(work), *words), leaks) for words, leaks in lines]), str(LEAK)],
        text=True, check=False, capture_output=True, env={**os.environ, **settings})
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["PEAK"')]
    assert [code for _, code, _ in found] == [0] * len(lines), done.stderr
    return [peak / 1024 for _, _, peak in found]


@pytest.mark.parametrize("name", COMMANDS)
def test_memory_does_not_grow_with_the_number_of_photos(
    name: str, growth: dict[str, float]
) -> None:
    assert growth[name] < SLACK


def test_a_leak_would_be_seen(growth: dict[str, float]) -> None:
    assert growth["leak"] > SLACK
