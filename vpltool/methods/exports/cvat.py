"""Write annotations for CVAT: its XML 1.1, and the photos.

Each connected region is its own mask, holes included, so that the import neither breaks on
disconnected regions nor loses what lies in a hole. --shape polygon writes polygons, which can be
dragged; holes are connected with a bridge. Needs OpenCV.

Example: vpltool export cvat --split train

Source: CVAT, "XML annotation format", version 1.1
"""

from __future__ import annotations

import contextlib
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from vpltool.core import outlines, proposals
from vpltool.core.classes import paint
from vpltool.errors import VplError
from vpltool.formats.streams import DamagedXml, parse_xml
from vpltool.lazy import np, npt
from vpltool.methods import labels as reading
from vpltool.methods.exports import _folders
from vpltool.settings import NoEffect, setting

SUFFIX = "-cvat"
FULL = True

_TAKEN = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")
NEEDS = ("pycocotools",)

_NAME = "annotations.xml"
_LARGEST = 1 << 28
"""Bytes of annotations in a ZIP, however small they are packed."""

_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, KeyError,
               RuntimeError, struct.error)
"""Errors of `zipfile` for damaged files; NotImplementedError is a RuntimeError."""
_AGAIN = "export it from CVAT as `CVAT for images 1.1`"
_SHAPES = ("mask", "polygon", "box")
_OTHERS = ("polyline", "points", "ellipse", "cuboid", "skeleton", "track")


@dataclass(frozen=True, kw_only=True)
class Settings(_folders.LabellingSettings):
    """Settings of CVAT's XML."""

    shape: str = setting("mask", "Shape of the regions: mask (exact) or polygon.",
                         choices=("mask", "polygon"))
    tolerance: float = _folders.tolerance_setting(
        no_effect=[NoEffect({"shape": ("mask",)}, "masks have no points")])


def _members(files: _folders.PhotoFiles, settings: Settings) -> _folders.Members:
    text = [_head(files.predictions.name, files.classes)]
    for number, (photo, labels) in enumerate(files.labels(keeps_ignored=False)):
        height, width = labels.shape
        text.append(f'  <image id="{number}" name={quoteattr(files.name(photo))} '
                    f'width="{width}" height="{height}">\n')
        for label in _folders.classes_in(labels):
            text += _shapes(labels == label, quoteattr(files.classes[label - 1]), settings)
        text.append("  </image>\n")
    yield _NAME, "".join([*text, "</annotations>\n"]).encode()
    yield from files.photos("images")


export = _folders.exporter("cvat", _TAKEN, _members, "cv2")


def _head(name: str, classes: tuple[str, ...]) -> str:
    labels = "".join(
        f"<label><name>{escape(label)}</name><color>{_folders.hex_colour(index)}</color>"
        "<type>any</type><attributes></attributes></label>"
        for index, label in enumerate(classes, 1))
    return ('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
            f"  <meta><task><name>{escape(name)}</name><mode>annotation</mode>"
            f"<labels>{labels}</labels></task></meta>\n")


def _shapes(inside: npt.NDArray[np.bool_], label: str, settings: Settings) -> Iterator[str]:
    if settings.shape == "polygon":
        for polygon in outlines.outlines_of(inside, corners=True, tolerance=settings.tolerance):
            points = ";".join(f"{x:g},{y:g}" for x, y in polygon)
            yield (f'    <polygon label={label} source="auto" occluded="0" points="{points}" '
                   'z_order="0"></polygon>\n')
        return
    yield from (_mask(part, label) for part in outlines.connected_parts(inside))


