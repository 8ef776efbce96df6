"""Reading CSV files as spreadsheets write them, and recognising other files."""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from vpltool.errors import VplError, near_name
from vpltool.names import id_of_csv

TAGS = ("id", "labels")
"""Required columns of a CSV of tags, which may also have `split`; see `CsvFile`."""

_YES, _NO = {"1", "yes", "y", "true", "x"}, {"", "0", "no", "n", "false", "-"}
"""What the column of a class may hold, in lower case."""

_NOT_CLASSES = {"", "id", "split", "caption"}
"""Columns that are no class where the classes have columns of their own."""

_FOR_LABELS = {"label", "tag", "tags", "class", "classes", "category", "categories", "target",
               "notes", "note", "comment", "comments"}
"""Columns that are no class, but hold labels under another name, or remarks."""

_SAVE_AS_CSV = "save it from the spreadsheet as CSV UTF-8; "
_OTHER_FILES = (
    (b"PK\x03\x04", "an Excel workbook or another zip archive, not a CSV", _SAVE_AS_CSV),
    (b"\xd0\xcf\x11\xe0", "an old Excel file, not a CSV", _SAVE_AS_CSV),
    (b"\x1f\x8b", "a gzip archive, not a CSV", "unpack it with gunzip; "),
    (b"\x89PNG", "a picture, not a CSV", ""),
    (b"\xff\xd8\xff", "a picture, not a CSV", ""),
    (b"%PDF", "a PDF, not a CSV", ""),
)
"""First bytes of other kinds of file, their names, and hints."""

_SHOWN = 5
"""Maximum number of rows that an error lists."""

Made = TypeVar("Made")


