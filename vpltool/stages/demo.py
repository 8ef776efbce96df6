"""`demo`: a ready workspace of generated scenes and a small CLIP."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vpltool import console, demo, options
from vpltool.demo import scenes
from vpltool.engine.photo_work import tracked
from vpltool.errors import VplError
from vpltool.formats import Header, Photo, Workspace, atomic, open_workspace, rasters, write_labels
from vpltool.formats.geopackage import Polygon, write_geopackage
from vpltool.formats.kinds import is_workspace
from vpltool.formats.workspace import read_images, write_workspace
from vpltool.lazy import Image, np, npt, rasterio
from vpltool.parallel import processes
from vpltool.settings import Settings, Stage, changed, setting

_BACKGROUND = ("grass", "field", "road", "railway", "water", "sky", "sand", "snow", "room")
"""Background words: the names of the drawn backgrounds."""

_MANY = 100
"""Scenes from which drawing pays for worker processes."""


@dataclass(frozen=True, kw_only=True)
class DemoSettings(Settings):
    """Settings of `demo`."""

    images: int = setting(240, "Scenes in the split train; val gets a third as many.", low=12,
                          metavar="N")
    seed: int = options.seed()
    scene: bool = setting(
        False, "Also draw a GeoTIFF of 1,920 × 1,440 pixels, scene/photos/map.tif, and a "
               "GeoPackage with a rectangle around each object.", off="-")
    overwrite: bool = options.overwrite()


STAGE = Stage(order=5, panel="1. Begin", reads=(), writes=("workspace", "images"),
              settings=DemoSettings, begins=True)


def run(path: Path, settings: DemoSettings) -> Path:
    """Make a demo workspace: synthetic scenes, tags, captions, true masks, and a small CLIP.

    Trains are usually on rails and boats on water, so text prototypes confuse objects with their
    background. No network is needed. The result is a workspace like any other.

    Example: vpltool demo

    Next: vpltool text-prototypes

    Returns:
        `workspace.json`.

    Raises:
        VplError: another workspace is there.
    """
    images, seed = settings.images, settings.seed
    if settings.scene:
        _write_demo_scene(path / "scene", seed)
    workspace = Workspace(path, "demo", ".", scenes.CLASSES, _BACKGROUND, "clip", "clip")
    splits = {f"s{seed}-{number:04}": "train" if number < images else "val"
              for number in range(images + images // 3)}
    if not settings.overwrite and _is_done(workspace, splits, settings):
        console.note(f"{path}: {len(splits)} scenes already exist")
        return path / "workspace.json"
    for file in sorted((Path(demo.__path__[0]) / "clip").iterdir()):
        with atomic.atomic_path(path / "clip" / file.name) as temporary:
            shutil.copyfile(file, temporary)
    tags, captions = {}, {}
    for number, labels, texts in tracked("demo", processes.run_jobs(
            partial(_draw_one, path, seed), range(len(splits)), processes.core_count(),
            fewest=_MANY), len(splits)):
        tags[number], captions[number] = labels, texts
    photos = [Photo(key, f"photos/{key}.jpg", tags[number], (split,), f"truth/{key}.png",
                    tuple(dict.fromkeys(captions[number])))
              for number, (key, split) in enumerate(splits.items())]
    rows = [f"{photo.id},{';'.join(photo.tags)},{photo.splits[0]}" for photo in photos]
    _write_lines(path / "tags.csv", ["id,labels,split", *rows])
    lines = [f'{photo.id},"{caption}"' for photo in photos for caption in photo.captions]
    _write_lines(path / "captions.csv", ["id,caption", *lines])
    # Last, since it marks the whole as done.
    write_workspace(workspace, photos)
    console.note(f"{len(scenes.CLASSES)} classes; train: {images}, val: {images // 3} scenes")
    return path / "workspace.json"


def _draw_one(path: Path, seed: int, number: int) -> tuple[int, tuple[str, ...], tuple[str, ...]]:
    """Draw a scene, write its photo and true mask, and return its number, tags and captions."""
    scene, key = scenes.draw_scene(seed, number), f"s{seed}-{number:04}"
    with atomic.atomic_path(path / f"photos/{key}.jpg") as temporary:
        Image.fromarray(scene.image).save(temporary, format="JPEG", quality=92)
    write_labels(path / f"truth/{key}.png", scene.labels,
                 Header(kind="masks", command="demo", options={"seed": seed}))
    return number, scene.tags, scene.captions


def _is_done(workspace: Workspace, splits: dict[str, str], settings: DemoSettings) -> bool:
    """Return whether this demo exists already; another workspace is an error."""
    if not is_workspace(workspace.path):
        return False
    photos = read_images(workspace.path / "images.jsonl")
    if (open_workspace(workspace.path) != workspace
            or {photo.id: photo.splits[0] for photo in photos} != splits):
        words = [f"{name}={value!r}" for name, value in changed(settings).items()]
        raise VplError(
            f"{workspace.path / 'workspace.json'} is of another data set: {len(photos)} photos "
            f"such as {photos[0].id if photos else 'none'}, not {len(splits)} such as "
            f"{next(iter(splits))}",
            f"`demo({', '.join([*words, 'overwrite=True'])})` replaces it; another workspace "
            "folder keeps both")
    return all(workspace.image_path(photo).exists() for photo in photos)


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    with atomic.atomic_path(path) as temporary:
        temporary.write_text("\n".join([*lines, ""]), "utf-8")


_ROWS, _COLUMNS = 6, 6
_HEIGHT, _WIDTH = 240, 320
_FIRST = 100_000
"""Number of the first drawn scene, beyond those of the workspace."""

_ORIGIN, _METRES, _EPSG = (500_000, 5_800_000), 0.5, 32633
"""Upper left corner in UTM zone 33 N, side of a pixel, and code of the zone."""


def _write_demo_scene(folder: Path, seed: int) -> None:
    """Draw a GeoTIFF, rectangles around its objects as a GeoPackage, and its true mask."""
    rasters.check_rasterio()
    file = folder / "photos/map.tif"
    if file.exists():
        console.note(f"{file} already exists")
        return
    pixels, labels = _draw(seed)
    transform = rasterio.transform.from_origin(*_ORIGIN, _METRES, _METRES)
    write_labels(folder / "truth/map.png", labels,
                 Header(kind="masks", command="demo", options={"seed": seed}))
    write_geopackage(folder / "regions.gpkg", _rectangles(labels, transform),
                     rasterio.crs.CRS.from_epsg(_EPSG).to_wkt(), _EPSG)
    # Last, since it marks the whole as done.
    with atomic.atomic_path(file) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(temporary, "w", driver="GTiff", count=3, height=len(pixels),
                           width=pixels.shape[1], dtype="uint8", crs=f"EPSG:{_EPSG}",
                           transform=transform, tiled=True, compress="deflate") as made:
            made.write(np.moveaxis(pixels, 2, 0))


def _draw(seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Draw scenes side by side: RGB (H, W, 3) and labels (H, W)."""
    pixels = np.zeros((_ROWS * _HEIGHT, _COLUMNS * _WIDTH, 3), np.uint8)
    labels = np.zeros(pixels.shape[:2], np.uint8)
    for number in tracked("demo scene", range(_ROWS * _COLUMNS), _ROWS * _COLUMNS):
        top, left = number // _COLUMNS * _HEIGHT, number % _COLUMNS * _WIDTH
        drawn = scenes.draw_scene(seed, _FIRST + number, (_HEIGHT, _WIDTH))
        pixels[top : top + _HEIGHT, left : left + _WIDTH] = drawn.image
        labels[top : top + _HEIGHT, left : left + _WIDTH] = drawn.labels
    return pixels, labels


def _rectangles(labels: npt.NDArray[np.uint8], transform: object
                ) -> Iterator[tuple[Polygon, str, int]]:
    """Yield rectangles around the objects, as a person would draw them, without outlines."""
    known = (labels > 0) & (labels <= len(scenes.CLASSES))
    for shape, value in rasterio.features.shapes(labels, mask=known, transform=transform,
                                                 connectivity=8):
        xs, ys = zip(*shape["coordinates"][0], strict=True)
        if (max(xs) - min(xs)) * (max(ys) - min(ys)) < 64 * _METRES**2:
            continue
        left, bottom, right, top = min(xs), min(ys), max(xs), max(ys)
        yield ([[(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]],
               scenes.CLASSES[int(value) - 1], int(value))
