"""A tiny random CLIP, a handful of drawn photos, and a workspace that the commands have filled."""

from __future__ import annotations

import ast
import contextlib
import functools
import gc
import io
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from vpltool import cli, file_hashes, methods
from vpltool.formats import atomic

# Two threads on tensors this small only wait for each other: one is up to 80 times as fast.
torch.set_num_threads(1)

MEMORY = Path("/dev/shm")
"""Where Linux keeps files in memory."""


def pytest_configure(config: pytest.Config) -> None:
    """Keep the files of tests in memory, if there is room: a disk takes up to five times as long.

    A run holds up to 1 GB of files at once. `TMPDIR` says where they go instead. The garbage
    collector would look through all that is imported, again and again.
    """
    if ("TMPDIR" not in os.environ and os.access(MEMORY, os.W_OK)
            and shutil.disk_usage(MEMORY).free > 4e9):
        # Of pytest's own folders alone: it deletes them. What others leave stays on the disk.
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
        for lock in MEMORY.glob("pytest-of-*/pytest-*/.lock"):
            delete_after_kill(lock)
    # Of several processes, the first collects nothing, and so would never enable it again.
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        gc.disable()
    # pytest listens to each logger that passes nothing on; if anyone listens to this one, torch
    # notes the stack at every step of an export, which then takes twice as long.
    logging.getLogger("torch.__trace").propagate = True
    # A shell that starts the tests with `&` has them, and all they start, ignore interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def delete_after_kill(lock: Path) -> None:
    """Delete the folder of a run that was killed: pytest would keep it for three days."""
    with contextlib.suppress(OSError, ValueError):
        process = int(lock.read_text())
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            shutil.rmtree(lock.parent)


LONGEST = (
    "test_peers", "test_benchmarks", "test_adapter_chain", "test_together", "test_export_card",
    "test_campaigns", "test_tables", "test_docs", "test_onnx", "test_train_decoder", "test_memory",
    "test_windows", "test_api", "test_propose", "test_reports", "test_golden", "test_site",
    "test_privacy", "test_train_groups", "test_demo", "test_tower_cache", "test_models")
"""Files that take ten seconds of a core and more, the longest first."""


LAST = "test_deletion"
"""It listens to every opened file, and Python cannot take that back: all that follows is slower."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the longest files, where several processes share them: else one ends late."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST
                   else len(LONGEST) + (item.path.stem == LAST))


def pytest_collection_finish() -> None:
    """Let the garbage collector begin; what was imported and collected so far is no garbage."""
    gc.enable()
    gc.freeze()


VISION: dict[str, Any] = {
    "image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8,
    "ls_init_value": 0.5,
}
TEXT: dict[str, Any] = {
    "context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1,
}
EMBED_DIM = 16
SHAPES = ("bar", "box", "disc")


@dataclass(frozen=True)
class Result:
    """What a user sees of a command."""

    code: int
    out: str
    err: str

    def lines(self, label: str) -> list[str]:
        """Lines of stderr that begin with `error:`, `hint:` or `warning:`, without it."""
        return [line.removeprefix(label).strip() for line in self.err.splitlines()
                if line.startswith(label)]


Run = Callable[..., Result]
LABELS = ("error:", "hint:", "warning:")


def run_in_process(*args: object, work: Path | None = None) -> Result:
    """Run the command line in this process, through `cli.main`: its exit codes are the user's."""
    argv = ["vpltool", *(["-C", str(work)] if work else []), *map(str, args)]
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(out),
          contextlib.redirect_stderr(err)):
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    # Hints name the workspace (tests/test_shell.py): here a path that differs from run to run.
    said = [line.replace(f"vpltool -C {work} ", "vpltool ") if line.startswith(LABELS) else line
            for line in err.getvalue().splitlines(keepends=True)]
    return Result(code, out.getvalue(), "".join(said))