class CsvFile:
    """A CSV with at least the `wanted` columns, separated as in its first line.

    With `long_fields`, as for captions, quoted fields may span lines. If tags are wanted and there
    is no column `labels`, each other column is a class, with yes or no (see `_YES`) for each photo.

    Raises:
        VplError: the file is missing, of another kind or not UTF-8, or lacks or repeats a column.
    """

    def __init__(self, path: Path, wanted: Sequence[str], *, long_fields: bool = False) -> None:
        names = ",".join(wanted)
        self.path, self.wanted, self.long_fields = path, wanted, long_fields
        self.first = f"the first line must be: {names}" + (
            f" (or {names},split; or id and a column for each class, with yes or no)"
            if wanted == TAGS else "")
        self.text = _read_text(path, self.first)
        self.classes: dict[str, str] = {}  # name of each class by its column
        self.delimiter, self.columns = self._columns()

    def _columns(self) -> tuple[str, list[str]]:
        """Return the separator of the fields, and the column names in lower case."""
        path, wanted = self.path, self.wanted
        first = next((line for line in self.text.splitlines() if line.strip()), "")
        if not first:
            raise VplError(f"{path} is empty", self.first)
        missing = list(wanted)
        for delimiter in ",;\t":
            try:
                fields = next(csv.reader([first], delimiter=delimiter, skipinitialspace=True))
            except csv.Error as error:
                raise VplError(f"{path}: the first line cannot be read: {error}", self.first
                               ) from error
            columns = [field.strip().casefold() for field in fields]
            if (wanted == TAGS and "id" in columns and "labels" not in columns
                    and _FOR_LABELS.isdisjoint(columns)):
                self.classes = {column: field.strip() for column, field
                                in zip(columns, fields, strict=True) if column not in _NOT_CLASSES}
            if self.classes or set(wanted) <= set(columns):
                for name in (*wanted, "split", *self.classes):
                    if columns.count(name) > 1:
                        raise VplError(f"{path} has the column {name} twice: `{first[:60]}`",
                                       "write all labels of a photo in one field, separated by "
                                       f"`{label_mark(delimiter)}`" if name == "labels"
                                       else "keep one of them")
                if odd := [name for name in self.classes.values() if {*name} & {*";,|"}]:
                    raise VplError(f"{path}: the column `{odd[0]}` has a mark that separates tags",
                                   "write another name of the class")
                return delimiter, columns
            missing = min(missing, [name for name in wanted if name not in columns], key=len)
        raise VplError(f"{path} lacks the column{'s' * bool(missing[1:])} "
                       f"{' and '.join(missing)}; the first line is "
                       f"`{first.strip()[:60]}`", self.first)

    def read(self, take: Callable[[int, Mapping[str, str]], Made], too_many: str
             ) -> Iterator[Made]:
        """Yield the result of `take` for each row, given its first line and its fields by column.

        Ids are without the apostrophe of `csv_id`. `too_many` is the hint for a row with more
        fields than named columns.

        Raises:
            VplError: rows cannot be used; one error after the last row lists them.
        """
        refused = []
        try:
            for line, fields in self._rows():
                entry = dict(zip(self.columns, fields + [""] * len(self.columns), strict=False))
                key = entry["id"] = id_of_csv(entry.get("id", ""))
                try:
                    if self.classes:
                        entry["labels"] = self._answered(line, entry)
                    made = take(line, entry)
                    if extra := self._unnamed(fields):
                        raise VplError(f"{self.path}:{line}: the row of {key or fields[0]} has "
                                       f"more fields than named columns, such as {extra[0]}",
                                       f"{too_many}; or give the column a name, or delete it")
                    if not key and "id" in self.wanted:
                        raise VplError(f"{self.path}:{line} has no id",
                                       "an id is a photo's file name")
                except VplError as error:
                    refused.append(error)
                else:
                    yield made
        except VplError as error:
            # The following rows cannot be read.
            refused.append(error)
        refuse_rows(self.path, refused)

    def _answered(self, line: int, entry: Mapping[str, str]) -> str:
        """Return the classes whose columns say yes in a row, as a field of labels."""
        said = {column: plain_answer(entry[column]) for column in self.classes}
        if odd := [column for column, answer in said.items() if answer not in _YES | _NO]:
            raise VplError(f"{self.path}:{line}: the column {self.classes[odd[0]]} holds "
                           f"`{entry[odd[0]][:60]}`, which is neither yes nor no", self.first)
        return "".join(f"{name};" for column, name in self.classes.items() if said[column] in _YES)

    def _unnamed(self, fields: Sequence[str]) -> list[str]:
        """Return the fields without a column's name; before the first name, they are an index."""
        first = next(place for place, name in enumerate(self.columns) if name)
        return [field for place, field in enumerate(fields)
                if field and place > first and not any(self.columns[place:place + 1])]

    def fields_of(self, column: str) -> Iterator[str]:
        """Yield the fields of a column, if there is one, up to a row that cannot be read."""
        if column not in self.columns:
            return
        place = self.columns.index(column)
        with contextlib.suppress(VplError):
            for _, fields in self._rows():
                yield from fields[place:place + 1]

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield first line number and fields of each row below the first, except blank ones."""
        reader = csv.reader(io.StringIO(self.text, newline=""), delimiter=self.delimiter,
                            skipinitialspace=True, strict=self.long_fields)
        named, line = False, 1
        try:
            for row in reader:
                fields = [field.strip() for field in row]
                if not self.long_fields and any(
                        "\n" in field or "\r" in field for field in fields):
                    raise VplError(f"{self.path}:{line}: a field spans several lines",
                                   "close its quotation mark, and separate labels by "
                                   f"`{label_mark(self.delimiter)}`")
                if any(fields) and named:
                    yield line, fields
                named = named or any(fields)
                line = reader.line_num + 1
        except csv.Error as error:
            raise VplError(f"{self.path}:{line} cannot be read: {error}",
                           "close each quotation mark; double those inside a caption"
                           if self.long_fields else self.first) from error


def plain_answer(field: str) -> str:
    """Return an answer such as `Yes` or `1.0` in lower case, without a fraction of zeros."""
    return re.sub(r"^(\d)[.,]0+$", r"\1", field.casefold())


def label_mark(delimiter: str) -> str:
    """Return what may separate labels within a field, in a CSV with this separator of fields."""
    return "," if delimiter == ";" else ";"


def refuse_rows(path: Path, errors: Sequence[VplError]) -> None:
    """Check that no row was refused; the `errors` of rows are in order and begin with `PATH:LINE`.

    Raises:
        VplError: some were; one error lists them.
    """
    if len(errors) == 1:
        raise errors[0]
    if errors:
        shown = [f"line {error.message.removeprefix(f'{path}:')}" for error in errors[:_SHOWN]]
        shown += [f"and {len(errors) - _SHOWN} more"] if errors[_SHOWN:] else []
        raise VplError(f"{path}: {len(errors)} rows cannot be used: {'; '.join(shown)}",
                       "; ".join(dict.fromkeys(error.hint for error in errors[:_SHOWN])))


def _read_text(path: Path, first: str) -> str:
    """Read a CSV in UTF-8; the error for another file names its kind."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        others = [file.as_posix() for file in path.parent.glob("*.csv")]
        raise VplError(f"{path} does not exist", near_name(path.as_posix(), others) if others else
                       f"make a CSV with a row for each photo; {first}") from None
    except OSError as error:
        raise VplError(f"cannot read {path}: {error.strerror or error}",
                       f"give a CSV; {first}") from error
    for sign, what, hint in _OTHER_FILES:
        if content.startswith(sign):
            raise VplError(f"{path} is {what}", hint + first)
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
    # Excel writes the separator into a first line of its own; blank, it keeps the lines' numbers.
    text = re.sub(r"\A\"?sep=[,;\t]\"?[ ,;]*(?=[\r\n])", "", text, flags=re.IGNORECASE)
    if text.lstrip()[:1] in ("{", "[", "<"):
        raise VplError(f"{path} is {'XML or HTML' if '<' in text.lstrip()[:1] else 'JSON'}, not a "
                       "CSV", f"make a CSV with a row for each photo; {first}")
    return text
