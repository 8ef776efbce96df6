"""Tiles against the whole photo: how labels agree along the seams, and what tiles cost.

    python benchmarks/large.py seams WORK PHOTO DECODER [TILE]
    python benchmarks/large.py cost WORK PHOTO DECODER [TILE] [OVERLAP] [PRECISION]
    python benchmarks/large.py mosaic PHOTOS OUT [WIDTH] [HEIGHT]
    python benchmarks/large.py crf OUT [TILE]
    python benchmarks/large.py judge OUT/masks/mosaic.png LABELS [TILE] [OVERLAP] [PATCH]

`seams` predicts a photo whole, and in tiles with and without an overlap, and prints how many labels
are those of the whole photo, along the borders of tiles and elsewhere. `cost` predicts a photo or a
GeoTIFF in tiles, and prints seconds and the most memory. `mosaic` lays the photos of a folder like
the animals' (photos/, masks/, tags.csv) side by side, with `tiles.csv`, tags of the rectangle of
each, and `photo.csv`, tags of the whole. `crf` sharpens coarse maps of the true mask of 12
megapixels of it, in tiles and scaled down, as `crf --tile` and `crf` do with CAMs. `judge` compares
labels of a mosaic with the true ones, along the borders of tiles and elsewhere.
"""

from __future__ import annotations

import csv
import functools
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from vpltool.api import Workspace
from vpltool.core.crf import (
    KERNELS,
    bounded_size,
    decided,
    labels_at,
    mean_field,
    shrink,
)
from vpltool.core.grids import spans
from vpltool.core.metrics import confusion, scores
from vpltool.core.photos import PhotoSettings, read_photo
from vpltool.engine.running import TiledSegmenter
from vpltool.engine.scored import ReadPhoto, Stored, refined_in_tiles
from vpltool.engine.segmenters import open_segmenter
from vpltool.formats import open_workspace, read_labels
from vpltool.methods.inputs import ScoredPhoto

_NEAR = 4
"""Pixels from a seam that count as along it, a quarter of a patch."""


