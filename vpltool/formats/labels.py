"""Label images: palette PNGs as in VOC, whose pixel values are classes; 255 is ignored."""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

from vpltool.errors import VplError, not_readable
from vpltool.formats.atomic import PendingFiles, atomic_path
from vpltool.formats.header import METADATA_KEY, Header
from vpltool.formats.kinds import IGNORE, MOST_CLASSES
from vpltool.lazy import Image, PngImagePlugin, TiffImagePlugin, np, npt
from vpltool.names import short_path

BY_NUMBER = f"a class is painted with its number, and {IGNORE} is unlabelled"
"""Said of masks in which only the background and 255 are."""

_MOST_PIXELS = 200_000_000
"""Limit of pixels, since a file of a few bytes can declare any size."""

TIFF_SUFFIXES = (".tif", ".tiff")

SUFFIXES = (".png", *TIFF_SUFFIXES)
"""Suffixes of masks that other programs wrote, best first; vpltool writes PNGs."""

_INDEX_MODES = ("P", "L", "1", "I;16", "I;16B", "I")
"""Pillow's modes of pictures whose pixels are numbers."""

_STEPS = {2: 85, 4: 17}
"""Factor by which Pillow scales grey values, by bit depth."""


_COLOURS = tuple(sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3))
                 for index in range(256) for channel in range(3))
"""The bits of an index are spread over the three channels, as in VOC's devkit."""


def voc_palette() -> list[int]:
    """Return the 256 colours of PASCAL VOC, flat (r, g, b, r, g, b, …)."""
    return [*_COLOURS]


def write_labels(path: Path, labels: npt.NDArray[np.uint8], header: Header,
                 batch: PendingFiles | None = None) -> None:
    """Write labels (height, width) as a palette PNG with the header in a text chunk.

    16-bit labels become a 16-bit PNG. For `batch`, see `atomic_path`.
    """
    content = png_bytes(labels, header)
    with atomic_path(path, batch) as temporary:
        temporary.write_bytes(content)


def identity_of_labels(labels: npt.NDArray[np.uint8]) -> str:
    """Return a hash of labels (height, width), independent of the file: 16 hex digits."""
    labels = _narrowest(labels)
    size = f"{labels.shape[0]}x{labels.shape[1]}:".encode()
    return sha256(size + labels.tobytes()).hexdigest()[:16]


LEGEND = ("classes.txt", "palette.gpl")
"""Files beside exported label images: class names, one line per value, and a palette."""


