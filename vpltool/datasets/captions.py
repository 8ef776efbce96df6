"""Captions of photos from a CSV with a row per caption, or from COCO's annotations in JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from vpltool.datasets.csv_files import CsvFile
from vpltool.datasets.tags import remark_on
from vpltool.errors import VplError, counted, first_few, other_case
from vpltool.formats import Photo
from vpltool.formats.fields import NUMBER, TEXT, check_fields
from vpltool.formats.streams import stream_objects
from vpltool.names import slashed

_PARTS = {"images": {"id": NUMBER, "file_name": TEXT},
          "annotations": {"image_id": NUMBER, "caption": TEXT}}

COLUMNS = ("id", "caption")


CaptionRow = tuple[str, str, str]
"""A caption's location in the file, the name or id of its photo, and the caption."""


def read_captions(path: Path) -> Iterator[CaptionRow]:
    """Yield the captions of photos in the order of the file, with single spaces.

    The file is a CSV with the columns `id` and `caption`, where a photo may have several rows; or a
    JSON in the layout of COCO's `captions_train2014.json`.

    Raises:
        VplError: the file is missing, of another kind, or damaged; or a row has no id.
    """
    if path.suffix.lower() == ".json":
        return _of_json(path)
    table = CsvFile(path, COLUMNS, long_fields=True)
    return table.read(lambda line, entry: (f"line {line}", entry["id"], clean(entry["caption"])),
                      f'put a caption that has `{table.delimiter}` in quotes: "…"')


def with_captions(photos: Sequence[Photo], paths: Iterable[Path]
                  ) -> tuple[list[Photo], list[str]]:
    """Add captions to those of photos, without repeats, in the order of the files.

    Files of captions (see `read_captions`) name photos by id, by path, or by a unique file name.

    Returns:
        the photos with their captions; and remarks on captions without a photo, empty captions,
        and photos without a caption.

    Raises:
        VplError: a file cannot be read, or none of its captions has a photo.
    """
    ids = _ids_by_name(photos)
    found = {photo.id: dict.fromkeys(photo.captions) for photo in photos if photo.captions}
    remarks: list[str] = []
    for path in paths:
        unmatched: dict[str, int] = {}
        empty: list[str] = []
        taken = total = 0
        for location, name, caption in read_captions(path):
            total += 1
            name = slashed(name, ids)
            if name not in ids:
                unmatched[name] = unmatched.get(name, 0) + 1
            elif not caption:
                empty.append(f"{name} ({location})")
            else:
                found.setdefault(ids[name], {})[caption] = None
                taken += 1
        _check_taken(path, total, taken, unmatched, ids)
        if unmatched:
            remarks.append(f"{sum(unmatched.values())} of {total} captions of {path} name no photo "
                           f"that is taken, and are skipped: {first_few(sorted(unmatched))}")
        if empty:
            remarks.append(counted(len(empty), f"caption of {path} is empty and is skipped: ",
                                   f"captions of {path} are empty and are skipped: ")
                           + first_few(empty))
    bare = [photo.id for photo in photos if photo.id not in found]
    remarks += remark_on(bare, len(photos), "photos", "has no caption", "have no caption")
    return [replace(photo, captions=tuple(found.get(photo.id, ()))) for photo in photos], remarks


def _ids_by_name(photos: Sequence[Photo]) -> dict[str, str]:
    """Return every name of a photo to its id; ids precede paths, and paths file names."""
    files = Counter(Path(photo.image).name for photo in photos)
    by_file = {Path(photo.image).name: photo.id for photo in photos}
    return ({name: key for name, key in by_file.items() if files[name] == 1}
            | {photo.image: photo.id for photo in photos}
            | {photo.id: photo.id for photo in photos})


def _check_taken(path: Path, total: int, taken: int, unmatched: Collection[str],
                 ids: Collection[str]) -> None:
    if not total:
        raise VplError(f"{path} has no captions", f"add a row for each: {','.join(COLUMNS)}")
    if unmatched and not taken:
        first = min(unmatched)
        raise VplError(f"{path}: no caption has a photo, such as {first}",
                       other_case(first, ids) or f"the id is a photo's, such as {min(ids)}")


def _of_json(path: Path) -> Iterator[CaptionRow]:
    """Yield captions in COCO's layout, which may list photos after their annotations."""
    hint = "use captions in COCO's layout, such as captions_train2014.json; or a CSV: id,caption"
    names: dict[int, str] = {}
    captions: list[tuple[int, str, str]] = []
    for part, _, _, entry in stream_objects(path):
        try:
            check_fields(entry, _PARTS.get(part, {}))
            if part == "images":
                names[entry["id"]] = entry["file_name"]
            elif part == "annotations":
                captions.append((entry["image_id"], f"annotation {entry.get('id', '')}".strip(),
                                 entry["caption"]))
        except ValueError as error:
            raise VplError(f"{path}: an entry of {part} is damaged: {error}", hint) from error
    for number, location, text in captions:
        yield location, names.get(number, str(number)), clean(text)


def clean(caption: str) -> str:
    """Return a caption on one line, without spaces around it."""
    return " ".join(caption.split())
