"""What the page shows of a photo: itself, a thumbnail, superpixels; some stay in memory."""

from __future__ import annotations

import functools
import io
from pathlib import Path

from vpltool.lazy import Image, np, npt
from vpltool.review.regions import photo_regions

SCREEN, THUMB = 2048, 224
"""Longest sides in pixels: of a photo on the screen, of a thumbnail (twice what it takes there)."""

Stamped = tuple[Path, float]
"""A photo's path, and when its file was written."""


@functools.lru_cache(maxsize=16)
def screen(photo: Stamped) -> bytes:
    """A photo for the screen, as JPEG."""
    return _jpeg(Image.fromarray(_pixels(photo)), SCREEN, 88)


@functools.lru_cache(maxsize=4000)
def thumb(photo: Stamped) -> bytes:
    """A thumbnail, as JPEG."""
    from PIL import ImageOps

    # A JPEG is decoded at an eighth of its size; other photos are read whole.
    with Image.open(photo[0]) as image:
        if image.format == "JPEG":
            image.draft("RGB", (THUMB, THUMB))
            return _jpeg(ImageOps.exif_transpose(image).convert("RGB"), THUMB, 80)
    return _jpeg(Image.fromarray(_pixels(photo)), THUMB, 80)


@functools.lru_cache(maxsize=16)
def superpixels(photo: Stamped) -> list[npt.NDArray[np.uint16]]:
    """Its superpixels (h, w), see `photo_regions`."""
    return photo_regions(_pixels(photo))


@functools.lru_cache(maxsize=3)
def _pixels(photo: Stamped) -> npt.NDArray[np.uint8]:
    from vpltool.core.photos import read_photo

    return read_photo(photo[0])


def _jpeg(image: Image.Image, side: int, quality: int) -> bytes:
    image.thumbnail((side, side))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return content.getvalue()
