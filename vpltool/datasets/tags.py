"""Reading a CSV of tags, with remarks about probable mistakes; writing one."""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from vpltool.datasets.csv_files import TAGS, CsvFile, label_mark, plain_answer
from vpltool.errors import VplError, counted, first_few, other_case, part_of
from vpltool.formats import Photo, atomic
from vpltool.formats.changes import count_photos
from vpltool.names import leads_out, spelled

_BACKGROUND = ("background", "_background_")
ODD = re.compile(r"[,|\[\]{}\"]")
"""Characters of a wrong separator, or of a list in another notation, in a class name."""

_ANSWERS = {"yes", "no", "true", "false", "none", "na", "n/a", "nan", "null", "-", "negative"}
_DIGITS = {"0", "1"}
"""What people write into a column that asks whether a photo shows something."""

_NO_NAMES: Mapping[str, Sequence[str]] = {}

_TELLING, _TOGETHER = 10, 0.95
"""Photos, and share of the rarer class's, that say that classes always occur together."""


@dataclass(frozen=True)
class TagRow:
    """A row: its first line number, id, labels and splits, the field of the labels, and what may
    separate them."""

    line: int
    id: str
    labels: tuple[str, ...]
    splits: tuple[str, ...]
    field: str = ""
    mark: str = ";"

    def says_the_same(self, other: TagRow) -> bool:
        """Return whether the labels and splits of two rows of a photo are equal."""
        return ({*self.labels}, self.splits) == ({*other.labels}, other.splits)


