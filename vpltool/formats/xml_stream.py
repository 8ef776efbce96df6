"""A streaming XML parser on expat that refuses document types, so nothing is expanded."""

from __future__ import annotations

from collections.abc import Callable
from xml.parsers import expat


class DamagedXml(ValueError):
    """It is no XML, or more than is taken.

    Args:
        reason: why.
        line: where.
    """

    def __init__(self, reason: str, line: int) -> None:
        super().__init__(reason)
        self.line = line


Start = Callable[[str, dict[str, str], int], None]
"""Given the name of an element, its attributes, and its line."""


def parse_xml(content: bytes, start: Start, end: Callable[[str], None] | None = None,
              text: Callable[[str], None] | None = None) -> None:
    """Parse XML, and tell what is met: an element begins, ends, or holds text.

    Raises:
        DamagedXml: it is no XML, or has a document type, which can hold anything.
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