def _mask(part: npt.NDArray[np.bool_], label: str) -> str:
    """Return a part as CVAT's run lengths: row by row in its box, outside first."""
    rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
    box = part[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    lengths = ", ".join(map(str, proposals.run_lengths(box)))
    return (f'    <mask label={label} source="auto" occluded="0" rle="{lengths}" '
            f'left="{columns[0]}" top="{rows[0]}" width="{box.shape[1]}" '
            f'height="{box.shape[0]}" z_order="0"></mask>\n')


@dataclass
class _Image:
    """A photo of the file."""

    line: int
    attributes: dict[str, str]
    shapes: list[tuple[int, str, dict[str, str]]] = field(default_factory=list)  # line, kind, …


def files(path: Path) -> list[Path]:
    """Return the file; none if it is another format."""
    if path.is_dir():
        return reading.below(path, (_NAME,))
    if path.suffix.lower() == ".xml":
        return [path]
    if zipfile.is_zipfile(path):
        with contextlib.suppress(*_ZIP_ERRORS), zipfile.ZipFile(path) as archive:
            return [path] if _NAME in archive.namelist() else []
    return []


def read(path: Path, request: reading.LabellingRequest) -> Iterator[reading.Labelled]:
    """Read CVAT's XML 1.1 for images, or the ZIP that holds it: masks, polygons and boxes.

    Shapes with a higher z_order, or drawn later, are on top. An XML with a document type is
    refused. Needs pycocotools.
    """
    for file in files(path):
        for image in _parse(file):
            where = f"{file}:{image.line}"
            try:
                photo = request.known_photo(image.attributes["name"], where)
                size = (int(image.attributes["height"]), int(image.attributes["width"]))
            except (KeyError, ValueError, OverflowError) as error:
                raise VplError(f"{where}: an image without {error}", _AGAIN) from error
            if photo is None:
                continue
            request.check_size(photo, size, where)
            yield reading.Labelled(photo, paint(size, _drawn(image, size, file, request)), where)


def _drawn(image: _Image, size: tuple[int, int], file: Path, request: reading.LabellingRequest
           ) -> Iterator[tuple[int, npt.NDArray[np.bool_]]]:
    """Yield label and mask (H, W) of the shapes of an image, the highest last."""
    for line, shape, attributes in sorted(image.shapes, key=_height):
        where = f"{file}:{line}"
        label = request.label(attributes.get("label", ""), where)
        try:
            yield label, _inside(shape, attributes, size)
        # pycocotools raises bare exceptions for invalid outlines.
        except Exception as error:
            raise VplError(f"{where}: the {shape} cannot be read ({error})", _AGAIN) from error


def _height(shape: tuple[int, str, dict[str, str]]) -> int:
    order = shape[2].get("z_order", "0")
    return int(order) if order.lstrip("-").isdigit() else 0


def _parse(path: Path) -> list[_Image]:
    images: list[_Image] = []

    def start(name: str, attributes: dict[str, str], line: int) -> None:
        if name in _OTHERS:
            raise VplError(f"{path}:{line}: a {name} has no region",
                           "draw masks, polygons or boxes" if name != "track" else _AGAIN)
        if name == "image":
            images.append(_Image(line, attributes))
        elif name in _SHAPES and images:
            images[-1].shapes.append((line, name, attributes))

    try:
        parse_xml(_content(path), start)
    except DamagedXml as error:
        raise VplError(f"{path}:{error.line}: {error}", _AGAIN) from error
    if not images:
        raise VplError(f"{path} lists no image", _AGAIN)
    return images


def _content(path: Path) -> bytes:
    try:
        if path.suffix.lower() == ".xml":
            return path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            if (held := archive.getinfo(_NAME).file_size) > _LARGEST:
                raise ValueError(f"{_NAME} in it would be {held} bytes")
            return archive.read(_NAME)
    except _ZIP_ERRORS as error:
        raise VplError(f"{path} cannot be read ({error})", _AGAIN) from error


def _inside(shape: str, attributes: dict[str, str], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the region (H, W) of a shape; a KeyError or ValueError if an attribute is invalid."""
    if shape == "polygon":
        points = [float(number) for pair in attributes["points"].split(";")
                  for number in pair.split(",")]
        return outlines.region([points], size)
    if shape == "box":
        left, top, right, bottom = (
            float(attributes[name]) for name in ("xtl", "ytl", "xbr", "ybr"))
        return outlines.region([[left, top, right, top, right, bottom, left, bottom]], size)
    left, top, width, height = (int(float(attributes[name]))
                                for name in ("left", "top", "width", "height"))
    if min(left, top, width, height) < 0 or top + height > size[0] or left + width > size[1]:
        raise ValueError("it is not within the photo")
    lengths = np.array([int(word) for word in attributes["rle"].split(",")])
    if lengths.min() < 0 or lengths.max() > width * height or lengths.sum() > width * height:
        raise ValueError(f"its run lengths do not fit into {width}×{height}")
    values = np.zeros(width * height, bool)
    values[: lengths.sum()] = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    inside = np.zeros(size, bool)
    inside[top : top + height, left : left + width] = values.reshape(height, width)
    return inside
