"""SAM's own JSON: what SamAutomaticMaskGenerator gives, or as SA-1B has it; a file per photo."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vpltool.errors import VplError
from vpltool.methods.exports.coco import outline_region, score_of
from vpltool.methods.labels import LabellingRequest, Outlined, Region, parse_json, read_text

_BEGINNING = 4096
"""Bytes of a file that tell whether it is SAM's."""

_AGAIN = "SAM's amg.py writes it with --convert-to-rle, a file per photo"


def files(path: Path) -> list[Path]:
    """The file, or those of a folder that are all SAM's; none if it is another format."""
    found = sorted(path.glob("*.json")) if path.is_dir() else [path]
    return found if found and all(map(_is_of_sam, found)) else []


def _is_of_sam(path: Path) -> bool:
    if path.suffix.lower() != ".json":
        return False
    with path.open("rb") as file:
        head = file.read(_BEGINNING)
    # Neither COCO's file nor Label Studio's begins with what SAM says of a mask.
    return (b'"segmentation"' in head and b'"categories"' not in head and (
        b'"stability_score"' in head or b'"predicted_iou"' in head or b'"crop_box"' in head
        or b'"image"' in head)) or head.strip() == b"[]"


def outlined(path: Path, request: LabellingRequest) -> Iterator[Outlined]:
    """Yield the masks of each file; it has the photo's name, or says it, as SA-1B's do.

    Raises:
        VplError: a file is damaged, or of no photo.
    """
    for file in files(path):
        content = parse_json(read_text(file), file)
        try:
            yield _outlined(file, content, request)
        except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise VplError(f"{file} is not as SAM writes it ({error})", _AGAIN) from error


def _outlined(file: Path, content: Any, request: LabellingRequest) -> Outlined:
    entries, name = content, file.stem
    if isinstance(content, dict):
        entries, name = content["annotations"], str(content["image"]["file_name"])
    photo = request.photo(name, str(file))
    size = (_size_of(entries[0]["segmentation"]) if entries
            else request.size(photo, str(file)))
    request.check_size(photo, size, str(file))
    return Outlined(photo, size, [
        Region(0, functools.partial(outline_region, entry["segmentation"], size,
                                    f"{file}: mask {number}"), score_of(entry))
        for number, entry in enumerate(entries, 1)], str(file))


def _size_of(outline: Any) -> tuple[int, int]:
    if not isinstance(outline, dict):
        raise TypeError("a mask without run lengths")
    height, width = outline["size"]
    return int(height), int(width)
