"""Segmenting large photos in overlapping tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

from vpltool.core import grids, photos, segment
from vpltool.errors import VplError
from vpltool.lazy import Image, Tensor, np, npt, torch
from vpltool.parallel.threads import in_threads


class Raster(Protocol):
    """A picture that can be read in parts."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""

    def read(self, top: int, left: int, height: int, width: int) -> npt.NDArray[np.uint8]:
        """Read RGB (height, width, 3); beyond the right and bottom edges the last pixels repeat."""


@dataclass(frozen=True)
class PhotoRaster:
    """A photo in memory, RGB (H, W, 3)."""

    pixels: npt.NDArray[np.uint8]

    @property
    def size(self) -> tuple[int, int]:
        """See `Raster`."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def read(self, top: int, left: int, height: int, width: int) -> npt.NDArray[np.uint8]:
        """See `Raster`."""
        return padded(self.pixels[top : top + height, left : left + width], height, width)


def padded(pixels: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Pad RGB (h, w, 3) at the bottom and right to a size by repeating the edge."""
    beyond = ((0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0))
    return np.pad(pixels, beyond, mode="edge") if any(more for _, more in beyond) else pixels


@dataclass(frozen=True)
class TiledSegmenter:
    """A segmenter that processes pictures in tiles.

    Args:
        segment: returns class probabilities (B, classes, h, w) of normalised pixels (B, 3, H, W).
        seen: resizing of whole photos before division, and normalisation of tiles.
        side: side of a tile in pixels.
        overlap: overlap of neighbouring tiles, as a share of a tile.
        least: photos are divided if their longer side exceeds this.
        at_once: number of tiles per batch.
    """

    segment: Callable[[Tensor], Tensor]
    seen: photos.PhotoSettings
    device: torch.device
    side: int
    overlap: float
    least: int
    at_once: int = 4

    def __post_init__(self) -> None:
        """Check the tile side.

        Raises:
            VplError: a tile is smaller than a patch.
        """
        patch = self.seen.patch
        if self.side < patch:
            raise VplError(f"`tile={str(self.side)!r}` is less than a patch, {patch} pixels",
                           f"for example `tile='{32 * patch}'`")

    def divides(self, size: tuple[int, int]) -> bool:
        """Return whether a photo of (height, width) is processed in tiles."""
        return max(size) > self.least and max(self.seen.fit(size)) > self.side

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the grid (h, w) in patches of a raster of (height, width) pixels."""
        return -(-size[0] // self.seen.patch), -(-size[1] // self.seen.patch)

    def rows(self, raster: Raster, first: int = 0) -> Iterator[tuple[int, Tensor]]:
        """Yield class probabilities, one row of tiles at a time; see `core.grids.blend`."""
        patch, grid = self.seen.patch, self.grid(raster.size)
        side = self.side // patch
        height, width = (min(side, length) * patch for length in grid)

        def see(corners: Sequence[tuple[int, int]]) -> Iterator[Tensor]:
            return self._see(raster.read(top * patch, left * patch, height, width)
                             for top, left in corners)

        return grids.blend(grid, side, self.overlap, see, fineness=segment.FINENESS, first=first)

    def _see(self, tiles: Iterator[npt.NDArray[np.uint8]]) -> Iterator[Tensor]:
        """Yield class probabilities (classes, h, w) of each RGB tile.

        On a GPU, tiles are batched. On a CPU, each tile runs in one thread: cores that share a tile
        would wait for each other after every product, and idle between products.
        """
        if self.device.type != "cpu":
            while batch := list(islice(tiles, self.at_once)):
                yield from self._segment(batch)
            return
        threads = torch.get_num_threads()
        workers = max(1, min(threads, self.at_once))

        def alone(tile: npt.NDArray[np.uint8]) -> Tensor:
            torch.set_num_threads(threads // workers)
            return self._segment([tile])[0]

        try:
            yield from in_threads(alone, tiles, workers if workers > 1 else 0)
        finally:
            torch.set_num_threads(threads)

    def _segment(self, tiles: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
        pixels = torch.stack([photos.to_pixels(tile, (tile.shape[0], tile.shape[1]), self.seen.mean,
                                               self.seen.std) for tile in tiles])
        return self.segment(pixels.to(self.device))

    def whole(self, rgb: npt.NDArray[np.uint8]) -> Tensor:
        """Return class probabilities (classes, 4h, 4w) of a photo (H, W, 3)."""
        size = self.seen.fit((rgb.shape[0], rgb.shape[1]))
        if size != rgb.shape[:2]:
            rgb = np.asarray(Image.fromarray(rgb).resize((size[1], size[0]),
                                                         Image.Resampling.BICUBIC))
        return torch.cat([part for _, part in self.rows(PhotoRaster(rgb))], dim=1)


def divided(paths: Mapping[str, Path], tiled: TiledSegmenter | None) -> Iterable[str]:
    """Yield the ids of photos to process in tiles, skipping unreadable ones."""
    for key, path in paths.items() if tiled else ():
        try:
            if tiled and tiled.divides(photos.photo_size(path)):
                yield key
        except OSError:
            # The failure is reported when the photo is read.
            continue
