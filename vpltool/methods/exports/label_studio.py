"""Write tasks for Label Studio: brush strokes, the labelling configuration, and the photos.

tasks.json has one task per photo, with a stroke for each connected region; config.xml is the
labelling configuration that shows them. Label Studio serves the photos as local files, below /data;
--address sets another address. Strokes are predictions, which count once a person has corrected and
submitted them, or annotations, which count as they are.

Example: vpltool export label-studio --split train

Source: Label Studio, "BrushLabels" and "Import pre-annotated data"
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import quoteattr

from vpltool.core.outlines import connected_parts, region
from vpltool.errors import VplError
from vpltool.json_text import JsonObject
from vpltool.lazy import np, npt
from vpltool.methods import labels as reading
from vpltool.methods.exports import _folders
from vpltool.settings import setting

SUFFIX = "-label-studio"
FULL = True

_TAKEN = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif")
"""Suffixes of photos that browsers show."""

_TOOL, _IMAGE = "tag", "image"
"""Names in the configuration; a stroke names both, and is not shown if they differ."""
NEEDS = ("pycocotools",)

_TASKS = "tasks.json"
_AGAIN = "export it from Label Studio as JSON"


@dataclass(frozen=True, kw_only=True)
class Settings(_folders.LabellingSettings):
    """Settings of Label Studio's tasks."""

    kind: str = setting("predictions", "What the strokes are to Label Studio.",
                        choices=("predictions", "annotations"))
    address: str = setting("/data/local-files/?d=images/", "Prefix of a photo's address, before "
                                                           "its name.", metavar="URL")


def _members(files: _folders.PhotoFiles, settings: Settings) -> _folders.Members:
    yield "config.xml", _configuration(files.classes).encode()
    tasks = []
    for photo, labels in files.labels(keeps_ignored=False):
        result: JsonObject = {"result": list(_strokes(labels, files.classes))}
        if settings.kind == "predictions":
            result["model_version"] = files.predictions.name
        tasks.append({"data": {_IMAGE: settings.address + files.name(photo), "photo": photo.id},
                      settings.kind: [result]})
    yield _TASKS, json.dumps(tasks).encode()
    yield from files.photos("images")


export = _folders.exporter("label-studio", _TAKEN, _members, "cv2")


def _configuration(classes: tuple[str, ...]) -> str:
    """Return the labelling configuration: a photo, and a brush for each class."""
    labels = "".join(f'    <Label value={quoteattr(name)} '
                     f'background="{_folders.hex_colour(index)}"/>\n'
                     for index, name in enumerate(classes, 1))
    return (f'<View>\n  <Image name="{_IMAGE}" value="${_IMAGE}" zoom="true"/>\n'
            f'  <BrushLabels name="{_TOOL}" toName="{_IMAGE}">\n{labels}'
            "  </BrushLabels>\n</View>\n")


def _strokes(labels: npt.NDArray[np.uint8], classes: tuple[str, ...]
             ) -> Iterator[JsonObject]:
    height, width = labels.shape
    for label in _folders.classes_in(labels):
        for number, part in enumerate(connected_parts(labels == label), 1):
            yield {"id": f"r{label}-{number}", "type": "brushlabels", "from_name": _TOOL,
                   "to_name": _IMAGE, "original_width": width, "original_height": height,
                   "image_rotation": 0,
                   "value": {"format": "rle", "rle": brush_lengths(part),
                             "brushlabels": [classes[label - 1]]}}


def files(path: Path) -> list[Path]:
    """Return the file of tasks; none if it is another format."""
    return reading.json_files(path, (_TASKS,), b"[")


def outlined(path: Path, request: reading.LabellingRequest) -> Iterator[reading.Outlined]:
    """Yield the brush strokes and polygons of each photo's newest submitted annotation.

    Tasks without one are left out. Later strokes are on top. Needs pycocotools.
    """
    for file in files(path):
        tasks = reading.parse_json(reading.read_text(file), file)
        if not isinstance(tasks, list):
            raise VplError(f"{file} holds no list of tasks", _AGAIN)
        for number, task in enumerate(tasks, 1):
            where = f"{file}: task {number}"
            try:
                found = _read_task(task, request, where)
            except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError,
                    StopIteration) as error:
                raise VplError(f"{where} is not as Label Studio writes it (no {error})", _AGAIN
                               ) from error
            if found:
                yield found


read = reading.painting(outlined)


