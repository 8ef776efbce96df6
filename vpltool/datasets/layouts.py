"""Photos and tags from a folder and a CSV. Paths of true masks are listed, masks never opened."""

from __future__ import annotations

import os
import re
import shlex
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from vpltool import console
from vpltool.datasets.csv_files import refuse_rows
from vpltool.datasets.tags import ODD, TagRow, class_remarks, read_tags, remark_on
from vpltool.errors import VplError, counted, first_few, near_name, near_path, other_case, part_of
from vpltool.formats import Photo, identity_of_file
from vpltool.formats.kinds import IGNORE, MOST_CLASSES
from vpltool.formats.labels import SUFFIXES, TIFF_SUFFIXES
from vpltool.formats.workspace import relative_to
from vpltool.names import is_hidden, slashed, spelled, why_unusable

JPEG_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif"}
PHOTO_SUFFIXES = JPEG_SUFFIXES | {".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm"}
"""Suffixes of photos, in lower case. The first frame of a GIF is read."""

_ENDS = dict.fromkeys(JPEG_SUFFIXES, b"\xff\xd9") | {".png": b"IEND"}
"""Suffix to the bytes that an intact file ends with."""

TAKEN = "photos end in " + ", ".join(sorted(PHOTO_SUFFIXES))

_CONVERTIBLE = {".heic", ".heif", ".avif", ".jxl", ".jp2", ".dng", ".cr2", ".cr3", ".nef", ".arw",
                ".psd", ".tga"}
"""Suffixes of pictures that other programs can convert to JPEG."""

_LOOKERS = 16
"""Threads that read files: on a network disk each access costs a round trip."""

_ABSOLUTE = re.compile(r"/|[A-Za-z]:/")
"""Beginning of an absolute path, with `/` in place of `\\`."""

_MOST_UNLISTED = IGNORE - 1
"""Maximum number of different labels without a list of classes; sentences have more words."""


def read_folder(
    images: Path, labels: Path | None, masks: Path | None, *, classes_known: bool = False,
    untagged: bool = False, of_folders: bool = False,
) -> tuple[list[Photo], tuple[str, ...], list[str], dict[str, str]]:
    """List a plain folder's photos, with tags and splits from a CSV (see `read_tags`).

    An id is a file name below the folder, with its sub-folders, with or without suffix.

    Args:
        images: the folder.
        labels: the CSV; without it, all photos are listed without tags.
        masks: folder of true masks, for `eval`, named after the ids; or None.
        classes_known: whether the caller checks the labels against a list of classes.
        untagged: whether photos without a row are listed, without tags.
        of_folders: whether a row may name a folder, and so all photos in it; `.` is `images`.

    Returns:
        the photos; the sorted union of their labels; remarks for the user; and of copies of a
        photo, id to the first one's id.

    Raises:
        VplError: a file is missing, the CSV cannot be read, no id has a photo, an id names another
            kind of file, a photo is listed twice, or there are too many labels.
    """
    if not images.is_dir():
        raise VplError(f"{images} is not a folder", "give the folder that holds the photos")
    names = [path.relative_to(images).as_posix() for path in photos_below(images)]
    if not names:
        raise VplError(f"{images} holds no photo; found: {found_in(images)}",
                       _convert(images.rglob("*")) or TAKEN)
    listed: dict[str, TagRow] = {}
    remarks: list[str] = []
    if labels is not None:
        rows, remarks = read_tags(labels, classes_known=classes_known,
                                  namesakes=_by_file_name(names))
        rows, doubts = _below_folder(rows, names, labels)
        remarks += doubts
        rows = _of_folders(rows, names) if of_folders else rows
        listed, doubts = _match(rows, names, images, labels, left_out=not untagged)
        remarks += doubts
    if untagged or labels is None:
        listed |= _without_tags(names, listed, images)
    photos = []
    for name, row in listed.items():
        mask = next((path for suffix in SUFFIXES if masks and (
            path := masks / f"{_key(name)}{suffix}").exists() and path != images / name), None)
        photos.append(Photo(_key(name), name, row.labels, row.splits,
                            relative_to(mask, images) if mask else None))
    classes = tuple(sorted({label for photo in photos for label in photo.tags}))
    check_class_count(classes, str(labels), listed=classes_known)
    copies = _same_photos(images, photos)
    return photos, classes, [
        *remarks, *class_remarks(photos, classes_known=classes_known),
        *_look_alikes(names), *_in_train_and_val(photos), *_listed_again(copies)], {
            photo.id: group[0].id for group in copies for photo in group[1:]}