def write_tags(path: Path, photos: Iterable[Photo], halve: str) -> None:
    """Write a CSV of file names, labels and splits, without the halves of the split `halve`."""
    halves = {f"{halve}-{half}" for half in "ab"} if halve else set()
    with atomic.atomic_path(path) as temporary, temporary.open(
            "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow((*TAGS, "split"))
        rows.writerows((photo.image, "".join(f"{label};" for label in photo.tags),
                        "".join(f"{name};" for name in photo.splits if name not in halves))
                       for photo in photos)


def read_tags(
    path: Path, *, classes_known: bool = False, namesakes: Mapping[str, Sequence[str]] = _NO_NAMES,
) -> tuple[list[TagRow], list[str]]:
    """Read a CSV with the columns `id`, `labels` and, if wanted, `split` (default: `train`).

    In place of `labels`, each class may have a column, with yes or no (see `CsvFile`).

    Fields are separated by `,`, `;` or tabs, as in the first line, whose case does not matter.
    Labels are separated by `;` or, if no row does so, by spaces; if `,` does not separate fields,
    `,` or `|` may separate labels (see `LabelColumn`). With `classes_known`, the caller checks the
    labels against a list: they may be missing, and cause no remarks. A row that repeats another
    counts once. `namesakes` are a file name to the photos in folders that have it, for an error.

    Returns:
        the rows, and remarks for the user.

    Raises:
        VplError: the file is missing or of another kind, lacks a column, lists an id with
            different labels or splits, has the tag `background` or a misspelt split, separates
            labels by commas, or has no label at all.
    """
    table = CsvFile(path, TAGS)
    column = LabelColumn(table)
    first_rows: dict[str, TagRow] = {}
    known_splits: dict[str, str] = {}

    def take(line: int, entry: Mapping[str, str]) -> TagRow:
        key, field = entry["id"], entry["labels"]
        labels = column.labels_of(field)
        splits = _parts(entry.get("split") or "train", column.marks)
        _check_names(path, line, labels)
        check_splits(f"{path}:{line}", splits, known_splits)
        row = TagRow(line, key, labels, splits, field, column.usable)
        first = first_rows.setdefault(key, row)
        if key and not row.says_the_same(first):
            twice = f"{path}:{line}: {key} is listed twice, first in line {first.line}"
            if (found := namesakes.get(key, ()))[1:]:
                raise VplError(f"{twice}, and is the name of {len(found)} photos: "
                               f"{first_few(found)}", "write their folders, too")
            raise VplError(twice, "join the rows" if table.classes else
                           f"join the rows: labels separated by `{column.usable}`")
        return first

    rows = list(dict.fromkeys(table.read(take, column.too_many)))
    at_commas = {row.line: row.field for row in rows if "," in row.field}
    whole = {label for row in rows if "," not in row.field for label in row.labels}
    if "," not in column.marks and not classes_known:
        _check_commas(path, at_commas, whole)
    if not rows:
        raise VplError(f"{path} has no rows", "add a row for each photo: id,labels")
    if classes_known:
        return rows, []
    if not any(row.labels for row in rows):
        raise VplError(f"{path} has no classes: " + (f"none of its {len(rows)} rows has a label"
                                                    if rows[1:] else "its only row has no label"),
                       "write yes in the columns of the classes that a photo shows"
                       if table.classes else "write what each photo shows in the column labels")
    spaced = [row for row in rows if " " in row.field
              and not any(mark in row.field for mark in column.marks)]
    doubts = (_kept_at_spaces(path, spaced, column.mark, rows) if column.mark
              else _split_at_spaces(path, [row for row in spaced if len(row.labels) > 1]))
    return rows, [*_odd_labels(path, rows), *_answers(path, rows), *doubts,
                  *_splits_like_labels(path, rows)]


def tags_of(path: Path, ids: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Read the labels of a CSV by id; it must have a row for each of `ids`.

    Raises:
        VplError: a row is missing, or the CSV cannot be read.
    """
    labels = {row.id: row.labels for row in read_tags(path, classes_known=True)[0]}
    missing = sorted(set(ids) - labels.keys())
    if missing:
        raise VplError(f"{path} has no row for {first_few(missing)}",
                       other_case(missing[0], labels) or "add a row: ID,labels")
    return labels


def class_counts(photos: Sequence[Photo], classes: Sequence[str]) -> str:
    """Format the number of photos of each class, the 40 most frequent first."""
    counts = _counts(photos)
    order = sorted(classes, key=lambda name: (-counts[name], name))
    shown = ", ".join(f"{name} {counts[name]}" for name in order[:40])
    more = f", and {len(order) - 40} more, down to {counts[order[-1]]}" if order[40:] else ""
    return f"photos of each class: {shown}{more}"


def class_remarks(photos: Sequence[Photo], *, classes_known: bool = False) -> list[str]:
    """Return remarks about classes with similar names or one photo.

    If `classes_known`, from a list, similar names are intended.
    """
    counts = _counts(photos)
    remarks = []
    twins = [] if classes_known else [
        pair for pair in combinations(sorted(counts), 2) if _are_twins(*pair, counts)]
    if twins:
        shown = [f"`{spelled(one)}` ({count_photos(counts[one])}) and `{spelled(other)}` "
                 f"({count_photos(counts[other])})" for one, other in twins]
        remarks.append(f"names that look like one class count as two: {first_few(shown, '; ')}")
    rare = sorted(name for name, count in counts.items() if count == 1)
    return remarks + remark_on(rare, len(counts), "classes", "has only one photo",
                               "have only one photo")


def company_remarks(photos: Sequence[Photo]) -> list[str]:
    """Return remarks about classes that all photos have, or that nearly always occur together.

    Tags alone do not tell such classes apart. Fewer photos than `_TELLING` say little.
    """
    photos = [photo for photo in photos if not {"val", "test"}.issuperset(photo.splits)]
    if len(photos) < _TELLING:
        return []
    counts = _counts(photos)
    everywhere = {name for name, count in counts.items() if count == len(photos)}
    pairs = Counter(pair for photo in photos
                    for pair in combinations(sorted({*photo.tags} - everywhere), 2))
    together = [" and ".join(f"`{name}`" for name in pair) for pair, count in sorted(pairs.items())
                if count >= max(_TELLING, _TOGETHER * min(counts[name] for name in pair))]
    remarks = [f"every photo has {first_few(f'`{name}`' for name in sorted(everywhere))}: CAMs "
               "cannot tell this from what else all photos show; add photos without it"
               ] if everywhere else []
    return remarks + ([f"CAMs can hardly tell apart what nearly always occurs together: "
                       f"{first_few(together)}; add photos with one of the two"]
                      if together else [])


def _counts(photos: Sequence[Photo]) -> Counter[str]:
    return Counter(label for photo in photos for label in photo.tags)


def _are_twins(one: str, other: str, counts: Mapping[str, int]) -> bool:
    """Return whether two names differ only in case, hyphens, plural, or by one mistyped letter.

    A letter counts only if one of the names is rare, since `horse` and `house` are both words.
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
    """Return whether one letter is missing or replaced, or two neighbours are swapped."""
    start = len(os.path.commonprefix([short, long]))
    short, long = short[start:], long[start:]
    return (short == long[1:] or short[1:] == long[1:]
            or (short[1::-1] == long[:2] and short[2:] == long[2:]))


def _odd_labels(path: Path, rows: Sequence[TagRow]) -> list[str]:
    odd = [(row, label) for row in rows for label in row.labels if ODD.search(label)]
    return [f"{path}:{odd[0][0].line} has the label `{odd[0][1]}`"
            + (f", and {len(odd) - 1} more have commas, bars or brackets" if odd[1:] else "")
            + f": {_separate(odd[0][0].mark)}"] if odd else []


def _answers(path: Path, rows: Sequence[TagRow]) -> list[str]:
    """Return a remark on labels that say yes or no; 0 and 1 may be digits among others."""
    plain = {label: plain_answer(label) for row in rows for label in row.labels}
    usual = _ANSWERS if any(text.isdigit() and text not in _DIGITS for text in plain.values()
                            ) else _ANSWERS | _DIGITS
    found = sorted(f"`{label}`" for label, text in plain.items() if text in usual)
    says = "look like answers, not classes" if found[1:] else "looks like an answer, not a class"
    return [f"{path}: {first_few(found)} {says}; write the classes that a photo shows, and leave "
            "the field empty where it shows none"] if found else []


def _separate(mark: str) -> str:
    return f"separate labels by {mark}, as in cat{mark}dog"


def _split_at_spaces(path: Path, rows: Sequence[TagRow]) -> list[str]:
    rows = [row for row in rows if not ODD.search(row.field)]
    if not rows:
        return []
    field, mark = rows[0].field, rows[0].mark
    parts = " and ".join(f"`{part}`" for part in dict.fromkeys(field.split()))
    return [f"{path}: labels of {counted(len(rows), 'row', 'rows')} are split at spaces, such as "
            f"`{field}` into {parts}; a name with a space needs a "
            f"{'comma' if mark == ',' else 'semicolon'}: `{field}{mark}`"]


def _kept_at_spaces(path: Path, spaced: Sequence[TagRow], mark: str, rows: Sequence[TagRow]
                    ) -> list[str]:
    """Remark on labels with a space if their words are labels of other rows."""
    labels = {label for row in rows for label in row.labels}
    fields = [row.field for row in spaced if not labels.isdisjoint(row.field.split())]
    return [f"{path}: labels are separated by `{mark}`, so "
            f"{counted(len(fields), 'row has', 'rows have')} one label with a space, such as "
            f"`{fields[0]}`; `{mark.join(fields[0].split())}` has several"] if fields else []


def _check_commas(path: Path, fields: Mapping[int, str], labels: Collection[str]) -> None:
    """Check that commas do not separate labels; a comma may be part of a name."""
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
    return [f"{path}:{row.line} has the split `{name}`, which is also a label: "
            + _separate(row.mark) for row in rows for name in row.splits if name in labels][:1]


def _check_names(path: Path, line: int, labels: Sequence[str]) -> None:
    for label in labels:
        if label.casefold() in _BACKGROUND:
            raise VplError(f"{path}:{line} has the tag `{label}`; the background is not a class "
                           "but index 0", "leave the tag out; the field may be empty")


_MISSPELT = {"train": ("trains", "training"), "val": ("vals", "valid", "validation"),
             "test": ("tests", "testing")}
"""Split of a stage's default to names that were meant as it."""


def check_splits(where: str, splits: Sequence[str], known: dict[str, str]) -> None:
    """Check the splits of the row at `where`; `known` collects the file's, by case-folded name.

    Any other name than train, val and test is a split of its own, such as `train2`.

    Raises:
        VplError: a name leads out of a folder, is probably a misspelt one, or differs only in case
            from another.
    """
    for split in splits:
        if leads_out(split):
            raise VplError(f"{where} has the split `{split}`, which leads out of a folder",
                           "a split is a name such as train or val")
        plain = _plain(split)
        meant = next((name for name, others in _MISSPELT.items() if split != name and (
            plain in others or sorted(plain) == sorted(name))),
            known.setdefault(split.casefold(), split))
        if meant != split:
            raise VplError(f"{where} has the split `{split}`; did you mean `{meant}`?",
                           "write each split the same way, train and val in lower case; "
                           "a split of its own has another name, such as train2")


class LabelColumn:
    """How the column of labels in a CSV is separated: by `mark`, in all of its rows.

    The mark is the first of `marks` that stands between two labels in any row. If none does,
    labels are separated by spaces, except in a field that ends in a mark, such as `traffic light;`.
    `usable` is the mark, or one that might be, and `too_many` the hint for a row with more fields.
    """

    def __init__(self, table: CsvFile) -> None:
        self.marks = ";" if table.delimiter == "," else ";,|"
        fields = list(table.fields_of("labels"))
        self.mark = next((mark for mark in self.marks if any(
            len(_parts(field, mark)) > 1 for field in fields if mark in field)), "")
        self.usable = self.mark or label_mark(table.delimiter)
        self.too_many = (f"put a field that has `{table.delimiter}` in quotes" if table.classes else
                         f"separate labels by `{self.usable}`, and put a field that has "
                         f"`{table.delimiter}` in quotes")

    def labels_of(self, field: str) -> tuple[str, ...]:
        """Return the labels of a field, without repeats."""
        if not self.mark:
            return _parts(field, self.marks)
        return tuple(dict.fromkeys(label for part in field.split(self.mark)
                                   if (label := part.strip(f" {self.marks}"))))


def _parts(field: str, marks: str) -> tuple[str, ...]:
    """Split a field at the first mark that it contains, else at spaces, without repeats."""
    mark = next((mark for mark in marks if mark in field), None)
    return tuple(dict.fromkeys(part.strip() for part in field.split(mark) if part.strip()))


def remark_on(names: Sequence[str], whole: int, things: str, one: str, many: str) -> list[str]:
    """Return a remark such as `1 of 48 photos has no row: NAME`, or none without names."""
    return [f"{part_of(len(names), whole, things, one, many)}: {first_few(names)}"] if names else []
