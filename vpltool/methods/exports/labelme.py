"""Write annotations for LabelMe and X-AnyLabeling: photos, and a JSON file of polygons for each.

Each connected region is a polygon. A polygon cannot hold a hole: it runs to the hole, around it and
back the same way. With --tolerance 0, what LabelMe fills is the same mask. Needs OpenCV.

Example: vpltool export labelme --split train

Source: LabelMe 6.3.1, `_label_file.py` and `utils/shape.py`
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpltool.core import outlines
from vpltool.errors import VplError
from vpltool.lazy import Image, np, npt
from vpltool.methods import labels as reading
from vpltool.methods.exports import _folders

SUFFIX = "-labelme"
FULL = True

_TAKEN = (".jpg", ".jpeg", ".png", ".bmp")
NEEDS = ("cv2",)

_VERSION = "5.5.0"
_AGAIN = "save it in LabelMe again"


@dataclass(frozen=True, kw_only=True)
class Settings(_folders.PolygonSettings):
    """Settings of LabelMe's polygons."""


def _members(files: _folders.PhotoFiles, settings: Settings) -> _folders.Members:
    for photo, labels in files.labels(keeps_ignored=False):
        content = {
            "version": _VERSION, "flags": {},
            "shapes": list(_shapes(labels, files.classes, settings.tolerance)),
            "imagePath": files.name(photo), "imageData": None,
            "imageHeight": labels.shape[0], "imageWidth": labels.shape[1]}
        yield (f"{files.names[photo.id]}.json",
               (json.dumps(content, ensure_ascii=False) + "\n").encode())
    yield from files.photos("")


export = _folders.exporter("labelme", _TAKEN, _members, "cv2")


def _shapes(labels: npt.NDArray[np.uint8], classes: tuple[str, ...], tolerance: float
            ) -> Iterator[dict[str, Any]]:
    for label in _folders.classes_in(labels):
        for polygon in outlines.outlines_of(labels == label, corners=False, tolerance=tolerance):
            yield {"label": classes[label - 1],
                   "points": [[float(x), float(y)] for x, y in outlines.three_points(polygon)],
                   "group_id": None, "description": "", "shape_type": "polygon", "flags": {}}


def files(path: Path) -> list[Path]:
    """Return the file, or those below a folder; none if it is another format."""
    found = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    return list(filter(reading.holds_shapes, found))


def outlined(path: Path, request: reading.LabellingRequest) -> Iterator[reading.Outlined]:
    """Yield the polygons, boxes, circles and masks of each photo's JSON; later ones are on top.

    They are filled as by LabelMe, outlines included. Needs OpenCV.
    """
    for file in files(path):
        content = reading.parse_json(reading.read_text(file), file)
        try:
            name = str(content["imagePath"])
            sides = [content.get(key) for key in ("imageHeight", "imageWidth")]
            shapes = [(shape["label"], shape) for shape in content["shapes"]]
        except (LookupError, TypeError, AttributeError) as error:
            raise VplError(f"{file} is not as LabelMe writes it ({error!r})", _AGAIN) from error
        photo = request.known_photo(name, str(file))
        if photo is None:
            continue
        size = request.size(photo, str(file))
        if all(isinstance(side, int) for side in sides):
            request.check_size(photo, (sides[0], sides[1]), str(file))
        yield reading.Outlined(photo, size, [
            _region(request.label(str(label), f"{file}: shape {number}"), shape, size,
                    f"{file}: shape {number}")
            for number, (label, shape) in enumerate(shapes, 1)], str(file))


read = reading.painting(outlined)


def _region(label: int, shape: dict[str, Any], size: tuple[int, int], where: str
            ) -> reading.Region:
    def inside() -> npt.NDArray[np.bool_]:
        try:
            return _inside(shape, size)
        except (LookupError, TypeError, ValueError, OverflowError, OSError, SyntaxError) as error:
            raise VplError(f"{where}: the {kind} cannot be read ({error})", _AGAIN) from error

    kind = str(shape.get("shape_type") or "polygon")
    if kind not in _KINDS:
        raise VplError(f"{where}: a {kind} has no region", "draw polygons, rectangles or circles")
    return reading.Region(label, inside)


_KINDS = ("polygon", "rectangle", "oriented_rectangle", "rotation", "circle", "mask")
"""`rotation` is X-AnyLabeling's name of a rotated rectangle, whose others have four points, too."""


def _inside(shape: dict[str, Any], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the region (H, W) of a shape; raises a ValueError or others if it is damaged."""
    points = np.asarray(shape["points"], dtype=np.float64)
    # OpenCV takes coordinates of 32 bits with 16 of them behind the point.
    if points.ndim != 2 or points.shape[1] != 2 or not (np.abs(points) < 1 << 15).all():
        raise ValueError("its points are not x, y pairs within the photo")
    kind = shape.get("shape_type") or "polygon"
    if len(points) < (2 if kind in ("rectangle", "circle", "mask") else 3):
        raise ValueError(f"{len(points)} points are too few")
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    if kind == "circle":
        (x, y), edge = points[0], points[1]
        rows, columns = np.ogrid[: size[0], : size[1]]
        return np.asarray(np.hypot(columns - x, rows - y) <= np.hypot(*(edge - (x, y))))
    if kind == "mask":
        filled = np.zeros(size, bool)
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as image:
            part = filled[int(top) : int(top) + image.height, int(left) : int(left) + image.width]
            if min(left, top) < 0 or part.shape != (image.height, image.width):
                raise ValueError("it is not within the photo")
            part[:] = np.asarray(image.convert("L")) > 0
        return filled
    if kind == "rectangle":
        points = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    return outlines.fill([points], size)