def seams(work: Path, photo: Path, decoder: Path, tile: int = 448) -> None:
    """Print the agreement with the whole photo along seams and elsewhere."""
    from vpltool.core.segment import labels_of, segment

    device = torch.device("cpu")
    trained = open_segmenter(decoder).trained(open_workspace(work), device)
    encoder = trained.encoder
    seen_by = functools.partial(segment, encoder.vision, trained.network)
    patch = encoder.vision.patch
    seen = PhotoSettings(patch, encoder.mean, encoder.std)
    rgb = read_photo(photo)
    rgb = np.ascontiguousarray(rgb[: len(rgb) // patch * patch, : rgb.shape[1] // patch * patch])
    size = (rgb.shape[0], rgb.shape[1])

    def labels(side: int, overlap: float) -> Any:
        tiled = TiledSegmenter(seen_by, seen, device, side, overlap, side, at_once=1)
        return labels_of(tiled.whole(rgb), size)

    whole = labels(max(size), 0)
    print(f"{photo.name}: {size[1]}×{size[0]}, {np.mean(whole > 0):.1%} of a class when seen whole")
    for overlap in (0.0, 0.125, 0.25):
        agrees = labels(tile, overlap) == whole
        near = _near_seams(size, patch, tile, overlap)
        print(f"tile {tile}, overlap {overlap}: {agrees[near].mean():.2%} along seams "
              f"({near.mean():.0%} of the pixels), {agrees[~near].mean():.2%} elsewhere")


def _near_seams(size: tuple[int, int], patch: int, tile: int, overlap: float) -> Any:
    """Which pixels (H, W) lie along the border of a tile."""
    near = np.zeros(size, bool)
    for axis, length in enumerate(size):
        for span in spans(-(-length // patch), tile // patch, overlap):
            for border in (patch * span.start, patch * (span.start + tile // patch)):
                if 0 < border < length:
                    index: list[Any] = [slice(None), slice(None)]
                    index[axis] = slice(max(border - _NEAR, 0), border + _NEAR)
                    near[tuple(index)] = True
    return near


def cost(work: Path, photo: Path, decoder: Path, tile: int = 448, overlap: float = 0.25,
         precision: str = "fp32") -> None:
    """Print seconds and memory of a prediction in tiles."""
    out = photo.with_name(f"{photo.stem}-labels{'.tif' if 'tif' in photo.suffix else '.png'}")
    start, cpu = time.perf_counter(), time.process_time()
    Workspace(work).predict(images=[photo], decoder=str(decoder), tile=str(tile), out=out,
                            overlap=overlap, precision=precision, overwrite=True)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{photo.name}, tile {tile}, overlap {overlap}, {precision}: "
          f"{time.perf_counter() - start:.0f} s, {time.process_time() - cpu:.0f} s of CPU, "
          f"{memory:.2f} GiB at most")


def mosaic(photos: Path, out: Path, width: int = 12_000, height: int = 9_000) -> None:
    """Write a mosaic of photos at their own size, its true mask, and its tags in two ways."""
    with (photos / "tags.csv").open(encoding="utf-8") as file:
        tags = {row["id"]: row["labels"] for row in csv.DictReader(file)}
    for name in ("photos", "masks"):
        (out / name).mkdir(parents=True, exist_ok=True)
    picture, truth = Image.new("RGB", (width, height)), Image.new("L", (width, height), 255)
    rows, left, top, tall = list[str](), 0, 0, 0
    for key in sorted(tags):
        with (Image.open(photos / f"photos/{key}.jpg") as photo,
              Image.open(photos / f"masks/{key}.png") as mask):
            if left + photo.width > width:
                left, top, tall = 0, top + tall, 0
            if top + photo.height > height:
                break
            picture.paste(photo, (left, top))
            # Without the palette, which a grey image would take the brightness of.
            truth.paste(Image.fromarray(np.asarray(mask)), (left, top))
            rows.append(f"mosaic,{left},{top},{photo.width},{photo.height},{tags[key]}")
            left, tall = left + photo.width, max(tall, photo.height)
    picture.save(out / "photos/mosaic.jpg", quality=92)
    truth.save(out / "masks/mosaic.png")
    (out / "tiles.csv").write_text("\n".join(["id,x,y,width,height,labels", *rows]) + "\n")
    shown = sorted({tag for row in rows for tag in row.rsplit(",", 1)[1].split(";")})
    (out / "photo.csv").write_text(f"id,labels\nmosaic,{';'.join(shown)}\n")
    print(f"{out}: {len(rows)} photos on {width}×{height} pixels")


def crf(folder: Path, tile: int = 1024, width: int = 4000, height: int = 3000) -> None:
    """Print how many pixels are right after the CRF, in tiles and scaled down; time and memory."""
    photo = read_photo(folder / "photos/mosaic.jpg")[:height, :width].copy()
    true = read_labels(folder / "masks/mosaic.png")[:height, :width]
    classes = [label for label in np.unique(true).tolist() if 0 < label < 255]
    maps = torch.from_numpy(np.stack([true == label for label in classes])).float()
    stored = Stored("cams", F.interpolate(maps[None], size=(height // 16, width // 16),
                                          mode="area")[0], torch.tensor(classes), 1.0)
    del maps
    names = ("",) * (1 + len(classes))
    read = ReadPhoto("mosaic", folder, ScoredPhoto(photo, np.empty(0, np.float32), names),
                stored.labels().numpy(), (height, width), stored=stored)

    def refine(part: ScoredPhoto) -> Any:
        known = decided(part.scores)
        return mean_field(part.photo, part.scores, KERNELS["weclip"], backend="numba"
                          ) if known is None else known

    def told(name: str, labels: Any, start: float) -> None:
        right = (labels == true)[true < 255].mean()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{name}: {right:.2%} right, {time.perf_counter() - start:.0f} s, at most "
              f"{memory:.2f} GiB so far")

    refine(ScoredPhoto(photo[:8, :8], np.full((len(names), 8, 8), 0.5, np.float32)))
    start = time.perf_counter()
    told(f"tiles of {tile}", np.concatenate([labels_at(rows, read.classes) for rows in
                                             refined_in_tiles(read, tile, refine)]), start)
    start, size = time.perf_counter(), bounded_size((height, width), 2048)
    small = ScoredPhoto(shrink(photo, size), stored.whole(size)[0].numpy())
    told("scaled down to 2048", labels_at(refine(small), read.classes, (height, width)), start)


def judge(truth: Path, labels: Path, tile: int = 448, overlap: float = 0.25, patch: int = 14
          ) -> None:
    """Print mIoU and accuracy, along the borders of tiles and elsewhere."""
    true, said = read_labels(truth), read_labels(labels)
    near = _near_seams((true.shape[0], true.shape[1]), patch, tile, overlap)
    for name, where in (("all", np.ones_like(near)), ("seams", near), ("elsewhere", ~near)):
        found = scores(confusion(np.where(where, true, np.uint8(255)), said, 1 + int(
            true[true < 255].max())))
        print(f"{labels.name}, tile {tile}, overlap {overlap}, {name}: mIoU {found.miou:.2%}, "
              f"accuracy {found.accuracy:.2%}")


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    kinds = {"seams": (Path, Path, Path, int), "cost": (Path, Path, Path, int, float, str),
             "mosaic": (Path, Path, int, int), "crf": (Path, int),
             "judge": (Path, Path, int, float, int)}[what]
    globals()[what](*(kind(word) for kind, word in zip(kinds, words, strict=False)))
