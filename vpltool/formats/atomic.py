"""Atomic writing of files and folders, and removal of what killed commands leave behind.

Content is written under a temporary name, synced to disk, then renamed: after a power loss, no name
refers to a file of zeros. With `VPLTOOL_FSYNC=0` the operating system decides when to sync.
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

from vpltool.errors import VplError, not_permitted

PART = ".part-"
"""Prefix of temporary names."""

_OURS = re.compile(r"\.part-[0-9a-f]{16}(\..*)?")
"""Our exact temporary names, since exports may lie among files of other programs. GDAL appends
suffixes of its own."""

AT_WORK = 3600
"""Age in seconds below which a temporary file may belong to a running command."""

FSYNC = "VPLTOOL_FSYNC"
"""Environment variable; 0: the operating system decides when bytes reach the disk."""

_EXCHANGE = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS

_TOGETHER, _SECONDS = 64, 0.5
_THREADS = 8


def _part_of(path: Path) -> Path:
    return path.with_name(f"{PART}{os.urandom(8).hex()}{path.suffix}")


def _new_part(path: Path) -> Path:
    """Make a folder, and an empty temporary file in it; return the file."""
    part = _part_of(path)
    for last in (False, True):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not mkstemp, which uses mode 0600: correcting that would mean changing the umask for
            # all threads. Here the system applies it.
            part.touch(mode=0o666, exist_ok=False)
            break
        except (FileNotFoundError, FileExistsError):
            # Another process may just have removed the empty folder, as that of shard manifests.
            if last:
                raise
    return part


@contextlib.contextmanager
def _naming_disk_errors(path: Path) -> Iterator[None]:
    """Turn an error of the disk into one that names the file."""
    try:
        yield
    except OSError as error:
        # `Path.exists` raises an error below a folder that may not be entered.
        there = (above for above in path.absolute().parents if os.access(above, os.F_OK))
        folder = next(there, None)
        if (isinstance(error, PermissionError) and folder
                and not os.access(folder, os.W_OK | os.X_OK)):
            raise not_permitted(folder, "write into", "wx", f"cannot write {path}: ",
                                "; or choose another folder") from error
        full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
        named = f" ({error.filename})" if isinstance(error, PermissionError) else ""
        raise VplError(f"cannot write {path}: {error.strerror or error}{named}",
                       f"{'free some space, or ' if full else ''}choose another folder"
                       ) from error


@contextlib.contextmanager
def atomic_path(path: Path, batch: PendingFiles | None = None) -> Iterator[Path]:
    """Yield a temporary path next to `path`; rename it to `path` if the block succeeds.

    The umask determines permissions. With a batch, the file is renamed later, together with others.

    Raises:
        VplError: the folder cannot be written, or the disk is full.
    """
    temporary = None
    with _naming_disk_errors(path):
        try:
            temporary = _new_part(path)
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
class PendingFiles:
    """Finished temporary files that are synced and renamed together.

    Syncing each file alone costs the disk's latency every time; the system commits many files in
    one journal entry. A killed command loses the files of the last half second.
    """

    _parts: dict[Path, Path] = field(default_factory=dict)
    _since: float = field(default_factory=time.monotonic)

    def take(self, path: Path, part: Path) -> None:
        """Add a finished temporary file; it is renamed soon, at the latest by `name_all`."""
        self._parts[path] = part
        if len(self._parts) >= _TOGETHER or time.monotonic() - self._since >= _SECONDS:
            self.name_all()

    def name_all(self) -> None:
        """Sync the pending files, and rename them.

        Raises:
            VplError: the disk is full.
        """
        parts, self._parts = self._parts, {}
        try:
            with _naming_disk_errors(next(iter(parts), Path())):
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
    # On Windows, fsync needs a descriptor opened for writing.
    descriptor = os.open(file, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems do not support fsync.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `path`; it replaces `path` if the block succeeds.

    The block creates it by writing into it.

    Raises:
        VplError: it cannot be written, or the disk is full.
    """
    part = _part_of(path)
    with _naming_disk_errors(path):
        remove_leftovers(path.parent)
        try:
            yield part
            sync(file for file in part.rglob("*") if file.is_file())
            if not path.exists():
                part.rename(path)
            elif not _exchange(part, path):
                old = _part_of(path)
                try:
                    path.rename(old)
                    part.rename(path)
                except BaseException:
                    if not path.exists():
                        old.rename(path)
                    raise
                shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders atomically; return whether the system supports that."""
    # Report it to audit hooks, since ctypes calls the library without an event.
    sys.audit("os.rename", str(first), str(second), -1, -1)
    one, other = os.fsencode(first), os.fsencode(second)
    try:
        library = ctypes.CDLL(None)
        if sys.platform == "darwin":
            return bool(library.renamex_np(one, other, _EXCHANGE) == 0)
        # -100: relative to the current folder (AT_FDCWD).
        return bool(library.renameat2(-100, one, -100, other, _EXCHANGE) == 0)
    except (OSError, AttributeError):
        return False


def remove_leftovers(folder: Path, below: int = 0) -> None:
    """Delete leftovers of killed commands in a folder, but no files of a running command.

    Searches `below` levels of subfolders as well.
    """
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            # Another process may rename its file at any moment.
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
    """Return the modification time of a file, or of the newest file in a folder, in Unix seconds.

    Raises:
        FileNotFoundError: it no longer exists.
    """
    return max([part.stat().st_mtime, *(file.stat().st_mtime for file in part.rglob("*"))])
