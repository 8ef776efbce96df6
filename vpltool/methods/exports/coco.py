"""Write a COCO data set of your own classes: photos, and instances as polygons or run lengths.

Each connected region of a class is an instance, or all are one (--parts joined). Polygons are
those of COCO's own tools: with --tolerance 0 they give the same mask. A region with holes becomes
run lengths, since COCO takes the union of an instance's polygons; --shape polygon connects holes to
the outline with a bridge instead, for tools that read only polygons. Needs OpenCV and pycocotools.

Example: vpltool export coco --split train

Source: COCO, "Data format"
"""

from __future__ import annotations

import functools
import json
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vpltool.core.outlines import connected_parts, has_holes, outlines_of, region, run_lengths
from vpltool.errors import VplError
from vpltool.formats.streams import read_spans, stream_objects
from vpltool.json_text import JsonObject
from vpltool.lazy import np, npt
from vpltool.methods import labels as reading
from vpltool.methods.exports import _folders
from vpltool.settings import setting

SUFFIX = "-coco"
FULL = True

_TAKEN = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")
NEEDS = ("pycocotools",)


@dataclass(frozen=True, kw_only=True)
class Settings(_folders.PolygonSettings):
    """Settings of COCO's instances."""

    shape: str = setting("auto", "Format of the outlines: polygons, run lengths (rle), or polygons "
                                 "unless a region has holes (auto).",
                         choices=("auto", "polygon", "rle"))
    parts: str = setting("each", "What an instance is; each connected region, or all of a "
                                 "class in a photo.", choices=("each", "joined"))


def _members(files: _folders.PhotoFiles, settings: Settings) -> _folders.Members:
    images, instances = list[JsonObject](), list[JsonObject]()
    for number, (photo, labels) in enumerate(files.labels(keeps_ignored=False), 1):
        height, width = labels.shape
        images.append({"id": number, "file_name": files.name(photo), "height": height,
                       "width": width})
        for label in _folders.classes_in(labels):
            whole = labels == label
            for inside in connected_parts(whole) if settings.parts == "each" else (whole,):
                instances.append({"id": len(instances) + 1, "image_id": number,
                                  "category_id": label, "iscrowd": 0}
                                 | _outline(inside, settings))
    categories = [{"id": index, "name": name, "supercategory": ""}
                  for index, name in enumerate(files.classes, 1)]
    yield f"annotations/instances_{settings.split}.json", json.dumps(
        {"info": {"description": files.predictions.name}, "licenses": [], "images": images,
         "categories": categories, "annotations": instances}).encode()
    yield from files.photos(f"images/{settings.split}")


export = _folders.exporter("coco", _TAKEN, _members, "cv2", "pycocotools", splits="images")


def _outline(inside: npt.NDArray[np.bool_], settings: Settings) -> JsonObject:
    """Return area, box and segmentation of an instance (H, W)."""
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    box = [int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1),
           int(rows[-1] - rows[0] + 1)]
    if settings.shape == "rle" or (settings.shape == "auto" and has_holes(inside)):
        outline: Any = run_lengths(inside)
    else:
        outline = [polygon.ravel().tolist() for polygon in
                   outlines_of(inside, corners=True, tolerance=settings.tolerance)]
    return {"area": int(inside.sum()), "bbox": box, "segmentation": outline}


def files(path: Path) -> list[Path]:
    """Return the file, or those of a folder; none if it is another format."""
    found = reading.json_files(path, ("annotations/*.json", "_annotations.coco.json",
                                      "*/_annotations.coco.json"), b"{")
    return [file for file in found if not reading.holds_shapes(file)]


def outlined(path: Path, request: reading.LabellingRequest) -> Iterator[reading.Outlined]:
    """Yield the instances of each photo: polygons and run lengths, of JSON. Needs pycocotools.

    Only one photo's are in memory at a time. Where they overlap, the smallest is on top.
    """
    for file in files(path):
        try:
            yield from _outlined_in(file, request)
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
            raise VplError(f"{file} is not COCO's instances: an entry lacks {error}",
                           "images, categories and annotations are what it needs") from error


read = reading.painting(outlined)


@dataclass
class _Listed:
    """Categories and images of a file, and where each image's instances are."""

    categories: list[dict[str, Any]] = field(default_factory=list)
    images: dict[Any, dict[str, Any]] = field(default_factory=dict)
    spans: dict[Any, array[int]] = field(default_factory=dict)  # offset, length of each instance


def _listed(path: Path) -> _Listed:
    """Read a file once; raise a KeyError or TypeError if an entry lacks something."""
    found, parts = _Listed(), set[str]()
    try:
        for part, first, length, entry in stream_objects(path):
            parts.add(part)
            if part == "categories":
                found.categories.append(entry)
            elif part == "images":
                found.images[entry["id"]] = entry
            elif part == "annotations":
                found.spans.setdefault(entry["image_id"], array("Q")).extend((first, length))
    except VplError:
        # Only the whole text shows the damaged line.
        content = reading.parse_json(reading.read_text(path), path)
        raise KeyError("images") if isinstance(content, dict) else TypeError("images") from None
    for part in ("categories", "images", "annotations"):
        if part not in parts and not isinstance(
                reading.parse_json(reading.read_text(path), path)[part], list):
            raise TypeError(part)
    return found


def _outlined_in(path: Path, request: reading.LabellingRequest) -> Iterator[reading.Outlined]:
    found = _listed(path)
    labels = {entry["id"]: request.label(entry["name"], str(path)) for entry in found.categories}
    for key, spans in found.spans.items():
        if key not in found.images:
            (entry,) = read_spans(path, spans[:2])
            raise VplError(f"{path}: annotation {entry.get('id')} belongs to image {key}, which "
                           "the file does not list", "export it from the tool again")
    for key, image in found.images.items():
        where = f"{path}: image {key}"
        photo = request.known_photo(str(image["file_name"]), where)
        if photo is None:
            continue
        size = (int(image["height"]), int(image["width"]))
        request.check_size(photo, size, where)
        entries = read_spans(path, found.spans.get(key, ()))
        yield reading.Outlined(photo, size, [_region(entry, labels, size, path)
                                             for entry in entries], where, smallest_on_top=True)


def _region(entry: Mapping[str, Any], labels: Mapping[int, int], size: tuple[int, int], path: Path
            ) -> reading.Region:
    where = f"{path}: annotation {entry.get('id')}"
    if entry["category_id"] not in labels:
        raise VplError(f"{where} has the category {entry['category_id']}, which the file does "
                       "not name", "export it from the tool again")
    return reading.Region(
        labels[entry["category_id"]],
        functools.partial(outline_region, entry.get("segmentation"), size, where), score_of(entry))


def score_of(entry: Mapping[str, Any]) -> float:
    """Return a tool's confidence in an instance: `score`, or SAM's `predicted_iou`, or 1.

    Raises a TypeError or ValueError if it is no number.
    """
    # SAM sometimes predicts an IoU a little above 1.
    return float(np.clip(float(entry.get("score", entry.get("predicted_iou", 1.0))), 0, 1))


def outline_region(outline: Any, size: tuple[int, int], where: str) -> npt.NDArray[np.bool_]:
    """Return the region (H, W) of an outline in any of COCO's three forms, or raise a VplError."""
    try:
        return region(outline, size)
    # pycocotools raises bare exceptions for invalid outlines.
    except Exception as error:
        raise VplError(f"{where}: its segmentation cannot be read "
                       f"({str(error) or type(error).__name__})",
                       "polygons are lists of x, y; run lengths have `size` and `counts`"
                       ) from error
