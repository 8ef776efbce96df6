"""The desk of a reviewer: photos with their masks, what was corrected, and what can be undone.

Masks are edited on a grid of at most `GRID` pixels a side. Of a larger photo, those pixels of the
mask change whose place on the grid does; the others stay as they were.
"""

from __future__ import annotations

import functools
import io
import threading
from pathlib import Path
from typing import Any

from vpltool.core.photos import photo_size, read_photo
from vpltool.errors import VplError
from vpltool.formats import IGNORE, JsonObject, Photo, open_workspace
from vpltool.lazy import Image, np, npt
from vpltool.review import work
from vpltool.review.journal import Box, Edit, Journal, Status
from vpltool.review.regions import photo_regions

GRID, SCREEN, THUMB = 1600, 2048, 112
"""Longest sides in pixels: of a mask that is edited, of a photo on the screen, of a thumbnail."""

STATES = ("new", "accepted", "corrected", "skipped")
_WRITTEN = ("accepted", "corrected")


class Conflict(Exception):
    """A photo was changed in another window."""


class Desk:
    """Photos of a split, with their masks; all methods may be called from any thread."""

    def __init__(self, path: Path, what: str, split: str, order: str) -> None:
        """Open the workspace.

        Raises:
            VplError: there are no masks, or nothing to order them by.
        """
        self.path, self.split, self.lock = path, split, threading.RLock()
        self.workspace = open_workspace(path)
        self.shown = work.find_shown(self.workspace, what, split)
        self.journal = Journal(path / work.OWN / "journal.sqlite")
        self.photos = {photo.id: photo for photo in self.workspace.photos(split)}
        self._forget_replaced()
        self.order = order or self._usual_order()
        self.ids = self.ordered(self.order)

    def reopen(self, what: str) -> None:
        """Show other masks, such as those after training; photos with edits keep theirs."""
        with self.lock:
            self.workspace = open_workspace(self.path)
            self.photos = {photo.id: photo for photo in self.workspace.photos(self.split)}
            self.shown = work.find_shown(self.workspace, what, self.split)
            self.journal.forget(self.journal.unedited())
            self.ids = [key for key in self.ids if key in self.photos]

    def ordered(self, order: str) -> list[str]:
        """Ids of all photos in an order, see `work.rank`."""
        return work.rank(self.workspace, self.shown, list(self.photos.values()), order, self.split)

    def photo(self, key: str) -> Photo:
        """Find a photo; an id is never more than a key of this table.

        Raises:
            KeyError: no photo has this id.
        """
        return self.photos[key]

    def status(self, key: str) -> Status:
        """A photo's state and tags."""
        with self.lock:
            edits, base = self.journal.edits(key), self.journal.base(key)
            if edits:
                return edits[-1].new
            if base:
                return base[1]
            held = work.correction_stamp(self.workspace, key)
            return Status("corrected" if held else "new", self.photo(key).tags)

    def describe(self, key: str) -> JsonObject:
        """Everything of a photo that the page shows beside it."""
        with self.lock:
            status, labels = self.status(key), self._base(key)
            height, width = self._grid_of(labels)
            return {"id": key, "version": self.journal.changed(key), "state": status.state,
                    "tags": [self.workspace.index_of(tag) for tag in status.tags],
                    "width": width, "height": height, "redo": self.journal.ahead(key),
                    "history": [edit.what for edit in self.journal.edits(key)]}

    def labels(self, key: str, layer: str = "") -> npt.NDArray[np.uint8]:
        """A photo's labels on the grid (h, w): as corrected, or those of another layer."""
        with self.lock:
            if not layer:
                return self._grid(key)
            base = self._base(key)
            found = (self.shown.read(key) if layer == "computed" else
                     work.read_layer(self.workspace, layer, self.split, key))
            size = self._grid_of(base)
            return (np.full(size, IGNORE, np.uint8) if found is None else _scaled(found, size))

    def edit(self, key: str, version: int, op: str, what: str, box: Box, pixels: bytes,
             state: str, tags: tuple[int, ...] | None) -> JsonObject:
        """Take an edit, and write the corrected mask.

        Args:
            key: of the photo.
            version: number of the change after which the edit was made.
            op: a name that no other edit has.
            what: words for the history.
            box: x, y, width and height on the grid; of no size: no pixel changes.
            pixels: the labels in it, row by row.
            state: the photo's state after it.
            tags: class indices of the photo's tags after it; None: as before.

        Raises:
            Conflict: the photo was changed since.
            ValueError: a value is out of range.
        """
        with self.lock:
            if self.journal.has(op):
                return self.describe(key)
            self._check_version(key, version)
            old, grid = self.status(key), self._grid(key)
            x, y, w, h = box
            names = old.tags if tags is None else tuple(
                self.workspace.class_name(index) for index in tags
                if 1 <= index <= len(self.workspace.classes))
            if (min(box) < 0 or y + h > grid.shape[0] or x + w > grid.shape[1]
                    or len(pixels) != w * h or state not in STATES):
                raise ValueError("the edit does not fit the photo")
            after = np.frombuffer(pixels, np.uint8).reshape(h, w)
            if ((after > len(self.workspace.classes)) & (after != IGNORE)).any():
                raise ValueError("a pixel has no class")
            held = self.journal.base(key)
            base, first = held or (work.encode(self._base(key)), old)
            self.journal.add(key, base, first, Edit(op, what[:80], box, grid[y:y + h, x:x + w],
                                                    after, old, Status(state, names)))
            self._publish(key)
            return self.describe(key)

    def move(self, key: str, version: int, back: bool) -> JsonObject:
        """Undo a photo's last edit, or do the last undone one again."""
        with self.lock:
            self._check_version(key, version)
            self.journal.move(key, back)
            self._publish(key)
            return self.describe(key)

    def states(self, since: int = -1) -> dict[str, str]:
        """Id to state of the photos that were changed after a change; of all that are not new."""
        with self.lock:
            held = (set() if since >= 0 else
                    {key for key in self.photos if work.correction_stamp(self.workspace, key)})
            keys = {key for key, _, _ in self.journal.known(since)} | held
            return {key: self.status(key).state for key in keys if key in self.photos}

    def _check_version(self, key: str, version: int) -> None:
        if self.journal.changed(key) != version:
            raise Conflict

    def _base(self, key: str) -> npt.NDArray[np.uint8]:
        """What the photo showed before its first edit (H, W)."""
        held = self.journal.base(key)
        if held:
            return _decoded(held[0])
        found = work.read_correction(self.workspace, key)
        found = self.shown.read(key) if found is None else found
        if found is None:
            found = np.full(photo_size(self.workspace.image_path(self.photo(key))), IGNORE,
                            np.uint8)
        return found

    def _grid_of(self, labels: npt.NDArray[np.uint8]) -> tuple[int, int]:
        shrink = min(1.0, GRID / max(labels.shape))
        height, width = (max(1, round(side * shrink)) for side in labels.shape)
        return height, width

    def _grid(self, key: str) -> npt.NDArray[np.uint8]:
        """A photo's labels on the grid (h, w), with all edits that are not undone."""
        base = self._base(key)
        grid = _scaled(base, self._grid_of(base)).copy()
        for edit in self.journal.edits(key):
            x, y, w, h = edit.box
            grid[y:y + h, x:x + w] = edit.after
        return grid

    def _publish(self, key: str) -> None:
        """Make mask and tags on disk what the journal says; again after a kill in between."""
        status = self.status(key)
        if status.tags != self.photo(key).tags:
            self.workspace = work.set_tags(self.path, key, status.tags)
            self.photos = {photo.id: photo for photo in self.workspace.photos(self.split)}
        if status.state in _WRITTEN:
            base, grid = self._base(key), self._grid(key)
            changed = grid != _scaled(base, grid.shape)
            work.write_correction(self.workspace, key, np.where(
                _scaled(changed, base.shape), _scaled(grid, base.shape), base))
        else:
            work.drop_correction(self.workspace, key)
        self.journal.stamp(key, work.correction_stamp(self.workspace, key))

    def _forget_replaced(self) -> None:
        """Finish what a kill interrupted; forget photos whose mask somebody else has replaced."""
        for key, _, stamp in self.journal.known():
            if key not in self.photos:
                continue
            if stamp == "unwritten":
                self._publish(key)
            elif stamp != work.correction_stamp(self.workspace, key):
                self.journal.forget([key])

    def _usual_order(self) -> str:
        try:
            work.rank(self.workspace, self.shown, [], "uncertain", self.split)
        except VplError:
            return "worst-tags"
        return "uncertain"


