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

from vpltool.core.instances import region, run_lengths
from vpltool.core.outlines import connected_parts, has_holes, outlines_of
from vpltool.errors import VplError
from vpltool.formats.archives import Member, splits_in, write_tree
from vpltool.formats.json_stream import read_span, stream_objects
from vpltool.json_text import JsonObject
from vpltool.lazy import np, npt
from vpltool.methods.exports._regions import (
    POLYGON_AREA,
    LabellingSettings,
    PhotoFiles,
    check_labelling,
    classes_in,
    cleaned_predictions,
    min_area_setting,
    small_setting,
)
from vpltool.methods.inputs import Predictions
from vpltool.methods.labels import (
    Labelled,
    LabellingRequest,
    Outlined,
    Region,
    below,
    parse_json,
    read_text,
)
from vpltool.settings import setting

READS = ()
SUFFIX = "-coco"
FULL = True

_TAKEN = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")
NEEDS = ("pycocotools",)


@dataclass(frozen=True, kw_only=True)
class Settings(LabellingSettings):
    """Settings of COCO's instances."""

    shape: str = setting("auto", "Format of the outlines: polygons, run lengths (rle), or polygons "
                                 "unless a region has holes (auto).",
                         choices=("auto", "polygon", "rle"))
    parts: str = setting("each", "What an instance is; each connected region, or all of a "
                                 "class in a photo.", choices=("each", "joined"))
    min_area: int = min_area_setting(POLYGON_AREA)
    small: str = small_setting("merge")
    tolerance: float = setting(0.0, "Drop polygon points that are this close to the line, in "
                                    "pixels; 0: the exact mask.", low=0, metavar="PIXELS")


def export(predictions: Predictions, path: Path, settings: Settings) -> list[Path]:
    """Write the folder."""
    check_labelling(settings, "cv2", "pycocotools")
    kept = splits_in(path, "coco", "images")
    write_tree(path, _members(predictions, settings), "coco", kept)
    return [path]


def _members(predictions: Predictions, settings: Settings) -> Iterator[Member]:
    files = PhotoFiles(predictions, settings, _TAKEN)
    images: list[JsonObject] = []
    instances: list[JsonObject] = []
    for number, (photo, labels) in enumerate(
            cleaned_predictions(predictions, settings, keeps_ignored=False), 1):
        height, width = labels.shape
        images.append({"id": number, "file_name": files.name(photo), "height": height,
                       "width": width})
        for label in classes_in(labels):
            for inside in _instances(labels == label, settings.parts):
                instances.append({"id": len(instances) + 1, "image_id": number,
                                  "category_id": label, "iscrowd": 0}
                                 | _outline(inside, settings))
    categories = [{"id": index, "name": name, "supercategory": ""}
                  for index, name in enumerate(predictions.workspace.classes, 1)]
    yield f"annotations/instances_{settings.split}.json", json.dumps(
        {"info": {"description": predictions.name}, "licenses": [], "images": images,
         "categories": categories, "annotations": instances}).encode()
    yield from files.members(f"images/{settings.split}")


def _instances(inside: npt.NDArray[np.bool_], parts: str) -> Iterator[npt.NDArray[np.bool_]]:
    if parts == "each":
        yield from connected_parts(inside)
    else:
        yield inside


def _outline(inside: npt.NDArray[np.bool_], settings: Settings) -> JsonObject:
    """Area, box and segmentation of an instance (H, W)."""
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
    """The file, or those of a folder; none if it is another format."""
    if path.is_dir():
        return below(path, ("annotations/*.json", "_annotations.coco.json",
                            "*/_annotations.coco.json"))
    if path.suffix.lower() != ".json":
        return []
    with path.open("rb") as file:
        return [path] if file.read(64).strip()[:1] == b"{" else []


def read(path: Path, request: LabellingRequest) -> Iterator[Labelled]:
    """Read COCO's instances: polygons and run lengths, of a JSON file or of annotations/*.json.

    Where instances overlap, the smallest is on top. Needs pycocotools.
    """
    return (found.painted() for found in outlined(path, request))


