"""Photos: robust decoding, CLIP-ES's resizing, and files without metadata."""

from __future__ import annotations

import contextlib
import functools
import io
import operator
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from vpltool import process
from vpltool.errors import VplError, counted
from vpltool.lazy import Image, ImageOps, Tensor, TiffImagePlugin, np, npt, torch

MAX_PIXELS = 500_000_000
"""A photo with more pixels than this is refused: decoding it needs over 1.5 GB."""

LEAST_PATCHES = 3
"""Minimum of patches along the longer side of what is seen: with fewer, all are at the border."""

_BLANK, _DENSEST = 40_000_000, 20
"""Most pixels of a photo, and further ones for each byte of its file. The densest in use have
about 15 pixels a byte; a file below a megabyte never needs a gigabyte."""

_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
"""Formats that are decoded, whatever a file's name. Pillow runs programs for some others."""

_ROWS = 1 << 20
"""Pixels of a photo with more than 8 bits that are narrowed at a time."""

_ORIENTATION, _WIDTH = 274, 256  # EXIF tags

_KIND = 254
"""Tag of a TIFF's page, which Pillow does not name; odd: it is a smaller copy of another page."""

_DIM = 16
"""Colours of 16 bits whose upper 8 are all below this hold 12 bits or fewer, and look black."""

_SAVE = "save it as greyscale of 8, 16 or 32 bits, or as RGB of 8"

_EOI, _SOS, _APP0, _APP2, _APP14, _COMMENT = 0xD9, 0xDA, 0xE0, 0xE2, 0xEE, 0xFE
"""JPEG markers (ITU T.81, table B.1)."""

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"cHRM", b"gAMA", b"iCCP", b"sBIT",
               b"sRGB", b"cICP", b"bKGD", b"pHYs"}
_WEBP_CHUNKS = {b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF", b"ICCP"}
_WEBP_EXIF, _WEBP_XMP = 0x08, 0x04
"""Flags of the first byte of VP8X."""

_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"hevc": "HEIC", b"mif1": "HEIC", b"msf1": "HEIC",
           b"heim": "HEIC", b"heis": "HEIC", b"avif": "AVIF", b"avis": "AVIF"}
"""Bytes 8 to 12 of photos in ISO containers (ISO/IEC 23008-12), which phones make."""


def read_photo(photo: Path | bytes) -> npt.NDArray[np.uint8]:
    """Decode a photo, by its path or content, to RGB (height, width, 3) uint8, upright by its EXIF.

    Greyscale, palette, CMYK, transparent (over black) and 16-bit photos become 8-bit RGB; of
    several frames or pages the first counts. Raises an OSError, with the reason, if the photo is
    unreadable, truncated, empty or too large.
    """
    with _readable(photo) as image:
        size = len(photo) if isinstance(photo, bytes) else photo.stat().st_size
        width, height = image.size
        if width * height > _BLANK + _DENSEST * size:
            raise OSError(f"{width}×{height} pixels in {size} bytes: this is not a photo")
        return rgb_of(image)


def rgb_of(image: Image.Image, *, keep: bool = False) -> npt.NDArray[np.uint8]:
    """Decode the current frame of an open picture to RGB; see `read_photo`.

    `keep` leaves the picture as it is, which takes a copy of it.
    """
    deep = _has_deep_colours(image)
    image.load()
    upright: Image.Image = ImageOps.exif_transpose(image) if keep else image
    ImageOps.exif_transpose(upright, in_place=True)
    if upright.mode.startswith("I") or upright.mode == "F":
        narrow = _narrowed(np.asarray(upright))
        meaning = getattr(image, "tag_v2", {}).get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION)
        # Zero is white; Pillow inverts bytes only.
        return 255 - narrow if meaning == 0 else narrow
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        upright = Image.new("RGB", layer.size)
        upright.paste(layer, mask=layer.getchannel("A"))
    rgb = np.array(upright if upright.mode == "RGB" else upright.convert("RGB"))
    if deep and 0 < rgb.max(initial=0) < _DIM:
        raise OSError(f"its colours of 16 bits use less than a 16th of their range; {_SAVE}")
    return rgb


def _has_deep_colours(image: Image.Image) -> bool:
    """Return whether an opened picture has colours of 16 bits, of which Pillow keeps the upper 8.

    Raises an OSError for those that Pillow decodes to noise.
    """
    if image.format != "TIFF":
        return image.mode in ("RGB", "RGBA") and ";16" in str(getattr(image, "tile", ""))
    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, ())
    deep = len(bits) > 1 and max(bits) > 8
    if deep and tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2:
        raise OSError(f"its colours are stored one after the other, in {max(bits)} bits; {_SAVE}")
    return deep


