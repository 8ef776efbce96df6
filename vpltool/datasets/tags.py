"""A CSV of tags: reading it, recognising other files, and remarks about what looks like a slip."""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from vpltool.errors import VplError, near_name, other_case
from vpltool.formats import Photo

_FIRST_LINE = "the first line must be: id,labels (or id,labels,split)"
_SAVE_AS_CSV = "save it from the spreadsheet as CSV UTF-8; " + _FIRST_LINE
_OTHER_FILES = (
    (b"PK\x03\x04", "an Excel workbook or another zip archive, not a CSV", _SAVE_AS_CSV),
    (b"\xd0\xcf\x11\xe0", "an old Excel file, not a CSV", _SAVE_AS_CSV),
    (b"\x1f\x8b", "a gzip archive, not a CSV", "unpack it with gunzip"),
    (b"\x89PNG", "a picture, not a CSV", _FIRST_LINE),
    (b"\xff\xd8\xff", "a picture, not a CSV", _FIRST_LINE),
    (b"%PDF", "a PDF, not a CSV", _FIRST_LINE),
)
"""First bytes of a file, what such a file is, and what to do."""

_BACKGROUND = ("background", "_background_")
ODD = re.compile(r"[,|\[\]{}\"]")
"""Characters that no class name has: a wrong separator, or a list in another notation."""


@dataclass(frozen=True)
class TagRow:
    """One row: the number of its first line, the photo's id, its labels, and its splits."""

    line: int
    id: str
    labels: tuple[str, ...]
    splits: tuple[str, ...]


def read_tags(path: Path, *, classes_known: bool = False) -> tuple[list[TagRow], list[str]]:
    """Read a CSV with the columns `id`, `labels` and, if wanted, `split` (default: `train`).

    Fields are separated by `,`, `;` or tabs, as in the first line; the case of column names does
    not matter. Labels and splits are separated by `;`, or by spaces if the field has no `;`. If
    `,` does not separate fields, it may separate labels, and so may `|`.

    Args:
        path: the CSV, in UTF-8.
        classes_known: whether the labels will be checked against a list of classes. If so, a file
            without any label is allowed, and remarks about names are left out.

    Returns:
        the rows, and remarks for the user.

    Raises:
        VplError: the file is missing or of another kind, lacks a column, lists an id twice, has
            the tag `background`, or has no label at all.
    """
    text = _read_text(path)
    delimiter, columns = _columns(path, text)
    separators = ";" if delimiter == "," else ";,|"
    rows, first_lines, at_spaces = [], dict[str, int](), []
    for line, fields in _lines(path, text, delimiter):
        entry = _entry(path, line, fields, columns, delimiter)
        key, field = entry["id"], entry["labels"]
        if not key:
            raise VplError(f"{path}:{line} has no id", "an id is a photo's file name")
        if key in first_lines:
            raise VplError(f"{path}:{line}: {key} is listed twice, first in line "
                           f"{first_lines[key]}", "join the rows: labels separated by ;")
        first_lines[key] = line
        labels = _parts(field, separators)
        _check_no_background(path, line, labels)
        if len(labels) > 1 and not any(mark in field for mark in separators):
            at_spaces.append(field)
        rows.append(TagRow(line, key, labels, _parts(entry.get("split") or "train", separators)))
    if not rows:
        raise VplError(f"{path} has no rows", "add a row for each photo: id,labels")
    if classes_known:
        return rows, []
    if not any(row.labels for row in rows):
        raise VplError(f"{path} has 0 classes: not one of its {len(rows)} rows has a label",
                       "write what each photo shows in the column labels")
    return rows, [*_odd_labels(path, rows), *_split_at_spaces(path, at_spaces),
                  *_splits_like_labels(path, rows)]


