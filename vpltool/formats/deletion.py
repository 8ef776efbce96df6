"""Replacing a folder's files: deletion is a step with a record, which survives a kill.

Before the first file goes, `artifact.json` says `replaced`. It says so until all have gone and the
new header takes its place. So a command that was killed in between is seen, and goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from vpltool.errors import VplError
from vpltool.formats.checking import check_file, salvaged_header
from vpltool.formats.header import Header
from vpltool.formats.kinds import KINDS, folders_of
from vpltool.formats.manifest import (
    MANIFEST,
    REPLACED,
    Manifest,
    files_of,
    header_of,
    joined_manifest,
    manifest_content,
    read_manifest,
    shard_manifests,
)
from vpltool.formats.storage import write_json

PHOTO_FOLDERS = (*folders_of(per_photo=True), "ground-truth")
"""Folders of the workspace, or beginnings of their names, that hold files a photo."""


def known_manifest(path: Path, header: Header, hint: str) -> Manifest | None:
    """Read a folder's manifest; where it is gone, tell by the files which one it was.

    Args:
        path: the folder.
        header: of what is to be written; files of its configuration come before others.
        hint: what makes the folder.

    Returns:
        the content, which says `replaced` if not all files need be of it; None if nothing that
        vpltool made is there.

    Raises:
        VplError: the manifest is damaged.
    """
    if (path / MANIFEST).exists():
        return joined_manifest(path, hint)
    first = None
    for file in files_of(path, KINDS[header.kind].suffix):
        found = _header_in(file)
        if found is not None and found.kind == header.kind:
            first = first or found
            if found.config_hash == header.config_hash:
                first = found
                break
    return None if first is None else {
        **manifest_content(first, complete=False, failed={}), "left_out": [],
        REPLACED: True}


def _header_in(file: Path) -> Header | None:
    try:
        return check_file(file) if file.suffix == ".png" else salvaged_header(file)
    except (VplError, OSError):
        return None


def is_of_another_run(file: Path, header: Header, *, keeps_corrected: bool) -> bool:
    """Tell whether a file was made with other settings, or is damaged.

    Args:
        file: a photo's file.
        header: that of the present run.
        keeps_corrected: whether a PNG without a header is a mask that a person has corrected.
    """
    try:
        found = check_file(file)
    except FileNotFoundError:
        # Another process has just deleted it.
        return False
    except VplError:
        return True
    return (not keeps_corrected if found is None else found.config_hash != header.config_hash)


def clear_folder(path: Path, content: Manifest, goes: Callable[[Path], bool]) -> None:
    """Delete an artifact's files, and record it first.

    The record is the manifest of before; the caller writes the new one in its place.

    Args:
        path: the folder.
        content: of its manifest.
        goes: tells which files are deleted.
    """
    manifest = path / MANIFEST
    mark_replaced(path, content)
    for file, _ in shard_manifests(path):
        file.unlink(missing_ok=True)
    for file in files_of(path, KINDS[header_of(content, manifest).kind].suffix):
        if goes(file):
            file.unlink(missing_ok=True)


def mark_replaced(path: Path, content: Manifest) -> None:
    """Record that a folder's files are being replaced, unless it says so already."""
    manifest = path / MANIFEST
    if not manifest.exists() or not read_manifest(manifest, "").get(REPLACED):
        write_json(manifest, {**content, "complete": False, REPLACED: True})


def orphaned_folders(work: Path, folders: Collection[Path]) -> dict[Path, Header]:
    """Find folders with files a photo but without a manifest.

    Args:
        work: the workspace.
        folders: those that have one.

    Returns:
        folder to the header of its first file.
    """
    found: dict[Path, Header] = {}
    for folder in _holding(work, {*folders}):
        header = first_header(folder)
        if header is not None and header.kind in KINDS and KINDS[header.kind].per_photo:
            # Ids may have folders of their own.
            split = header.options.get("split")
            root = next((above for above in (folder, *folder.parents) if above.name == split),
                        folder)
            found.setdefault(root, header)
    return found


def _holding(work: Path, folders: Collection[Path]) -> Iterator[Path]:
    """Folders that hold images or tensors, and are not below one of `folders`."""
    for top in sorted(work.iterdir()):
        if not top.name.startswith(PHOTO_FOLDERS) or not top.is_dir():
            continue
        for root, below, names in os.walk(top):
            if Path(root) in folders:
                below.clear()
                continue
            below[:] = sorted(name for name in below if not name.startswith("."))
            if any(_is_photos(name) for name in names):
                yield Path(root)


def _is_photos(name: str) -> bool:
    return (name.endswith((".safetensors", ".png")) and not name.startswith(".")
            and not name.endswith(".head.safetensors"))


def first_header(folder: Path) -> Header | None:
    """The header of the first file of a folder that has one."""
    return next(filter(None, map(_header_in, _files(folder))), None)


def _files(folder: Path) -> Iterable[Path]:
    return (file for suffix in (".safetensors", ".png") for file in files_of(folder, suffix))