def outlined(path: Path, request: LabellingRequest) -> Iterator[Outlined]:
    """Yield the instances of each photo; of a large file one photo's are in memory at a time."""
    for file in files(path):
        yield from _outlined_in(file, request)


@dataclass
class _Listed:
    """What is kept of a file: its categories and images, and where each image's instances are."""

    categories: list[dict[str, Any]] = field(default_factory=list)
    images: dict[Any, dict[str, Any]] = field(default_factory=dict)
    spans: dict[Any, array[int]] = field(default_factory=dict)


def _listed(path: Path) -> _Listed:
    """Go through a file once."""
    found, parts = _Listed(), set[str]()
    try:
        for part, first, length, entry in stream_objects(path):
            parts.add(part)
            if part == "categories":
                found.categories.append(read_span(path, first, length))
            elif part == "images":
                found.images[entry["id"]] = read_span(path, first, length)
            elif part == "annotations":
                found.spans.setdefault(entry["image_id"], array("Q")).extend((first, length))
    except VplError:
        # Only the whole text says in which line it is damaged.
        content = parse_json(read_text(path), path)
        raise KeyError("images") if isinstance(content, dict) else TypeError("images") from None
    for part in ("categories", "images", "annotations"):
        if part not in parts and not isinstance(parse_json(read_text(path), path)[part], list):
            raise TypeError(part)
    return found


def _outlined_in(path: Path, request: LabellingRequest) -> Iterator[Outlined]:
    try:
        found = _listed(path)
        labels = {entry["id"]: request.label(entry["name"], str(path))
                  for entry in found.categories}
        stray = found.spans.keys() - found.images.keys()
        for key in (key for key in found.spans if key in stray):
            entry = read_span(path, *found.spans[key][:2])
            raise VplError(f"{path}: annotation {entry.get('id')} belongs to image {key}, which "
                           "the file does not list", "export it from the tool again")
        for key, image in found.images.items():
            where = f"{path}: image {key}"
            photo = request.photo(str(image["file_name"]), where)
            size = (int(image["height"]), int(image["width"]))
            request.check_size(photo, size, where)
            spans = found.spans.get(key, array("Q"))
            entries = [read_span(path, first, length)
                       for first, length in zip(spans[::2], spans[1::2], strict=True)]
            yield Outlined(photo, size, [_region(entry, labels, size, path) for entry in entries],
                           where, smallest_on_top=True)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise VplError(f"{path} is not COCO's instances: an entry lacks {error}",
                       "images, categories and annotations are what it needs") from error


def _region(entry: Mapping[str, Any], labels: Mapping[int, int], size: tuple[int, int], path: Path
            ) -> Region:
    where = f"{path}: annotation {entry.get('id')}"
    if entry["category_id"] not in labels:
        raise VplError(f"{where} has the category {entry['category_id']}, which the file does "
                       "not name", "export it from the tool again")
    outline = entry.get("segmentation")
    return Region(labels[entry["category_id"]],
                  functools.partial(outline_region, outline, size, where), score_of(entry))


def score_of(entry: Mapping[str, Any]) -> float:
    """How sure a tool is of an instance: COCO's `score`, SAM's `predicted_iou`; 1 without either.

    SAM predicts an IoU a little above 1 at times.

    Raises:
        TypeError, ValueError: it is no number.
    """
    return float(np.clip(float(entry.get("score", entry.get("predicted_iou", 1.0))), 0, 1))


def outline_region(outline: Any, size: tuple[int, int], where: str) -> npt.NDArray[np.bool_]:
    """The region (H, W) of an outline in any of COCO's three forms.

    Raises:
        VplError: it is none, or of another size.
    """
    try:
        return region(outline, size)
    # pycocotools raises bare exceptions at outlines that are none.
    except Exception as error:
        raise VplError(f"{where}: its segmentation cannot be read "
                       f"({str(error) or type(error).__name__})",
                       "polygons are lists of x, y; run lengths have `size` and `counts`"
                       ) from error