def legend(name: str, classes: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the files of `LEGEND`; `classes` are in index order, with the background first.

    The colours are VOC's, in a palette named `name` for GIMP and Krita.
    """
    yield LEGEND[0], "".join(f"{entry}\n" for entry in classes).encode()
    lines = ["{:3} {:3} {:3}\t{}".format(*_COLOURS[3 * index : 3 * index + 3], named)
             for index, named in enumerate(classes)]
    yield LEGEND[1], "\n".join(["GIMP Palette", f"Name: {name}", "#", *lines, ""]).encode()


def read_legend(folder: Path) -> list[str]:
    """Read the names of the label values in a folder; empty if it has no legend.

    Raises:
        VplError: the file cannot be read.
    """
    path = folder / LEGEND[0]
    try:
        return path.read_text("utf-8-sig").splitlines() if path.is_file() else []
    except (OSError, UnicodeDecodeError) as error:
        raise VplError(f"{path} cannot be read ({error})",
                       "a line names each value, from 0 on") from error


def png_bytes(pixels: npt.NDArray[np.uint8], header: Header | None = None) -> bytes:
    """Encode labels (height, width) with VOC's palette, or RGB (height, width, 3), as PNG.

    A header is stored in a text chunk.
    """
    image, text, content = Image.fromarray(pixels), PngImagePlugin.PngInfo(), BytesIO()
    if pixels.ndim == 2 and pixels.dtype == np.uint8:
        image.putpalette(voc_palette())
    if header is not None:
        text.add_text(METADATA_KEY, header.to_json())
    image.save(content, format="PNG", pnginfo=text)
    return content.getvalue()


def read_labels(path: Path) -> npt.NDArray[np.uint8]:
    """Read labels (height, width) from a palette or greyscale PNG or TIFF, vpltool's or not.

    Values are those in the file, at any depth (1, 2, 4, 8 or 16 bits); uint16 if one exceeds 255,
    else uint8.

    Raises:
        VplError: the file is missing or damaged, holds colours instead of indices, or a value
            above 65,535.
    """
    return _values_of(path)[0]


def read_drawn_labels(path: Path, *, other_palettes: bool = False) -> npt.NDArray[np.uint8]:
    """Read labels that may have been edited by hand, by colour if the palette was changed.

    Paint programs reorder palettes, or save RGB. So if all colours in use are VOC's, or all are
    greys, colours determine the labels. With `other_palettes`, pixel values count if the palette
    has other colours.

    Raises:
        VplError: see `read_labels`; or there are other colours than VOC's.
    """
    if (drawn := _labels_of_colours(path)) is not None:
        return drawn
    values, palette = _values_of(path)
    if palette is None or palette[: 3 * 256] == voc_palette()[: len(palette)]:
        return values
    used = np.unique(values)
    if 3 * used[-1] >= len(palette):
        raise VplError(f"{short_path(path)} has the value {used[-1]}, and only "
                       f"{len(palette) // 3} colours", "save it again as a palette PNG")
    colours = np.array(palette, np.uint8).reshape(-1, 3)[used]
    for known in (voc_palette(), [level for level in range(256) for _ in range(3)]):
        numbers = {tuple(known[3 * label : 3 * label + 3]): label for label in range(256)}
        labels = [numbers.get(tuple(colour), -1) for colour in colours.tolist()]
        # Black and white alone are ambiguous.
        if -1 not in labels and (labels == used.tolist() or {*labels} - {0, IGNORE}):
            table = np.zeros(256, np.uint8)
            for index, label in zip(used.tolist(), labels, strict=True):
                table[index] = label
            return table[values]
    if other_palettes:
        return values
    odd = next(index for index, colour in zip(used.tolist(), colours.tolist(), strict=True)
               if colour != voc_palette()[3 * index : 3 * index + 3])
    shown = "#" + bytes(colours[used == odd][0].tolist()).hex()
    raise VplError(f"{short_path(path)} has a palette of its own: index {odd} is {shown}, which "
                   "may be another class than that number",
                   "save it with the palette that it was exported with, or as greyscale with the "
                   "numbers of the classes")


def _labels_of_colours(path: Path) -> npt.NDArray[np.uint8] | None:
    """Return the labels of an RGB image in VOC's colours; None if it is none."""
    with _opened(path) as image:
        if image.mode not in ("RGB", "RGBA"):
            return None
        pixels = np.array(image.convert("RGBA"))
    used, where = np.unique(np.ascontiguousarray(pixels).view(np.uint32), return_inverse=True)
    known = np.full((256, 4), 255, np.uint8)
    known[:, :3] = np.reshape(voc_palette(), (256, 3))
    numbers = {code: label for label, code in enumerate(known.view(np.uint32)[:, 0].tolist())}
    if odd := [code for code in used.tolist() if code not in numbers]:
        shown = "#" + np.array(odd[:1], np.uint32).tobytes().hex()
        raise VplError(f"{short_path(path)} has the colour {shown.removesuffix('ff')}, which is of "
                       "no class", "save it without smoothed edges and transparency, in the "
                       "colours that it was exported with")
    labels = np.array([numbers[code] for code in used.tolist()], np.uint8)
    return labels[where].reshape(pixels.shape[:2])


def _narrowest(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Convert labels to uint8, or uint16 if one exceeds 255."""
    return values.astype(np.uint8 if values.max(initial=0) <= IGNORE else np.uint16, copy=False)


def known_numbers(classes: int) -> str:
    """Return the numbers of so many classes, for a message: `1 to 3`, or `only 1`."""
    return f"1 to {classes}" if classes > 1 else f"only {classes}"


def objects_hint(labels: npt.NDArray[np.uint8], classes: int) -> str:
    """Return a hint if a mask seems to number objects, as Cellpose does; else nothing.

    Its values then are all numbers from 1 to one far above the classes.
    """
    shown = {*np.flatnonzero(np.bincount(labels.ravel())).tolist()} - {0, IGNORE}
    most = max(shown, default=0)
    if most <= 2 * classes or not shown >= {*range(1, most + 1)} - {IGNORE}:
        return ""
    return ("masks hold numbers of classes, and these seem to number objects, as Cellpose does; "
            "give each pixel " + ("1, for the only class" if classes == 1 else
                                  "the number of its object's class"))


def size_of_labels(path: Path) -> tuple[int, int]:
    """Return (height, width) of a label image without decoding pixels.

    Raises:
        VplError: see `read_labels`.
    """
    with _opened(path) as image:
        return image.height, image.width


def read_numbers(path: Path) -> npt.NDArray[np.int64]:
    """Read instance numbers (H, W) of 8 or 16 bits, or in COCO's panoptic colours.

    A colour encodes red + 256 green + 65,536 blue.

    Raises:
        VplError: the file is missing or damaged.
    """
    with _opened(path) as image:
        values = np.array(image if image.mode in _INDEX_MODES else image.convert("RGB"), np.int64)
    return values @ np.array([1, 256, 65536]) if values.ndim == 3 else values


def read_soft(path: Path) -> npt.NDArray[np.uint8]:
    """Read a soft mask (H, W) from a picture's alpha channel or else its grey values; 255: inside.

    So a map may be a saliency network's grey picture, or a photo with a transparent background.

    Raises:
        VplError: the file is missing or damaged.
    """
    with _opened(path) as image:
        if image.mode.startswith("I"):
            return (np.array(image, np.int64).clip(0, 65535) >> 8).astype(np.uint8)
        cut_out = "A" in image.getbands() or "transparency" in image.info
        return np.array(image.convert("RGBA").getchannel("A") if cut_out else image.convert("L"))


def _values_of(path: Path) -> tuple[npt.NDArray[np.uint8], list[int] | None]:
    """Return the values of a label image and its flat palette, if any."""
    with _opened(path) as image:
        if image.mode not in _INDEX_MODES:
            raise VplError(f"{short_path(path)} is not an index image (mode {image.mode}): a "
                           "pixel's value must be its class",
                           "save it as a palette PNG (mode P); docs/datasets.md says how")
        values = np.array(image)
        palette = image.getpalette() if image.mode == "P" else None
        depth = getattr(image, "tag_v2", {}).get(TiffImagePlugin.BITSPERSAMPLE, (1,))[0]
    if image.format == "PNG":
        with path.open("rb") as file:
            depth = file.read(25)[24]
    if image.mode == "L" and depth in _STEPS:
        # Pillow scales low bit depths to 0 to 255.
        values //= _STEPS[depth]
    if (highest := int(values.max(initial=0))) > MOST_CLASSES + 1 or values.min(initial=0) < 0:
        raise VplError(f"{short_path(path)} has the value {highest}, above {MOST_CLASSES + 1}"
                       if highest > MOST_CLASSES else f"{short_path(path)} has negative values",
                       "a pixel's value is the number of its class")
    return _narrowest(values), palette


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a PNG, or by its suffix a TIFF; turn any error of Pillow into a VplError."""
    kind = "TIFF" if path.suffix.lower() in TIFF_SUFFIXES else "PNG"
    try:
        if not path.is_file() and path.exists():
            raise OSError("it is a folder" if path.is_dir() else "it is not a file")
        with Image.open(path, formats=(kind,)) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise VplError(f"{short_path(path)} has {image.width}×{image.height} pixels",
                               "a mask must have the size of its photo")
            if kind == "TIFF":
                _check_tiff(path, image)
            yield image
    except FileNotFoundError:
        raise VplError(f"no mask at {short_path(path)}",
                       "give masks to `prepare`; `show(truth=False)` does without them"
                       ) from None
    except PermissionError as error:
        raise not_readable(path) from error
    except (OSError, SyntaxError, ValueError, IndexError, KeyError, OverflowError, zlib.error,
            struct.error, Image.DecompressionBombError) as error:
        raise VplError(f"{short_path(path)} cannot be read as a {kind} ({error})",
                       "delete it, and recompute it or save it as a palette PNG") from error


def _check_tiff(path: Path, image: Image.Image) -> None:
    """Check that a TIFF is one page whose values are those in the file."""
    if (pages := getattr(image, "n_frames", 1)) > 1:
        raise VplError(f"{short_path(path)} has {pages} pages; a mask is one",
                       "save the page of its photo alone")
    # Pillow would invert bytes.
    if getattr(image, "tag_v2", {}).get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
        raise VplError(f"{short_path(path)} shows 0 as white, so its values are in doubt",
                       "save it without an inverting lookup table, or as a PNG")