@functools.lru_cache(maxsize=8)
def _decoded(content: bytes) -> npt.NDArray[np.uint8]:
    return work.decode(content)


def _scaled(labels: npt.NDArray[Any], size: tuple[int, ...]) -> npt.NDArray[Any]:
    """Scale labels (H, W) to another size by the nearest pixel."""
    if labels.shape == tuple(size):
        return labels
    rows = (np.arange(size[0]) + 0.5) * labels.shape[0] / size[0]
    columns = (np.arange(size[1]) + 0.5) * labels.shape[1] / size[1]
    return labels[rows.astype(int)[:, None], columns.astype(int)[None]]


class Pictures:
    """Photos for the screen, thumbnails and regions, the last ones kept in memory."""

    def __init__(self) -> None:
        self.photo = functools.lru_cache(maxsize=16)(self._photo)
        self.thumb = functools.lru_cache(maxsize=4000)(self._thumb)
        self.regions = functools.lru_cache(maxsize=16)(self._regions)

    def _photo(self, path: Path, _stamp: float) -> bytes:
        return _jpeg(Image.fromarray(_pixels(path)), SCREEN, 88)

    def _thumb(self, path: Path, _stamp: float) -> bytes:
        from PIL import ImageOps

        # A JPEG is decoded at an eighth of its size; other photos are read whole.
        with Image.open(path) as image:
            if image.format == "JPEG":
                image.draft("RGB", (2 * THUMB, 2 * THUMB))
                return _jpeg(ImageOps.exif_transpose(image).convert("RGB"), 2 * THUMB, 80)
        return _jpeg(Image.fromarray(_pixels(path)), 2 * THUMB, 80)

    def _regions(self, path: Path, _stamp: float) -> tuple[tuple[int, int], list[bytes]]:
        found = photo_regions(_pixels(path))
        return found[0].shape, [one.tobytes() for one in found]


@functools.lru_cache(maxsize=3)
def _read_once(path: Path, _stamp: float) -> npt.NDArray[np.uint8]:
    return read_photo(path)


def _pixels(path: Path) -> npt.NDArray[np.uint8]:
    return _read_once(path, path.stat().st_mtime)


def _jpeg(image: Image.Image, side: int, quality: int) -> bytes:
    image.thumbnail((side, side))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return content.getvalue()
