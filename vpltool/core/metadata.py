"""Photos' files without what cameras and people wrote beside the pixels; pixels stay as they are.

What is kept says how the pixels look: colour profile, transparency, gamma, and the orientation.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

from vpltool.lazy import Image

_ORIENTATION = 274  # EXIF tag

_SOI, _EOI, _SOS, _APP0, _APP2, _APP14, _COMMENT = 0xD8, 0xD9, 0xDA, 0xE0, 0xE2, 0xEE, 0xFE
"""JPEG markers (ITU T.81, table B.1)."""

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"cHRM", b"gAMA", b"iCCP", b"sBIT",
               b"sRGB", b"cICP", b"bKGD", b"pHYs"}
_WEBP_CHUNKS = {b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF", b"ICCP"}
_WEBP_EXIF, _WEBP_XMP = 0x08, 0x04
"""Flags of the first byte of VP8X."""


def without_metadata(content: bytes) -> bytes | None:
    """Return a JPEG, PNG or WebP without metadata and the same pixels; None for other files.

    EXIF but the orientation, XMP, IPTC, comments, thumbnails, and whatever follows the picture go.
    The compressed pixels are copied, so nothing is lost.

    Raises:
        OSError: the file is damaged.
    """
    strip = (_strip_jpeg if content.startswith(b"\xff\xd8\xff") else
             _strip_png if content.startswith(_PNG) else
             _strip_webp if content[:4] + content[8:12] == b"RIFFWEBP" else None)
    try:
        return strip(content) if strip else None
    except (struct.error, IndexError, ValueError) as error:
        raise OSError(f"the file is damaged ({error})") from error


def _orientation(content: bytes) -> int:
    """How the photo is turned: 1, upright, to 8."""
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "WEBP")) as image:
            found = image.getexif().get(_ORIENTATION, 1)
    except OSError:
        raise
    except Exception as error:
        # Pillow's plugins raise all sorts of things at damaged files.
        raise OSError(str(error) or type(error).__name__) from error
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _exif(orientation: int) -> bytes:
    """EXIF that says the orientation, and nothing else."""
    return (b"MM\0*" + struct.pack(">IH", 8, 1)
            + struct.pack(">HHIHH", _ORIENTATION, 3, 1, orientation, 0) + struct.pack(">I", 0))


def _strip_jpeg(content: bytes) -> bytes:
    turned = _orientation(content)
    parts = [content[:2]]
    exif = b"Exif\0\0" + _exif(turned)
    added = b"" if turned == 1 else b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif
    for marker, segment in _jpeg_segments(content):
        if marker != _APP0:
            # EXIF comes first, but for JFIF's own.
            parts.append(added)
            added = b""
        if kept := _kept_of_jpeg(marker, segment):
            parts.append(kept)
    return b"".join(parts)


def _kept_of_jpeg(marker: int, segment: bytes) -> bytes:
    """What of a segment stays; empty if nothing."""
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
            # What follows are other pictures, with metadata of their own.
            yield marker, content[at : at + 2]
            return
        end = at + 2 + struct.unpack(">H", content[at + 2 : at + 4])[0]
        if marker == _SOS:
            end = _end_of_scan(content, end)
        yield marker, content[at:end]
        at = end


def _end_of_scan(content: bytes, at: int) -> int:
    """Where the compressed data of a scan end: at the next marker that is no part of them."""
    while (at := content.find(b"\xff", at)) >= 0 and at + 1 < len(content):
        if content[at + 1] != 0 and content[at + 1] != 0xFF and not 0xD0 <= content[at + 1] <= 0xD7:
            return at
        at += 1 if content[at + 1] == 0xFF else 2
    return len(content)


def _strip_png(content: bytes) -> bytes:
    chunks = list(_png_chunks(content))
    names = {name for name, _ in chunks}
    # Pillow decodes the pixels to look for what may be behind them.
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