def _narrowed(wide: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Stretch greyscale (height, width) of many bits to RGB (height, width, 3) uint8.

    The darkest 2 × 2 pixels become black and the brightest white. Cameras store 10 to 16 bits in
    the same files, without saying so. As programs for microscopy do (StarDist, Cellpose), each
    photo is stretched on its own; values without a number become black.
    """
    low, high = _extremes(wide)
    out = np.empty((*wide.shape, 3), np.uint8)
    step = max(1, _ROWS // max(1, wide.shape[1]))
    for first in range(0, len(wide), step):
        part = np.nan_to_num(wide[first : first + step].astype(np.float64), nan=low)
        share = (part - low).clip(0, high - low) / max(high - low, 1e-9)
        out[first : first + step] = (share * 255).round()[..., None]
    return out


def _extremes(wide: npt.NDArray[Any]) -> tuple[float, float]:
    """Return the values of the darkest and the brightest 2 × 2 pixels of greyscale (H, W).

    Single pixels, such as a sensor's hot and dead ones, do not count. Raises an OSError if no pixel
    has a value.
    """
    if wide.dtype.kind == "f":
        wide = np.where(np.isfinite(wide), wide, np.nan)
    height, width = (side - side % 2 for side in wide.shape)
    squares = ([wide[down:height:2, across:width:2] for down in (0, 1) for across in (0, 1)]
               if height and width else [wide])
    low = np.fmin.reduce(functools.reduce(np.fmax, squares), axis=None)
    high = np.fmax.reduce(functools.reduce(np.fmin, squares), axis=None)
    if not low < high:
        # All that is shown is a pixel wide, or nothing is.
        low, high = np.fmin.reduce(wide, axis=None), np.fmax.reduce(wide, axis=None)
    if np.isnan(low):
        raise OSError("no pixel has a value")
    return float(low), float(high)


def photo_size(path: Path) -> tuple[int, int]:
    """Read (height, width) of a photo, upright by its EXIF, from its header alone.

    Raises an OSError if it is unreadable, empty or too large.
    """
    with _readable(path) as image:
        width, height = image.size
        # Pillow looks for EXIF behind a PNG's pixels, and decodes them all on the way.
        exif = {} if image.format == "PNG" and "exif" not in image.info else image.getexif()
        # Recent versions of Pillow give a TIFF's upright size.
        done = image.format == "TIFF" and width != exif.get(_WIDTH, width)
        turned = exif.get(_ORIENTATION, 1) in (5, 6, 7, 8) and not done
        return (width, height) if turned else (height, width)


@contextlib.contextmanager
def _readable(photo: Path | bytes) -> Iterator[Image.Image]:
    """Open a photo; all errors of Pillow about its content become OSErrors."""
    if isinstance(photo, Path) and not photo.is_file():
        raise OSError("the photo is no file" if photo.exists() else "the photo does not exist")
    if not (photo.stat().st_size if isinstance(photo, Path) else photo):
        raise OSError("the file is empty")
    try:
        with _opened(photo) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise OSError(f"{width}×{height} pixels are too many; scale the photo down")
            yield image
    except OSError:
        raise
    except Exception as error:
        # Pillow's plugins raise all sorts of things at damaged files.
        raise OSError(str(error) or type(error).__name__) from error


def _opened(photo: Path | bytes) -> Image.Image:
    """Open a photo, also above Pillow's limit, which is lower than ours, and the program's."""
    import PIL.Image

    if process.is_own():
        PIL.Image.MAX_IMAGE_PIXELS = None

    def opened() -> Image.Image:
        try:
            return Image.open(io.BytesIO(photo) if isinstance(photo, bytes) else photo,
                              formats=_FORMATS)
        except PIL.UnidentifiedImageError:
            raise OSError(f"this is not a readable image{_container(photo)}") from None

    try:
        return opened()
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):
        # It is not restored, because threads share it.
        PIL.Image.MAX_IMAGE_PIXELS = None
        return opened()


def _container(photo: Path | bytes) -> str:
    """Describe a file of a phone or of science that Pillow cannot open; empty if it is neither."""
    with io.BytesIO(photo) if isinstance(photo, bytes) else photo.open("rb") as file:
        start = file.read(12)
        brand = _BRANDS.get(start[8:]) if start[4:8] == b"ftyp" else None
        if start[:4] in TiffImagePlugin.PREFIXES:
            return f" ({_numbers_of(file)}; {_SAVE})"
    return f" (it is {brand}: convert it to JPEG)" if brand else ""


def _numbers_of(file: IO[bytes]) -> str:
    """Describe the values of a TIFF, such as "a TIFF with 3 values of 32 bits a pixel"."""
    try:
        file.seek(0)
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
        values = int(tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1))
        bits = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    except Exception:
        # The tags of a damaged file can be anything.
        return "a TIFF that is damaged, or of a rare kind"
    return f"a TIFF with {counted(values, 'value', 'values')} of {bits} bits a pixel"


def page_count(path: Path) -> int:
    """Return the number of pages of a TIFF, without smaller copies of a page.

    Raises an OSError if it cannot be opened or is truncated.
    """
    with _readable(path) as image:
        tags: Any = getattr(image, "tag_v2", {})
        starts, sizes = (tags.get(of_strips, tags.get(of_tiles, ())) for of_strips, of_tiles in (
            (TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.TILEOFFSETS),
            (TiffImagePlugin.STRIPBYTECOUNTS, TiffImagePlugin.TILEBYTECOUNTS)))
        if max(map(operator.add, starts, sizes), default=0) > path.stat().st_size:
            raise OSError("the file is truncated")
        _has_deep_colours(image)
        pages = 0
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            pages += not getattr(image, "tag_v2", {}).get(_KIND, 0) & 1
    return max(1, pages)


def fit_size(size: tuple[int, int], patch: int, *, scale: float = 1.0,
             max_side: int = 0, short_side: int = 0) -> tuple[int, int]:
    """Return a photo's (height, width) after resizing: scaled, then up to multiples of the patch.

    As in CLIP-ES, each side is rounded up on its own, so that nothing is cropped or padded. Before
    `scale`, longer photos are scaled down to `max_side` (0: never), or all so that the shorter side
    is `short_side` (0: not), in pixels.
    """
    shrink = min(1.0, max_side / max(size)) if max_side else 1.0
    shrink = short_side / min(size) if short_side else shrink
    height, width = (max(1.0, side * shrink * scale) for side in size)
    # 1e-6: a product such as 0.7·320 must not be pushed over a multiple by rounding.
    return tuple(int(-(-(side - 1e-6) // patch)) * patch for side in (height, width))  # type: ignore[return-value]


def to_pixels(photo: npt.NDArray[np.uint8], size: tuple[int, int], mean: Sequence[float],
              std: Sequence[float]) -> Tensor:
    """Resize RGB (H, W, 3) with PIL's bicubic to `size`, and normalise to (3, height, width)."""
    resized = Image.fromarray(photo).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1).float().div_(255)
    channels = torch.tensor([*mean, *std], dtype=torch.float32).view(2, 3, 1, 1)
    return ((pixels - channels[0]) / channels[1]).contiguous()


