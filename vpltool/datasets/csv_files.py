"""Reading CSV files as spreadsheets write them, and telling what other files are."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from vpltool.errors import VplError, near_name

TAGS = ("id", "labels")
"""Columns of a CSV of tags; a third, `split`, may follow."""

_SAVE_AS_CSV = "save it from the spreadsheet as CSV UTF-8; "
_OTHER_FILES = (
    (b"PK\x03\x04", "an Excel workbook or another zip archive, not a CSV", _SAVE_AS_CSV),
    (b"\xd0\xcf\x11\xe0", "an old Excel file, not a CSV", _SAVE_AS_CSV),
    (b"\x1f\x8b", "a gzip archive, not a CSV", "unpack it with gunzip; "),
    (b"\x89PNG", "a picture, not a CSV", ""),
    (b"\xff\xd8\xff", "a picture, not a CSV", ""),
    (b"%PDF", "a PDF, not a CSV", ""),
)
"""First bytes of a file, what such a file is, and what to do."""


_SHOWN = 5
"""Rows that an error tells of; of more it gives the number."""


def first_line(wanted: Sequence[str]) -> str:
    """Say what the first line of a CSV with these columns must be."""
    names = ",".join(wanted)
    return f"the first line must be: {names}" + (f" (or {names},split)" if wanted == TAGS else "")


def read_csv_text(path: Path, wanted: Sequence[str]) -> str:
    """Read a CSV in UTF-8; the error for any other file says what it is.

    Args:
        path: the file.
        wanted: names of the columns, for hints.

    Raises:
        VplError: the file is missing, of another kind, or not UTF-8.
    """
    first = first_line(wanted)
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
    if text.lstrip()[:1] in ("{", "[", "<"):
        raise VplError(f"{path} is {'XML or HTML' if '<' in text.lstrip()[:1] else 'JSON'}, not a "
                       "CSV", f"make a CSV with a row for each photo; {first}")
    return text


def refuse_rows(path: Path, errors: Sequence[VplError]) -> None:
    """Check that no row was refused; one error names all of them.

    Args:
        path: the file.
        errors: of each refused row, in order; they begin with `PATH:LINE`.

    Raises:
        VplError: there are some.
    """
    if not errors:
        return
    if not errors[1:]:
        raise errors[0]
    shown = [f"line {error.message.removeprefix(f'{path}:')}" for error in errors[:_SHOWN]]
    more = [f"and {len(errors) - _SHOWN} more"] if errors[_SHOWN:] else []
    raise VplError(f"{path}: {len(errors)} rows cannot be used: {'; '.join([*shown, *more])}",
                   "; ".join(dict.fromkeys(error.hint for error in errors[:_SHOWN])))


def columns_of(path: Path, text: str, wanted: Sequence[str]) -> tuple[str, list[str]]:
    """Return the separator of the fields, and the names of the columns in lower case.

    Raises:
        VplError: the file is empty, lacks a column, or has one twice.
    """
    first = next((line for line in text.splitlines() if line.strip()), "")
    if not first:
        raise VplError(f"{path} is empty", first_line(wanted))
    for delimiter in ",;\t":
        try:
            fields = next(csv.reader([first], delimiter=delimiter, skipinitialspace=True))
        except csv.Error as error:
            raise VplError(f"{path}: the first line cannot be read: {error}", first_line(wanted)
                           ) from error
        columns = [field.strip().casefold() for field in fields]
        if set(wanted) <= set(columns):
            for name in (*wanted, "split"):
                if columns.count(name) > 1:
                    raise VplError(f"{path} has the column {name} twice: `{first[:60]}`",
                                   "write all labels of a photo in one field, separated by ;"
                                   if name == "labels" else "keep one of them")
            return delimiter, columns
    raise VplError(f"{path} lacks the columns {' and '.join(wanted)}; the first line is "
                   f"`{first.strip()[:60]}`", first_line(wanted))


def rows_of(path: Path, text: str, delimiter: str, wanted: Sequence[str], *,
            long_fields: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of its first line, fields) of each row below the first, except blank ones.

    Args:
        path: the file, for messages.
        text: its content.
        delimiter: what separates fields.
        wanted: names of the columns, for hints.
        long_fields: whether a field in quotes may have several lines, as a caption may.

    Raises:
        VplError: a quotation mark is not closed, or a field has several lines and may not.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True,
                        strict=long_fields)
    named, line = False, 1
    try:
        for row in reader:
            fields = [field.strip() for field in row]
            if not long_fields and any("\n" in field or "\r" in field for field in fields):
                raise VplError(f"{path}:{line}: a field spans several lines",
                               "close its quotation mark, and separate labels by ;")
            if any(fields) and named:
                yield line, fields
            named = named or any(fields)
            line = reader.line_num + 1
    except csv.Error as error:
        raise VplError(f"{path}:{line} cannot be read: {error}",
                       "close each quotation mark; double those inside a caption"
                       if long_fields else first_line(wanted)) from error
