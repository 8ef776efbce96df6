"""The journal of a review, `review/journal.sqlite`: every edit, so that each can be undone later.

An edit holds the pixels of its box before and after, and the photo's state and tags. What a photo
showed first is kept too: the corrected mask is that, with the edits that are not undone.
"""

from __future__ import annotations

import json
import sqlite3
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpltool.lazy import np, npt

_TABLES = """
CREATE TABLE IF NOT EXISTS photos (id TEXT PRIMARY KEY, base BLOB, state TEXT, tags TEXT,
    changed INTEGER, stamp TEXT);
CREATE TABLE IF NOT EXISTS edits (n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT, op TEXT UNIQUE,
    what TEXT, x INTEGER, y INTEGER, w INTEGER, h INTEGER, before BLOB, after BLOB,
    old TEXT, new TEXT, undone INTEGER DEFAULT 0, at REAL);
CREATE INDEX IF NOT EXISTS by_photo ON edits (id, n);
"""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Status:
    """A photo's state (`new`, `accepted`, `corrected`, `skipped`) and tags."""

    state: str
    tags: tuple[str, ...]

    def to_json(self) -> str:
        """Return it as JSON."""
        return json.dumps([self.state, self.tags], ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Status:
        """Read what `to_json` has made."""
        state, tags = json.loads(text)
        return cls(state, tuple(tags))


@dataclass(frozen=True)
class Edit:
    """One edit: what it was, the pixels of its box, and the photo's status after it."""

    op: str
    what: str
    box: Box
    before: npt.NDArray[np.uint8]
    after: npt.NDArray[np.uint8]
    old: Status
    new: Status


class Journal:
    """The journal; its caller lets one thread in at a time."""

    def __init__(self, path: Path) -> None:
        """Open it, or begin one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._file.executescript(_TABLES)

    @property
    def newest(self) -> int:
        """Number of the last change."""
        return int(self._file.execute("SELECT coalesce(max(changed), 0) FROM photos").fetchone()[0])

    def known(self, since: int = -1) -> list[tuple[str, int, str]]:
        """Id, number of the last change and stamp of each photo changed after a number."""
        return self._file.execute(
            "SELECT id, changed, stamp FROM photos WHERE changed > ?", [since]).fetchall()

    def changed(self, key: str) -> int:
        """Number of a photo's last change; 0: none."""
        row = self._file.execute("SELECT changed FROM photos WHERE id = ?", [key]).fetchone()
        return int(row[0]) if row else 0

    def base(self, key: str) -> tuple[bytes, Status] | None:
        """The mask that a photo showed first, as PNG, and its status then; None if unchanged."""
        row = self._file.execute("SELECT base, state, tags FROM photos WHERE id = ?",
                                 [key]).fetchone()
        return (row[0], Status(row[1], tuple(json.loads(row[2])))) if row else None

    def edits(self, key: str) -> list[Edit]:
        """A photo's edits that are not undone, oldest first."""
        return [_edit(row) for row in self._file.execute(
            f"SELECT {_FIELDS} FROM edits WHERE id = ? AND NOT undone ORDER BY n", [key])]

    def ahead(self, key: str) -> int:
        """How many undone edits of a photo can be done again."""
        return int(self._file.execute("SELECT count(*) FROM edits WHERE id = ? AND undone",
                                      [key]).fetchone()[0])

    def has(self, op: str) -> bool:
        """Tell whether an edit came before: a browser sends it again if it heard no answer."""
        return bool(self._file.execute("SELECT 1 FROM edits WHERE op = ?", [op]).fetchone())

    def add(self, key: str, base: bytes, first: Status, edit: Edit) -> None:
        """Add an edit of a photo; what was undone before cannot be done again."""
        with self._file:
            self._file.execute("BEGIN IMMEDIATE")
            self._file.execute("INSERT OR IGNORE INTO photos VALUES (?, ?, ?, ?, 0, '')",
                               [key, base, first.state, json.dumps(first.tags)])
            self._file.execute("DELETE FROM edits WHERE id = ? AND undone", [key])
            self._file.execute(
                f"INSERT INTO edits (id, at, {_FIELDS}) VALUES ({', '.join('?' * 12)})",
                [key, time.time(), edit.op, edit.what, *edit.box, zlib.compress(
                    edit.before.tobytes(), 1), zlib.compress(edit.after.tobytes(), 1),
                 edit.old.to_json(), edit.new.to_json()])
            self._touch(key)

    def move(self, key: str, back: bool) -> Edit | None:
        """Undo a photo's last edit, or do the last undone one again; None if there is none."""
        with self._file:
            self._file.execute("BEGIN IMMEDIATE")
            row = self._file.execute(
                f"SELECT {_FIELDS}, n FROM edits WHERE id = ? AND undone = ? ORDER BY n "
                f"{'DESC' if back else 'ASC'} LIMIT 1", [key, int(not back)]).fetchone()
            if row is None:
                return None
            self._file.execute("UPDATE edits SET undone = ? WHERE n = ?", [int(back), row[-1]])
            self._touch(key)
        return _edit(row[:-1])

    def stamp(self, key: str, stamp: str) -> None:
        """Note that a photo's corrected mask is written, and which file it is."""
        self._file.execute("UPDATE photos SET stamp = ? WHERE id = ?", [stamp, key])

    def forget(self, keys: Sequence[str]) -> None:
        """Forget photos and their edits."""
        with self._file:
            self._file.execute("BEGIN IMMEDIATE")
            for table in ("photos", "edits"):
                self._file.executemany(f"DELETE FROM {table} WHERE id = ?",
                                       [(key,) for key in keys])

    def unedited(self) -> list[str]:
        """Photos all of whose edits are undone."""
        return [row[0] for row in self._file.execute(
            "SELECT id FROM photos WHERE id NOT IN (SELECT id FROM edits WHERE NOT undone)")]

    def count(self) -> int:
        """How many edits there are that are not undone."""
        return int(self._file.execute("SELECT count(*) FROM edits WHERE NOT undone").fetchone()[0])

    def _touch(self, key: str) -> None:
        # A stamp of its own until the mask is written: a kill in between is seen by it.
        self._file.execute("UPDATE photos SET changed = 1 + (SELECT max(changed) FROM photos), "
                           "stamp = 'unwritten' WHERE id = ?", [key])


_FIELDS = "op, what, x, y, w, h, before, after, old, new"


def _edit(row: Sequence[Any]) -> Edit:
    op, what, x, y, w, h, before, after, old, new = row
    first, second = (np.frombuffer(zlib.decompress(part), np.uint8).reshape(h, w)
                     for part in (before, after))
    return Edit(op, what, (x, y, w, h), first, second, Status.from_json(old), Status.from_json(new))
