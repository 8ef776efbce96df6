"""What killed commands have left in a workspace."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from vpltool.commands._findings import BROKEN, NOTE, Finding, files_are, in_workspace
from vpltool.commands._tree import age, size
from vpltool.errors import VplError
from vpltool.formats import KINDS, Header, Workspace
from vpltool.formats.checking import check_file, salvaged_header
from vpltool.formats.manifest import MANIFEST, files_of
from vpltool.formats.storage import short_path
from vpltool.shell import program
from vpltool.stages import find_stages
from vpltool.stages._heads import HEAD
from vpltool.state import Artifact

_FOLDERS = ("tags", "features", "cams", "masks", "predictions", "probabilities", "ground-truth",
            "group-maps")
"""Folders of the workspace, or beginnings of their names, that hold files a photo."""

_WRITTEN = 3600
"""Seconds for which a temporary file may be that of a command at work."""


def orphaned_files(workspace: Workspace, folders: Collection[Path]) -> dict[Path, Header]:
    """Find files a photo without a manifest: a command was killed as it replaced them.

    Returns:
        folder to the header of its first file.
    """
    held = {file.parent for top in sorted(workspace.path.iterdir())
            if top.is_dir() and top.name.startswith(_FOLDERS)
            for suffix in (".safetensors", ".png") for file in top.rglob(f"*{suffix}")
            if not file.name.startswith(".") and not file.name.endswith(HEAD)}
    found: dict[Path, Header] = {}
    for folder in sorted(held):
        if {folder, *folder.parents}.isdisjoint(folders) and (header := first_header(folder)):
            # Ids may have folders of their own.
            split = header.options.get("split")
            root = next((above for above in (folder, *folder.parents) if above.name == split),
                        folder)
            if header.kind in KINDS and KINDS[header.kind].layout.endswith("folder"):
                found.setdefault(root, header)
    return found


def without_manifest(workspace: Workspace, found: Mapping[Path, Header]) -> Iterator[Finding]:
    """Format what `orphaned_files` found."""
    for folder, header in found.items():
        yield in_workspace(BROKEN, folder.relative_to(workspace.path).as_posix(),
                           f"holds {header.kind}, but no {MANIFEST}: a command was killed while "
                           "it replaced them", remake(workspace, folder))


def remake(workspace: Workspace, folder: Path) -> str:
    """Return the command that recomputes a folder without manifest, from a header in it."""
    line, header = shlex.join(["rm", "-r", short_path(folder)]), first_header(folder)
    return line if header is None else f"{line} && {line_of(workspace, folder, header)}"


def line_of(workspace: Workspace, path: Path, header: Header) -> str:
    """Return the command that recomputes the file of a header."""
    if header.command.split()[0] not in find_stages():
        return shlex.join([*program(workspace.path), "status"])
    name = path.relative_to(workspace.path).as_posix()
    return Artifact(name, path, workspace.path, header).line()


def first_header(folder: Path) -> Header | None:
    """The header of the first file of a folder that has one."""
    for file in (*files_of(folder, ".safetensors"), *files_of(folder, ".png")):
        with contextlib.suppress(VplError, OSError):
            header = check_file(file) if file.suffix == ".png" else salvaged_header(file)
            if header is not None:
                return header
    return None


def temporary_files(work: Path) -> Iterator[Finding]:
    """Temporary files of killed commands."""
    now, old, young = time.time(), list[tuple[int, float]](), 0
    for file in work.rglob(".part-*"):
        try:
            status = file.stat()
        except FileNotFoundError:
            continue
        if now - status.st_mtime > _WRITTEN:
            old.append((status.st_size, now - status.st_mtime))
        else:
            young += 1
    if old:
        total, oldest = sum(count for count, _ in old), max(seconds for _, seconds in old)
        yield in_workspace(
            NOTE, ".part-*", f"{files_are(len(old))} left by commands that were killed, "
            f"{size(total)}, the oldest {age(oldest)} old",
            shlex.join(["find", str(work), "-name", ".part-*", "-mmin", "+60", "-delete"]))
    if young:
        yield in_workspace(
            NOTE, ".part-*", f"{files_are(young)} being written, or left by a command that was "
            "killed less than an hour ago; a later command deletes them")
