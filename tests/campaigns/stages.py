"""Stages, `update`, recipes and presets over hostile content: a file of a small workspace is
mutated, and a command is run on it, in this process.

What counts as a find is what `fuzz` says: here also a file that is written outside of the
workspace, and a label that is no class. The workspace is put back after each execution.
"""

from __future__ import annotations

import contextlib
import functools
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

# Its first import writes a cache of fonts, outside of any workspace.
import matplotlib.font_manager  # noqa: F401
from conftest import CHAIN, TRAIN, draw_scenes, prepare, save_clip, write_scenes
from conftest import run_in_process as run

from campaigns import fuzz
from vpltool import console
from vpltool.command import parse_line
from vpltool.errors import PhotosFailed
from vpltool.formats import read_labels
from vpltool.parallel import device
from vpltool.preset import read_preset
from vpltool.run import run_stage

FOLDER = "stages"
"""Folder of the world."""

IDS = ("scene0", "scene1")

Words = tuple[str, ...]

_CAM: tuple[Words, ...] = (("cam", "--overwrite"), ("cam", "--method", "dense"))
_LEARN: tuple[Words, ...] = (
    ("seed-prototypes", "--overwrite"), ("learn-prototypes", "--iters", "2"),
    ("train-decoder", "--masks", "text-refined", "--prototypes", "text", "--crop", "3",
     "--batch-size", "2", "--width", "16", "--iters", "1", "--name", "new", "--workers", "0"))
_STATE: tuple[Words, ...] = (("update",), ("status", "--json"), ("doctor",))
_SCORE: tuple[Words, ...] = (
    ("eval", "--what", "cams/text-refined", "--split", "train"),
    ("show", "cams/text-refined", "--limit", "1"), ("gap", "--prototypes", "text"))

LINES: dict[str, tuple[Words, ...]] = {
    "features/train/scene0.safetensors": (
        *_CAM, *_LEARN, ("refine", "--overwrite"), ("embed", "--method", "naclip"),
        ("inspect", "{file}"), ("pack", "--split", "train"), *_STATE),
    "features/train/artifact.json": (*_CAM, *_STATE, ("refine", "--overwrite"), *_LEARN),
    "features/train.head.safetensors": (*_CAM, ("embed", "--method", "naclip")),
    "prototypes/text.safetensors": (
        *_CAM, *_LEARN, ("gap", "--prototypes", "text"), ("shift-gap",),
        ("inspect", "{file}"), *_STATE),
    "prototypes/seeds.safetensors": (
        ("shift-gap", "--prototypes", "seeds"), ("cam", "--prototypes", "seeds"), *_STATE),
    "cams/text/train/scene0.safetensors": (
        ("refine", "--overwrite"), ("crf", "--what", "text", "--workers", "0"), *_STATE,
        ("show", "cams/text", "--limit", "1"), ("inspect", "{file}")),
    "cams/text/train/artifact.json": (("refine", "--overwrite"), *_STATE),
    "cams/text-refined/train/scene0.safetensors": (
        ("crf", "--overwrite", "--workers", "0"), *_SCORE, *_LEARN),
    "masks/text-refined/train/scene0.png": (
        _LEARN[-1], ("export", "coco", "--what", "masks/text-refined", "--split", "train"),
        ("eval", "--what", "masks/text-refined", "--split", "train"),
        ("show", "masks/text-refined", "--limit", "1"), *_STATE),
    "masks/text-refined/train/artifact.json": (_LEARN[-1], *_STATE),
    "decoder/tiny.safetensors": (
        ("predict", "--decoder", "tiny", "--split", "val", "--workers", "0", "--overwrite"),
        ("export", "bundle", "--what", "tiny"), ("inspect", "{file}"), *_STATE),
    "predictions/tiny/val/scene2.png": (
        ("eval", "--what", "predictions/tiny", "--split", "val"),
        ("export", "label-studio", "--what", "predictions/tiny", "--split", "val"), *_STATE),
    "scores/masks-text-refined-train.json": (("scores",), ("show", "masks/text-refined", "--worst",
                                                           "1", "--split", "train"), *_STATE),
    "workspace.json": (*_CAM, *_STATE, ("crf", "--overwrite", "--workers", "0"), *_SCORE),
    "images.jsonl": (*_CAM, *_STATE, *_LEARN, *_SCORE, ("refine", "--overwrite"),
                     ("crf", "--overwrite", "--workers", "0")),
    "changes.jsonl": (("prepare", "folder", "../photos"), *_STATE),
    "recipe.json": _STATE,
}
"""File of the workspace to the commands that are run on it; `{file}` is its path."""

