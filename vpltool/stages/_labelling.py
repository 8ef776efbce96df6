"""Corrections in the format of a labelling tool, or as label images: found, read and checked."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vpltool import console
from vpltool.datasets.tags import some
from vpltool.errors import VplError, counted
from vpltool.formats import IGNORE, Photo, Workspace
from vpltool.lazy import np, npt
from vpltool.methods.labels import Labelled, LabellingRequest, find_reader
from vpltool.stages import _corrections

if TYPE_CHECKING:
    Found = dict[str, Callable[[], npt.NDArray[np.uint8]]]


def read_corrections(workspace: Workspace, photos: Sequence[Photo], path: Path | None, root: Path
                     ) -> Found:
    """Read and check what a person corrected; nothing is written.

    Args:
        workspace: its classes are what labels mean.
        photos: those that labels may be of.
        path: a file or folder of a labelling tool, or a folder of ID.png; None: there is nothing.
        root: folder of the photos.

    Returns:
        photo id to what gives its labels (H, W).

    Raises:
        VplError: the path is missing or in no format that is known, or what it says does not fit
            the photos and classes.
    """
    if path is None:
        return {}
    tool = find_reader(path)
    if tool is None:
        known = {photo.id: photo for photo in photos}
        entries = (Labelled(known[key], _corrections.read_correction(workspace, file,
                                                                     root / known[key].image),
                            str(file))
                   for key, file in _corrections.find_corrections(workspace, photos, path).items())
        return _checked(entries, workspace.classes, every=True)
    name, reader = tool
    request = LabellingRequest(root, workspace.classes, by_name(photos))
    found = _checked(reader.read(path, request), workspace.classes)
    if not found:
        raise VplError(f"{path} holds no region of any photo",
                       "submit the annotations in Label Studio, and export them as JSON"
                       if name == "label-studio" else "export it from the tool again")
    return found


def _checked(entries: Iterable[Labelled], classes: Sequence[str], *, every: bool = False) -> Found:
    """Gather labels, with warnings of those that do not fit their photo's tags.

    Args:
        entries: photos with their labels.
        classes: class names in index order.
        every: whether labels without a region count although the photo has tags. Tools list photos
            that nobody has looked at; where a class is really not there, its tag is wrong, and goes
            first.
    """
    found: Found = {}
    blank, untagged = list[str](), list[str]()
    for entry in entries:
        photo = entry.photo
        tags = [classes.index(label) + 1 for label in photo.tags if label in classes]
        if photo.tags and not every and not _shows_a_class(entry.labels):
            blank.append(photo.id)
            continue
        if _corrections.is_untagged(entry.labels, tags):
            untagged.append(photo.id)
        found[photo.id] = _packed(entry.labels)
    if blank:
        console.warn(counted(len(blank), "photo has tags, but no region, and is",
                             "photos have tags, but no region, and are")
                     + f" skipped: {some(blank)}")
    _corrections.warn_of_untagged(untagged)
    return found


def _shows_a_class(labels: npt.NDArray[np.uint8]) -> bool:
    """Tell whether labels show more than background and unlabelled pixels."""
    return bool(((labels > 0) & (labels != IGNORE)).any())


def _packed(labels: npt.NDArray[np.uint8]) -> Callable[[], npt.NDArray[np.uint8]]:
    """Compress labels, since those of thousands of photos wait until the last is checked."""
    size, content = labels.shape, zlib.compress(labels.tobytes(), 1)

    def unpacked() -> npt.NDArray[np.uint8]:
        return np.frombuffer(zlib.decompress(content), np.uint8).reshape(size)

    return unpacked


def by_name(photos: Iterable[Photo]) -> dict[str, Photo]:
    """Every name that a tool may give a photo to the photo."""
    return {name: photo for photo in photos for key in (photo.id, photo.image)
            for name in (key.replace("/", "__"), key)}
