"""What readers of labels are given, and what they give."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vpltool.errors import VplError, near_name
from vpltool.formats import Photo

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_BACKGROUND = ("background", "_background_", "__background__")
"""What tools call the pixels of no class."""


@dataclass(frozen=True)
class Labelled:
    """A photo with labels that come back from another program.

    Args:
        photo: of the workspace.
        labels: (H, W) uint8 at the photo's size, 255 where nothing is said.
        where: file, and line or entry, that said so.
    """

    photo: Photo
    labels: npt.NDArray[np.uint8]
    where: str


@dataclass(frozen=True)
class LabellingRequest:
    """What a reader may know: whose labels they can be.

    Args:
        root: folder of the photos.
        classes: class names in index order.
        photos: name to photo, under every name that a tool may give it.
    """

    root: Path
    classes: tuple[str, ...]
    photos: Mapping[str, Photo]

    def photo(self, name: str, where: str) -> Photo:
        """The photo of a name: its id or file, with folders before it or without its suffix.

        Raises:
            VplError: the workspace has none.
        """
        parts = name.replace("\\", "/").split("/")
        for first in range(len(parts)):
            tail = "/".join(parts[first:])
            # Label Studio puts eight letters before the name of an uploaded file.
            for known in (tail, re.sub(r"^[0-9a-f]{8}-", "", tail)):
                for key in (known, re.sub(r"\.[^./]+$", "", known)):
                    if key in self.photos:
                        return self.photos[key]
        raise VplError(f"{where}: the photo {name} is not in the workspace",
                       near_name(parts[-1], {photo.id for photo in self.photos.values()}))

    def label(self, name: str, where: str) -> int:
        """The index of a class; 0 for `background`.

        Raises:
            VplError: the workspace has no such class.
        """
        if name in self.classes:
            return self.classes.index(name) + 1
        if name.lower() in _BACKGROUND:
            return 0
        raise VplError(f"{where}: `{name}` is not a class of the workspace",
                       near_name(name, self.classes))

    def size(self, photo: Photo, where: str) -> tuple[int, int]:
        """(height, width) of a photo.

        Raises:
            VplError: it cannot be read.
        """
        from vpltool.core.photos import photo_size

        try:
            return photo_size(self.root / photo.image)
        except OSError as error:
            raise VplError(f"{where}: the photo {photo.id} cannot be read ({error})",
                           "put the photo back, or fix it") from error

    def check_size(self, photo: Photo, size: tuple[int, ...], where: str) -> None:
        """Check that labels are as large as their photo.

        Raises:
            VplError: they are not.
        """
        own = self.size(photo, where)
        if tuple(size) != own:
            raise VplError(f"{where}: {size[0]}×{size[1]} (height×width), its photo {photo.id} is "
                           f"{own[0]}×{own[1]}", "labels have a pixel for each of their photo's")


@dataclass(frozen=True)
class FirstRequest(LabellingRequest):
    """A request for a set whose classes are not known yet: every name that is met becomes one.

    Args:
        met: class name to label, in the order in which the file names them.
    """

    met: dict[str, int] = field(default_factory=dict)

    def label(self, name: str, where: str) -> int:
        """The label of a class, a new one for a new name; 0 for `background`."""
        if name.lower() in _BACKGROUND:
            return 0
        return self.met.setdefault(name, len(self.met) + 1)
