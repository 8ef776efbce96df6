"""Pictures of a photo for the page, and its regions: superpixels at two scales, and proposals.

SLIC (Achanta et al., TPAMI 2012) in numpy: a pixel chooses among the nine centres around its grid
cell, so an iteration is nine subtractions of whole pictures.
"""

from __future__ import annotations

import functools
import io
from pathlib import Path

from vpltool.core import classes, photos
from vpltool.core.proposals import Proposals
from vpltool.lazy import Image, ImageOps, np, npt, scipy

SCREEN, THUMB = 2048, 224
"""Longest sides in pixels of a photo on the screen, and of a thumbnail (twice its size there)."""

Stamped = tuple[Path, float]
"""A photo's path, and the time of its file's last change."""

SCALES = {"large": 120, "small": 600}
"""Approximate numbers of superpixels of a photo, coarse and fine."""

SIDE = 800
"""Longest side to which photos are scaled down for superpixels."""

_COMPACTNESS, _ROUNDS = 12.0, 5
"""Weight of distance relative to colour (usually 10 to 20), and rounds (usually 5 to 10)."""

_TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
_WHITE = (0.95047, 1.0, 1.08883)
"""Linear sRGB to CIE XYZ (IEC 61966-2-1), and the XYZ of D65's white."""


@functools.lru_cache(maxsize=16)
def screen(photo: Stamped) -> bytes:
    """Return a photo for the screen, as JPEG."""
    return _jpeg(Image.fromarray(_pixels(photo)), SCREEN, 88)


@functools.lru_cache(maxsize=4000)
def thumb(photo: Stamped) -> bytes:
    """Return a thumbnail, as JPEG."""
    # A JPEG is decoded at an eighth of its size; other photos are read whole.
    with Image.open(photo[0]) as image:
        if image.format == "JPEG":
            image.draft("RGB", (THUMB, THUMB))
            return _jpeg(ImageOps.exif_transpose(image).convert("RGB"), THUMB, 80)
    return _jpeg(Image.fromarray(_pixels(photo)), THUMB, 80)


@functools.lru_cache(maxsize=16)
def superpixels(photo: Stamped) -> list[npt.NDArray[np.uint16]]:
    """Return a photo's superpixels (h, w), see `photo_regions`."""
    return photo_regions(_pixels(photo))


@functools.lru_cache(maxsize=3)
def _pixels(photo: Stamped) -> npt.NDArray[np.uint8]:
    return photos.read_photo(photo[0])


def _jpeg(image: Image.Image, side: int, quality: int) -> bytes:
    image.thumbnail((side, side))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return content.getvalue()


def photo_regions(photo: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.uint16]]:
    """Number the superpixels of a photo (H, W, 3), scaled to at most `SIDE`, at each of `SCALES`.

    Each result is (h, w).
    """
    shrink = min(1.0, SIDE / max(photo.shape))
    height, width = (max(1, round(side * shrink)) for side in photo.shape[:2])
    small = np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BOX))
    # Noise would fray the regions; a median preserves edges.
    for size in ((3, 1, 1), (1, 3, 1)):
        small = scipy.ndimage.median_filter(small, size, mode="nearest")
    colours = lab(small)
    return [slic(colours, count) for count in SCALES.values()]


def proposal_regions(proposals: Proposals, rest: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    """Number the smallest proposal at each pixel, and superpixels elsewhere (both h, w)."""
    numbered = enumerate(proposals.resized(rest.shape).masks(), int(rest.max()) + 1)
    found = classes.paint(rest.shape, numbered, smallest_on_top=True)
    return np.where(found, found, rest)


def lab(photo: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Convert sRGB (H, W, 3) to CIELAB under D65 (H, W, 3)."""
    level = np.arange(256) / 255
    linear = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    xyz = linear.astype(np.float32)[photo] @ (
        np.array(_TO_XYZ, np.float32) / np.array(_WHITE, np.float32)[:, None]).T
    roots = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = np.moveaxis(roots, 2, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=2)


def slic(colours: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.uint16]:
    """Number the superpixels of a picture (h, w), from its CIELAB values (h, w, 3)."""
    height, width = colours.shape[:2]
    step = (height * width / count) ** 0.5
    rows, columns = max(1, round(height / step)), max(1, round(width / step))
    row = np.arange(height)[:, None] * rows // height
    column = np.arange(width)[None] * columns // width
    near = _COMPACTNESS / step
    y, x = np.mgrid[:height, :width].astype(np.float32) * np.float32(near)
    values = [*np.moveaxis(colours, 2, 0), y, x]
    owner = row * columns + column
    for _ in range(_ROUNDS):
        size = np.maximum(np.bincount(owner.ravel(), minlength=rows * columns), 1)
        centres = [(np.bincount(owner.ravel(), channel.ravel(), rows * columns) / size).astype(
            np.float32) for channel in values]
        least = np.full((height, width), np.inf, np.float32)
        for down, right in np.ndindex(3, 3):
            other = (np.clip(row + down - 1, 0, rows - 1) * columns
                     + np.clip(column + right - 1, 0, columns - 1))
            distance = sum((channel - centre[other]) ** 2
                           for channel, centre in zip(values, centres, strict=True))
            nearer = distance < least
            least, owner = np.where(nearer, distance, least), np.where(nearer, other, owner)
    return owner.astype(np.uint16)

