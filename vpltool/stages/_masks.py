"""Masks that a segmenter learns from: those of `crf`, or a folder of one's own; checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vpltool import console
from vpltool.errors import VplError
from vpltool.formats import (
    IGNORE,
    Photo,
    Workspace,
    describe,
    find_folder,
    identity_of_file,
    identity_of_many,
    read_labels,
)
from vpltool.formats.manifest import MANIFEST
from vpltool.parallel.threads import in_threads
from vpltool.stages import _inputs

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_THREADS = 8
"""Threads that read masks: decoding a PNG lets others run."""


@dataclass(frozen=True)
class Masks:
    """A folder of masks: palette or greyscale PNGs, named as the photos' ids.

    Args:
        path: the folder.
        name: its name, which a decoder gets.
        ids: photos that have one.
    """

    path: Path
    name: str
    ids: Sequence[str]

    def path_of(self, photo_id: str) -> Path:
        """Path of a photo's mask."""
        return self.path / f"{photo_id}.png"

    def read_labels(self, photo_id: str) -> npt.NDArray[np.uint8]:
        """Read a photo's labels (height, width)."""
        return read_labels(self.path_of(photo_id))


def find_masks(workspace: Workspace, choice: str, split: str, photos: Sequence[Photo]) -> Masks:
    """Find masks by NAME or path; if none is named, those of the furthest maps.

    Args:
        workspace: where they are looked for.
        choice: NAME or path of masks of `crf`, or a folder of one's own masks.
        split: of the photos.
        photos: those that are to have masks; the others are left out with a warning.

    Raises:
        VplError: there are none, they are of other classes, or they are the true masks.
    """
    ids = [photo.id for photo in photos]
    try:
        found = find_folder(workspace.path, ("masks",), choice, split, ("masks",),
                            f"`crf(split={split!r})`", preferred=_inputs.BEST_FIRST)
    except VplError:
        for folder in (Path(choice), workspace.path / choice) if choice else ():
            if folder.is_dir() and not (folder / MANIFEST).exists():
                return _own_masks(workspace, folder, ids)
        raise
    workspace.check_classes(found.header, found.path)
    return Masks(found.path, found.name, found.available(ids))


def _own_masks(workspace: Workspace, folder: Path, ids: Sequence[str]) -> Masks:
    if workspace.has_true_masks_in(folder):
        raise VplError(f"{folder} holds the true masks of this workspace, which are for `eval`",
                       "learn from the masks of `crf()`, or from other ones")
    masks = Masks(folder, folder.resolve().name, ids)
    have = [key for key in ids if masks.path_of(key).is_file()]
    if not have:
        raise VplError(f"{folder} holds no mask of the photos asked for",
                       f"a mask is named as its photo: {masks.path_of(ids[0])}")
    if len(have) < len(ids):
        console.warn(f"{len(ids) - len(have)} of {len(ids)} photos have no mask in {folder}; they "
                     "are left out")
    return Masks(folder, masks.name, have)


def content_identity(folder: Path, ids: Sequence[str]) -> str:
    """Hash the bytes of masks, so that those corrected by hand are other ones."""
    hashes = in_threads(lambda key: identity_of_file(folder / f"{key}.png"), ids, _THREADS)
    return identity_of_many(dict(zip(ids, hashes, strict=True)))


def newer_than(masks: Masks, file: Path, ids: Iterable[str]) -> int:
    """Count the masks that were written after a file."""
    written = file.stat().st_mtime
    return sum(masks.path_of(key).stat().st_mtime > written for key in ids)


def check_masks(masks: Masks, photos: Mapping[str, Path], classes: int) -> None:
    """Check that masks hold classes of the workspace, and fit their photos; note corrected ones.

    Args:
        masks: they are read, in threads.
        photos: id to path of each photo that is learned from.
        classes: number of classes.

    Raises:
        VplError: a value is no class, or a mask has another size than its photo; the first such
            file is named.
    """
    def check(key: str) -> None:
        _check_mask(masks.path_of(key), photos[key], classes)

    with console.progress(f"check {masks.name}", len(photos)) as advance:
        for _ in in_threads(check, photos, _THREADS):
            advance()
    if (masks.path / MANIFEST).exists():
        # What another program wrote has no header.
        corrected = sum(describe(masks.path_of(key)).header is None for key in photos)
        if corrected:
            console.note(f"{masks.path}: {corrected} of {len(photos)} masks were corrected by hand")


def _check_mask(path: Path, photo: Path, classes: int) -> None:
    import numpy as np

    from vpltool.core.photos import photo_size

    labels = read_labels(path)
    found = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
    odd = found[(found > classes) & (found != IGNORE)]
    if len(odd):
        raise VplError(f"{path}: the value {odd[0]} is no class; the workspace has 1 to {classes}, "
                       f"0 for the background and {IGNORE}, ignored in training",
                       "a mask's value is the index of its class in workspace.json")
    try:
        size = photo_size(photo)
    except OSError:
        # Stored features serve without the photo; where it is needed, reading it tells.
        return
    if labels.shape != size:
        raise VplError(f"{path} is {labels.shape[0]}×{labels.shape[1]} (height×width), its photo "
                       f"{size[0]}×{size[1]}", "a mask has a pixel for each of its photo's")