PRESET_LINES: tuple[Words, ...] = (("cam", "--overwrite"), ("refine", "--overwrite"), ("update",),
                                   ("seed-prototypes", "--overwrite"), ("train-groups",))

FORMS = {".safetensors": "tensors", ".png": "png", ".json": "header json", ".jsonl": "call lines"}


@functools.cache
def _parsed(words: Words) -> Any:
    return parse_line(words)


def make_stage_world(base: Path) -> None:
    """Make a complete workspace of four photos, with a preset and a recipe beside it."""
    world = base / FOLDER
    world.mkdir()
    save_clip(world / "clip")
    write_scenes(world, draw_scenes(4))
    for result in (prepare(world, "--masks", world / "masks"), *(
            run(*words, work=world / "work") for words in (
                *CHAIN, ("extract", "--split", "train", "--overwrite", "--workers", 0, "--keep",
                         "tokens,patches,attention,layers"),
                ("cam", "--update"), ("refine", "--update"), ("crf", "--update", "--workers", 0),
                ("seed-prototypes",), (*TRAIN, "--name", "tiny"),
                ("predict", "--decoder", "tiny", "--split", "val", "--workers", 0),
                ("eval", "--what", "masks/text-refined", "--split", "train")))):
        assert result.code == 0, result.err
    (world / "work/recipe.json").write_text(
        '{"recipe": "own-photos", "done": false, "words": ["run", "own-photos", '
        '{"text": "photos=", "path": "../photos"}]}')
    (world / "protocol.toml").write_text(
        '[cam]\nmethod = "gradcam"\n[refine]\nlambda = 0.4\n[seed-prototypes]\nphi = 0.5\n'
        '[train-groups]\npairs = ["a.tar"]\nside = 32\n')
    (world / "mine.recipe").write_text(
        "# A recipe.\nname = text  # which\nseeds = 0 1\nvpltool cam --prototypes $name --split "
        "train\nif name\nsay Hello ${name}\nend\neach seed in $seeds\nvpltool seed-prototypes "
        "--seed $seed --out $work/prototypes/s-$seed.safetensors\nend\nvpltool status\n")


@dataclass
class Kept:
    """The files of a workspace, to put it back.

    Args:
        folder: the workspace.
        files: path to content, size and time.
        folders: paths of its folders.
    """

    folder: Path
    files: dict[str, tuple[bytes, int, int]]
    folders: set[str]

    @classmethod
    def of(cls, folder: Path) -> Kept:
        """Remember a workspace."""
        kept = cls(folder, {}, {str(folder)})
        for entry in _entries(folder):
            if entry.is_dir(follow_symlinks=False):
                kept.folders.add(entry.path)
            else:
                stat = entry.stat()
                kept.files[entry.path] = (Path(entry.path).read_bytes(), stat.st_size,
                                          stat.st_mtime_ns)
        return kept

    def changed(self, place: str) -> Iterator[str]:
        """Yield the paths of files that are new or different; not that of the one at `place`."""
        for entry in _entries(self.folder):
            if entry.path != place and not entry.is_dir(follow_symlinks=False):
                stat, known = entry.stat(follow_symlinks=False), self.files.get(entry.path)
                if known is None or known[1:] != (stat.st_size, stat.st_mtime_ns):
                    yield entry.path

    def put_back(self, place: str) -> None:
        """Make the workspace what it was, but for the file at `place`."""
        for path in list(self.changed(place)):
            if path not in self.files:
                Path(path).unlink()
        new = {entry.path for entry in _entries(self.folder)
               if entry.is_dir(follow_symlinks=False)} - self.folders
        for path in sorted(new, reverse=True):
            Path(path).rmdir()
        for path, (content, size, time) in self.files.items():
            with contextlib.suppress(FileNotFoundError):
                stat = os.stat(path)  # noqa: PTH116  # thousands of times
                if path == place or (stat.st_size, stat.st_mtime_ns) == (size, time):
                    continue
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_bytes(content)
            os.utime(path, ns=(time, time))


