"""Files and folders that take their name when they are whole, and what killed commands leave.

What is written takes its name by renaming. Before that its bytes are on the disk, so that after a
power loss a name never stands for a file of zeros. `VPLTOOL_FSYNC=0` leaves that to the system.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from vpltool.errors import VplError

PART = ".part-"
"""Beginning of the names of what is being written."""

_OURS = re.compile(r"\.part-[0-9a-f]{16}(\.[^.]*)?")
"""Such a name exactly: exports and reports may lie among the files of other programs."""

AT_WORK = 3600
"""Seconds for which such a file may be that of a command at work."""

FSYNC = "VPLTOOL_FSYNC"
"""Environment variable; 0: bytes reach the disk when the system likes."""

_TOGETHER, _SECONDS = 64, 0.5
_THREADS = 8


def _part_of(path: Path) -> Path:
    return path.with_name(f"{PART}{os.urandom(8).hex()}{path.suffix}")


@contextlib.contextmanager
def _told(path: Path, option: str) -> Iterator[None]:
    """Turn an error of the disk into one that names the file."""
    try:
        yield
    except OSError as error:
        raise VplError(f"cannot write {path}: {error.strerror or error}",
                       "free some space, or write elsewhere: choose another workspace folder, or "
                       f"give `out='{option}'`") from error


@contextlib.contextmanager
def atomic_path(path: Path, batch: Batch | None = None) -> Iterator[Path]:
    """Yield a temporary path next to `path`; rename it to `path` if the block succeeds.

    The file gets the permissions of the umask. A batch renames it later, together with others.

    Raises:
        VplError: the folder cannot be written, or the disk is full.
    """
    temporary = None
    with _told(path, "PATH"):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = _part_of(path)
            # Not mkstemp, which makes files with mode 0600: reading the umask to correct that
            # means changing it for all threads. Here the system applies it.
            part.touch(mode=0o666, exist_ok=False)
            temporary = part
            yield temporary
            if batch is not None and _syncs():
                batch.take(path, temporary)
                temporary = None
            else:
                sync([temporary])
                temporary.replace(path)
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)


@dataclass
class Batch:
    """Files that are whole, but not on the disk yet; they are synced, then named, together.

    One file after the other would take the disk's delay for each; of many at once the system makes
    one entry in its journal. A command that is killed loses those of half a second.
    """

    _parts: dict[Path, Path] = field(default_factory=dict)
    _since: float = field(default_factory=time.monotonic)

    def take(self, path: Path, part: Path) -> None:
        """Take a file that is written; it gets its name soon, or by `name_all`."""
        self._parts[path] = part
        if len(self._parts) >= _TOGETHER or time.monotonic() - self._since >= _SECONDS:
            self.name_all()

    def name_all(self) -> None:
        """Sync the files that wait, and give them their names.

        Raises:
            VplError: the disk is full.
        """
        parts, self._parts = self._parts, {}
        try:
            with _told(next(iter(parts), Path()).parent, "PATH"):
                sync(parts.values())
                for path, part in parts.items():
                    part.replace(path)
        finally:
            for part in parts.values():
                with contextlib.suppress(OSError):
                    part.unlink(missing_ok=True)
            self._since = time.monotonic()


def _syncs() -> bool:
    return os.environ.get(FSYNC, "1") != "0"


def sync(files: Iterable[Path]) -> None:
    """Wait until the bytes of files are on the disk.

    Raises:
        OSError: the disk is full, or failed.
    """
    waiting = list(files) if _syncs() else []
    if len(waiting) == 1:
        _sync(waiting[0])
    elif waiting:
        with ThreadPoolExecutor(_THREADS) as threads:
            list(threads.map(_sync, waiting))


def _sync(file: Path) -> None:
    # Windows writes the bytes of a file to the disk only for who may write it.
    descriptor = os.open(file, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `path`; it takes the place of `path` if the block succeeds.

    It is not there until something is written into it.

    Raises:
        VplError: it cannot be written, or the disk is full.
    """
    part = _part_of(path)
    with _told(path, "DIR"):
        remove_leftovers(path.parent)
        try:
            yield part
            sync(file for file in part.rglob("*") if file.is_file())
            if not path.exists():
                part.rename(path)
            elif not _exchange(part, path):
                old = _part_of(path)
                path.rename(old)
                part.rename(path)
                shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Let two folders change places in one call; tell whether the system can."""
    # Not sys.audit's own event: ctypes calls the library without one.
    sys.audit("os.rename", str(first), str(second), -1, -1)
    try:
        call = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    # -100: paths as seen from the current folder; 2: RENAME_EXCHANGE.
    done: int = call(-100, os.fsencode(first), -100, os.fsencode(second), 2)
    return done == 0


def remove_leftovers(folder: Path, below: int = 0) -> None:
    """Delete what killed commands have left in a folder, but nothing that may be at work.

    So many levels of folders `below` it are searched, too.
    """
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            # Another process may finish and rename its file at any moment.
            with contextlib.suppress(OSError):
                path, is_folder = Path(entry.path), entry.is_dir(follow_symlinks=False)
                if not _OURS.fullmatch(entry.name):
                    if below and is_folder:
                        remove_leftovers(path, below - 1)
                elif time.time() - newest(path) > AT_WORK:
                    if is_folder:
                        shutil.rmtree(path, ignore_errors=True)
                    else:
                        path.unlink(missing_ok=True)


def newest(part: Path) -> float:
    """When a file, or the newest in a folder, was written; seconds since 1970.

    Raises:
        FileNotFoundError: it is gone.
    """
    return max([part.stat().st_mtime, *(file.stat().st_mtime for file in part.rglob("*"))])
