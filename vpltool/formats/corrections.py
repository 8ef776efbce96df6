"""Masks corrected by hand: `corrections/ID.png` in the workspace, and detection of edits.

`exchanged.jsonl` holds identities of all masks that were exported or imported, so that a mask that
nobody has edited is no correction, even after the workspace has computed another.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vpltool.formats import changes
from vpltool.formats.fields import TEXT_OF, check_fields
from vpltool.formats.header import Header, identity_of_many
from vpltool.formats.kinds import IGNORE
from vpltool.formats.labels import (
    identity_of_labels,
    read_drawn_labels,
    read_labels,
    size_of_labels,
)
from vpltool.formats.storage import describe
from vpltool.formats.workspace import Photo, Workspace
from vpltool.json_text import parse_json
from vpltool.lazy import np, npt
from vpltool.names import short_path

FOLDER = "corrections"
"""Their folder in the workspace, and the name of their kind."""

FOLDER_OF_REPLACED = "corrections-replaced"
"""Folder of the workspace with corrected masks that others have replaced."""

FOLDER_OF_REVIEW = "masks"
"""Folder of the masks in what `export review` wrote."""

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


_EXCHANGED = "exchanged.jsonl"


def identity_shown(labels: npt.NDArray[np.uint8], classes: Sequence[str]) -> str:
    """Return a hash of what labels (H, W) show, whichever numbers the classes have."""
    shown = {classes[label - 1]: label for label in np.unique(labels).tolist()
             if label not in (0, IGNORE)}
    table: npt.NDArray[Any] = np.arange(1 + max(IGNORE, len(classes) + 1), dtype=np.uint16)
    for number, name in enumerate(sorted(shown), 1):
        table[shown[name]] = number
    return identity_of_many({"labels": identity_of_labels(table[labels]), "names": sorted(shown)})


def exchanged(work: Path) -> dict[str, dict[str, set[str]]]:
    """Return the identities of the masks that were `exported` and `imported`, by photo id.

    Damaged lines are skipped.
    """
    found: dict[str, dict[str, set[str]]] = {"exported": {}, "imported": {}}
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in (work / _EXCHANGED).read_text("utf-8").splitlines():
            with contextlib.suppress(ValueError):
                content = parse_json(line) if line else {}
                check_fields(content, {}, dict.fromkeys(found, TEXT_OF))
                for how, masks in found.items():
                    for key, identity in content.get(how, {}).items():
                        masks.setdefault(key, set()).add(identity)
    return found


def remember_exchanged(work: Path, **masks: Mapping[str, str]) -> None:
    """Add identities of masks, by photo id, to those that were `exported` and `imported`."""
    known = exchanged(work)
    new = {how: {key: shown for key, shown in group.items()
                 if shown not in known[how].get(key, ())} for how, group in masks.items()}
    if any(new.values()):
        # One write at the end: another process may do the same.
        with (work / _EXCHANGED).open("a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps(new, sort_keys=True)}\n")


def computed_masks(work: Path, photo_id: str) -> Iterator[Path]:
    """Yield all masks and predictions that a workspace has computed of a photo."""
    for kind in ("masks", "predictions"):
        for path in (work / kind).glob(f"*/*/{glob.escape(photo_id)}.png"):
            if describe(path).header is not None:
                yield path


def header_of(path: Path) -> Header | None:
    """Return the header of a mask; None if another program wrote it, as all TIFFs."""
    return describe(path).header if path.suffix == ".png" else None


def is_edited(path: Path, computed: Iterable[Path] = ()) -> bool:
    """Return whether a mask was edited: another program wrote it, or its pixels have changed.

    A copy of `corrections/`, such as a backup, counts as edited; a mask without a header does not
    if it shows the labels of one of the `computed` files.
    """
    header = header_of(path)
    if header is None:
        return all(size_of_labels(other) != size_of_labels(path)
                   or (read_labels(other) != read_drawn_labels(path)).any() for other in computed)
    if header.kind == FOLDER:
        return True
    written = header.facts.get(PIXELS)
    return written is not None and written != identity_of_labels(read_drawn_labels(path))
