"""`demo`: a ready workspace of generated scenes and a small CLIP."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vpltool import console, options
from vpltool.errors import VplError
from vpltool.formats import Header, Photo, Workspace, open_workspace, write_labels
from vpltool.formats.atomic import atomic_path
from vpltool.formats.workspace import read_images
from vpltool.formats.workspace_writing import write_workspace
from vpltool.lazy import Image
from vpltool.parallel.processes import core_count, run_jobs
from vpltool.settings import Settings, setting
from vpltool.stage import Stage
from vpltool.stages._demo_scene import write_demo_scene

if TYPE_CHECKING:
    from vpltool.pictures.overlays import Rgb

BACKGROUND = ("grass", "field", "road", "railway", "water", "sky", "sand", "snow", "room")
"""Background words: the names of what is drawn behind the objects."""


@dataclass(frozen=True, kw_only=True)
class DemoSettings(Settings):
    """Settings of `demo`."""

    images: int = setting(240, "Scenes in the split train; val gets a third as many.", low=12,
                          metavar="N")
    seed: int = options.seed()
    scene: bool = setting(
        False, "Also draw a GeoTIFF of 1,920 × 1,440 pixels, scene/photos/map.tif, and a "
               "GeoPackage that says roughly where what is.", off="-")
    overwrite: bool = options.overwrite()


STAGE = Stage(order=5, panel="1. Begin", reads=(), writes=("workspace", "images"),
              settings=DemoSettings, begins=True)


def run(path: Path, settings: DemoSettings) -> Path:
    """Make a demo workspace: synthetic scenes, tags, captions, true masks, and a small CLIP.

    Trains are usually on rails and boats on water, so text prototypes confuse objects with their
    background. No network is needed. The result is a workspace like any other.

    Example: vpltool demo

    Next: vpltool text-prototypes

    Args:
        path: the workspace folder.
        settings: how many scenes, and which.

    Returns:
        `workspace.json`.

    Raises:
        VplError: another workspace is there.
    """
    import vpltool.demo
    from vpltool.demo.scenes import CLASSES

    images, seed = settings.images, settings.seed
    if settings.scene:
        write_demo_scene(path, seed, CLASSES)
    workspace = Workspace(path, "demo", ".", CLASSES, BACKGROUND, "clip", "clip")
    splits = {f"s{seed}-{number:04}": "train" if number < images else "val"
              for number in range(images + images // 3)}
    if not settings.overwrite and _is_done(workspace, splits):
        console.note(f"{path}: {len(splits)} scenes already exist")
        return path / "workspace.json"
    for file in sorted((Path(vpltool.demo.__path__[0]) / "clip").iterdir()):
        with atomic_path(path / "clip" / file.name) as temporary:
            shutil.copyfile(file, temporary)
    tags, captions = {}, {}
    with console.progress("demo", len(splits)) as advance:
        for number, labels, texts in run_jobs(_draw_one, range(len(splits)), core_count(), _start,
                                       _Task(path, seed), fewest=_MANY):
            tags[number], captions[number] = labels, texts
            advance()
    photos = [Photo(key, f"photos/{key}.jpg", tags[number], (split,), f"truth/{key}.png",
                    tuple(dict.fromkeys(captions[number])))
              for number, (key, split) in enumerate(splits.items())]
    rows = [f"{photo.id},{';'.join(photo.labels)},{photo.splits[0]}" for photo in photos]
    _write_lines(path / "tags.csv", ["id,labels,split", *rows])
    lines = [f'{photo.id},"{caption}"' for photo in photos for caption in photo.captions]
    _write_lines(path / "captions.csv", ["id,caption", *lines])
    # Last, since it marks the whole as done.
    write_workspace(workspace, photos)
    console.note(f"{len(CLASSES)} classes; train: {images}, val: {images // 3} scenes")
    return path / "workspace.json"


_MANY = 100
"""Scenes from which drawing pays for worker processes."""


@dataclass(frozen=True)
class _Task:
    """What each worker needs to know; sent to it once."""

    path: Path
    seed: int


_task: list[_Task] = []


def _start(task: _Task) -> None:
    _task[:] = [task]


def _draw_one(number: int) -> tuple[int, tuple[str, ...], tuple[str, ...]]:
    """Draw a scene, and write its photo and true mask: its number, tags and captions."""
    from vpltool.demo.scenes import draw_scene

    path, seed = _task[0].path, _task[0].seed
    scene, key = draw_scene(seed, number), f"s{seed}-{number:04}"
    _write_photo(path / f"photos/{key}.jpg", scene.image)
    write_labels(path / f"truth/{key}.png", scene.labels,
                 Header(kind="masks", command="demo", options={"seed": seed}))
    return number, scene.tags, scene.captions


def _is_done(workspace: Workspace, splits: dict[str, str]) -> bool:
    """Whether this very demo is there.

    Raises:
        VplError: another workspace is there.
    """
    if not (workspace.path / "workspace.json").exists():
        return False
    photos = read_images(workspace.path / "images.jsonl")
    if (open_workspace(workspace.path) != workspace
            or {photo.id: photo.splits[0] for photo in photos} != splits):
        raise VplError(
            f"{workspace.path / 'workspace.json'} is of another data set: {len(photos)} photos "
            f"such as {photos[0].id if photos else 'none'}, not {len(splits)} such as "
            f"{next(iter(splits))}",
            "`overwrite=True` replaces it; another workspace folder keeps both")
    return all(workspace.image_path(photo).exists() for photo in photos)


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join([*lines, ""]), "utf-8")


def _write_photo(path: Path, pixels: Rgb) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="JPEG", quality=92)
