"""`artifact.json`, the manifest of a folder with one file a photo.

It holds the header, the ids that failed, what of its own each photo depends on, and `complete`, set
last.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vpltool.formats.header import Header
from vpltool.formats.kinds import KINDS
from vpltool.formats.storage import read_json

MANIFEST = "artifact.json"

UPDATE_HINT = "`update()` brings everything up to date; "
"""Beginning of the hint if only inputs have changed."""


def manifest_of(path: Path) -> dict[str, Any]:
    """Read a folder's `artifact.json`, for `inspect`.

    Raises:
        VplError: there is none.
    """
    return read_json(path / MANIFEST, "`inspect(path='FILE')` reads one file of it")


def photo_ids(path: Path) -> list[str]:
    """Ids of the photos that a folder holds files of; those of nested artifacts are not its own."""
    suffix = KINDS[header_of(manifest_of(path), path / MANIFEST).kind].suffix
    return [file.relative_to(path).as_posix().removesuffix(suffix)
            for file in files_of(path, suffix)]


def header_of(content: Mapping[str, Any], manifest: Path) -> Header:
    """Read the header in a manifest's content.

    Raises:
        VplError: it is not one.
    """
    return Header.from_json(json.dumps(content.get("header", {})), manifest)


def again(header: Header) -> str:
    """Return the call that makes an artifact again, or resumes it."""
    used = [f"{key}={header.options[key]!r}" for key in ("prototypes", "method", "split")
            if header.options.get(key)]
    return f"`{header.command.replace('-', '_')}({', '.join(used)})`"


def files_of(path: Path, suffix: str) -> Iterator[Path]:
    """Yield the finished files of a folder, except those of artifacts nested in it."""
    for entry in sorted(path.iterdir()) if path.is_dir() else ():
        if entry.is_dir():
            if not (entry / MANIFEST).exists():
                yield from files_of(entry, suffix)
        elif (entry.name.endswith(suffix) and entry.name != MANIFEST
              and not entry.name.startswith(".part-")):
            yield entry
