"""Fields of JSON objects from anywhere: each is of the type that the code takes it for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

TEXT, TEXTS, NUMBER, FLAG = "a text", "a list of texts", "a whole number", "true or false"
OBJECT, TEXT_OF, NUMBER_OF = "an object", "an object of texts", "an object of whole numbers"
TEXT_OR_NONE, LIST = "a text or null", "a list"


def _is_text(value: Any) -> bool:
    # A lone surrogate can be written in JSON, and to no file.
    return isinstance(value, str) and "\0" not in value and not any(
        "\ud800" <= letter <= "\udfff" for letter in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_object_of(holds: Callable[[Any], bool], value: Any) -> bool:
    return isinstance(value, dict) and all(map(holds, value.values()))


_TYPES: Mapping[str, Callable[[Any], bool]] = {
    TEXT: _is_text,
    TEXTS: lambda value: isinstance(value, list) and all(map(_is_text, value)),
    NUMBER: _is_number,
    FLAG: lambda value: isinstance(value, bool),
    OBJECT: lambda value: isinstance(value, dict),
    TEXT_OF: lambda value: _is_object_of(_is_text, value),
    NUMBER_OF: lambda value: _is_object_of(_is_number, value),
    TEXT_OR_NONE: lambda value: value is None or _is_text(value),
    LIST: lambda value: isinstance(value, list),
}


def check_fields(content: Any, required: Mapping[str, str],
                 optional: Mapping[str, str] | None = None) -> None:
    """Check that a JSON value is an object with fields of these types; it may have others.

    Args:
        content: the value.
        required: name to type, one of the words of this module, of what must be there.
        optional: the same, of what may be there.

    Raises:
        ValueError: a field is missing, or of another type.
    """
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    for name in required:
        if name not in content:
            raise ValueError(f"it has no `{name}`")
    for name, kind in {**required, **(optional or {})}.items():
        if name in content and not _TYPES[kind](content[name]):
            raise ValueError(f"`{name}` is not {kind}")


def leads_out(name: str) -> bool:
    """Tell whether a name could mean a file outside of the folder it is put in, on any system."""
    parts = name.replace("\\", "/").split("/")
    return ":" in parts[0] or "\0" in name or any(part in ("", ".", "..") for part in parts)
