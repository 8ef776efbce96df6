"""Tiles against the whole photo: how labels agree along the seams, and what tiles cost.

    python benchmarks/large.py seams WORK PHOTO DECODER [TILE]
    python benchmarks/large.py cost WORK PHOTO DECODER [TILE]

`seams` predicts a photo whole, and in tiles with and without an overlap, and prints how many labels
are those of the whole photo, along the borders of tiles and elsewhere. `cost` predicts a photo or a
GeoTIFF in tiles, and prints seconds and the most memory.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vpltool.api import Workspace
from vpltool.core.photos import read_photo
from vpltool.core.tiles import spans
from vpltool.engine.running import load_trained
from vpltool.engine.tiles import TiledSegmenter, Tiles
from vpltool.formats import open_workspace

_NEAR = 4
"""Pixels from a seam that count as along it, a quarter of a patch."""


def seams(work: Path, photo: Path, decoder: Path, tile: int) -> None:
    """Print the agreement with the whole photo along seams and elsewhere."""
    from vpltool.core.segment import labels_of

    device = torch.device("cpu")
    trained = load_trained(decoder, open_workspace(work), device)
    patch = trained.encoder.vision.patch
    rgb = read_photo(photo)
    rgb = np.ascontiguousarray(rgb[: len(rgb) // patch * patch, : rgb.shape[1] // patch * patch])
    size = (rgb.shape[0], rgb.shape[1])

    def labels(side: int, overlap: float) -> Any:
        tiles = Tiles(side, overlap, side)
        return labels_of(TiledSegmenter(trained, device, tiles, at_once=1).whole(rgb), size)

    whole = labels(max(size), 0)
    print(f"{photo.name}: {size[1]}×{size[0]}, {np.mean(whole > 0):.1%} of a class when seen whole")
    for overlap in (0.0, 0.125, 0.25):
        agrees = labels(tile, overlap) == whole
        near = np.zeros(size, bool)
        for axis, length in enumerate(size):
            found = spans(length // patch, tile // patch, overlap)
            for border in {patch * span.start for span in found} | {
                    patch * (span.start + tile // patch) for span in found}:
                if 0 < border < length:
                    index: list[Any] = [slice(None), slice(None)]
                    index[axis] = slice(max(border - _NEAR, 0), border + _NEAR)
                    near[tuple(index)] = True
        print(f"tile {tile}, overlap {overlap}: {agrees[near].mean():.2%} along seams "
              f"({near.mean():.0%} of the pixels), {agrees[~near].mean():.2%} elsewhere")


def cost(work: Path, photo: Path, decoder: Path, tile: int) -> None:
    """Print seconds and memory of a prediction in tiles."""
    out = photo.with_name(f"{photo.stem}-labels{'.tif' if 'tif' in photo.suffix else '.png'}")
    start, cpu = time.perf_counter(), time.process_time()
    Workspace(work).predict(images=[photo], decoder=str(decoder), tile=str(tile), out=out,
                            overwrite=True)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{photo.name}, tile {tile}: {time.perf_counter() - start:.0f} s, "
          f"{time.process_time() - cpu:.0f} s of CPU, {memory:.2f} GiB at most")


if __name__ == "__main__":
    what, *paths = sys.argv[1:4]
    chosen = int(sys.argv[5]) if len(sys.argv) > 5 else 448
    {"seams": seams, "cost": cost}[what](Path(paths[0]), Path(paths[1]), Path(sys.argv[4]), chosen)
