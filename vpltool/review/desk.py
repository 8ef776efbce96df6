"""The state of a review: photos with their masks, corrections, and undoing.

Masks are edited on a grid of at most `GRID` pixels per side. Of a larger mask, only pixels change
whose grid cell was edited.
"""

from __future__ import annotations

import functools
import io
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from vpltool import console
from vpltool.core.photos import photo_size
from vpltool.core.proposals import from_tensors
from vpltool.datasets.tags import write_tags
from vpltool.engine.labelling import take_corrections
from vpltool.engine.panels import columns_there
from vpltool.errors import VplError
from vpltool.formats import IGNORE, JsonObject, open_input, open_workspace, read_labels
from vpltool.formats.changes import last_call
from vpltool.formats.corrections import FOLDER
from vpltool.formats.input_folders import names_in
from vpltool.formats.kinds import REVIEWED_TAGS, folder_of, result_path
from vpltool.formats.labels import png_bytes
from vpltool.formats.workspace import write_workspace
from vpltool.lazy import Image, np, npt
from vpltool.review import orders, pictures
from vpltool.review.journal import UNWRITTEN, Box, Edit, Journal, Status

OWN = "review"
"""Folder of the workspace that holds the journal, the tags and the earlier states."""

_BEFORE = "before training "

GRID = 1600
"""Longest side in pixels of a mask that is edited."""

STATES = ("new", "accepted", "corrected", "skipped")
_WRITTEN = ("accepted", "corrected")


class Conflict(Exception):
    """A photo was changed in another window."""