def _read_task(task: Mapping[str, Any], request: reading.LabellingRequest, where: str
               ) -> reading.Outlined | None:
    submitted = [entry for entry in task.get("annotations", ()) if not entry.get("was_cancelled")]
    if not submitted:
        return None
    newest = max(submitted, key=lambda entry: entry.get("updated_at") or "")
    photo = request.known_photo(_name_of(task["data"]), where)
    if photo is None:
        return None
    size = request.size(photo, where)
    regions = []
    for stroke in newest["result"]:
        if "original_width" not in stroke:
            continue  # choices and texts, which have no place in the photo
        request.check_size(
            photo, (int(stroke["original_height"]), int(stroke["original_width"])), where)
        names = stroke["value"].get(stroke["type"]) or [""]
        label = request.label(names[0], where)
        regions.append(reading.Region(label, functools.partial(_inside, stroke, size, where)))
    return reading.Outlined(photo, size, regions, where)


def _name_of(data: Mapping[str, object]) -> str:
    """Return the name of a task's photo: its id if `export` stored it, else from its address."""
    if "photo" in data:
        return str(data["photo"])
    address = urlsplit(str(data.get("image") or next(iter(data.values()))))
    return parse_qs(address.query).get("d", [unquote(address.path)])[0]


def _inside(stroke: Mapping[str, Any], size: tuple[int, int], where: str
            ) -> npt.NDArray[np.bool_]:
    """Return the region (H, W) of a stroke or polygon."""
    if stroke["type"] == "brushlabels":
        try:
            return from_brush_lengths(stroke["value"]["rle"], size)
        except (TypeError, ValueError, OverflowError) as error:
            raise VplError(f"{where}: {error}", _AGAIN) from error
    if stroke["type"] == "polygonlabels":
        points = np.array(stroke["value"]["points"], float) / 100 * (size[1], size[0])
        return region([points.ravel().tolist()], size)
    raise VplError(f"{where}: a {stroke['type']} has no outline",
                   "draw with the brush or as a polygon")


_SIZES = (3, 4, 8, 16)
_HEAD = 32 + 5 + 4 * 4
_CHANNELS = 4
_LONGEST = 1 << _SIZES[-1]
"""Strokes are run lengths of RGBA (the rle-pack of thi.ng/umbrella): a stream of bits, the highest
first. It begins with the number of values (32), the bits of a value less one (5), and four sizes of
counts less one (4 each); then come blocks. A block is a bit (1: one value many times; 0: values one
by one), the number of a size (2), a count less one in that size, and the values.
"""


def brush_lengths(inside: npt.NDArray[np.bool_]) -> list[int]:
    """Return Label Studio's run lengths of a region (H, W), as bytes."""
    flat = inside.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths = np.diff(starts, append=flat.size) * _CHANNELS
    # Longer runs are cut into pieces of the largest possible count.
    pieces = -(-lengths // _LONGEST)
    owners = np.repeat(np.arange(len(starts)), pieces)
    counts = np.full(len(owners), _LONGEST)
    last = pieces.cumsum() - 1
    counts[last] = lengths - (pieces - 1) * _LONGEST
    sizes = np.searchsorted(2 ** np.array(_SIZES), counts)
    bits = np.array(_SIZES)[sizes]
    values = np.where(flat[starts[owners]], 255, 0)
    codes = ((4 + sizes) << bits | (counts - 1)) << 8 | values
    head = [(flat.size * _CHANNELS, 32), (7, 5), *((size - 1, 4) for size in _SIZES)]
    text = "".join(f"{code:0{width}b}" for code, width in (
        *head, *zip(codes.tolist(), (bits + 11).tolist(), strict=True)))
    return np.packbits(np.frombuffer(text.encode(), np.uint8) == ord("1")).tolist()


def from_brush_lengths(content: list[int], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the opaque region (H, W) of Label Studio's run lengths.

    Raises a ValueError if they end too early, or are of another size.
    """
    bits = np.unpackbits(np.array(content, np.uint8))
    text = bits.tobytes().translate(bytes([48, 49]) + bytes(254)).decode("ascii")
    if len(text) < _HEAD:
        raise ValueError("the run lengths are too short")
    total, word = int(text[:32], 2), int(text[32:37], 2) + 1
    if total != size[0] * size[1] * _CHANNELS:
        raise ValueError(f"the run lengths hold {total // _CHANNELS} pixels, not "
                         f"{size[0]}×{size[1]} (height×width)")
    sizes = [int(text[at : at + 4], 2) + 1 for at in range(37, _HEAD, 4)]
    values, at, done = np.zeros(total, bool), _HEAD, 0
    while done < total:
        if at + 3 > len(text):
            raise ValueError("the run lengths end too early")
        width = sizes[int(text[at + 1 : at + 3], 2)]
        count = int(text[at + 3 : at + 3 + width] or "0", 2) + 1
        first, at = at + 3 + width, at + 3 + width
        at += word if text[first - 3 - width] == "1" else word * count
        if at > len(text) or done + count > total:
            raise ValueError("the run lengths end too early" if at > len(text) else
                             "the run lengths hold more pixels than they say")
        values[done : done + count] = bits[first:at].reshape(-1, word).any(axis=1)
        done += count
    return values.reshape(*size, _CHANNELS)[..., 3]
