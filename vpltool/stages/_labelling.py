"""Corrections in the format of a labelling tool, or as label images: found, read and checked."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from vpltool import console
from vpltool.datasets.tags import some
from vpltool.errors import VplError, counted
from vpltool.formats import Photo, Workspace, read_labels
from vpltool.labelling import find_reader
from vpltool.labelling.request import LabellingRequest
from vpltool.stages._corrections import find_corrections

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

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
        return {key: functools.partial(read_labels, file)
                for key, file in find_corrections(workspace, photos, path).items()}
    return read_labelling(path, *tool, LabellingRequest(root, workspace.classes, by_name(photos)))


def read_labelling(path: Path, tool: str, reader: ModuleType, request: LabellingRequest) -> Found:
    """Read the labels that a labelling tool wrote, with warnings of what looks wrong.

    Raises:
        VplError: see `read_corrections`.
    """
    import numpy as np

    found: Found = {}
    blank, untagged = list[str](), list[str]()
    for entry in reader.read(path, request):
        photo = entry.photo
        shown = {request.classes[label - 1] for label in np.unique(entry.labels).tolist()
                 if 0 < label <= len(request.classes)}
        if photo.labels and not shown:
            # Tools list photos that nobody has looked at. Where a class is really not there, its
            # tag is wrong, and goes first.
            blank.append(photo.id)
            continue
        if shown - set(photo.labels):
            untagged.append(photo.id)
        found[photo.id] = _packed(entry.labels)
    if not found:
        raise VplError(f"{path} holds no region of any photo",
                       "submit the annotations in Label Studio, and export them as JSON"
                       if tool == "label-studio" else "export it from the tool again")
    if blank:
        console.warn(counted(len(blank), "photo has tags, but no region, and is",
                             "photos have tags, but no region, and are")
                     + f" skipped: {some(blank)}")
    if untagged:
        console.warn(counted(len(untagged), "correction shows", "corrections show")
                     + f" a class that is not among the photo's tags: {some(untagged)}; add the "
                     "tag to get its CAM")
    return found


def _packed(labels: npt.NDArray[np.uint8]) -> Callable[[], npt.NDArray[np.uint8]]:
    """Compress labels, since those of thousands of photos wait until the last is checked."""
    size, content = labels.shape, zlib.compress(labels.tobytes(), 1)

    def unpacked() -> npt.NDArray[np.uint8]:
        import numpy as np

        return np.frombuffer(zlib.decompress(content), np.uint8).reshape(size)

    return unpacked


def by_name(photos: Iterable[Photo]) -> dict[str, Photo]:
    """Every name that a tool may give a photo to the photo."""
    return {name: photo for photo in photos for key in (photo.id, photo.image)
            for name in (key.replace("/", "__"), key)}