class Desk:
    """Photos of a split, with their masks; all methods may be called from any thread."""

    def __init__(self, path: Path, what: str, split: str, order: str) -> None:
        """Open the workspace, and finish writes that a kill interrupted.

        Raises:
            VplError: there are no masks, or nothing to order the photos by.
        """
        self.path, self.split, self.lock = path, split, threading.RLock()
        self.journal = Journal(path / OWN / "journal.sqlite")
        self._open(what)
        for key, (_, stamp) in self.journal.known().items():
            if key in self.photos and stamp == UNWRITTEN:
                self._publish(key)
            elif key in self.photos and stamp != self._stamp(key):
                # Another program has replaced the mask.
                self.journal.forget([key])
        self.order = order
        self.ids = self.ordered(order)

    def _open(self, what: str) -> None:
        self.workspace = open_workspace(self.path)
        self.photos = {photo.id: photo for photo in self.workspace.photos(self.split)}
        self.shown = orders.find_shown(self.workspace, what, self.split)
        self.proposals = {
            name: open_input(result_path(self.path, "proposals", name, self.split), ("proposals",))
            for name in names_in(folder_of(self.path, "proposals"), self.split)}

    def reopen(self, what: str) -> None:
        """Show other masks, such as those after training, of photos without edits."""
        with self.lock:
            self._open(what)
            self.journal.forget(self.journal.unedited())
            self.ids = [key for key in self.ids if key in self.photos]

    def ordered(self, order: str) -> list[str]:
        """Return the ids of all photos in an order, see `rank`."""
        return orders.rank(self.workspace, self.shown, list(self.photos.values()), order,
                           self.split)

    @property
    def what(self) -> str:
        """Name of the shown masks, such as `predictions/segmenter`."""
        return f"{self.shown.kind}/{self.shown.name}"

    @property
    def scored(self) -> JsonObject:
        """Settings of `eval` for the curve: the split `val` if there is one, and tags if it has no
        true masks."""
        photos = self.workspace.photos()
        name = "val" if any("val" in photo.splits for photo in photos) else self.split
        masks = any(photo.mask for photo in photos if name in photo.splits)
        return {"split": name, "against": "masks" if masks else "tags"}

    @property
    def layers(self) -> list[str]:
        """Names of masks and predictions of the split, and of earlier states of those shown."""
        rounds = sorted((self.path / OWN / "rounds").glob("*"), key=lambda path: int(path.name))
        return [name for name in columns_there(self.path, self.split)
                if name.partition("/")[0] in ("masks", "predictions")] + [
            f"{_BEFORE}{path.name}" for path in rounds]

    @property
    def scales(self) -> list[str]:
        """Names of the kinds of regions of a photo."""
        return [*pictures.SCALES, *(f"proposals {name}" for name in self.proposals)]

    def file(self, key: str) -> pictures.Stamped:
        """Return a photo's file, see `pictures`; ids are only looked up, never used as paths.

        Raises:
            KeyError: no photo has this id.
        """
        path = self.workspace.image_path(self.photos[key])
        return path, path.stat().st_mtime

    def regions(self, key: str) -> npt.NDArray[np.uint16]:
        """Number a photo's regions at each of `scales` (scales, h, w)."""
        found = pictures.superpixels(self.file(key))
        return np.stack([*found, *(
            pictures.proposal_regions(from_tensors(folder.read_tensors(key)), found[0])
            if folder.holds(key) else found[0] for folder in self.proposals.values())])

    def status(self, key: str) -> Status:
        """Return a photo's state and tags."""
        return self.journal.status(key) or Status("corrected" if self._stamp(key) else "new",
                                                  self.photos[key].tags)

    def describe(self, key: str) -> tuple[JsonObject, npt.NDArray[np.uint8]]:
        """Return a photo's data for the page, and its labels on the grid (h, w)."""
        with self.lock:
            status = self.status(key)
            return {"id": key, "version": self.journal.changed(key), "state": status.state,
                    "tags": [self.workspace.index_of(tag) for tag in status.tags],
                    "redo": len(self.journal.edits(key, undone=True)),
                    "history": [edit.what for edit in self.journal.edits(key)]}, self._grid(key)

    def layer(self, key: str, name: str) -> npt.NDArray[np.uint8]:
        """Return a photo's labels on the grid (h, w) in one of `layers`; `computed`: as shown."""
        with self.lock:
            if name not in ("computed", *self.layers):
                raise VplError(f"no masks are called {name!r}", "reload the page")
            if name.startswith(_BEFORE):
                path = self.path / OWN / "rounds" / name.split()[-1] / f"{key}.png"
                found = read_labels(path) if path.is_file() else None
            else:
                found = orders.labels_of(self.shown if name == "computed" else orders.find_shown(
                    self.workspace, name, self.split), key)
            size = _grid_of(self._base(key))
            return np.full(size, IGNORE, np.uint8) if found is None else _scaled(found, size)

    def edit(self, key: str, version: int, op: str, what: str, box: Box, pixels: bytes,
             state: str, tags: tuple[int, ...] | None) -> None:
        """Add an edit to a photo, see `Edit`, and write the corrected mask.

        Args:
            key, op, what, box, state: id of the photo; see `Edit`.
            version: number of the change after which the edit was made.
            pixels: the labels in the box, row by row.
            tags: class indices of the photo's tags after the edit; None: unchanged.

        Raises:
            Conflict: the photo was changed since.
            ValueError: a value is out of range.
        """
        with self.lock:
            if self.journal.has(op):
                return
            self._check_version(key, version)
            old, base, classes = self.status(key), self._base(key), self.workspace.classes
            names = old.tags if tags is None else tuple(
                self.workspace.class_name(index) for index in tags if 1 <= index <= len(classes))
            x, y, width, height = box
            rows, columns = _grid_of(base)
            if (min(box) < 0 or y + height > rows or x + width > columns
                    or len(pixels) != width * height or state not in STATES):
                raise ValueError("the edit does not fit the photo")
            labels = np.frombuffer(pixels, np.uint8).reshape(height, width)
            if ((labels > len(classes)) & (labels != IGNORE)).any():
                raise ValueError("a pixel has no class")
            self.journal.add(key, self.journal.base(key) or png_bytes(base), old,
                             Edit(op, what[:80], box, labels, Status(state, names)))
            self._publish(key)

    def move(self, key: str, version: int, *, back: bool) -> None:
        """Undo a photo's last edit, or redo the last undone one.

        Raises:
            Conflict: the photo was changed since.
        """
        with self.lock:
            self._check_version(key, version)
            self.journal.move(key, back=back)
            self._publish(key)

    def states(self, since: int = -1) -> dict[str, str]:
        """Return states by id of photos changed after a change; by default, of all but new ones."""
        with self.lock:
            found = {key: status.state for key, (status, _) in self.journal.known(since).items()
                     if key in self.photos}
            held = () if since >= 0 else [key for key in self.photos if self._stamp(key)]
            return dict.fromkeys(held, "corrected") | found

    def _check_version(self, key: str, version: int) -> None:
        if self.journal.changed(key) != version:
            raise Conflict("this photo was changed in another window")

    def _corrected(self, key: str) -> Path:
        return self.workspace.path / FOLDER / f"{key}.png"

    def _stamp(self, key: str) -> str:
        """Identify the file of a photo's corrected mask; empty if there is none."""
        try:
            found = self._corrected(key).stat()
        except OSError:
            return ""
        return f"{found.st_mtime_ns}:{found.st_size}"

    def _base(self, key: str) -> npt.NDArray[np.uint8]:
        """Return a photo's mask before its first edit (H, W)."""
        if held := self.journal.base(key):
            return _decoded(held)
        if self._stamp(key):
            return read_labels(self._corrected(key))
        found = orders.labels_of(self.shown, key)
        return found if found is not None else np.full(
            photo_size(self.file(key)[0]), IGNORE, np.uint8)

    def _grid(self, key: str) -> npt.NDArray[np.uint8]:
        """Return a photo's labels on the grid (h, w), with all edits that are not undone."""
        base = self._base(key)
        grid = _scaled(base, _grid_of(base)).copy()
        for edit in self.journal.edits(key):
            x, y, width, height = edit.box
            grid[y:y + height, x:x + width] = edit.pixels
        return grid

    def _publish(self, key: str) -> None:
        """Write mask and tags as in the journal; repeatable after a kill."""
        status = self.status(key)
        if status.tags != self.photos[key].tags:
            self._set_tags(key, status.tags)
            self.workspace = open_workspace(self.path)
            self.photos = {photo.id: photo for photo in self.workspace.photos(self.split)}
        if status.state in _WRITTEN:
            base, grid = self._base(key), self._grid(key)
            changed = grid != _scaled(base, grid.shape)
            labels = np.where(_scaled(changed, base.shape), _scaled(grid, base.shape), base)
            with console.heard_by(console.Silence()):
                take_corrections(self.workspace, {key: lambda: labels}, has_journal=True)
        else:
            self._corrected(key).unlink(missing_ok=True)
        self.journal.stamp(key, self._stamp(key))

    def _set_tags(self, key: str, tags: tuple[str, ...]) -> None:
        """Change a photo's tags in `images.jsonl`, but not in the user's CSV.

        Later calls of `prepare` read a changed copy of that CSV, `review/tags.csv`.
        """
        workspace = open_workspace(self.path)
        photos = [replace(photo, tags=tags) if photo.id == key else photo
                  for photo in workspace.photos()]
        call = last_call(self.path)
        if call.get("method") == "folder":
            call |= {"labels": REVIEWED_TAGS}
            write_tags(self.path / REVIEWED_TAGS, photos, str(call.get("halve", "")))
        write_workspace(workspace, photos, call)


@functools.lru_cache(maxsize=8)
def _decoded(content: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        return np.array(image, np.uint8)


def _grid_of(labels: npt.NDArray[np.uint8]) -> tuple[int, int]:
    shrink = min(1.0, GRID / max(labels.shape))
    height, width = (max(1, round(side * shrink)) for side in labels.shape)
    return height, width


def _scaled(labels: npt.NDArray[Any], size: tuple[int, ...]) -> npt.NDArray[Any]:
    """Scale labels (H, W) to another size by nearest neighbours."""
    if labels.shape == tuple(size):
        return labels
    rows = (np.arange(size[0]) + 0.5) * labels.shape[0] / size[0]
    columns = (np.arange(size[1]) + 0.5) * labels.shape[1] / size[1]
    return labels[rows.astype(int)[:, None], columns.astype(int)[None]]
