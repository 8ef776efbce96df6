"""Streaming XML parsing by expat, which refuses document types, so that no entity expands."""

from __future__ import annotations

from collections.abc import Callable
from xml.parsers import expat


class DamagedXml(ValueError):
    """Invalid or refused XML.

    Args:
        reason: what is wrong.
        line: line number.
    """

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
        raise DamagedXml("a document type is not allowed", parser.CurrentLineNumber)

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