def tags_of(path: Path, ids: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Read the labels of a CSV, id to labels. It must have a row for each of `ids`.

    Raises:
        VplError: a row is missing, or the CSV cannot be read.
    """
    labels = {row.id: row.labels for row in read_tags(path, classes_known=True)[0]}
    missing = sorted(set(ids) - labels.keys())
    if missing:
        raise VplError(f"{path} has no row for {missing[0]} (nor for {len(missing) - 1} more)",
                       other_case(missing[0], labels) or "add a row: ID,labels")
    return labels


def read_captions(path: Path) -> dict[str, str]:
    """Read a CSV with the columns `id` and `caption`; return id to caption.

    Raises:
        VplError: the file is missing or of another kind, lacks a column, or lists an id twice.
    """
    text = _read_text(path)
    delimiter, columns = _columns(path, text, ("id", "caption"))
    captions: dict[str, str] = {}
    for line, fields in _lines(path, text, delimiter):
        if any(fields[len(columns):]):
            raise VplError(f"{path}:{line}: the row of {fields[0]} has more fields than columns",
                           f'put a caption that has `{delimiter}` in quotes: "…"')
        entry = dict(zip(columns, fields, strict=False))
        if entry["id"] in captions:
            raise VplError(f"{path}:{line}: {entry['id']} is listed twice", "keep one of the rows")
        captions[entry["id"]] = entry.get("caption", "")
    return captions


def class_counts(photos: Sequence[Photo], classes: Sequence[str]) -> str:
    """Say in one line how many photos have each class as a tag: the 40 most frequent classes."""
    counts = _counts(photos)
    order = sorted(classes, key=lambda name: (-counts[name], name))
    shown = ", ".join(f"{name} {counts[name]}" for name in order[:40])
    more = f", and {len(order) - 40} more, down to {counts[order[-1]]}" if order[40:] else ""
    return f"photos of each class: {shown}{more}"


def class_remarks(photos: Sequence[Photo], *, classes_known: bool = False) -> list[str]:
    """Return remarks about names that look like one class, and about classes with one photo.

    Args:
        photos: the photos with their tags.
        classes_known: whether the names come from a list; if so, similar names are intended.
    """
    counts = _counts(photos)
    remarks = []
    twins = [] if classes_known else [
        pair for pair in combinations(sorted(counts), 2) if _are_twins(*pair, counts)]
    if twins:
        shown = [f"`{one}` ({_photos(counts[one])}) and `{other}` ({_photos(counts[other])})"
                 for one, other in twins]
        remarks.append(f"names that look like one class count as two: {some(shown, '; ')}")
    rare = sorted(name for name, count in counts.items() if count == 1)
    if rare:
        remarks.append(f"{len(rare)} of {len(counts)} classes have only one photo: {some(rare)}")
    return remarks


def _counts(photos: Sequence[Photo]) -> Counter[str]:
    return Counter(label for photo in photos for label in photo.labels)


def _are_twins(one: str, other: str, counts: Mapping[str, int]) -> bool:
    """Tell whether two names differ only in case, hyphens or plural, or in a letter.

    One letter counts only if one of the names is rare: `horse` and `house` are both words.
    """
    if ODD.search(one + other):
        return False
    first, second = sorted((_plain(one), _plain(other)), key=len)
    if second in (first, f"{first}s", f"{first}es"):
        return True
    rare, common = sorted((counts[one], counts[other]))
    return len(first) >= 4 and rare <= max(2, common // 10) and _one_slip(first, second)


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold())


def _one_slip(short: str, long: str) -> bool:
    """Tell whether one letter is missing or replaced, or two neighbours are swapped."""
    start = len(os.path.commonprefix([short, long]))
    short, long = short[start:], long[start:]
    return (short == long[1:] or short[1:] == long[1:]
            or (short[1::-1] == long[:2] and short[2:] == long[2:]))


def _odd_labels(path: Path, rows: Sequence[TagRow]) -> list[str]:
    odd = [(row.line, label) for row in rows for label in row.labels if ODD.search(label)]
    return [f"{path}:{odd[0][0]} has the label `{odd[0][1]}`"
            + (f", and {len(odd) - 1} more have commas, bars or brackets" if odd[1:] else "")
            + ": separate labels by ;, as in cat;dog"] if odd else []


def _split_at_spaces(path: Path, fields: Sequence[str]) -> list[str]:
    fields = [field for field in fields if not ODD.search(field)]
    if not fields:
        return []
    parts = " and ".join(f"`{part}`" for part in dict.fromkeys(fields[0].split()))
    return [f"{path}: labels of {len(fields)} rows are split at spaces, such as `{fields[0]}` into "
            f"{parts}; a name with a space needs a semicolon: `{fields[0]};`"]


def _splits_like_labels(path: Path, rows: Sequence[TagRow]) -> list[str]:
    labels = {label for row in rows for label in row.labels}
    return [f"{path}:{row.line} has the split `{name}`, which is also a label: separate labels by "
            ";, as in cat;dog" for row in rows for name in row.splits if name in labels][:1]


def _check_no_background(path: Path, line: int, labels: Sequence[str]) -> None:
    for label in labels:
        if label.casefold() in _BACKGROUND:
            raise VplError(f"{path}:{line} has the tag `{label}`; the background is not a class "
                           "but index 0", "leave the tag out; the field may be empty")


def _read_text(path: Path) -> str:
    """Return the text of a CSV in UTF-8; the error for any other file says what it is."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        others = [file.as_posix() for file in path.parent.glob("*.csv")]
        raise VplError(f"{path} is not there", near_name(path.as_posix(), others) if others else
                       f"make a CSV with a row for each photo; {_FIRST_LINE}") from None
    except OSError as error:
        raise VplError(f"cannot read {path}: {error.strerror or error}",
                       f"give a CSV; {_FIRST_LINE}") from error
    for sign, what, hint in _OTHER_FILES:
        if content.startswith(sign):
            raise VplError(f"{path} is {what}", hint)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content[:256]:
        raise VplError(f"{path} is UTF-16, or not text", f"save it as UTF-8, or: iconv -f UTF-16 "
                       f"-t UTF-8 {path} > {path.stem}-utf8.csv")
    try:
        # utf-8-sig: spreadsheets put a byte order mark before the first column's name.
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[:error.start].count(b"\n")
        shown = content.splitlines()[line].decode("cp1252", "replace").strip()
        raise VplError(f"{path}:{line + 1} is not UTF-8, probably Latin-1: `{shown[:60]}`",
                       f"save it as UTF-8, or: iconv -f LATIN1 -t UTF-8 {path} > "
                       f"{path.stem}-utf8.csv") from error
    if text.lstrip()[:1] in ("{", "[", "<"):
        raise VplError(f"{path} is {'XML or HTML' if '<' in text.lstrip()[:1] else 'JSON'}, not a "
                       "CSV", f"make a CSV with a row for each photo; {_FIRST_LINE}")
    return text


def _columns(path: Path, text: str, wanted: Sequence[str] = ("id", "labels")
             ) -> tuple[str, list[str]]:
    """Return the separator of the fields, and the names of the columns in lower case."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    if not first:
        raise VplError(f"{path} is empty", _FIRST_LINE)
    for delimiter in ",;\t":
        fields = next(csv.reader([first], delimiter=delimiter, skipinitialspace=True))
        columns = [field.strip().casefold() for field in fields]
        if set(wanted) <= set(columns):
            for name in (*wanted, "split"):
                if columns.count(name) > 1:
                    raise VplError(f"{path} has the column {name} twice: `{first[:60]}`",
                                   "write all labels of a photo in one field, separated by ;")
            return delimiter, columns
    raise VplError(f"{path} lacks the columns {' and '.join(wanted)}; the first line is "
                   f"`{first.strip()[:60]}`",
                   _FIRST_LINE if "labels" in wanted else
                   f"the first line must be: {','.join(wanted)}")


def _lines(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of its first line, fields) of each row below the first, except blank ones."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    named, line = False, 1
    try:
        for row in reader:
            fields = [field.strip() for field in row]
            if any("\n" in field or "\r" in field for field in fields):
                raise VplError(f"{path}:{line}: a field spans several lines",
                               "close its quotation mark, and separate labels by ;")
            if any(fields) and named:
                yield line, fields
            named = named or any(fields)
            line = reader.line_num + 1
    except csv.Error as error:
        raise VplError(f"{path}:{line} cannot be read: {error}", _FIRST_LINE) from error


def _entry(path: Path, line: int, fields: list[str], columns: list[str], delimiter: str
           ) -> dict[str, str]:
    extra = [field for field in fields[len(columns):] if field]
    if extra:
        raise VplError(f"{path}:{line}: the row of {fields[0]} has more fields than columns, such "
                       f"as {extra[0]}",
                       f"separate labels by {';' if delimiter == ',' else ','} or by spaces")
    return dict(zip(columns, fields + [""] * len(columns), strict=False))


def _parts(field: str, separators: str) -> tuple[str, ...]:
    """Split a field at the first of the separators that it has, else at spaces."""
    mark = next((mark for mark in separators if mark in field), None)
    return tuple(dict.fromkeys(part.strip() for part in field.split(mark) if part.strip()))


def _photos(count: int) -> str:
    return f"{count} photo{'s' * (count != 1)}"


def some(names: Sequence[str], between: str = ", ") -> str:
    """Join the first five names, with `…` if there are more."""
    return between.join(names[:5]) + (f"{between}…" if names[5:] else "")