def _entries(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        listed = list(entries)
    for entry in listed:
        yield entry
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(entry.path)


_kept: dict[Path, Kept] = {}


def _kept_of(work: Path) -> Kept:
    """The workspace as it was when it was first seen."""
    if work not in _kept:
        _kept[work] = Kept.of(work)
    return _kept[work]


def _check_labels(kept: Kept, place: str) -> None:
    """Check that what was written holds no label but those of classes."""
    for path in kept.changed(place):
        if path.endswith(".png") and ("/masks/" in path or "/predictions/" in path):
            labels = read_labels(Path(path))
            odd = labels[(labels > 253) & (labels != 255)]
            assert not odd.size, f"label {odd[0]} in {path}"


def _work(line: Callable[[Path], object], place: str) -> Callable[[Path], None]:
    """Run something in the workspace, and put it back."""
    def read(base: Path) -> None:
        work = base / FOLDER / "work"
        kept, own = _kept_of(work), str(base / FOLDER / place)
        before = Path.cwd()
        with console.heard_by(console.Silence()), _own_folders(base):
            # A path that a header tells is relative to the workspace, or should be.
            os.chdir(work)
            try:
                # Only the workspace may change, and what has its name before it.
                with fuzz.watched(work):
                    line(work)
                _check_labels(kept, own)
            except PhotosFailed:
                _check_labels(kept, own)
                raise
            finally:
                os.chdir(before)
                kept.put_back(own)

    return read


@contextlib.contextmanager
def _own_folders(base: Path) -> Iterator[None]:
    """Locks and the cache of towers lie beside the workspace."""
    import tempfile

    before, tempfile.tempdir = tempfile.tempdir, str(base / FOLDER / "work-temporary")
    Path(tempfile.tempdir).mkdir(exist_ok=True)
    cache, os.environ["VPLTOOL_CACHE"] = os.environ.get("VPLTOOL_CACHE"), tempfile.tempdir
    try:
        # What `update` runs says no number of workers, and a process that starts is a find.
        with mock.patch.object(device, "default_workers", lambda: 0):
            yield
    finally:
        tempfile.tempdir = before
        if cache is None:
            del os.environ["VPLTOOL_CACHE"]
        else:
            os.environ["VPLTOOL_CACHE"] = cache


def _run(words: Words, work: Path, preset: Any = None) -> None:
    call = parse_line(words, preset) if preset else _parsed(words)
    result = run_stage(call.found, work, call.values, given=call.given, preset=call.preset)
    if call.found.show is not None:
        assert isinstance(call.found.show(result, call.values), str)


def stage_reader(place: str, lines: Sequence[Words]) -> Callable[[Path], None]:
    """What runs one of the commands of a file: which one, its content says."""
    def line(work: Path) -> None:
        content = (work / place).read_bytes()
        words = lines[zlib.crc32(content) % len(lines)]
        _run(tuple(word.replace("{file}", str(work / place)) for word in words), work)

    return _work(line, f"work/{place}")


def run_under_preset(work: Path) -> None:
    """Run a command under the preset."""
    file = work.parent / "protocol.toml"
    words = PRESET_LINES[zlib.crc32(file.read_bytes()) % len(PRESET_LINES)]
    _run(words, work, read_preset(str(file)))


MANY_LINES = 30
"""A recipe takes the time of its commands: one with more lines is checked, but not run."""


def run_recipe(work: Path) -> None:
    """Run the recipe."""
    path = work.parent / "mine.recipe"
    dry = ("--dry-run",) if path.read_bytes().count(b"vpltool") > MANY_LINES else ()
    _run(("run", str(path), "--jobs", "1", *dry), work)


def stage_readers(make: Callable[..., Any]) -> list[Any]:
    """The readers of the campaign, see `Reader`."""
    found = [make(f"stages {place.replace('/', ' ')}", f"{FOLDER}/work/{place}",
                  FORMS[Path(place).suffix],
                  stage_reader(place, lines), weight=3) for place, lines in LINES.items()]
    return [*found,
            make("stages preset", f"{FOLDER}/protocol.toml", "preset",
                 _work(run_under_preset, "protocol.toml"), weight=3),
            make("stages recipe", f"{FOLDER}/mine.recipe", "recipe",
                 _work(run_recipe, "mine.recipe"), weight=3)]
