"""Photos: robust decoding, CLIP-ES's resizing, and batches of equal size from worker processes."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

MAX_PIXELS = 500_000_000
"""A photo with more pixels than this is refused: decoding it needs over 1.5 GB."""

_ORIENTATION = 274  # EXIF tag


def read_photo(path: Path) -> npt.NDArray[np.uint8]:
    """Decode a photo to RGB (height, width, 3) uint8, upright by its EXIF.

    Greyscale, palette, CMYK, transparent (over black) and 16-bit photos come out as 8-bit RGB.

    Raises:
        OSError: unreadable, truncated, empty or too large; the message says what.
    """
    with _readable(path) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I") or upright.mode == "F":
            wide = np.asarray(upright, dtype=np.float64)
            top = 65535.0 if upright.mode.startswith("I") else max(float(wide.max()), 1e-9)
            narrow = (wide.clip(0, top) / top * 255).round().astype(np.uint8)
            return np.repeat(narrow[..., None], 3, axis=2)
        if upright.has_transparency_data:
            layer = upright.convert("RGBA")
            upright = Image.new("RGB", layer.size)
            upright.paste(layer, mask=layer.getchannel("A"))
        return np.asarray(upright.convert("RGB")).copy()


def photo_size(path: Path) -> tuple[int, int]:
    """Read (height, width) of a photo, upright by its EXIF, from its header alone.

    Raises:
        OSError: unreadable, empty or too large.
    """
    with _readable(path) as image:
        width, height = image.size
        # Pillow looks behind a PNG's pixels for EXIF, and decodes them all on the way.
        exif = {} if image.format == "PNG" and "exif" not in image.info else image.getexif()
        turned = exif.get(_ORIENTATION, 1) in (5, 6, 7, 8)
        return (width, height) if turned else (height, width)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[Image.Image]:
    """Open a photo; whatever Pillow raises about its content becomes an OSError."""
    if not path.exists():
        raise OSError("the photo is not there")
    if path.stat().st_size == 0:
        raise OSError("the file is empty")
    limit = Image.MAX_IMAGE_PIXELS
    try:
        # Pillow's own limit is lower than ours and speaks of attacks.
        Image.MAX_IMAGE_PIXELS = None
        with Image.open(path) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise OSError(f"{width}×{height} pixels are too many; scale the photo down")
            yield image
    except UnidentifiedImageError:
        raise OSError("this is no image that can be read") from None
    except OSError:
        raise
    except Exception as error:
        # Pillow's plugins raise all sorts of things at damaged files.
        raise OSError(str(error) or type(error).__name__) from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def fit_size(size: tuple[int, int], patch: int, *, scale: float = 1.0,
             max_side: int = 0) -> tuple[int, int]:
    """Size (height, width) to which a photo is resized: scaled, then up to multiples of the patch.

    CLIP-ES: each side is rounded up on its own, so that nothing is cropped or padded.

    Args:
        size: the photo's (height, width).
        patch: patch size in pixels.
        scale: factor on both sides.
        max_side: longer photos are scaled down to this first, before `scale`; 0: never.
    """
    shrink = min(1.0, max_side / max(size)) if max_side else 1.0
    height, width = (max(1.0, side * shrink * scale) for side in size)
    # 1e-6: a product such as 0.7·320 must not be pushed over a multiple by rounding.
    return tuple(int(-(-(side - 1e-6) // patch)) * patch for side in (height, width))  # type: ignore[return-value]


def to_pixels(photo: npt.NDArray[np.uint8], size: tuple[int, int], mean: Sequence[float],
              std: Sequence[float]) -> Tensor:
    """Resize RGB (H, W, 3) with PIL's bicubic to `size`, and normalise to (3, height, width)."""
    resized = Image.fromarray(photo).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1).float().div_(255)
    channels = torch.tensor([*mean, *std]).view(2, 3, 1, 1)
    return ((pixels - channels[0]) / channels[1]).contiguous()


