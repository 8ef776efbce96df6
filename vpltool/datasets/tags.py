"""A CSV of tags: reading it, and remarks about what looks like a slip."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from vpltool.datasets.csv_files import TAGS, columns_of, read_csv_text, refuse_rows, rows_of
from vpltool.errors import VplError, counted, other_case, part_of
from vpltool.formats import Photo
from vpltool.names import id_of_csv, leads_out, spelled

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
            the tag `background`, separates labels by commas, or has no label at all.
    """
    text = read_csv_text(path, TAGS)
    delimiter, columns = columns_of(path, text, TAGS)
    separators = ";" if delimiter == "," else ";,|"
    rows, first_lines, at_spaces, refused = [], dict[str, int](), [], list[VplError]()
    at_commas, whole = dict[int, str](), set[str]()
    try:
        for line, fields in rows_of(path, text, delimiter, TAGS):
            try:
                entry = _entry(path, line, fields, columns, delimiter, first_lines)
                field = entry["labels"]
                labels = split_labels(field, separators)
                _check_no_background(path, line, labels)
                splits = split_labels(entry.get("split") or "train", separators)
                _check_splits(path, line, splits)
            except VplError as error:
                refused.append(error)
                continue
            if len(labels) > 1 and not any(mark in field for mark in separators):
                at_spaces.append(field)
            if "," in field:
                at_commas[line] = field
            else:
                whole.update(labels)
            rows.append(TagRow(line, entry["id"], labels, splits))
    except VplError as error:
        # What follows cannot be read.
        refused.append(error)
    refuse_rows(path, refused)
    if "," not in separators and not classes_known:
        _check_commas(path, at_commas, whole)
    if not rows:
        raise VplError(f"{path} has no rows", "add a row for each photo: id,labels")
    if classes_known:
        return rows, []
    if not any(row.labels for row in rows):
        raise VplError(f"{path} has no classes: " + (f"none of its {len(rows)} rows has a label"
                                                    if rows[1:] else "its only row has no label"),
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
        shown = [f"`{spelled(one)}` ({_photos(counts[one])}) and `{spelled(other)}` "
                 f"({_photos(counts[other])})" for one, other in twins]
        remarks.append(f"names that look like one class count as two: {some(shown, '; ')}")
    rare = sorted(name for name, count in counts.items() if count == 1)
    if rare:
        remarks.append(part_of(len(rare), len(counts), "classes", "has", "have")
                       + f" only one photo: {some(rare)}")
    return remarks


def _counts(photos: Sequence[Photo]) -> Counter[str]:
    return Counter(label for photo in photos for label in photo.tags)


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
    return [f"{path}: labels of {counted(len(fields), 'row', 'rows')} are split at spaces, "
            f"such as `{fields[0]}` into {parts}; a name with a space needs a semicolon: "
            f"`{fields[0]};`"]


def _check_commas(path: Path, fields: Mapping[int, str], labels: Collection[str]) -> None:
    """Check that commas in fields do not separate labels; a comma alone may be part of a name."""
    parts = {line: [part.strip() for part in field.split(",")] for line, field in fields.items()}
    counts = Counter(part for found in parts.values() for part in set(found))
    for line, found in parts.items():
        if known := [part for part in found if part and (part in labels or counts[part] > 1)]:
            count = len(fields)
            raise VplError(f"{path}:{line} separates labels by commas: `{fields[line]}`, and "
                           f"`{known[0]}` is a label of other rows"
                           + (f"; {count - 1} more {'has' if count == 2 else 'have'} commas"
                              if count > 1 else ""),
                           f"separate labels by ;, as in `{';'.join(filter(None, found))}`")


def _splits_like_labels(path: Path, rows: Sequence[TagRow]) -> list[str]:
    # A train may be photographed, and photos without a column of splits are in `train`.
    labels = {label for row in rows for label in row.labels} - {"train", "val", "test"}
    return [f"{path}:{row.line} has the split `{name}`, which is also a label: separate labels by "
            ";, as in cat;dog" for row in rows for name in row.splits if name in labels][:1]


def _check_no_background(path: Path, line: int, labels: Sequence[str]) -> None:
    for label in labels:
        if label.casefold() in _BACKGROUND:
            raise VplError(f"{path}:{line} has the tag `{label}`; the background is not a class "
                           "but index 0", "leave the tag out; the field may be empty")


def _check_splits(path: Path, line: int, splits: Sequence[str]) -> None:
    for split in splits:
        if leads_out(split):
            raise VplError(f"{path}:{line} has the split `{split}`, which leads out of a folder",
                           "a split is a name such as train or val")


def _entry(path: Path, line: int, fields: list[str], columns: list[str], delimiter: str,
           first_lines: dict[str, int]) -> dict[str, str]:
    """Name the fields of a row, and note in `first_lines` where its id was met first."""
    entry = dict(zip(columns, fields + [""] * len(columns), strict=False))
    key = entry["id"] = id_of_csv(entry["id"])
    if key and (first := first_lines.setdefault(key, line)) != line:
        raise VplError(f"{path}:{line}: {key} is listed twice, first in line {first}",
                       "join the rows: labels separated by ;")
    extra = [field for field in fields[len(columns):] if field]
    if extra:
        raise VplError(f"{path}:{line}: the row of {key or fields[0]} has more fields than "
                       f"columns, such as {extra[0]}",
                       f"separate labels by {';' if delimiter == ',' else ','} or by spaces")
    if not key:
        raise VplError(f"{path}:{line} has no id", "an id is a photo's file name")
    return entry


def split_labels(field: str, separators: str) -> tuple[str, ...]:
    """Split a field at the first of the separators that it has, else at spaces; each part once."""
    mark = next((mark for mark in separators if mark in field), None)
    return tuple(dict.fromkeys(part.strip() for part in field.split(mark) if part.strip()))


def _photos(count: int) -> str:
    return f"{count} photo{'s' * (count != 1)}"


def some(names: Sequence[str], between: str = ", ") -> str:
    """Join the first five names, with `…` if there are more."""
    return between.join(names[:5]) + (f"{between}…" if names[5:] else "")
