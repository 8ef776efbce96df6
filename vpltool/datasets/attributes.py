"""Descriptions of classes, several each, as a language model writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vpltool.errors import VplError, near_name
from vpltool.json_text import parse_json

_HINT = 'for example {"cat": ["a cat has whiskers", "a furry animal"], "dog": ["a dog barks"]}'


def read_attributes(path: Path, classes: Sequence[str]) -> dict[str, list[str]]:
    """Read descriptions from a JSON object: class name to a list of texts.

    Args:
        path: the file.
        classes: class names that it may describe.

    Returns:
        class name to texts, in the file's order.

    Raises:
        VplError: the file is missing or something else, or describes what is no class; the class
            is named.
    """
    try:
        content = parse_json(path.read_text("utf-8"), object_pairs_hook=_Pairs)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VplError(f"cannot read {path}: {reason}", _HINT) from error
    if not isinstance(content, _Pairs) or not content:
        raise VplError(f"{path} is not a JSON object of classes and their descriptions", _HINT)
    found: dict[str, list[str]] = {}
    for name, texts in content:
        if name not in classes:
            raise VplError(f"{path}: `{name}` is not a class", near_name(name, classes))
        if name in found:
            raise VplError(f"{path}: `{name}` occurs twice", "put its descriptions into one list")
        found[name] = _texts(path, name, texts)
    return found


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as pairs: a name that is there twice is not lost."""


def _texts(path: Path, name: str, texts: Any) -> list[str]:
    if isinstance(texts, _Pairs) or not isinstance(texts, list):
        raise VplError(f"{path}: `{name}` has no list of descriptions", _HINT)
    if not texts:
        raise VplError(f"{path}: `{name}` has no descriptions", "add some, or leave the class out")
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str) or not text.strip():
            raise VplError(f"{path}: description {number} of `{name}` is not a text: "
                           f"{json.dumps(text, ensure_ascii=False)}", _HINT)
    return [text.strip() for text in texts]
