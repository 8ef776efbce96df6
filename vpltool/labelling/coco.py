"""Take COCO's instances: polygons and run lengths, of a JSON file or of annotations/*.json.

Where instances overlap, the smallest is on top. Needs pycocotools.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpltool.errors import VplError
from vpltool.labelling.reading import below, parse_json, read_text
from vpltool.labelling.request import Labelled, LabellingRequest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

NEEDS = ("pycocotools",)


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
    """Read the instances."""
    for file in files(path):
        yield from _read_file(file, request)


def _read_file(path: Path, request: LabellingRequest) -> Iterator[Labelled]:
    content = parse_json(read_text(path), path)
    try:
        labels = {entry["id"]: request.label(entry["name"], str(path))
                  for entry in content["categories"]}
        images = {entry["id"]: entry for entry in content["images"]}
        instances: dict[Any, list[dict[str, Any]]] = {key: [] for key in images}
        for entry in content["annotations"]:
            if entry["image_id"] not in images:
                raise VplError(f"{path}: annotation {entry.get('id')} belongs to image "
                               f"{entry['image_id']}, which the file does not list",
                               "export it from the tool again")
            instances[entry["image_id"]].append(entry)
        for key, image in images.items():
            photo = request.photo(str(image["file_name"]), f"{path}: image {key}")
            size = (int(image["height"]), int(image["width"]))
            request.check_size(photo, size, f"{path}: image {key}")
            yield Labelled(photo, _paint(instances[key], labels, size, path),
                           f"{path}: image {key}")
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise VplError(f"{path} is not COCO's instances: an entry lacks {error}",
                       "images, categories and annotations are what it needs") from error


def _paint(instances: Sequence[Mapping[str, Any]], labels: Mapping[int, int],
           size: tuple[int, int], path: Path) -> npt.NDArray[np.uint8]:
    """Paint instances, the largest first, into labels (H, W)."""
    import numpy as np

    from vpltool.core.instances import region

    regions = []
    for entry in instances:
        where = f"{path}: annotation {entry.get('id')}"
        if entry["category_id"] not in labels:
            raise VplError(f"{where} has the category {entry['category_id']}, which the file does "
                           "not name", "export it from the tool again")
        try:
            inside = region(entry["segmentation"], size)
        # pycocotools raises bare exceptions at outlines that are none.
        except Exception as error:
            raise VplError(f"{where}: its segmentation cannot be read "
                           f"({str(error) or type(error).__name__})",
                           "polygons are lists of x, y; run lengths have `size` and `counts`"
                           ) from error
        regions.append((labels[entry["category_id"]], inside))
    canvas = np.zeros(size, np.uint8)
    for label, inside in sorted(regions, key=lambda found: -int(found[1].sum())):
        canvas[inside] = label
    return canvas
