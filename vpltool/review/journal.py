"""The journal of a review, `review/journal.sqlite`: all edits, which can be undone at any time.

It also holds the original masks: a corrected mask is its original with the edits not undone.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vpltool.errors import VplError
from vpltool.lazy import np, npt

UNWRITTEN = "unwritten"
"""Stamp of a photo until its mask is written, which reveals a kill in between."""

_TABLES = """
CREATE TABLE IF NOT EXISTS photos (id TEXT PRIMARY KEY, base BLOB, first TEXT, status TEXT,
    changed INTEGER, stamp TEXT);
CREATE TABLE IF NOT EXISTS edits (n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT, op TEXT UNIQUE,
    what TEXT, box TEXT, pixels BLOB, status TEXT, undone INTEGER DEFAULT 0);
CREATE INDEX IF NOT EXISTS by_photo ON edits (id, n);
"""

Box = tuple[int, int, int, int]


class Status(NamedTuple):
    """A photo's state (`new`, `accepted`, `corrected`, `skipped`) and tags."""

    state: str
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Edit:
    """An edit of a photo."""

    op: str  # unique name
    what: str  # description for the history
    box: Box  # x, y, width and height on the grid; they may be 0
    pixels: npt.NDArray[np.uint8]  # labels in the box after the edit (height, width)
    status: Status  # of the photo after the edit


class Journal:
    """The journal; callers must use it from one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Open or create it.

        Raises:
            VplError: the file is damaged, or of another version.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        try:
            self._file.executescript(_TABLES)
            self._file.execute("SELECT status, first FROM photos LIMIT 1")
        except sqlite3.DatabaseError as error:
            raise VplError(f"{path} is no journal of this version: {error}",
                           "move it away: corrected masks stay, and only what came before them "
                           "cannot be undone any more") from error

    def known(self, since: int = -1) -> dict[str, tuple[Status, str]]:
        """Return status and stamp of the mask, of each photo changed after a change."""
        return {key: (_status(status), stamp) for key, status, stamp in self._file.execute(
            "SELECT id, status, stamp FROM photos WHERE changed > ?", [since])}

    @property
    def newest(self) -> int:
        """Number of the last change."""
        return int(self._file.execute("SELECT coalesce(max(changed), 0) FROM photos").fetchone()[0])

    def changed(self, key: str) -> int:
        """Return the number of a photo's last change; 0: none."""
        return int(self._of(key, "changed") or 0)

    def status(self, key: str) -> Status | None:
        """Return a photo's status; None if it was never changed."""
        text = self._of(key, "status")
        return _status(text) if text else None

    def base(self, key: str) -> bytes | None:
        """Return a photo's original mask as PNG; None if it was never changed."""
        return self._of(key, "base")

    def _of(self, key: str, column: str) -> Any:
        row = self._file.execute(f"SELECT {column} FROM photos WHERE id = ?", [key]).fetchone()
        return row[0] if row else None

    def edits(self, key: str, *, undone: bool = False) -> list[Edit]:
        """Return a photo's edits that are not undone, or those that are; oldest first."""
        found = []
        for op, what, text, pixels, status in self._file.execute(
                "SELECT op, what, box, pixels, status FROM edits WHERE id = ? AND undone = ? "
                "ORDER BY n", [key, int(undone)]):
            x, y, width, height = json.loads(text)
            labels = np.frombuffer(zlib.decompress(pixels), np.uint8).reshape(height, width)
            found.append(Edit(op, what, (x, y, width, height), labels, _status(status)))
        return found

    def has(self, op: str) -> bool:
        """Return whether an edit is known; a browser repeats it if it got no answer."""
        return bool(self._file.execute("SELECT 1 FROM edits WHERE op = ?", [op]).fetchone())

    def add(self, key: str, base: bytes, first: Status, edit: Edit) -> None:
        """Add an edit of a photo; undone edits can no longer be redone.

        `base` and `first` are its original mask, a PNG, and its original status.
        """
        with self._file:
            self._file.execute("BEGIN IMMEDIATE")
            self._file.execute("INSERT OR IGNORE INTO photos VALUES (?, ?, ?, '', 0, '')",
                               [key, base, json.dumps(first)])
            self._file.execute("DELETE FROM edits WHERE id = ? AND undone", [key])
            self._file.execute(
                "INSERT INTO edits (id, op, what, box, pixels, status) VALUES (?, ?, ?, ?, ?, ?)",
                [key, edit.op, edit.what, json.dumps(edit.box),
                 zlib.compress(edit.pixels.tobytes(), 1), json.dumps(edit.status)])
            self._touch(key)

    def move(self, key: str, *, back: bool) -> None:
        """Undo a photo's last edit, or redo the last undone one, if there is one."""
        with self._file:
            self._file.execute("BEGIN IMMEDIATE")
            self._file.execute(
                "UPDATE edits SET undone = NOT undone WHERE n = (SELECT n FROM edits WHERE id = ? "
                f"AND undone = ? ORDER BY n {'DESC' if back else 'ASC'} LIMIT 1)",
                [key, int(not back)])
            self._touch(key)

    def stamp(self, key: str, stamp: str) -> None:
        """Record that a photo's corrected mask is written, and its stamp."""
        self._file.execute("UPDATE photos SET stamp = ? WHERE id = ?", [stamp, key])

    def forget(self, keys: Iterable[str]) -> None:
        """Forget photos and their edits."""
        with self._file:
            self._file.execute("BEGIN IMMEDIATE")
            for table in ("photos", "edits"):
                self._file.executemany(f"DELETE FROM {table} WHERE id = ?",
                                       [(key,) for key in keys])

    def unedited(self) -> list[str]:
        """Return the photos whose edits are all undone."""
        return [row[0] for row in self._file.execute(
            "SELECT id FROM photos WHERE id NOT IN (SELECT id FROM edits WHERE NOT undone)")]

    def _touch(self, key: str) -> None:
        self._file.execute(
            "UPDATE photos SET changed = 1 + (SELECT max(changed) FROM photos), stamp = ?, "
            "status = coalesce((SELECT status FROM edits WHERE edits.id = photos.id AND NOT undone "
            "ORDER BY n DESC LIMIT 1), first) WHERE id = ?", [UNWRITTEN, key])


def _status(text: str) -> Status:
    state, tags = json.loads(text)
    return Status(state, tuple(tags))