def _of_folders(rows: Sequence[TagRow], names: Sequence[str]) -> list[TagRow]:
    """Replace rows that name a folder by a row per photo; a photo's own row takes precedence."""
    own = {row.id for row in rows}
    below: dict[str, list[str]] = defaultdict(list)
    for name in names:
        for folder in Path(name).parents if own.isdisjoint((name, _key(name))) else ():
            below[folder.as_posix()].append(name)
    return [made for row in rows for made in (
        [replace(row, id=_key(name)) for name in below[row.id]] or [row])]


def _by_file_name(names: Sequence[str]) -> dict[str, list[str]]:
    """Return each file name, with and without suffix, to the photos that have it."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        for file in (Path(name).name, Path(name).stem):
            found[file].append(name)
    return found


def _below_folder(rows: Sequence[TagRow], names: Sequence[str], labels: Path
                  ) -> tuple[list[TagRow], list[str]]:
    """Replace Windows's and absolute paths of photos by those below the folder; and a remark.

    An absolute path is replaced if no other row has the same photo: it may be of another folder.
    """
    known = {*names, *map(_key, names)}
    named = [slashed(row.id, known) for row in rows]
    ends = [_end_among(known, name) for name in named]
    times = Counter(_key(end or name) for end, name in zip(ends, named, strict=True))
    found, cut = list[TagRow](), list[str]()
    for row, name, end in zip(rows, named, ends, strict=True):
        taken = end if end and times[_key(end)] == 1 else name
        cut += [f"{row.id} is {taken}"] if taken != name else []
        found.append(replace(row, id=taken))
    return found, [f"{labels} has absolute paths, whose ends name photos: {first_few(cut)}"
                   ] if cut else []


def _end_among(known: Collection[str], name: str) -> str:
    """Return the longest end of an absolute path that is known; empty if there is none."""
    parts = name.split("/")
    if name in known or not _ABSOLUTE.match(name):
        return ""
    ends = ("/".join(parts[start:]) for start in range(1, len(parts)))
    return next((end for end in ends if end in known), "")


def _key(name: str) -> str:
    """Return the id of a photo: its path without suffix."""
    return Path(name).with_suffix("").as_posix()


def _without_tags(names: Sequence[str], listed: Mapping[str, TagRow], images: Path
                  ) -> dict[str, TagRow]:
    """Make rows without labels, in the split `train`, for photos without a row, by file name."""
    by_key = {_key(name): name for name in listed}
    found = {name: TagRow(0, name, (), ("train",)) for name in names if name not in listed}
    for name in found:
        if (other := by_key.setdefault(_key(name), name)) != name:
            raise VplError(f"{images}: {other} and {name} would both be the photo {_key(name)}",
                           "rename one of them")
    return found


def _match(rows: Sequence[TagRow], names: Sequence[str], images: Path, labels: Path, *,
           left_out: bool) -> tuple[dict[str, TagRow], list[str]]:
    """Return file name to row of each photo, in the order of the rows; and remarks."""
    by_key: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_key[_key(name)].append(name)
    known = {key: files[0] for key, files in by_key.items()} | {name: name for name in names}
    known |= _near_names(rows, known)
    listed: dict[str, TagRow] = {}
    first: dict[str, str] = {}
    either, gone, remarks = list[str](), list[str](), list[str]()
    refused = list[VplError]()
    converted = _converted(rows, by_key)
    known |= converted
    misnamed = _misnamed(images, labels, [row for row in rows if row.id not in known], known)
    for row in rows:
        if row.id not in known:
            refused += [misnamed[row.line]] if row.line in misnamed else []
            gone.append(row.id)
            continue
        name = known[row.id]
        key = _key(name)
        if key in first:
            refused += _listed_twice(labels, listed[first[key]], row, first[key], name)
            continue
        first[key], listed[name] = name, row
        if row.id == key and by_key[key][1:]:
            either.append(" or ".join(by_key[key]))
    refuse_rows(labels, refused)
    if not listed:
        raise VplError(f"{labels}: no row matches a photo in {images}, such as {first_few(gone)}",
                       f"an id is a photo's file name, such as {names[0]}")
    unlisted = [name for name in names if name not in listed]
    cure = _in_folders(gone, unlisted) or (
        f"an id is a path below {images}, such as {(unlisted or names)[0]}"
        if any(map(_ABSOLUTE.match, gone)) else
        "delete these rows, or put the photos back" if gone[1:] else
        "delete the row, or put the photo back")
    remarks += [f"{remark}; {cure}" for remark in remark_on(
        gone, len(rows), f"rows of {labels}", f"has no photo in {images} and is skipped",
        f"have no photo in {images} and are skipped")]
    pairs = [f"{old} is {new}" for old, new in converted.items()]
    if pairs:
        remarks.append(f"{labels} names files before they were converted: {first_few(pairs)}")
    if either:
        remarks.append(f"{labels}: an id without suffix means the first of several files in "
                       f"{images}: {first_few(either, '; ')}")
    if left_out:
        remarks += remark_on(unlisted, len(names), f"photos in {images}",
                             f"has no row in {labels} and is skipped",
                             f"have no row in {labels} and are skipped")
    return listed, remarks


def _in_folders(gone: Sequence[str], unlisted: Sequence[str]) -> str:
    """Return a hint if a row without a photo names some without their folders; else nothing."""
    there = _by_file_name(unlisted)
    near = {name: [f"`{_key(photo)}`" for photo in there[name]] for name in gone if name in there}
    return next((f"an id includes the folders; did you mean {first_few(meant, ' or ')} by `{name}`?"
                 for name, meant in near.items()), "")


def _converted(rows: Sequence[TagRow], by_key: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {row.id: by_key[_key(row.id)][0] for row in rows
            if Path(row.id).suffix.lower() in _CONVERTIBLE and _key(row.id) in by_key}


def _near_names(rows: Sequence[TagRow], known: Mapping[str, str]) -> dict[str, str]:
    """Find the photos of rows whose ids differ only invisibly: row id to file name.

    A CSV may encode accents differently from the disk (NFC, NFD), and fields have no outer spaces.
    """
    near: dict[str, set[str]] = defaultdict(set)
    for key, name in known.items():
        near[unicodedata.normalize("NFC", key.strip())].add(name)
    meant = {row.id: near.get(unicodedata.normalize("NFC", row.id), set())
             for row in rows if row.id not in known}
    return {key: next(iter(names)) for key, names in meant.items() if len(names) == 1}


def _look_alikes(names: Sequence[str]) -> list[str]:
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        alike[unicodedata.normalize("NFC", _key(name).strip())].append(name)
    pairs = [" and ".join(map(spelled, group)) for group in alike.values()
             if len({_key(name) for name in group}) > 1]
    return [f"names of different photos look the same: {first_few(pairs, '; ')}"] if pairs else []


def _misnamed(images: Path, labels: Path, rows: Sequence[TagRow], known: Collection[str]
              ) -> dict[int, VplError]:
    """Return line to error, of rows whose photo has another suffix, case, or leading zeros."""
    if not rows:
        return {}
    # The folder is searched once, since all rows of a CSV may be of another folder.
    others = [file for file in sorted(images.rglob("*"), reverse=True)
              if file.suffix.lower() not in PHOTO_SUFFIXES and file.is_file()]
    files = {file.with_suffix(""): file for file in others} | {file: file for file in others}
    cases: dict[str, list[str]] = defaultdict(list)
    for name in known:
        cases[name.casefold()].append(name)
    padded = {name.lstrip("0"): name for name in known if name.isdigit()}
    found = {}
    for row in rows:
        if file := files.get(images / row.id):
            error = wrong_suffix(file)
            found[row.line] = VplError(f"{labels}:{row.line}: {error.message}", error.hint)
            continue
        hint = other_case(row.id, cases[row.id.casefold()])
        if row.id in padded:
            hint = (f"did you mean `{padded[row.id]}`? Spreadsheets drop leading zeros, unless the "
                    "column is text")
        if hint:
            found[row.line] = VplError(
                f"{labels}:{row.line}: no photo called {row.id} in {images}", hint)
    return found


def _listed_twice(labels: Path, first: TagRow, row: TagRow, one: str, other: str
                  ) -> list[VplError]:
    """Return the error for the second row of a photo; none if it says the same as the first."""
    key = _key(other)
    if one != other:
        return [VplError(f"{labels}:{row.line}: {one} and {other} would both be the photo {key}",
                         "rename one of them, in the folder and in the CSV")]
    if row.says_the_same(first):
        return []
    return [VplError(f"{labels}:{row.line}: {key} is listed twice, as {row.id} here and as "
                     f"{first.id} in line {first.line}",
                     f"join the rows, and their splits: labels separated by `{row.mark}`")]


def _in_train_and_val(photos: Sequence[Photo]) -> list[str]:
    both = [photo.id for photo in photos if {"train", "val"} <= set(photo.splits)]
    return [f"{counted(len(both), 'photo is', 'photos are')} in `train` and in `val`, such as "
            f"{both[0]}: scores on `val` would be too good"] if both else []


def _same_photos(images: Path, photos: Sequence[Photo]) -> list[list[Photo]]:
    """Group photos with the same bytes under different ids."""
    by_path = {images / photo.image: photo for photo in photos}
    return [[by_path[path] for path in group] for group in _same_files([*by_path])]


def _listed_again(groups: Sequence[Sequence[Photo]]) -> list[str]:
    """Return a remark on groups of photos with the same bytes, or none."""
    names = [" and ".join(photo.image for photo in group) for group in groups]
    apart = sum(any({*photo.splits} != {*group[0].splits} for photo in group) for group in groups)
    return [f"the same photo is listed under several ids: {first_few(names, '; ')}"
            + (f" ({apart} of these {len(groups)} in different splits: scores would be too good)"
               if apart else "")] if groups else []


def _same_files(paths: Sequence[Path]) -> list[list[Path]]:
    """Group files with the same bytes; only files of equal size are read."""
    groups = [list(paths)]
    keys: tuple[Callable[[Path], Hashable], ...] = (
        lambda path: path.stat().st_size, _middle, identity_of_file)
    with ThreadPoolExecutor(_LOOKERS) as pool:
        for key in keys:
            parts: dict[Hashable, list[Path]] = defaultdict(list)
            for number, group in enumerate(groups):
                for path, value in zip(group, pool.map(_readable(key), group), strict=True):
                    if value:
                        parts[number, value].append(path)
            groups = [part for part in parts.values() if len(part) > 1]
    return groups


def _readable(key: Callable[[Path], Hashable]) -> Callable[[Path], Hashable]:
    """Make a function of a file return None if the file cannot be read."""
    def found(path: Path) -> Hashable:
        try:
            return key(path)
        except OSError:
            return None

    return found


def _middle(path: Path) -> bytes:
    """Read 4096 bytes from the middle of a file, where pixels are."""
    with path.open("rb") as file:
        file.seek(file.seek(0, os.SEEK_END) // 2)
        return file.read(4096)


def photos_below(folder: Path) -> list[Path]:
    """List the photos in a folder and its sub-folders by suffix, sorted, without hidden ones.

    `._a.jpg` and `.thumbs/a.jpg` are hidden. It warns about entries that are no files, or
    whose names no result can have, and skips them; and about photos that must be converted first,
    if there are others.
    """
    pictures = sorted(path for path in folder.rglob("*") if path.suffix.lower() in
                      PHOTO_SUFFIXES | _CONVERTIBLE and not is_hidden(path, folder))
    found = [path for path in pictures if path.suffix.lower() in PHOTO_SUFFIXES]
    taken = {*found, *(path.with_suffix("") for path in found)}
    others = [path for path in pictures if taken.isdisjoint((path, path.with_suffix("")))]
    if found and others:
        names = [spelled(path.relative_to(folder).as_posix()) for path in others]
        console.warn(part_of(len(others), len(pictures), f"photos in {folder}", "is", "are")
                     + f" of a format that is not read, and skipped: {first_few(names)}; "
                     + _convert(others))
    odd = {path: why for path in found if (why := _why_unusable(path, folder))}
    if odd:
        shown = [f"{spelled(path.relative_to(folder).as_posix())} {why}"
                 for path, why in odd.items()]
        console.warn(part_of(len(odd), len(found), f"photos in {folder}", "is", "are")
                     + f" skipped: {first_few(shown, '; ')}")
    return [path for path in found if path not in odd]


def _why_unusable(path: Path, folder: Path) -> str:
    """Explain why a path below a folder is no photo; empty if it may be one."""
    name = path.relative_to(folder).as_posix()
    return why_unusable(name) or ("" if path.is_file() else "is a folder" if path.is_dir() else
                                  "leads nowhere" if not path.exists() else "is not a file")


def named_photos(given: Sequence[Path]) -> dict[str, Path]:
    """Return id to path of the photos among files and folders, including sub-folders.

    An id is the path below the given folder, or the file's name, without suffix. Of photos in a
    folder with the same id, the first is taken, and a warning names the others.

    Raises:
        VplError: a file or folder is missing, a file has no suffix of photos, or photos of two
            that are given have the same id.
    """
    paths: dict[str, Path] = {}
    for path in given:
        if not path.exists():
            raise VplError(f"{path} does not exist",
                           near_path(path) or "give photos, or folders of photos")
        if not path.is_dir() and path.suffix.lower() not in PHOTO_SUFFIXES:
            raise wrong_suffix(path)
        if not path.is_dir() and (why := _why_unusable(path, path.parent)):
            raise VplError(f"{spelled(str(path))} {why}", "rename it, or give other photos")
        here: dict[str, Path] = {}
        twice = []
        for file in photos_below(path) if path.is_dir() else [path]:
            key = _key(file.relative_to(path).as_posix() if path.is_dir() else file.name)
            if here.setdefault(key, file) != file:
                twice.append(f"{file.name} would be {key}.png, as {here[key].name} is")
        if twice:
            console.warn(counted(len(twice), "photo", "photos") + f" in {path} "
                         f"{'is' if len(twice) == 1 else 'are'} skipped: {first_few(twice, '; ')}")
        if both := [key for key in here if key in paths]:
            raise VplError(f"{paths[both[0]]} and {here[both[0]]} would both be {both[0]}.png",
                           "predict them in two runs, each with its own `out='DIR'`")
        paths |= here
    if not paths:
        found = [file for path in given for file in path.rglob("*")]
        raise VplError(f"no photo in {', '.join(map(str, given))}", _convert(found) or TAKEN)
    return paths


def wrong_suffix(path: Path) -> VplError:
    """Return the error for a file with a suffix that photos do not have."""
    return VplError(f"{path}: {path.suffix or 'a name without suffix'} is not supported; {TAKEN}",
                    _convert([path]) or "give photos, or folders of photos")


def _convert(paths: Iterable[Path]) -> str:
    """Return a hint on converting the first convertible file to JPEG; empty if there is none."""
    for path in sorted(paths):
        if path.suffix.lower() in _CONVERTIBLE:
            return (f"convert {path.suffix} to JPEG, for example with ImageMagick: "
                    + shlex.join(["magick", str(path), str(path.with_suffix(".jpg"))]))
    return ""


def check_class_count(classes: Sequence[str], where: str, *, listed: bool = False) -> None:
    """Check that the labels in a file are few enough for classes, and for the values of a mask.

    Raises:
        VplError: there are more than 254, or 65,534 of a list.
    """
    most = MOST_CLASSES if listed else _MOST_UNLISTED
    if len(classes) > most:
        raise VplError(f"{where} has {len(classes)} different labels, such as "
                       f"{first_few(classes)}; at most {most} classes are possible"
                       + ("" if listed else " without a list of them"),
                       "labels are class names, separated by ;, not sentences"
                       + ("" if listed else "; `classes='FILE'` lists more"))


def check_labels(photos: Sequence[Photo], classes: Sequence[str]) -> None:
    """Check that every tag names a class.

    Raises:
        VplError: one does not; the message names the photo.
    """
    known = set(classes)
    for photo in photos:
        for label in photo.tags:
            if label not in known:
                whole = " ".join(photo.tags)
                raise VplError(f"photo {photo.id} has the tag `{label}`, which is not a class",
                               f"a name with a space needs a semicolon: `{whole};`"
                               if whole in known else
                               "separate labels by ;" if ODD.search(label) else
                               near_name(label, known))


def doubtful_photos(paths: Sequence[Path]) -> list[Path]:
    """Return the files that are empty, TIFFs, or JPEGs and PNGs without their end marker.

    Most are truncated downloads, or no images; but another image may have the name of a JPEG, and
    other data may follow one, as a phone's film of the moment does. The last kilobyte of each file
    is read. TIFFs tell only when opened. Missing files are not returned.
    """
    with ThreadPoolExecutor(_LOOKERS) as pool:
        doubtful = pool.map(_readable(_is_doubtful), paths)
        return [path for path, is_doubtful in zip(paths, doubtful, strict=True) if is_doubtful]


def _is_doubtful(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1024))
        end = file.read()
    suffix = path.suffix.lower()
    return not size or suffix in TIFF_SUFFIXES or _ENDS.get(suffix, b"") not in end


def found_in(folder: Path) -> str:
    """Return the first names in a folder, for a message."""
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "") or "nothing"
