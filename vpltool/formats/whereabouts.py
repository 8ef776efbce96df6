"""Hints for finding a workspace, and short forms of paths."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from vpltool.errors import VplError


def check_folder(path: Path) -> None:
    """Check that a path can be a workspace, that is, not a file.

    Raises:
        VplError: it is a file.
    """
    if path.is_file():
        inside = path.name == "workspace.json"
        raise VplError(f"{path} is a file; a workspace is a folder",
                       f"`vpltool -C {path.parent} COMMAND`" if inside else
                       "name the workspace folder, as in `vpltool -C DIR COMMAND`")


def near_workspace(path: Path) -> str:
    """Suggest a workspace of a similar name if a folder does not exist; empty if there is none."""
    if path.exists():
        return ""
    beside = [file.parent.name for file in path.parent.glob("*/workspace.json")]
    close = difflib.get_close_matches(path.name, beside, n=1)
    return f"did you mean `vpltool -C {path.parent / close[0]} COMMAND`?" if close else ""


def where_else(path: Path) -> str:
    """Suggest how to name a workspace: one of a similar name, or one in a subfolder, if any."""
    if near := near_workspace(path):
        return near
    found = sorted(str(file.parent) for depth in ("*", "*/*")
                   for file in path.glob(f"{depth}/workspace.json"))
    if found:
        return (f"name it, as in `vpltool -C {found[0]} COMMAND`; "
                f"there {'are' if found[1:] else 'is'} {', '.join(found[:5])}"
                + (", …" if found[5:] else ""))
    return ("name yours, as in `vpltool -C DIR COMMAND`; or make one: "
            "`prepare('folder', images='IMAGES', labels='FILE.csv')`")


def short_path(path: Path) -> str:
    """Return a path relative to the current folder, or absolute if that is shorter."""
    whole = path.resolve()
    return min(os.path.relpath(whole), str(whole), key=len)
