"""Drawn masks with holes, islands, parts and single pixels, and photos with secrets."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import numpy as np
import numpy.typing as npt
from conftest import SHAPES, draw_scenes, write_scenes
from PIL import Image, PngImagePlugin

from vpltool.formats import Header, Photo, Workspace, open_output, open_workspace, read_labels
from vpltool.formats.workspace import write_workspace

Labels = npt.NDArray[np.uint8]
FORMATS = ("coco", "cvat", "imagefolder", "label-studio", "labelme", "mmseg", "yolo",
           "yolo-semantic")
KEEPS_IGNORED = ("imagefolder", "mmseg", "yolo-semantic")
EXACT = {"label-studio": ("--kind", "annotations"), "yolo": ("--min-area", "0"),
         "coco": ("--min-area", "0"), "labelme": ("--min-area", "0")}
"""Options of a format that let an export count as what a person has submitted, pixel by pixel."""


def draw_labels(height: int, width: int, seed: int) -> Labels:
    """Blobs of three classes with holes, islands in holes, parts, single pixels, and some 255."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    labels = np.zeros((height, width), np.uint8)
    for label in (1, 2, 3, 1):
        y, x, radius = rng.integers(6, height - 6), rng.integers(6, width - 6), rng.integers(5, 9)
        far = np.hypot(rows - y, columns - x)
        labels[far < radius] = label
        labels[far < radius - 3] = 0
        labels[far < radius - 5] = label % 3 + 1
    labels[rng.random(labels.shape) < 0.02] = 2
    labels[:, :2] = np.where(rng.random((height, 2)) < 0.5, 3, 0)
    labels[0, -1] = 255
    return labels


def draw_made(tmp_path: Path) -> Path:
    """Make a workspace of eight photos, two in a folder, with masks/drawn of both splits."""
    scenes = [replace(scene, id=f"sub/{scene.id}") if number < 2 else scene
              for number, scene in enumerate(draw_scenes())]
    (tmp_path / "photos/sub").mkdir(parents=True)
    (tmp_path / "masks/sub").mkdir(parents=True)
    write_scenes(tmp_path, scenes)
    workspace = Workspace(tmp_path / "work", "photos", "../photos", SHAPES, (), "m", "p")
    write_workspace(workspace, [Photo(scene.id, f"{scene.id}.png", scene.tags, (scene.split,))
                                for scene in scenes])
    for split in ("train", "val"):
        photos = workspace.photos(split)
        output = open_output(tmp_path / "work/masks/drawn" / split, Header(
            kind="masks", command="crf", options={"split": split},
            inputs={"classes": workspace.classes_identity}), [photo.id for photo in photos])
        output.begin()
        for seed, photo in enumerate(photos):
            with Image.open(workspace.image_path(photo)) as image:
                output.write_labels(photo.id, draw_labels(image.height, image.width, seed))
        output.finish()
    return tmp_path / "work"


def masks_of(folder: Path) -> dict[str, Labels]:
    return {file.relative_to(folder).with_suffix("").as_posix(): read_labels(file)
            for file in sorted(folder.rglob("*.png"))}


def hide_secrets(work: Path) -> None:
    """Give every photo a place, an owner and a comment, in the format that it has then."""
    exif = Image.Exif()
    exif[0x0112], exif[0x013B] = 6, "Owner"
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 51.0, 30.0), 18: "GPS-84"})
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "Owner 48.8584")
    entries = [json.loads(line) for line in (work / "images.jsonl").read_text().splitlines()]
    for entry, suffix in zip(entries, cycle((".jpg", ".png", ".webp", ".tif", ".gif", ".jpeg",
                                             ".bmp", ".png")), strict=False):
        path = work / open_workspace(work).root / entry["image"]
        with Image.open(path) as image:
            # Stored lying, so that it is upright with its orientation, where a format has one.
            turned = suffix not in (".gif", ".bmp")
            pixels = image.convert("RGB").rotate(90 if turned else 0, expand=True)
        path.unlink()
        options = {".png": {"pnginfo": text, "exif": exif}, ".gif": {"comment": b"Owner 48.8584"},
                   ".bmp": {}}.get(suffix, {"exif": exif})
        pixels.save(path.with_suffix(suffix), **options)  # type: ignore[arg-type]
        entry["image"] = Path(entry["image"]).with_suffix(suffix).as_posix()
    (work / "images.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
