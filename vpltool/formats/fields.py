"""Type checks of fields in untrusted JSON objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import TypeGuard

TEXT, TEXTS, NUMBER, FLAG = "a text", "a list of texts", "a whole number", "true or false"
OBJECT, TEXT_OF, NUMBER_OF = "an object", "an object of texts", "an object of whole numbers"
TEXT_OR_NONE, LIST = "a text or null", "a list"
NUMBERS, REAL, SIZE = "a list of whole numbers", "a number", "a number or null"
REAL_OF, SIZE_OF = "an object of numbers, none null", "an object of numbers"
OBJECTS = "a list of objects"


def _is_text(value: object) -> bool:
    # A lone surrogate is valid in JSON, but cannot be encoded as UTF-8.
    return isinstance(value, str) and "\0" not in value and not any(
        "\ud800" <= letter <= "\udfff" for letter in value)


def _is_number(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_size(value: object) -> bool:
    # Integers beyond the range of floats would overflow in arithmetic.
    return value is None or (_is_number(value) and abs(value) < 1 << 63) or (
        isinstance(value, float) and isfinite(value))


def _is_real(value: object) -> bool:
    return value is not None and _is_size(value)


def _is_object_of(holds: Callable[[object], bool], value: object) -> bool:
    return isinstance(value, dict) and all(map(holds, value.values()))


_TYPES: Mapping[str, Callable[[object], bool]] = {
    TEXT: _is_text,
    TEXTS: lambda value: isinstance(value, list) and all(map(_is_text, value)),
    NUMBER: _is_number,
    FLAG: lambda value: isinstance(value, bool),
    OBJECT: lambda value: isinstance(value, dict),
    TEXT_OF: lambda value: _is_object_of(_is_text, value),
    NUMBER_OF: lambda value: _is_object_of(_is_number, value),
    TEXT_OR_NONE: lambda value: value is None or _is_text(value),
    NUMBERS: lambda value: isinstance(value, list) and all(map(_is_number, value)),
    REAL: _is_real,
    REAL_OF: lambda value: _is_object_of(_is_real, value),
    SIZE: _is_size,
    SIZE_OF: lambda value: _is_object_of(_is_size, value),
    OBJECTS: lambda value: isinstance(value, list) and all(
        isinstance(item, dict) for item in value),
    LIST: lambda value: isinstance(value, list),
}


def check_fields(content: object, required: Mapping[str, str],
                 optional: Mapping[str, str] | None = None) -> None:
    """Check that a JSON value is an object with fields of given types; others are allowed.

    `required` and `optional` map names to types, which are constants of this module.

    Raises:
        ValueError: a field is missing or of another type.
    """
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    for name in required:
        if name not in content:
            raise ValueError(f"it has no `{name}`")
    for name, kind in {**required, **(optional or {})}.items():
        if name in content and not _TYPES[kind](content[name]):
            raise ValueError(f"`{name}` is not {kind}")