def save_clip(folder: Path, seed: int = 0, vision: dict[str, Any] | None = None,
              dim: int = EMBED_DIM) -> Path:
    """Save a random CLIP in open_clip's local-dir format."""
    from safetensors.torch import save_file

    from vpltool.clip.load import import_open_clip

    config = {"embed_dim": dim, "vision_cfg": VISION | (vision or {}), "text_cfg": TEXT}
    torch.manual_seed(seed)
    model = import_open_clip().CLIP(**config)
    # open_clip starts the text projection and the embeddings so small that all words look alike.
    with torch.no_grad():
        model.token_embedding.weight.normal_(std=1.0)
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()},
              folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({
        "model_cfg": config,
        "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}}))
    return folder


@dataclass(frozen=True)
class Scene:
    """A drawn photo: RGB, true labels (0, or 1 + index in SHAPES) and tags."""

    id: str
    photo: np.ndarray[Any, Any]
    mask: np.ndarray[Any, Any]
    tags: tuple[str, ...]
    split: str


def draw_scenes(count: int = 8, seed: int = 0) -> list[Scene]:
    """Draw coloured shapes on textured ground; every shape has a colour of its own."""
    rng = np.random.default_rng(seed)
    scenes = []
    for number in range(count):
        width, height = ((48, 40), (40, 48))[number % 2]
        ground = rng.integers(60, 120, (height // 4, width // 4, 3)).astype(np.uint8)
        photo = Image.fromarray(ground).resize((width, height), Image.Resampling.BICUBIC)
        mask = Image.new("L", (width, height), 0)
        tags = (SHAPES[number % 3], *((SHAPES[(number + 1) % 3],) if number % 4 == 3 else ()))
        for place, tag in enumerate(tags):
            left = 3 + 20 * place + int(rng.integers(0, 3))
            top = int(rng.integers(3, height - 20))
            _draw(photo, mask, tag, (left, top))
        noise = rng.integers(-12, 13, (height, width, 3))
        pixels = (np.asarray(photo).astype(int) + noise).clip(0, 255).astype(np.uint8)
        scenes.append(Scene(f"scene{number}", pixels, np.asarray(mask).copy(), tags,
                            "val" if number >= count - 2 else "train"))
    return scenes


def _draw(photo: Image.Image, mask: Image.Image, tag: str, corner: tuple[int, int]) -> None:
    left, top = corner
    index = SHAPES.index(tag) + 1
    colour = ((30, 60, 220), (40, 190, 40), (230, 50, 40))[index - 1]
    for image, fill in ((photo, colour), (mask, index)):
        draw: Any = ImageDraw.Draw(image)
        if tag == "disc":
            draw.ellipse((left, top, left + 14, top + 14), fill=fill)
        elif tag == "box":
            draw.rectangle((left, top, left + 13, top + 11), fill=fill)
        else:
            draw.rectangle((left, top, left + 15, top + 5), fill=fill)


def write_scenes(base: Path, scenes: list[Scene]) -> None:
    """Write photos/, masks/ and tags.csv."""
    for folder in ("photos", "masks"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    rows = ["id,labels,split"]
    for scene in scenes:
        Image.fromarray(scene.photo).save(base / "photos" / f"{scene.id}.png")
        Image.fromarray(scene.mask).save(base / "masks" / f"{scene.id}.png")
        rows.append(f"{scene.id},{';'.join(scene.tags)},{scene.split}")
    (base / "tags.csv").write_text("\n".join(rows) + "\n")


def prepare(base: Path, *options: object) -> Result:
    """Make the workspace base/work of base/photos, base/tags.csv and base/clip."""
    return run_in_process("prepare", "folder", base / "photos", "--labels", base / "tags.csv",
                          "--pretrained", base / "clip", *options, work=base / "work")


CHAIN: tuple[tuple[object, ...], ...] = (
    ("text-prototypes", "--prompts", "single"),
    ("extract", "--split", "train", "--workers", 0),
    ("extract", "--split", "val", "--workers", 0),
    ("cam", "--split", "train"),
    ("cam", "--split", "val"),
    ("refine", "--split", "train"),
    ("refine", "--split", "val"),
    ("crf", "--split", "train", "--workers", 0),
)
"""The commands that fill a workspace after `prepare`."""


def run_chain(base: Path, chain: tuple[tuple[object, ...], ...] = CHAIN) -> None:
    """Run commands in base/work; each must succeed."""
    for command in chain:
        result = run_in_process(*command, work=base / "work")
        assert result.code == 0, f"{command}: {result.err}"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The cache of towers is the run's own, in this process and in those that it starts."""
    with mock.patch.dict(os.environ, {file_hashes.FOLDER: str(tmp_path_factory.mktemp("cache")),
                                      # No power loss is tested: disks need not be waited for.
                                      atomic.FSYNC: "0"}):
        yield


@pytest.fixture(scope="session", autouse=True)
def _bf16_is_as_fast_everywhere() -> Iterator[None]:
    """What is said of a slow precision depends on the CPU; tests of that set a figure."""
    from vpltool.parallel import device

    with mock.patch.object(device, "slowdown_of", lambda _precision: 1.0):
        yield


@pytest.fixture(scope="module", autouse=True)
def _gpus_hidden_from_files(request: pytest.FixtureRequest) -> Iterator[None]:
    """As `_gpus_hidden`, and so are the fixtures of a file that is marked as a whole."""
    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("cpu"):
            hide_gpus(patch)
        yield


@pytest.fixture(autouse=True)
def _gpus_hidden(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests marked `cpu` see no GPU; the others run on one where there is one."""
    if request.node.get_closest_marker("cpu"):
        hide_gpus(monkeypatch)


def hide_gpus(patch: pytest.MonkeyPatch) -> None:
    """Let this process, and those that it starts, see no GPU."""
    patch.setenv("CUDA_VISIBLE_DEVICES", "")
    patch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="session", autouse=True)
def _no_workers_unless_asked() -> Iterator[None]:
    """Without `workers`, work stays in this process: a worker takes seconds to import torch.

    Tests of workers name their number, and compare what they make with what this process makes.
    """
    from vpltool.parallel import device

    with mock.patch.object(device, "default_workers", lambda: 0):
        yield


@pytest.fixture(scope="session", autouse=True)
def _methods_parsed_once() -> Iterator[None]:
    """A command reads its method's docstring from the file; here hundreds would parse the same."""
    parser = SimpleNamespace(parse=functools.cache(ast.parse), get_docstring=ast.get_docstring)
    with mock.patch.object(methods, "ast", parser):
        yield


@pytest.fixture(scope="session", autouse=True)
def _exporter_in_a_thread() -> Iterator[None]:
    """torch's exporter looks at its stack at each step: with pytest's, it takes half as long again.

    A thread begins with none of it.
    """
    export = torch.onnx.export

    def alone(*words: Any, **options: Any) -> Any:
        grad = torch.is_grad_enabled()

        def run() -> Any:
            with torch.set_grad_enabled(grad):
                return export(*words, **options)

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(run).result()

    with mock.patch.object(torch.onnx, "export", alone):
        yield


@pytest.fixture(scope="session")
def run() -> Run:
    return run_in_process


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("model") / "clip")


@pytest.fixture(scope="session")
def ready(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    """photos/, masks/, tags.csv, clip, and work/ with all up to `crf`. Read only: see `copied`."""
    base = tmp_path_factory.mktemp("ready")
    (base / "clip").symlink_to(tiny_clip)
    write_scenes(base, draw_scenes())
    # A symbolic link would be resolved; what counts is that the name in the headers is `clip`.
    assert prepare(base, "--masks", base / "masks").code == 0
    run_chain(base)
    return base


def copy_workspace(source: Path, base: Path, clip: Path) -> Path:
    """Copy photos and workspace to a folder that is not there yet; modification times are kept."""
    shutil.copytree(source, base, symlinks=True)
    description = base / "work" / "workspace.json"
    content = json.loads(description.read_text())
    content["pretrained"] = os.path.relpath(clip.resolve(), (base / "work").resolve())
    description.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return base


@pytest.fixture
def copied(ready: Path, tmp_path: Path, tiny_clip: Path) -> Path:
    """A copy of `ready` that a test may change."""
    return copy_workspace(ready, tmp_path / "copy", tiny_clip)


LAYERED: tuple[tuple[object, ...], ...] = tuple(
    ("extract", "--split", split, "--workers", 0, "--overwrite",
     "--keep", "tokens,patches,attention,layers") for split in ("train", "val"))

TRAIN: tuple[object, ...] = (
    "train-decoder", "--masks", "text-refined", "--prototypes", "text", "--crop", 3,
    "--batch-size", 2, "--width", 16, "--iters", 5)


@pytest.fixture(scope="module")
def layered(ready: Path, tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    """As `ready`, with layers among the features and decoder/tiny. Leave these as they are."""
    base = copy_workspace(ready, tmp_path_factory.mktemp("layered") / "base", tiny_clip)
    run_chain(base, (*LAYERED, (*TRAIN, "--name", "tiny")))
    return base


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium that asks no network for anything."""
    webdriver = pytest.importorskip("selenium.webdriver")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("no Chromium")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
                     "--disable-background-networking", "--disable-component-update",
                     "--disable-sync", "--window-size=1200,900", f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        try:
            yield started
        finally:
            started.quit()
