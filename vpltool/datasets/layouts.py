"""Photos and tags from a folder and a CSV. True masks are named here, never opened."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from pathlib import Path

from vpltool.errors import VplError, near_name, other_case
from vpltool.formats import Photo

PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm"}


def read_folder(
    images: Path, labels: Path, masks: Path | None
) -> tuple[list[Photo], tuple[str, ...]]:
    """List a plain folder's photos, with tags and splits from a CSV.

    The CSV has the columns `id,labels` and, if wanted, `split` (default `train`; several are
    separated by `;`). An id is a file name below the folder, with or without suffix. Labels are
    separated by `;`, or by spaces where the field has no `;`.

    Args:
        images: the folder; sub-folders belong to the id.
        labels: the CSV.
        masks: folder of true masks, for `eval`, named as the ids; or None.

    Returns:
        the photos, and the sorted union of their labels.

    Raises:
        VplError: a file is missing, the CSV has other columns, or an id has no photo.
    """
    if not images.is_dir():
        raise VplError(f"{images} is no folder", "give the folder that holds the photos")
    files: dict[str, Path] = {}
    for path in sorted(images.rglob("*")):
        if path.suffix.lower() in PHOTO_SUFFIXES:
            name = path.relative_to(images)
            files.setdefault(name.as_posix(), path)
            files.setdefault(name.with_suffix("").as_posix(), path)
    photos: dict[str, Photo] = {}
    if not files:
        raise VplError(f"{images} holds no photo; found: {found_in(images)}",
                       f"photos end in {', '.join(sorted(PHOTO_SUFFIXES))}")
    for row in read_csv(labels):
        if row["id"] not in files:
            raise VplError(f"{labels}: no photo called {row['id']} in {images}",
                           near_name(row["id"], files))
        path = files[row["id"]]
        key = path.relative_to(images).with_suffix("").as_posix()
        if key in photos:
            raise VplError(f"{labels}: {key} stands there twice", "join the rows' labels with ;")
        mask = masks / f"{key}.png" if masks else None
        photos[key] = Photo(
            key, path.relative_to(images).as_posix(), _split_labels(row["labels"]),
            _split_labels(row.get("split") or "train"),
            relative_name(mask, images) if mask and mask.exists() else None)
    if not photos:
        raise VplError(f"{labels} has no rows", "one a photo: id,labels")
    classes = tuple(sorted({label for photo in photos.values() for label in photo.labels}))
    return list(photos.values()), classes


def read_tags(path: Path, ids: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Read the labels of a CSV, which must have a row for each of these ids.

    Raises:
        VplError: a row is missing.
    """
    labels = {row["id"]: _split_labels(row["labels"]) for row in read_csv(path)}
    missing = sorted(set(ids) - labels.keys())
    if missing:
        raise VplError(f"{path} has no row for {missing[0]} (nor for {len(missing) - 1} more)",
                       other_case(missing[0], labels) or "add a row: ID,labels")
    return labels


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a CSV with the columns `id` and `labels` at least.

    Raises:
        VplError: it is missing, no text, or lacks a column.
    """
    hint = "the first line must be: id,labels (or id,labels,split)"
    try:
        # utf-8-sig: spreadsheets put a byte order mark before the first column's name.
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [row for row in csv.reader(file, skipinitialspace=True) if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise VplError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}",
                       hint) from error
    columns = [name.strip() for name in lines[0]] if lines else []
    if "id" not in columns or "labels" not in columns:
        raise VplError(f"{path} lacks the columns id and labels; it has "
                       f"{', '.join(columns) or 'none'}", hint)
    for line in lines[1:]:
        if len(line) > len(columns):
            raise VplError(f"{path}: the row of {line[0]} has more fields than columns, "
                           f"such as {line[len(columns)]}", "separate labels by ; or by spaces")
    return [dict(zip(columns, [field.strip() for field in line] + [""] * len(columns),
                     strict=False)) for line in lines[1:]]


def check_labels(photos: Sequence[Photo], classes: Sequence[str]) -> None:
    """Check that every tag names a class.

    Raises:
        VplError: one does not; the photo is named.
    """
    known = set(classes)
    for photo in photos:
        for label in photo.labels:
            if label not in known:
                whole = " ".join(photo.labels)
                raise VplError(f"photo {photo.id} has the tag `{label}`, which is no class",
                               f"a name with a space needs a semicolon: `{whole};`"
                               if whole in known else near_name(label, known))


def torn_photos(paths: Sequence[Path]) -> list[Path]:
    """Those files that are empty, or are JPEGs without an end: a download or archive broke off.

    Reads the last kilobyte of each. A file that is not there is not counted.
    """
    from concurrent.futures import ThreadPoolExecutor

    # Threads: on a network disk each look costs a round trip.
    with ThreadPoolExecutor(16) as pool:
        return [path for path, torn in zip(paths, pool.map(_is_torn, paths), strict=True) if torn]


def _is_torn(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 1024))
            end = file.read()
    except OSError:
        return False
    return not size or (path.suffix.lower() in (".jpg", ".jpeg") and b"\xff\xd9" not in end)


def found_in(folder: Path) -> str:
    """The first names in a folder, for a message."""
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "") or "nothing"


def _split_labels(field: str) -> tuple[str, ...]:
    parts = field.split(";") if ";" in field else field.split()
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def relative_name(path: Path, root: Path) -> str:
    """A path as seen from a folder, with `..` where it lies elsewhere."""
    import os

    return Path(os.path.relpath(path.resolve(), root.resolve())).as_posix()
