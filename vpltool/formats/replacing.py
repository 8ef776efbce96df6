"""Replacing artifacts: permission checks, and deletion that can be resumed after a kill.

Headers are data that anybody may have written. So `update` also checks, where an artifact is about
to be written, that the header belongs to that artifact.

Before the first file of a folder is deleted, `artifact.json` is marked `replaced`, until all files
are gone and the new header is written. So the next command detects and finishes a killed one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import replace
from itertools import chain
from pathlib import Path

from vpltool.errors import VplError
from vpltool.formats.header import Header
from vpltool.formats.kinds import KINDS, folders_of
from vpltool.formats.manifest import MANIFEST, Manifest, files_of, manifest_of, read_manifest
from vpltool.formats.storage import check_file, salvaged_header, write_json

PHOTO_FOLDERS = (*folders_of(per_photo=True), "ground-truth")
"""Workspace folders, or prefixes of their names, that hold per-photo files."""

_limits: ContextVar[tuple[Path, frozenset[Path]] | None] = ContextVar("limits", default=None)


@contextlib.contextmanager
def replacing_only(work: Path, artifacts: Iterable[Path]) -> Iterator[None]:
    """Restrict the block to write below `work`, and to replace only these artifacts."""
    token = _limits.set((work.resolve(), frozenset(path.resolve() for path in artifacts)))
    try:
        yield
    finally:
        _limits.reset(token)


def check_replacing(path: Path, *, same: bool) -> None:
    """Check that an artifact may be written under the limits of `replacing_only`.

    `same`: nothing is there, or it was made with the same settings.

    Raises:
        VplError: it may not be written.
    """
    limits, target = _limits.get(), path.resolve()
    if limits is None or target in limits[1]:
        return
    if not target.is_relative_to(limits[0]):
        raise VplError(f"{path} is outside of the workspace", "`update` writes nothing there; type "
                       "the command yourself")
    if not same:
        raise VplError(f"{path} was made with other settings than the file whose header asks to "
                       "replace it", "that file was not made here: move it out of the workspace")


def known_manifest(path: Path, header: Header, hint: str) -> Manifest | None:
    """Return a folder's manifest, or one derived from its files, marked `replaced`, if it is lost.

    Files with the configuration of `header`, about to be written, take precedence. Returns None if
    the folder holds nothing made by vpltool.

    Raises:
        VplError: the manifest is damaged; the hint is `hint`.
    """
    if (path / MANIFEST).exists():
        return manifest_of(path, hint)
    headers = (found for file in files_of(path, KINDS[header.kind].suffix)
               if (found := _header_in(file)) and found.kind == header.kind)
    first = next(headers, None)
    if first is None:
        return None
    same = any(found.config_hash == header.config_hash for found in chain([first], headers))
    return Manifest(path, header if same else first, {}, complete=False, replaced=True)


def _header_in(file: Path) -> Header | None:
    try:
        return check_file(file) if file.suffix == ".png" else salvaged_header(file)
    except (VplError, OSError):
        return None


def is_of_another_run(file: Path, header: Header, *, keeps_corrected: bool) -> bool:
    """Return whether a photo's file has other settings than a header, or is damaged.

    With `keeps_corrected`, a PNG without a header counts as corrected by hand and is kept.
    """
    try:
        found = check_file(file)
    except FileNotFoundError:
        # Another process has just deleted it.
        return False
    except VplError:
        return True
    return (not keeps_corrected if found is None else found.config_hash != header.config_hash)


def mark_replaced(manifest: Manifest) -> None:
    """Mark a folder's manifest as being replaced, unless it already is."""
    path = manifest.path
    if not (path / MANIFEST).exists() or not read_manifest(path).replaced:
        write_json(path / MANIFEST, replace(manifest, complete=False, replaced=True).to_json())


def orphaned_folders(work: Path, folders: Collection[Path]) -> dict[Path, Header]:
    """Find folders of per-photo files without a manifest; return the first file's header by folder.

    Folders in `folders`, which have known manifests, are skipped with their subfolders.
    """
    found: dict[Path, Header] = {}
    for folder in _holding(work, {*folders}):
        header = first_header(folder)
        if header is not None and header.kind in KINDS and KINDS[header.kind].per_photo:
            # Photo ids may contain folders.
            split = header.options.get("split")
            root = next((above for above in (folder, *folder.parents) if above.name == split),
                        folder)
            found.setdefault(root, header)
    return found


def _holding(work: Path, folders: Collection[Path]) -> Iterator[Path]:
    """Yield folders with images or tensors that are not in or below one of `folders`."""
    for top in sorted(work.iterdir()):
        if not top.name.startswith(PHOTO_FOLDERS) or not top.is_dir():
            continue
        for root, below, names in os.walk(top):
            if Path(root) in folders:
                below.clear()
                continue
            below[:] = sorted(name for name in below if not name.startswith("."))
            if any(name.endswith((".safetensors", ".png")) and not name.startswith(".")
                   and not name.endswith(".head.safetensors") for name in names):
                yield Path(root)


def first_header(folder: Path) -> Header | None:
    """Return the first header found among the files of a folder; None if there is none."""
    files = chain(files_of(folder, ".safetensors"), files_of(folder, ".png"))
    return next(filter(None, map(_header_in, files)), None)
