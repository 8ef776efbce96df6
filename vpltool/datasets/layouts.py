"""Photos, tags and splits of known layouts. True masks are named here, never opened."""

from __future__ import annotations

import csv
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from vpltool.datasets.prompts import read_lines
from vpltool.errors import VplError, near_name
from vpltool.formats import Photo

PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm"}


def read_voc(root: Path, classes: Sequence[str]) -> list[Photo]:
    """List a VOC2012 folder's photos, in the order of their ids.

    Splits are the files of `ImageSets/Segmentation`. Tags come from `labels.csv` beside
    `JPEGImages` if there is one, else from the XML of `Annotations` (all objects, the difficult
    ones too, as CLIP-ES has it).

    Args:
        root: the folder that holds `JPEGImages`.
        classes: names that tags may have.

    Raises:
        VplError: the layout is not as expected, or a tag is no class.
    """
    for part in ("JPEGImages", "ImageSets/Segmentation"):
        if not (root / part).is_dir():
            found = sorted(entry.name for entry in root.iterdir()) if root.is_dir() else []
            raise VplError(
                f"{root} is no VOC folder: {part} is not there; found: "
                f"{', '.join(found[:8]) or 'nothing'}",
                "give the folder that holds JPEGImages, such as VOCdevkit/VOC2012")
    splits: dict[str, list[str]] = {}
    for listing in sorted((root / "ImageSets/Segmentation").glob("*.txt")):
        for line in listing.read_text("utf-8").splitlines():
            if line.strip():
                # Augmented lists name files (`/JPEGImages/x.jpg /SegmentationClassAug/x.png`).
                splits.setdefault(Path(line.split()[0]).stem, []).append(listing.stem)
    if not splits:
        raise VplError(f"{root / 'ImageSets/Segmentation'} lists no photo",
                       "it should hold train.txt and val.txt, one id a line")
    files = {path.stem: path for path in (root / "JPEGImages").iterdir()
             if path.suffix.lower() in PHOTO_SUFFIXES}
    absent = sorted(set(splits) - set(files))
    if absent:
        raise VplError(f"{len(absent)} of {len(splits)} listed photos are not in "
                       f"{root / 'JPEGImages'}, such as {absent[0]}",
                       "extract the archive whole, or shorten the lists")
    labels = _voc_labels(root, sorted(splits))
    masks = {path.stem: path for path in (root / "SegmentationClass").glob("*.png")}
    photos = [
        Photo(key, _below(files[key], root), labels[key], tuple(splits[key]),
              _below(masks[key], root) if key in masks else None)
        for key in sorted(splits)
    ]
    check_labels(photos, classes)
    return photos


def _voc_labels(root: Path, ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
    if (root / "labels.csv").exists():
        rows = read_csv(root / "labels.csv")
        labels = {row["id"]: _split_labels(row["labels"]) for row in rows}
        missing = sorted(set(ids) - set(labels))
        if missing:
            raise VplError(f"{root / 'labels.csv'} has no row for {missing[0]} "
                           f"(nor for {len(missing) - 1} more)", "add a row: ID,labels")
        return labels
    labels = {}
    for key in ids:
        path = root / "Annotations" / f"{key}.xml"
        try:
            objects = ElementTree.parse(path).getroot().iter("object")
        except (OSError, ElementTree.ParseError) as error:
            raise VplError(f"no tags for {key}: {path} cannot be read ({error})",
                           f"give them in {root / 'labels.csv'} with the columns id,labels"
                           ) from error
        labels[key] = tuple(sorted({(item.findtext("name") or "").strip() for item in objects}))
    return labels


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
            _between(mask, images) if mask and mask.exists() else None)
    if not photos:
        raise VplError(f"{labels} has no rows", "one a photo: id,labels")
    classes = tuple(sorted({label for photo in photos.values() for label in photo.labels}))
    return list(photos.values()), classes


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
                raise VplError(f"photo {photo.id} has the tag `{label}`, which is no class",
                               near_name(label, known))


def read_classes(path: Path) -> tuple[str, ...]:
    """Read class names, one a line; `background` is left out if it is the first.

    Raises:
        VplError: missing, empty, or with a name twice.
    """
    names = read_lines(path, "--classes takes a text file with one class name a line")
    if names[0].lower() in ("background", "_background_"):
        del names[0]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise VplError(f"{path}: `{min(twice)}` stands there twice", "one class name a line")
    return tuple(names)


def _split_labels(field: str) -> tuple[str, ...]:
    parts = field.split(";") if ";" in field else field.split()
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _between(path: Path, root: Path) -> str:
    import os

    return Path(os.path.relpath(path.resolve(), root.resolve())).as_posix()
