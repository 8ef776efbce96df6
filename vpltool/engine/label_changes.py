"""How much label images change where they are made again: those of before are kept, and compared.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vpltool import console
from vpltool.errors import VplError
from vpltool.formats import OutputFolder
from vpltool.formats.changes import count_photos
from vpltool.formats.kinds import KINDS
from vpltool.formats.labels import read_labels
from vpltool.lazy import np, npt

MOST = 200
"""Photos that are compared; of more, every nth."""


@dataclass(frozen=True)
class _Before:
    """A label image, compressed: a few hundred of large photos must fit into the memory."""

    shape: tuple[int, ...]
    type: np.dtype[Any]
    content: bytes

    def differs_from(self, now: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """Tell which pixels have another label."""
        before = np.frombuffer(zlib.decompress(self.content), self.type).reshape(self.shape)
        different: npt.NDArray[np.bool_] = before != now
        return different


class LabelChanges:
    """Label images that are about to be replaced. Make it before the first of them goes.

    Args:
        outputs: folders that are to be written; those of other files are left out.
    """

    def __init__(self, outputs: Sequence[OutputFolder]) -> None:
        self._before = [(output, _read(output)) for output in outputs
                        if KINDS[output.header.kind].layout == "labels-folder"]

    def tell(self) -> None:
        """Say which share of the pixels has another label now, folder by folder."""
        for output, before in self._before:
            photos = changed = pixels = 0
            for key, old in before.items():
                try:
                    labels = read_labels(output.path_of(key))
                except VplError:
                    # The photo failed this time.
                    continue
                if labels.shape != old.shape:
                    # It is another photo under the same name.
                    continue
                photos += 1
                changed += int(old.differs_from(labels).sum())
                pixels += labels.size
            if changed:
                console.note(f"{output.path}: {100 * changed / pixels:.1f} % of the pixels have "
                             f"another label than before ({count_photos(photos)} compared)")


def _read(output: OutputFolder) -> dict[str, _Before]:
    there = [key for key in output.todo if output.path_of(key).exists()]
    found = {}
    for key in there[:: -(-len(there) // MOST) or 1]:
        try:
            labels = read_labels(output.path_of(key))
        except VplError:
            # It is damaged, and therefore made again.
            continue
        found[key] = _Before(labels.shape, labels.dtype, zlib.compress(labels.tobytes(), 1))
    return found
