"""Masks corrected by hand: `corrections/ID.png` in the workspace, and detection of edits."""

from __future__ import annotations

import glob
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from vpltool.formats import changes
from vpltool.formats.labels import (
    identity_of_labels,
    read_drawn_labels,
    read_labels,
    size_of_labels,
)
from vpltool.formats.storage import describe
from vpltool.formats.workspace import Photo, Workspace
from vpltool.names import short_path

FOLDER = "corrections"
"""Their folder in the workspace, and the name of their kind."""

PIXELS = "pixels"
"""Fact of a header: hash of the labels as exported for correction."""


PHOTO = "photo"
"""Fact of a header: hash of the file of the photo that was corrected."""


def corrections_there(work: Path, ids: Iterable[str]) -> dict[str, Path]:
    """Return the paths of a workspace's corrected masks by photo id."""
    folder = work / FOLDER
    paths = {key: folder / f"{key}.png" for key in ids} if folder.is_dir() else {}
    return {key: path for key, path in paths.items() if path.is_file()}


def corrections_of(workspace: Workspace, photos: Sequence[Photo]) -> dict[str, Path]:
    """Return the paths of corrected masks by photo id, without those of a photo since replaced."""
    there = corrections_there(workspace.path, [photo.id for photo in photos])
    now = workspace.hashes_of(photo for photo in photos if photo.id in there)
    return {key: path for key, path in there.items()
            if _corrected_photo(path) in ("", now.get(key, _corrected_photo(path)))}


def _corrected_photo(path: Path) -> str:
    """Return the hash of the photo of a corrected mask; empty if its header has none."""
    header = describe(path).header
    return str(header.facts.get(PHOTO, "")) if header else ""


def import_call(workspace: Workspace, masks: Path | str) -> str:
    """Return the call that imports corrected masks, for a hint."""
    given = masks if isinstance(masks, str) else short_path(masks)
    return f"`prepare('folder', images={_images(workspace)!r}, corrections={given!r})`"


def import_lines(workspace: Workspace, masks: Path) -> list[str]:
    """Return the shell commands that import corrected masks and train on them.

    Since others see them, paths outside the current folder are replaced by placeholders.
    """
    given = {"WORKSPACE": str(workspace.path), "MASKS": str(masks), "PHOTOS": _images(workspace)}
    shown = {name: os.path.relpath(Path(path).resolve()) for name, path in given.items()}
    work, folder, photos = (name if path.startswith("..") or given[name] == "IMAGES" else path
                            for name, path in shown.items())
    return [shlex.join(["vpltool", "-C", work, "prepare", "folder", photos, "--corrections",
                        folder]),
            shlex.join(["vpltool", "-C", work, "update"])]


def _images(workspace: Workspace) -> str:
    """Return the folder that `prepare folder` read; a placeholder if it read another source."""
    call = changes.last_call(workspace.path)
    return (short_path(workspace.path / str(call["images"]))
            if call.get("method") == "folder" and "images" in call else "IMAGES")


def is_imported(workspace: Workspace, photo_id: str, path: Path) -> bool:
    """Return whether the workspace holds a corrected mask with the same labels as a file."""
    held = corrections_there(workspace.path, [photo_id]).get(photo_id)
    return held is not None and (identity_of_labels(read_labels(held))
                                 == identity_of_labels(read_drawn_labels(path)))


def computed_masks(work: Path, photo_id: str) -> Iterator[Path]:
    """Yield all masks and predictions that a workspace has computed of a photo."""
    for kind in ("masks", "predictions"):
        for path in (work / kind).glob(f"*/*/{glob.escape(photo_id)}.png"):
            if describe(path).header is not None:
                yield path


def is_edited(path: Path, computed: Iterable[Path] = ()) -> bool:
    """Return whether a mask was edited: another program wrote it, or its pixels have changed.

    A copy of `corrections/`, such as a backup, counts as edited; a mask without a header does not
    if it shows the labels of one of the `computed` files.
    """
    header = describe(path).header
    if header is None:
        return all(size_of_labels(other) != size_of_labels(path)
                   or (read_labels(other) != read_drawn_labels(path)).any() for other in computed)
    if header.kind == FOLDER:
        return True
    written = header.facts.get(PIXELS)
    return written is not None and written != identity_of_labels(read_drawn_labels(path))
