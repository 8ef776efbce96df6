"""Take Label Studio's JSON: brush strokes and polygons of the annotations that were submitted.

Of several annotations of a photo the newest counts; tasks without one are left out. What was drawn
last is on top. Needs pycocotools.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpltool.errors import VplError
from vpltool.labelling.reading import below, parse_json, read_text
from vpltool.labelling.request import Labelled, LabellingRequest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

NEEDS = ("pycocotools",)

_AGAIN = "export it from Label Studio as JSON"


def files(path: Path) -> list[Path]:
    """The file of tasks; none if it is another format."""
    if path.is_dir():
        return below(path, ("tasks.json",))
    if path.suffix.lower() != ".json":
        return []
    with path.open("rb") as file:
        return [path] if file.read(64).strip()[:1] == b"[" else []


def read(path: Path, request: LabellingRequest) -> Iterator[Labelled]:
    """Read the tasks."""
    for file in files(path):
        tasks = parse_json(read_text(file), file)
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


def _read_task(task: Mapping[str, Any], request: LabellingRequest, where: str
               ) -> Labelled | None:
    import numpy as np

    submitted = [entry for entry in task.get("annotations", ())
                 if not entry.get("was_cancelled")]
    if not submitted:
        return None
    newest = max(submitted, key=lambda entry: entry.get("updated_at") or "")
    photo = request.photo(_name_of(task["data"]), where)
    size = request.size(photo, where)
    canvas = np.zeros(size, np.uint8)
    for stroke in newest["result"]:
        if "original_width" not in stroke:
            continue  # choices and texts, which have no place in the photo
        request.check_size(
            photo, (int(stroke["original_height"]), int(stroke["original_width"])), where)
        names = stroke["value"].get(stroke["type"]) or [""]
        label = request.label(names[0], where)
        canvas[_inside(stroke, size, where)] = label
    return Labelled(photo, canvas, where)


def _name_of(data: Mapping[str, Any]) -> str:
    """Name of a task's photo: its id, where `export` said it, else from its address."""
    from urllib.parse import parse_qs, unquote, urlsplit

    if "photo" in data:
        return str(data["photo"])
    address = urlsplit(str(data.get("image") or next(iter(data.values()))))
    return parse_qs(address.query).get("d", [unquote(address.path)])[0]


def _inside(stroke: Mapping[str, Any], size: tuple[int, int], where: str
            ) -> npt.NDArray[np.bool_]:
    """The region (H, W) of a stroke or polygon.

    Raises:
        VplError: it is neither, or its run lengths are damaged.
    """
    import numpy as np

    from vpltool.core.brush import from_brush_lengths

    if stroke["type"] == "brushlabels":
        try:
            return from_brush_lengths(stroke["value"]["rle"], size)
        except (ValueError, OverflowError) as error:
            raise VplError(f"{where}: {error}", _AGAIN) from error
    if stroke["type"] == "polygonlabels":
        from vpltool.core.instances import region

        points = np.array(stroke["value"]["points"], float) / 100 * (size[1], size[0])
        return region([points.ravel().tolist()], size)
    raise VplError(f"{where}: a {stroke['type']} has no outline",
                   "draw with the brush or as a polygon")
