"""Findings of `doctor`: what they are about, how bad they are, and the line that repairs."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vpltool.errors import counted
from vpltool.formats.whereabouts import short_path

OK, NOTE, BROKEN = "ok", "note", "broken"
"""In order; worth knowing; a command will refuse, stop, or take what it should not."""

_MOST = 20
"""Files that a line to delete them names; of more the command itself tells which they are."""

@dataclass(frozen=True)
class Finding:
    """One finding.

    Args:
        part: `machine` or `workspace`.
        level: `ok`, `note` or `broken`.
        about: the thing, such as `torch`, or a path relative to the workspace.
        says: what was found.
        repair: the line to type, or several.
    """

    part: str
    level: str
    about: str
    says: str
    repair: str = ""


def removal(files: Iterable[Path], manifest: Path | None = None) -> str:
    """Format the line that deletes files; where they are many, that of their folder's manifest.

    Without it, the command that makes the folder looks at each of its files.
    """
    found = sorted(files)
    if manifest is not None and len(found) > _MOST:
        found = [manifest]
    return shlex.join(["rm", *map(short_path, found)])


def named(words: Iterable[str]) -> str:
    """List names, the first five of many."""
    found = list(words)
    return ", ".join(found[:5]) + (f" and {len(found) - 5} more" if found[5:] else "")


def files_are(count: int) -> str:
    """Format a number of files as the subject of a sentence: `1 file is`, `3 files are`."""
    return counted(count, "file is", "files are")