@dataclass(frozen=True)
class Batch:
    """Photos of equal network size.

    Args:
        ids: their ids, without those that failed.
        pixels: normalised photos (B, 3, H, W).
        sizes: (height, width) of each photo as it is on disk, upright.
        failed: id to reason, of photos that could not be decoded.
    """

    ids: list[str]
    pixels: Tensor
    sizes: list[tuple[int, int]]
    failed: dict[str, str]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def each(self) -> str:
        """Size of each photo for the network, for people."""
        return f"{self.pixels.shape[3]}×{self.pixels.shape[2]} pixels"

    def split(self, size: int) -> list[Batch]:
        """Take it apart into batches of `size` photos at most; what failed goes with the first."""
        return [Batch(self.ids[start : start + size], self.pixels[start : start + size],
                      self.sizes[start : start + size], {} if start else self.failed)
                for start in range(0, max(len(self), 1), size)]

    def pin_memory(self) -> Batch:
        """The same in pinned memory, from which a GPU copies without waiting; for DataLoader."""
        return replace(self, pixels=self.pixels.pin_memory())


@dataclass(frozen=True)
class PhotoSettings:
    """How photos become network input: patch, scale, longest side, RGB mean and deviation."""

    patch: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    scale: float = 1.0
    max_side: int = 0


class _Batches(Dataset[Batch]):
    def __init__(self, batches: list[list[tuple[str, Path]]], settings: PhotoSettings) -> None:
        self.batches = batches
        self.settings = settings

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        ids, pixels, sizes, failed = [], [], [], {}
        used = self.settings
        for key, path in self.batches[index]:
            try:
                photo = read_photo(path)
            except OSError as error:
                failed[key] = describe_failure(path, error)
                continue
            size = (photo.shape[0], photo.shape[1])
            target = fit_size(size, used.patch, scale=used.scale, max_side=used.max_side)
            pixels.append(to_pixels(photo, target, used.mean, used.std))
            ids.append(key)
            sizes.append(size)
        stacked = torch.stack(pixels) if pixels else torch.empty(0)
        return Batch(ids, stacked, sizes, failed)


def describe_failure(path: Path, error: Exception) -> str:
    """Say why a photo cannot be used: file name and reason, in a few words."""
    return f"{path.name}: {str(error) or type(error).__name__}"


def load_batches(
    photos: Sequence[tuple[str, Path]], settings: PhotoSettings, *, batch_size: int, workers: int,
    device: torch.device | None = None,
) -> Iterator[Batch]:
    """Read, resize and batch photos in worker processes; photos of equal size share a batch.

    The order is that of sizes, largest first, so that a lack of memory shows at once. Memory does
    not grow with the number of photos: each worker holds two batches at most.

    Args:
        photos: (id, path) of each.
        settings: how they are resized and normalised.
        batch_size: photos in a batch at most.
        workers: number of processes; 0 reads in this one.
        device: where the batches will go; for a GPU they come in pinned memory.
    """
    buckets: dict[tuple[int, int], list[tuple[str, Path]]] = defaultdict(list)
    failed: dict[str, str] = {}
    for key, path in photos:
        try:
            size = photo_size(path)
        except OSError as error:
            failed[key] = describe_failure(path, error)
            continue
        target = fit_size(size, settings.patch, scale=settings.scale, max_side=settings.max_side)
        buckets[target].append((key, path))
    if failed:
        yield Batch([], torch.empty(0), [], failed)
    batches = [
        members[start : start + batch_size]
        for _, members in sorted(buckets.items(), key=lambda entry: -entry[0][0] * entry[0][1])
        for start in range(0, len(members), batch_size)
    ]
    options: dict[str, Any] = {"prefetch_factor": 2} if workers else {}
    yield from DataLoader(
        _Batches(batches, settings), batch_size=None, num_workers=min(workers, len(batches)),
        pin_memory=device is not None and device.type == "cuda",
        **(options if min(workers, len(batches)) else {}))
