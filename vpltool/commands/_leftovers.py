"""What killed commands have left in a workspace."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from vpltool.commands._findings import BROKEN, NOTE, Finding, files_are, in_workspace, removal
from vpltool.commands._tree import age, size
from vpltool.formats import Header, Workspace
from vpltool.formats.atomic import AT_WORK, PART, newest
from vpltool.formats.deletion import first_header
from vpltool.formats.manifest import MANIFEST
from vpltool.formats.storage import short_path
from vpltool.shell import program
from vpltool.stages import find_stages
from vpltool.state import Artifact


def without_manifest(workspace: Workspace, found: Mapping[Path, Header]) -> Iterator[Finding]:
    """Format what `orphaned_folders` found."""
    for folder, header in found.items():
        yield in_workspace(BROKEN, folder.relative_to(workspace.path).as_posix(),
                           f"holds {header.kind}, but no {MANIFEST}: a command was killed while "
                           "it replaced them", remake(workspace, folder))


def remake(workspace: Workspace, folder: Path) -> str:
    """Return the command that recomputes a folder, from a header in it.

    It goes on from the files that are whole, and keeps masks that a person has corrected.
    """
    header = first_header(folder)
    return " && ".join([
        *([removal([folder / MANIFEST])] if (folder / MANIFEST).exists() else []),
        *([line_of(workspace, folder, header)] if header is not None else [])])


def line_of(workspace: Workspace, path: Path, header: Header) -> str:
    """Return the command that recomputes the file of a header."""
    if header.command.split()[0] not in find_stages():
        return shlex.join([*program(workspace.path), "status"])
    name = path.relative_to(workspace.path).as_posix()
    return Artifact(name, path, workspace.path, header).line()


def temporary_files(work: Path) -> Iterator[Finding]:
    """Temporary files and folders of killed commands."""
    now, old, young = time.time(), dict[Path, float](), 0
    for part in work.rglob(f"{PART}*"):
        # Those in a folder go with it.
        if any(above.name.startswith(PART) for above in part.relative_to(work).parents):
            continue
        with contextlib.suppress(FileNotFoundError):
            written = newest(part)
            if now - written > AT_WORK:
                old[part] = now - written
            else:
                young += 1
    if old:
        total = sum(file.stat().st_size for part in old for file in (part, *part.rglob("*"))
                    if file.is_file())
        yield in_workspace(
            NOTE, f"{PART}*", f"{files_are(len(old))} left by commands that were killed, "
            f"{size(total)}, the oldest {age(max(old.values()))} old", _removal_of(work, old))
    if young:
        yield in_workspace(
            NOTE, f"{PART}*", f"{files_are(young)} being written, or left by a command that was "
            "killed less than an hour ago; a later command deletes them")


def _removal_of(work: Path, parts: Iterable[Path]) -> str:
    """Format the line that deletes temporary files by a pattern, and folders by their names."""
    folders = sorted(part for part in parts if part.is_dir())
    lines = [["find", short_path(work), "-name", f"{PART}*", "-type", "f", "-mmin", "+60",
              "-delete"], *([["rm", "-r", *map(short_path, folders)]] if folders else [])]
    return " && ".join(map(shlex.join, lines))
