"""Streaming of large JSON, one array element at a time, and of XML, without document types."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from xml.parsers import expat

from vpltool.errors import VplError
from vpltool.formats.atomic import atomic_path
from vpltool.json_text import parse_json

_CHUNK = 1 << 20

_MARK = codecs.BOM_UTF8.decode("latin-1")
"""A byte order mark, as this module decodes it."""


def stream_objects(path: Path) -> Iterator[tuple[str, int, int, Any]]:
    """Yield the elements of all arrays in a JSON object such as COCO's, one at a time.

    Memory holds a megabyte, or the largest element. `read_spans` reads elements again.

    Yields:
        (name of the array, offset in bytes, length in bytes, element).

    Raises:
        VplError: the file is missing or truncated, or is not a JSON object.
    """
    hint = "download or extract it again"
    try:
        with path.open("rb") as file:
            yield from _Text(file).objects()
    except OSError as error:
        raise VplError(f"cannot read {path}: {error.strerror or error}", hint) from error
    except ValueError as error:
        raise VplError(f"{path} is truncated or not a JSON object ({error})", hint) from error


def read_spans(path: Path, spans: Sequence[int]) -> list[Any]:
    """Read the elements at byte offsets and of lengths in bytes, which alternate in `spans`."""
    found = []
    with path.open("rb") as file:
        for first, length in zip(spans[::2], spans[1::2], strict=True):
            file.seek(first)
            found.append(parse_json(file.read(length)))
    return found


def write_array(path: Path, elements: Iterable[object]) -> None:
    """Write a JSON array, one element per line."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        separator = "[\n"
        for element in elements:
            file.write(separator + json.dumps(element))
            separator = ",\n"
        file.write("\n]\n" if separator[0] == "," else "[]\n")


class _Text:
    """A sliding window over the file; `text[at:]` has not been consumed yet.

    It is decoded as Latin-1, so that text offsets equal byte offsets.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.text, self.at, self.before = "", 0, 0
        self.decode = json.JSONDecoder().raw_decode

    def objects(self) -> Iterator[tuple[str, int, int, Any]]:
        while self.next_char() in _MARK:
            self.at += 1
        if self.next_char() != "{":
            raise ValueError("it does not begin with {")
        self.at += 1
        while self.next_char() != "}":
            name = str(self.value())
            if self.next_char() != "[":
                self.value()
                continue
            self.at += 1
            while self.next_char() != "]":
                first = self.before + self.at
                element = self.value()
                length = self.before + self.at - first
                text = self.text[self.at - length : self.at]
                # Bytes that are not UTF-8 do no harm in fields that nobody reads.
                yield name, first, length, (element if text.isascii() else parse_json(
                    text.encode("latin-1").decode("utf-8", "replace")))
            self.at += 1

    def next_char(self) -> str:
        """Return the next character that is not a space, comma or colon, without consuming it."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in " \t\r\n,:":
                    return self.text[self.at]
                self.at += 1
            if not self.more():
                raise ValueError("it ends too early")

    def value(self) -> Any:
        self.next_char()
        while True:
            try:
                value, end = self.decode(self.text, self.at)
            except RecursionError:
                raise ValueError("it is nested too deeply") from None
            except ValueError:
                if not self.more():
                    raise
                continue
            length = end - self.at
            # A number near the end may continue in the next chunk: `1.`, `1e`, `1e+`.
            if end + 2 < len(self.text) or not self.more():
                self.at += length
                return value

    def more(self) -> bool:
        """Read the next chunk, and drop consumed text; return whether the file had more.

        Chunks grow with the remaining text, so that a large element takes linear time.
        """
        chunk = self.file.read(max(_CHUNK, len(self.text) - self.at))
        self.before += self.at
        self.text = self.text[self.at :] + chunk.decode("latin-1")
        self.at = 0
        return bool(chunk)


class DamagedXml(ValueError):
    """Invalid or refused XML, with the line number."""

    def __init__(self, reason: str, line: int) -> None:
        super().__init__(reason)
        self.line = line


Start = Callable[[str, dict[str, str], int], None]
"""Callback with an element's name, attributes and line number."""


def parse_xml(content: bytes, start: Start, end: Callable[[str], None] | None = None,
              text: Callable[[str], None] | None = None) -> None:
    """Parse XML, and call back at the start, end and text of elements.

    Raises:
        DamagedXml: it is not XML, or has a document type, which could expand without limit.
    """
    parser = expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise DamagedXml("a document type is not allowed",
                         parser.CurrentLineNumber)

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda name, attributes: start(
        name, attributes, parser.CurrentLineNumber)
    if end is not None:
        parser.EndElementHandler = end
    if text is not None:
        parser.CharacterDataHandler = text
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise DamagedXml(f"not XML ({error})", error.lineno) from error
    except LookupError as error:
        raise DamagedXml(f"not XML ({error})", parser.CurrentLineNumber) from error
