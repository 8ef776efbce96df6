"""Labels that come back from labelling tools: found by their format, checked, taken as corrections.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vpltool import console
from vpltool.datasets.tags import some
from vpltool.errors import VplError
from vpltool.formats import Header, Photo, Workspace, write_labels
from vpltool.labelling import find_reader
from vpltool.labelling.request import Labelled, LabellingRequest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

FOLDER = "corrections"
"""Folder of the workspace that holds them, ID.png each."""


@dataclass
class Labelling:
    """Labels that were read and checked, and are not written yet.

    Args:
        tool: the format that they came in.
        packed: photo id to size and compressed labels: those of thousands of photos fit into
            memory, so that nothing is written before the last is checked.
        blank: tagged photos without any region, which are left out.
        untagged: photos that show a class which they have no tag of.
    """

    tool: str
    packed: dict[str, tuple[tuple[int, ...], bytes]] = field(default_factory=dict)
    blank: list[str] = field(default_factory=list)
    untagged: list[str] = field(default_factory=list)

    def labels(self, photo_id: str) -> npt.NDArray[np.uint8]:
        """Labels (H, W) of a photo."""
        import numpy as np

        size, content = self.packed[photo_id]
        return np.frombuffer(zlib.decompress(content), np.uint8).reshape(size)


def read_labelling(path: Path | None, request: LabellingRequest) -> Labelling:
    """Read and check the labels in a file or folder; nothing is written.

    Raises:
        VplError: it is missing or of no known format, or what it says does not fit the photos and
            classes.
    """
    if path is None:
        return Labelling("")
    name, reader = find_reader(path)
    found = Labelling(name)
    for entry in reader.read(path, request):
        _keep(entry, found, request)
    if not found.packed:
        raise VplError(f"{path} holds no region of any photo",
                       "submit the annotations in Label Studio, and export them as JSON"
                       if name == "label-studio" else "export it from the tool again")
    return found


def _keep(entry: Labelled, found: Labelling, request: LabellingRequest) -> None:
    import numpy as np

    photo = entry.photo
    shown = {request.classes[label - 1] for label in np.unique(entry.labels).tolist()
             if 0 < label <= len(request.classes)}
    if photo.labels and not shown:
        # Tools list photos that nobody has looked at. Where the class is not there, the tag is
        # wrong, and goes first.
        found.blank.append(photo.id)
        return
    if shown - set(photo.labels):
        found.untagged.append(photo.id)
    found.packed[photo.id] = (entry.labels.shape, zlib.compress(entry.labels.tobytes(), 1))


def by_name(photos: Iterable[Photo]) -> dict[str, Photo]:
    """Every name that a tool may give a photo to the photo."""
    return {name: photo for photo in photos for key in (photo.id, photo.image)
            for name in (key.replace("/", "__"), key)}


def take_labelling(workspace: Workspace, found: Labelling) -> list[Path]:
    """Write labels into the workspace, over earlier ones of the same photos; return their folder.
    """
    if not found.packed:
        return []
    folder = workspace.path / FOLDER
    header = Header(kind="masks", command="prepare", options={"corrections": found.tool},
                    inputs={"classes": workspace.classes_identity})
    for key in found.packed:
        write_labels(folder / f"{key}.png", found.labels(key), header)
    console.note(f"{len(found.packed)} corrected masks are taken, from {found.tool}; "
                 f"{len(list(folder.rglob('*.png')))} are there now")
    if found.blank:
        console.warn(f"{len(found.blank)} photos have tags, but no region, and are left out: "
                     f"{some(found.blank)}")
    if found.untagged:
        console.warn(f"{len(found.untagged)} corrections show a class that their photo has no tag "
                     f"of: {some(found.untagged)}; maps of it are made if it gets one")
    return [folder]
