"""Masks that a person corrected: `corrections/ID.png` in the workspace, and what shows a change."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vpltool.formats.labels import identity_of_labels, read_labels
from vpltool.formats.storage import describe

FOLDER = "corrections"
"""Where they are in the workspace."""

PIXELS = "pixels"
"""Fact of a header: hash of the labels as they were written, for what is to be corrected."""


def corrections_of(work: Path, ids: Iterable[str]) -> dict[str, Path]:
    """Return id to path of the corrected masks that a workspace holds of photos."""
    folder = work / FOLDER
    if not folder.is_dir():
        return {}
    paths = {key: folder / f"{key}.png" for key in ids}
    return {key: path for key, path in paths.items() if path.is_file()}


def is_edited(path: Path) -> bool:
    """Tell whether a person has changed a mask: another program wrote it, or other pixels."""
    header = describe(path).header
    if header is None:
        return True
    written = header.facts.get(PIXELS)
    return written is not None and written != identity_of_labels(read_labels(path))
