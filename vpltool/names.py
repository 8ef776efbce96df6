"""Names that become paths, and short forms of paths."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Container
from pathlib import Path

_LONGEST = 255 - len(".safetensors")
"""Bytes of a file's name that systems allow, less the longest suffix of a result."""

_FORMULA = ("=", "+", "-", "@")

_FOLDERS = re.compile(r"[^,:]*/(?=[^/])")
_ABSOLUTE = re.compile(r"((?:[^/]*[,:])?)(/[^/].*)")


def leads_out(name: str) -> bool:
    """Return whether a name could refer to a file outside of its folder, on any system."""
    parts = name.replace("\\", "/").split("/")
    return ":" in parts[0] or "\0" in name or any(part in ("", ".", "..") for part in parts)


def slashed(name: str, known: Container[str]) -> str:
    """Return a photo's name as Windows writes it, with `/` for `\\`, unless it is `known` so."""
    return name if name in known else name.replace("\\", "/")


def spelled(name: str) -> str:
    """Return a name with invisible or ambiguous letters as escapes."""
    return name.encode("unicode_escape").decode() if not name.isprintable() or any(
        letter.isspace() and letter != " " or unicodedata.combining(letter) for letter in name
    ) else name


def why_unusable(name: str) -> str:
    """Explain why a photo's path below its folder cannot name results; empty if it can.

    Bytes that are not UTF-8 are lone surrogates, as Python reads them.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        return "is not UTF-8"
    if any(unicodedata.category(letter) == "Cc" for letter in name):
        return "has control characters"
    if len(name.rpartition("/")[2].rpartition(".")[0].encode()) > _LONGEST:
        return f"has more than {_LONGEST} bytes before its suffix"
    return ""


def is_hidden(path: Path, folder: Path) -> bool:
    """Return whether a file below a folder, or a folder between the two, is hidden by a dot."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def csv_id(name: str) -> str:
    """Return an id for a CSV, after an apostrophe if a spreadsheet would read a formula."""
    return f"'{name}" if name[:1] in _FORMULA else name


def id_of_csv(field: str) -> str:
    """Return the id that `csv_id` wrote."""
    return field[1:] if field[:1] == "'" and field[1:2] in _FORMULA else field


def short_path(path: Path) -> str:
    """Return a path relative to the current folder, or absolute if that is shorter."""
    whole = path.resolve()
    return min(os.path.relpath(whole), str(whole), key=len)


def is_on_hub(model: str) -> bool:
    """Return whether a model is named by its repository on the Hugging Face hub, not by a path."""
    return model.startswith(("hf:", "hf-hub:"))


def without_folders(encoder: str) -> str:
    """Strip the folders from a path given as `encoder`; names on the Hub are returned unchanged."""
    return encoder if is_on_hub(encoder) else _FOLDERS.sub("", encoder)


def without_home(value: object, spell: Callable[[Path], str] = lambda path: path.name) -> object:
    """Spell the absolute path in a setting's value (`PATH`, `dino:PATH`, `MODEL,PATH`), if any."""
    if isinstance(value, (list, tuple)):
        return [without_home(item, spell) for item in value]
    found = _ABSOLUTE.fullmatch(value) if isinstance(value, str) else None
    return found[1] + spell(Path(found[2])) if found else value
