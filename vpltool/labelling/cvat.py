"""Take CVAT's XML 1.1 for images, or the ZIP that holds it: masks, polygons and boxes.

What has the higher z_order is on top, and what was drawn later. An XML with a document type is
refused: nothing in it is expanded. Needs pycocotools.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from xml.parsers import expat

from vpltool.errors import VplError
from vpltool.labelling.reading import below
from vpltool.labelling.request import Labelled, LabellingRequest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

NEEDS = ("pycocotools",)

_NAME = "annotations.xml"
_AGAIN = "export it from CVAT as `CVAT for images 1.1`"
_SHAPES = ("mask", "polygon", "box")
_OTHERS = ("polyline", "points", "ellipse", "cuboid", "skeleton", "track")


@dataclass
class _Image:
    """A photo of the file: its attributes, and its shapes with their lines."""

    line: int
    attributes: dict[str, str]
    shapes: list[tuple[int, str, dict[str, str]]] = field(default_factory=list)


def files(path: Path) -> list[Path]:
    """The file; none if it is another format."""
    if path.is_dir():
        return below(path, (_NAME,))
    if path.suffix.lower() == ".xml":
        return [path]
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return [path] if _NAME in archive.namelist() else []
    return []


def read(path: Path, request: LabellingRequest) -> Iterator[Labelled]:
    """Read the shapes."""
    import numpy as np

    for file in files(path):
        for image in _parse(file):
            where = f"{file}:{image.line}"
            try:
                photo = request.photo(image.attributes["name"], where)
                size = (int(image.attributes["height"]), int(image.attributes["width"]))
            except (KeyError, ValueError) as error:
                raise VplError(f"{where}: an image without {error}", _AGAIN) from error
            request.check_size(photo, size, where)
            canvas = np.zeros(size, np.uint8)
            for line, shape, said in sorted(image.shapes, key=_height):
                where = f"{file}:{line}"
                label = request.label(said.get("label", ""), where)
                try:
                    canvas[_inside(shape, said, size)] = label
                except (KeyError, ValueError, IndexError) as error:
                    raise VplError(f"{where}: the {shape} cannot be read ({error})", _AGAIN
                                   ) from error
            yield Labelled(photo, canvas, f"{file}:{image.line}")


def _height(shape: tuple[int, str, dict[str, str]]) -> int:
    told = shape[2].get("z_order", "0")
    return int(told) if told.lstrip("-").isdigit() else 0


def _parse(path: Path) -> list[_Image]:
    """Read the images and their shapes.

    Raises:
        VplError: it is not XML, has a document type, or has shapes without a region.
    """
    images: list[_Image] = []
    parser = expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise VplError(f"{path}:{parser.CurrentLineNumber}: a document type, which can hold "
                       "anything, is not taken", _AGAIN)

    def start(name: str, attributes: dict[str, str]) -> None:
        line = parser.CurrentLineNumber
        if name in _OTHERS:
            raise VplError(f"{path}:{line}: a {name} has no region",
                           "draw masks, polygons or boxes" if name != "track" else _AGAIN)
        if name == "image":
            images.append(_Image(line, attributes))
        elif name in _SHAPES and images:
            images[-1].shapes.append((line, name, attributes))

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = start
    try:
        parser.Parse(_content(path), True)
    except (expat.ExpatError, ValueError) as error:
        line = getattr(error, "lineno", parser.CurrentLineNumber)
        raise VplError(f"{path}:{line}: not XML ({error})", _AGAIN) from error
    if not images:
        raise VplError(f"{path} lists no image", _AGAIN)
    return images


def _content(path: Path) -> bytes:
    try:
        if path.suffix.lower() == ".xml":
            return path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            return archive.read(_NAME)
    except (OSError, zipfile.BadZipFile) as error:
        raise VplError(f"{path} cannot be read ({error})", _AGAIN) from error


def _inside(shape: str, said: dict[str, str], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The region (H, W) of a shape.

    Raises:
        KeyError, ValueError: an attribute is missing or no number, or a mask leaves the photo.
    """
    import numpy as np

    from vpltool.core.instances import region

    if shape == "polygon":
        points = [float(number) for pair in said["points"].split(";")
                  for number in pair.split(",")]
        return region([points], size)
    if shape == "box":
        left, top, right, bottom = (float(said[name]) for name in ("xtl", "ytl", "xbr", "ybr"))
        return region([[left, top, right, top, right, bottom, left, bottom]], size)
    left, top, width, height = (int(float(said[name]))
                                for name in ("left", "top", "width", "height"))
    lengths = np.array([int(word) for word in said["rle"].split(",")])
    if lengths.min() < 0 or lengths.sum() > width * height:
        raise ValueError(f"its run lengths do not fit into {width}×{height}")
    if left < 0 or top < 0 or top + height > size[0] or left + width > size[1]:
        raise ValueError("it is not within the photo")
    values = np.zeros(width * height, bool)
    filled = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    values[: len(filled)] = filled
    inside = np.zeros(size, bool)
    inside[top : top + height, left : left + width] = values.reshape(height, width)
    return inside
