"""Suggestions for the path of a workspace where there is none."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from vpltool.errors import VplError


def check_folder(path: Path) -> None:
    """Check that a workspace can be in a path: that it is no file.

    Raises:
        VplError: it is.
    """
    if path.is_file():
        inside = path.name == "workspace.json"
        raise VplError(f"{path} is a file; a workspace is a folder",
                       f"`vpltool -C {path.parent} COMMAND`" if inside else
                       "name the workspace folder, as in `vpltool -C DIR COMMAND`")


def near_workspace(path: Path) -> str:
    """Say which workspace is meant where a folder does not exist; empty if no name is near."""
    if path.exists():
        return ""
    beside = [file.parent.name for file in path.parent.glob("*/workspace.json")]
    close = difflib.get_close_matches(path.name, beside, n=1)
    return f"did you mean `vpltool -C {path.parent / close[0]} COMMAND`?" if close else ""


def where_else(path: Path) -> str:
    """Say how to name a workspace: one of a near name, or below a folder, if there are any."""
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
    """Format a path for people: as seen from the current folder, or absolute where that is shorter.

    What is typed into a shell in that folder finds the same file.
    """
    whole = path.resolve()
    return min(os.path.relpath(whole), str(whole), key=len)