@dataclass(frozen=True)
class PhotoSettings:
    """How photos become network input: see `fit_size`; RGB mean and standard deviation."""

    patch: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    scale: float = 1.0
    max_side: int = 0
    short_side: int = 0

    def fit(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) to which a photo of a size is resized; see `fit_size`."""
        return fit_size(size, self.patch, scale=self.scale, max_side=self.max_side,
                        short_side=self.short_side)


def describe_failure(path: Path, error: Exception) -> str:
    """Return file name and reason, for a photo that cannot be used."""
    reason = error.message if isinstance(error, VplError) else str(error)
    return f"{path.name}: {reason or type(error).__name__}"


def without_metadata(content: bytes) -> bytes | None:
    """Return a JPEG, PNG or WebP without metadata and the same pixels; None for other files.

    EXIF except the orientation, XMP, IPTC, comments, thumbnails, and whatever follows the picture
    are removed. Colour profile, transparency and gamma stay, and the compressed pixels are copied.
    Raises an OSError if the file is damaged.
    """
    strip = (_strip_jpeg if content.startswith(b"\xff\xd8\xff") else
             _strip_png if content.startswith(_PNG) else
             _strip_webp if content[:4] + content[8:12] == b"RIFFWEBP" else None)
    try:
        return strip(content) if strip else None
    except (struct.error, IndexError, ValueError) as error:
        raise OSError(f"the file is damaged ({error})") from error


def _orientation(content: bytes) -> int:
    """Read a photo's orientation, 1 (upright) to 8."""
    with _readable(content) as image:
        found = image.getexif().get(_ORIENTATION, 1)
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _exif(orientation: int) -> bytes:
    """Return EXIF with the orientation alone."""
    return (b"MM\0*" + struct.pack(">IH", 8, 1)
            + struct.pack(">HHIHH", _ORIENTATION, 3, 1, orientation, 0) + struct.pack(">I", 0))


