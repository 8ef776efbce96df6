"""Label images: palette PNGs, as in VOC. The value of a pixel is its class, 255 is ignored."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vpltool.errors import VplError
from vpltool.formats.header import METADATA_KEY, Header
from vpltool.formats.storage import atomic_path, short_path

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.PngImagePlugin import PngInfo

_MOST_PIXELS = 200_000_000
"""More than these are refused: a file of a few bytes can stand for any number of pixels."""


def voc_palette() -> list[int]:
    """Return the 256 colours of PASCAL VOC, flat (r, g, b, r, g, b, …).

    The bits of the index are spread over the three channels, as in the devkit.
    """
    colours = []
    for index in range(256):
        red = green = blue = 0
        for bit in range(8):
            red |= (index >> (3 * bit) & 1) << (7 - bit)
            green |= (index >> (3 * bit + 1) & 1) << (7 - bit)
            blue |= (index >> (3 * bit + 2) & 1) << (7 - bit)
        colours += [red, green, blue]
    return colours


def write_labels(path: Path, labels: npt.NDArray[np.uint8], header: Header) -> None:
    """Write labels (height, width) uint8 as a palette PNG with the header in a text chunk."""
    from PIL import Image

    image = Image.fromarray(labels)
    image.putpalette(voc_palette())
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=_text_of(header))


def _text_of(header: Header) -> PngInfo:
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text(METADATA_KEY, header.to_json())
    return text


def identity_of_labels(labels: npt.NDArray[np.uint8]) -> str:
    """Return a hash of labels (height, width), whatever file they are in: 16 hex digits."""
    from hashlib import sha256

    size = f"{labels.shape[0]}x{labels.shape[1]}:".encode()
    return sha256(size + labels.tobytes()).hexdigest()[:16]


def gimp_palette(name: str, classes: Sequence[str]) -> bytes:
    """Return VOC's colours of classes, the background first, as GIMP and Krita read them."""
    flat = voc_palette()
    colours = [" ".join(f"{value:3}" for value in flat[3 * index : 3 * index + 3])
               for index in range(len(classes))]
    lines = [f"{colour}\t{named}" for colour, named in zip(colours, classes, strict=True)]
    return "\n".join(["GIMP Palette", f"Name: {name}", "#", *lines, ""]).encode()


def png_bytes(pixels: npt.NDArray[np.uint8], header: Header | None = None) -> bytes:
    """Encode labels (height, width) with VOC's palette, or RGB (height, width, 3), as PNG.

    With a header, that is in a text chunk.
    """
    from io import BytesIO

    from PIL import Image

    image = Image.fromarray(pixels)
    if pixels.ndim == 2:
        image.putpalette(voc_palette())
    content = BytesIO()
    image.save(content, format="PNG", pnginfo=_text_of(header) if header else None)
    return content.getvalue()


def read_labels(path: Path) -> npt.NDArray[np.uint8]:
    """Read labels (height, width) uint8 from a palette or 8-bit greyscale PNG, vpltool's or not.

    Raises:
        VplError: the file is missing or damaged, or holds colours instead of indices.
    """
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise VplError(f"{short_path(path)} has {image.width}×{image.height} pixels",
                               "a mask has a pixel for each of its photo's")
            if image.mode not in ("P", "L"):
                raise VplError(f"{short_path(path)} is not an 8-bit index image (mode "
                               f"{image.mode}): a pixel's value must be its class",
                               "save it as a palette PNG (mode P); docs/datasets.md says how")
            return np.array(image, dtype=np.uint8)
    except FileNotFoundError:
        raise VplError(f"no mask at {short_path(path)}",
                       "give masks to `prepare`; `show(truth=False)` does without them"
                       ) from None
    except (OSError, SyntaxError, ValueError, IndexError, KeyError, OverflowError, zlib.error,
            struct.error, Image.DecompressionBombError) as error:
        raise VplError(f"{short_path(path)} cannot be read as a PNG ({error})",
                       "delete it, and recompute it or save it as a palette PNG") from error
