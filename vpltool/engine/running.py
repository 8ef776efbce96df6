"""Running a trained segmenter on a device, over whole photos and over large ones in tiles."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TypeAlias

from vpltool import console, options
from vpltool.core import grids, photos, segment, segmenter
from vpltool.engine.features import smaller_photos_hint
from vpltool.engine.photo_work import Failed, Made, run_batches, run_photos
from vpltool.errors import VplError, counted, first_few
from vpltool.formats import Header, InputFolder
from vpltool.lazy import Image, Tensor, np, npt, torch
from vpltool.methods.inputs import AUTO, AUTO_SIDE, TrainedSegmenter, parse_tile, side_of
from vpltool.parallel.batches import Batch, FeatureBatch, feature_batches
from vpltool.parallel.device import find_device
from vpltool.parallel.threads import in_threads
from vpltool.settings import NoEffect, setting

_MOST_PATCHES = 16_384
"""Limit of patches per photo on a CPU: attention is quadratic, and a ViT-B/16 takes three minutes
for this many (16 s a block on one core)."""


@dataclass(frozen=True)
class Segmented:
    """Class probabilities of a photo (classes, 4h, 4w), and its (height, width)."""

    probabilities: Tensor
    size: tuple[int, int]

    def tensors(self, kind: str) -> dict[str, Tensor]:
        """Return the tensors of a kind of file: `probabilities` are the only ones here."""
        scores, classes = segment.keep_likely(self.probabilities)
        return {"probabilities": scores.half(), "classes": classes}


@dataclass(frozen=True, kw_only=True)
class RunsSegmenter(options.PerPhoto, shared=True):
    """Settings of how a segmenter processes photos."""

    split: str = options.split("val")
    scales: str = setting("1", "Scales whose results are averaged; WeCLIP: 1,0.75.", metavar="LIST")
    flip: bool = setting(False, "Also predict the mirrored photo, and average.")
    average: str = setting(
        "probabilities", "What is averaged; probabilities, or logits as in WeCLIP.",
        choices=("probabilities", "logits"), record="changed")
    source: str = setting(
        "auto", "Read photos, features or auto; features: stored layers of the split, one scale, "
                "no flip, much faster; auto: features where they suffice.",
        choices=("auto", "features", "photos"))
    features: Path | None = options.features()
    max_side: int | None = setting(
        None, "Scale longer photos down to this first; 0: never; default: as in training.", low=0,
        metavar="PIXELS")
    tile: str = setting(
        "", "Segment photos in overlapping tiles of this side, at full size unless max-side is "
            "given; auto: photos longer than three times the side of training, in tiles of it.",
        metavar="PIXELS|auto", record="changed")
    overlap: float = setting(
        0.25, "Overlap of neighbouring tiles, as a share of a tile.", low=0, high=0.9,
        record="changed", brief=False,
        no_effect=[NoEffect({"tile": ("",)}, "photos are seen whole")])
    precision: str = options.precision()
    batch_size: int = options.batch_size(4)
    workers: int = options.workers()

    @property
    def factors(self) -> list[float]:
        """The scales as numbers; VplError unless `scales` is a list such as `1,0.75`."""
        try:
            factors = [float(part) for part in self.scales.split(",")]
        except ValueError:
            factors = []
        if not factors or not all(0 < factor < math.inf for factor in factors):
            raise VplError(f"`scales={self.scales!r}` is not a list of factors",
                           "for example `scales='1,0.75'`")
        return factors


ReadWindow: TypeAlias = "Callable[[int, int, int, int], npt.NDArray[np.uint8]]"
"""Reads RGB (height, width, 3) at (top, left, height, width); past the edges, pixels repeat."""


@dataclass(frozen=True)
class TiledSegmenter:
    """A segmenter that processes pictures in tiles.

    Args:
        segment: returns class probabilities (B, classes, h, w) of normalised pixels (B, 3, H, W).
        preprocess: resizing of whole photos before division, and normalisation of tiles.
        side: side of a tile in pixels.
        overlap: overlap of neighbouring tiles, as a share of a tile.
        least: photos are divided if their longer side exceeds this.
        at_once: number of tiles per batch.
    """

    segment: Callable[[Tensor], Tensor]
    preprocess: photos.PhotoSettings
    device: torch.device
    side: int
    overlap: float
    least: int
    at_once: int = 4

    def divides(self, size: tuple[int, int]) -> bool:
        """Return whether a photo of (height, width) is processed in tiles."""
        return max(size) > self.least and max(self.preprocess.fit(size)) > self.side

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the grid (h, w) in patches of a picture of (height, width) pixels."""
        return -(-size[0] // self.preprocess.patch), -(-size[1] // self.preprocess.patch)

    def count(self, size: tuple[int, int]) -> int:
        """Return the number of tiles of a photo of (height, width)."""
        side = self.side // self.preprocess.patch
        return math.prod(len(grids.spans(length, side, self.overlap))
                         for length in self.grid(self.preprocess.fit(size)))

    def rows(self, size: tuple[int, int], read: ReadWindow, first: int = 0,
             seen: Callable[[], None] = lambda: None) -> Iterator[tuple[int, Tensor]]:
        """Yield class probabilities, one row of tiles at a time; see `core.grids.blend`.

        The picture has a `size` (height, width). `seen` is called after each tile.
        """
        patch, grid = self.preprocess.patch, self.grid(size)
        side = self.side // patch
        height, width = (min(side, length) * patch for length in grid)

        def see(corners: Sequence[tuple[int, int]]) -> Iterator[Tensor]:
            for field in self._see(read(top * patch, left * patch, height, width)
                                   for top, left in corners):
                seen()
                yield field

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
        preprocess = self.preprocess
        pixels = torch.stack([photos.to_pixels(tile, (tile.shape[0], tile.shape[1]),
                                               preprocess.mean, preprocess.std) for tile in tiles])
        return self.segment(pixels.to(self.device))

    def whole(self, rgb: npt.NDArray[np.uint8], seen: Callable[[], None] = lambda: None) -> Tensor:
        """Return class probabilities (classes, 4h, 4w) of a photo (H, W, 3); see `rows`."""
        size = self.preprocess.fit((rgb.shape[0], rgb.shape[1]))
        if size != rgb.shape[:2]:
            rgb = np.asarray(Image.fromarray(rgb).resize((size[1], size[0]),
                                                         Image.Resampling.BICUBIC))

        def read(top: int, left: int, height: int, width: int) -> npt.NDArray[np.uint8]:
            part = rgb[top : top + height, left : left + width]
            beyond = height - part.shape[0], width - part.shape[1]
            return np.pad(part, ((0, beyond[0]), (0, beyond[1]), (0, 0)), mode="edge")

        return torch.cat([part for _, part in self.rows(size, read, seen=seen)], dim=1)

    def large(self, paths: Mapping[str, Path]) -> dict[str, int]:
        """Count the tiles of the photos to divide; unreadable ones fail when they are read."""
        found = {}
        for key, path in paths.items():
            with contextlib.suppress(OSError):
                if self.divides(size := photos.photo_size(path)):
                    found[key] = self.count(size)
        return found


def side_of_whole(header: Header, settings: RunsSegmenter, scale: float) -> int:
    """Return the side to which photos that are not divided are scaled down; 0: never.

    They are seen as in training, but beside tiles that are not scaled down, at full size.
    """
    if settings.max_side is None and settings.tile not in ("", AUTO) and scale >= 1:
        return 0
    return side_of(header, settings.max_side)


def from_features(network: segmenter.SegmenterNetwork, features: InputFolder,
                  paths: Mapping[str, Path], settings: RunsSegmenter) -> Iterator[Made]:
    """Segment photos from their stored layers; only their sizes are read from `paths`."""
    device = find_device(settings.device)
    network, reads = network.to(device), network.reads

    def decode(batch: FeatureBatch) -> Iterator[Made]:
        tensors = batch.tensors
        layers = (grids.layers_of(tensors["layers"], tensors["layer_index"][0].tolist(),
                                  network.layers) if "layers" in reads else None)
        layers, patches = (
            None if tensor is None else tensor.to(device, non_blocking=True).float()
            for tensor in (layers, tensors["patches"] if "patches" in reads else None))
        result = segment.probabilities_of(network, layers, patches, batch.grid)
        for key, part in zip(batch.ids, result, strict=True):
            try:
                yield key, Segmented(part, photos.photo_size(paths[key]))
            except OSError as error:
                yield key, Failed(photos.describe_failure(paths[key], error))

    names = [*reads, *(["layer_index"] if "layers" in reads else [])]
    batches = feature_batches(features, list(paths), names, settings.batch_size, device=device)
    return run_batches(batches, decode, lambda _: smaller_photos_hint(features.header))


@dataclass(frozen=True)
class RunningNetwork:
    """A network and its encoder on their device; the tower has the dtype of the computation."""

    trained: TrainedSegmenter
    device: torch.device
    scale: float = 1.0  # of tiles, see `SegmenterFile.tile_scale`

    def _preprocessing(self, settings: RunsSegmenter) -> photos.PhotoSettings:
        """Return the preprocessing of whole photos."""
        encoder = self.trained.encoder
        return photos.PhotoSettings(
            encoder.vision.patch, encoder.mean, encoder.std, max(settings.factors),
            side_of_whole(self.trained.header, settings, self.scale))

    def _segment(self, pixels: Tensor, settings: RunsSegmenter) -> Tensor:
        largest = max(settings.factors)
        return segment.segment(
            self.trained.encoder.vision, self.trained.network, pixels,
            [scale / largest for scale in settings.factors], flip=settings.flip,
            average=settings.average)

    def tiled(self, settings: RunsSegmenter) -> TiledSegmenter | None:
        """Return a segmenter of large photos in tiles; None: all photos are processed whole.

        Raises:
            VplError: a tile has too few patches.
        """
        if not settings.tile:
            return None
        given, least = parse_tile(settings.tile, side_of(self.trained.header) or AUTO_SIDE)
        # Divided photos are scaled down only if a side is given, or as tiles were in training.
        scale = self.scale if settings.max_side is None else 1.0
        side = given if settings.tile == AUTO else round(given * scale)
        whole = self._preprocessing(settings)
        if side < photos.LEAST_PATCHES * whole.patch:
            scaled = f", scaled to {side} pixels as in training," if side < given else ""
            raise VplError(
                f"`tile={str(given)!r}`{scaled} is less than {photos.LEAST_PATCHES} patches of "
                f"{whole.patch} pixels", f"for example `tile='{round(32 * whole.patch / scale)}'`")
        whole = replace(whole, max_side=settings.max_side or 0, scale=whole.scale * scale)
        return TiledSegmenter(functools.partial(self._segment, settings=settings), whole,
                              self.device, side, settings.overlap, least, settings.batch_size)

    def photo(self, rgb: npt.NDArray[np.uint8], settings: RunsSegmenter) -> Tensor:
        """Return class probabilities (classes, h, w) of RGB (H, W, 3)."""
        size, tiled = (rgb.shape[0], rgb.shape[1]), self.tiled(settings)
        preprocess = self._preprocessing(settings)
        if tiled and tiled.divides(size):
            return tiled.whole(rgb)
        pixels = photos.to_pixels(rgb, preprocess.fit(size), preprocess.mean, preprocess.std)[None]
        return self._segment(pixels.to(self.device), settings)[0]

    def photos(self, paths: Mapping[str, Path], settings: RunsSegmenter) -> Iterator[Made]:
        """Yield a `Segmented` or the failure of each photo, given paths by id."""
        device, preprocess, tiled = self.device, self._preprocessing(settings), self.tiled(settings)
        large = tiled.large(paths) if tiled else {}

        def segment_batch(batch: Batch) -> Iterator[Made]:
            if reason := too_many_patches(batch.pixels, preprocess.patch, device, "tile='auto'",
                                          preprocess.scale):
                yield from ((key, Failed(reason)) for key in batch.ids)
                return
            result = self._segment(batch.pixels.to(device, non_blocking=True), settings)
            for key, size, part in zip(batch.ids, batch.sizes, result, strict=True):
                yield key, Segmented(part, size)

        small = {key: path for key, path in paths.items() if key not in large}
        whole = (_warn_of_background(run_photos(
            small, preprocess, segment_batch, device=device, batch_size=settings.batch_size,
            workers=settings.workers), preprocess.max_side) if small else ())
        return chain(whole, _in_tiles(tiled, paths, large) if tiled else ())


def _in_tiles(tiled: TiledSegmenter, paths: Mapping[str, Path], large: Mapping[str, int]
              ) -> Iterator[Made]:
    """Segment large photos one by one, and show the progress over their tiles."""
    with console.progress("tiles", sum(large.values())) as advance:
        for key in large:
            try:
                rgb = photos.read_photo(paths[key])
            except OSError as error:
                yield key, Failed(photos.describe_failure(paths[key], error))
                continue
            yield key, Segmented(tiled.whole(rgb, advance), (rgb.shape[0], rgb.shape[1]))


def too_many_patches(pixels: Tensor, patch: int, device: torch.device, other: str, scale: float
                     ) -> str:
    """Explain why photos (B, 3, H, W) are too large to encode whole; empty if they are not.

    Args:
        other: another setting that helps.
        scale: how much larger they are than `max_side` allows, because of `scales`.
    """
    height, width = pixels.shape[2:]
    count = height * width // patch**2
    if device.type != "cpu" or count <= _MOST_PATCHES:
        return ""
    shrunk = (_MOST_PATCHES * patch**2 / (height * width)) ** 0.5
    side = (int(max(height, width) * shrunk / scale) // patch - 1) * patch
    return (f"{count:,} patches, over {_MOST_PATCHES:,}: attention would take many minutes on a "
            f"CPU; `max_side={side}`, `{other}`, or a GPU")


def _warn_of_background(made: Iterator[Made], side: int) -> Iterator[Made]:
    """Warn of photos without any object after scaling down to `side`."""
    empty, longest = [], 0
    for key, result in made:
        if isinstance(result, Segmented) and 0 < side < max(result.size) and not (
                result.probabilities.argmax(dim=0).any()):
            empty.append(key)
            longest = max(longest, *result.size)
        yield key, result
    if empty:
        console.warn(f"{counted(len(empty), 'photo is', 'photos are')} all background after being "
                     f"scaled down to {side} pixels: {first_few(empty)}; objects may be too small "
                     f"then: try `max_side={min(2 * side, longest)}`")