def _strip_jpeg(content: bytes) -> bytes:
    turned = _orientation(content)
    parts = [content[:2]]
    exif = b"Exif\0\0" + _exif(turned)
    added = b"" if turned == 1 else b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif
    for marker, segment in _jpeg_segments(content):
        if marker != _APP0:
            # EXIF comes first, after JFIF's own segment.
            parts.append(added)
            added = b""
        if kept := _kept_of_jpeg(marker, segment):
            parts.append(kept)
    return b"".join(parts)


def _kept_of_jpeg(marker: int, segment: bytes) -> bytes:
    """Return the part of a segment that stays; empty if none does."""
    inside = segment[4:]
    if marker == _APP0:
        # Without the thumbnail, whose width and height are the last two bytes.
        return (b"\xff\xe0\0\x10" + inside[:12] + b"\0\0"
                if inside.startswith(b"JFIF\0") and len(inside) >= 14 else b"")
    if marker == _APP2:
        return segment if inside.startswith(b"ICC_PROFILE\0") else b""
    if marker == _APP14:
        return segment if inside.startswith(b"Adobe") else b""
    return b"" if _APP0 <= marker <= 0xEF or marker == _COMMENT else segment


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the marker and the bytes of each segment after the first; scans with their data."""
    at = 2
    while at < len(content):
        if content[at] != 0xFF:
            raise ValueError(f"no marker at byte {at}")
        while content[at + 1] == 0xFF:
            at += 1  # fill bytes
        marker = content[at + 1]
        if marker == _EOI:
            # Other pictures follow, with metadata of their own.
            yield marker, content[at : at + 2]
            return
        end = at + 2 + struct.unpack(">H", content[at + 2 : at + 4])[0]
        if marker == _SOS:
            end = _end_of_scan(content, end)
        yield marker, content[at:end]
        at = end


def _end_of_scan(content: bytes, at: int) -> int:
    """Return the end of a scan's compressed data: the next marker that is no part of them."""
    while (at := content.find(b"\xff", at)) >= 0 and at + 1 < len(content):
        if content[at + 1] != 0 and content[at + 1] != 0xFF and not 0xD0 <= content[at + 1] <= 0xD7:
            return at
        at += 1 if content[at + 1] == 0xFF else 2
    return len(content)


def _strip_png(content: bytes) -> bytes:
    chunks = list(_png_chunks(content))
    names = {name for name, _ in chunks}
    # Pillow decodes all pixels to look for chunks behind them.
    turned = _orientation(content) if names & {b"eXIf", b"tEXt", b"zTXt", b"iTXt"} else 1
    parts = [_PNG]
    for name, chunk in chunks:
        if name in _PNG_CHUNKS:
            parts.append(chunk)
        if name == b"IHDR" and turned != 1:
            exif = b"eXIf" + _exif(turned)
            parts.append(struct.pack(">I", len(exif) - 4) + exif
                         + struct.pack(">I", zlib.crc32(exif)))
    return b"".join(parts)


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    at, name = len(_PNG), b""
    while at < len(content) and name != b"IEND":
        length, name = struct.unpack(">I4s", content[at : at + 8])
        yield name, content[at : at + 12 + length]
        at += 12 + length


def _strip_webp(content: bytes) -> bytes:
    turned = _orientation(content)
    parts = []
    for name, chunk in _webp_chunks(content):
        if name == b"VP8X":
            flags = chunk[8] & ~(_WEBP_EXIF | _WEBP_XMP) | (_WEBP_EXIF if turned != 1 else 0)
            chunk = chunk[:8] + bytes([flags]) + chunk[9:]
        if name in _WEBP_CHUNKS:
            parts.append(chunk)
    if turned != 1:
        exif = _exif(turned)
        parts.append(b"EXIF" + struct.pack("<I", len(exif)) + exif)
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _webp_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 12
    while at + 8 <= len(content):
        name, length = struct.unpack("<4sI", content[at : at + 8])
        end = at + 8 + length + length % 2
        yield name, content[at:end]
        at = end
