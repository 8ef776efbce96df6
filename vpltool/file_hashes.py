"""Hashes of files; those of photos and weights are cached by size, times and inode.

The cache is the user's, since times and inodes differ between machines, and the bytes of a
workspace must not. So a file is read once, until it changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vpltool import console
from vpltool.json_text import parse_json

FOLDER = "VPLTOOL_CACHE"
"""Environment variable with the folder of the cache; empty: no cache."""

_THREADS = 8
"""Threads that read files to hash them."""

_MANY = 2000
"""Number of files from which a progress bar is shown."""

_SETTLED = 2_000_000_000
"""Nanoseconds after which another change of a file changes its times, on any file system."""

_Known = Mapping[str, tuple[list[int], str]]
"""File name to stamp and hash."""


def identity_of_file(path: Path) -> str:
    """Return a hash of a file's content: 16 hex digits of SHA-256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def identity_of_bytes(content: bytes) -> str:
    """Return the hash that a file with this content has."""
    return hashlib.sha256(content).hexdigest()[:16]


def cache_folder() -> Path | None:
    """Return the folder of the cache, `~/.cache/vpltool` unless the environment names another."""
    chosen = os.environ.get(FOLDER)
    # Without a home folder, expanduser raises an error.
    with contextlib.suppress(RuntimeError):
        if chosen is not None:
            return Path(chosen).expanduser() if chosen else None
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vpltool"
    return None


def stamp_of(path: Path) -> list[int]:
    """Return what changes with a file's content: size, times and inode; OSError if it is gone."""
    return _stamp(path.stat())


def _stamp(found: os.stat_result) -> list[int]:
    # Copies may keep the time of change of the content, not that of the inode.
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def hashes_of(root: Path, names: Iterable[str]) -> dict[str, str]:
    """Return name to hash of files below a folder; unreadable files are left out.

    Only new and changed files are read. The cache has a file per folder.
    """
    memory = _memory_of(root)
    known, now = _read(memory), time.time_ns()
    stamps = {}
    for name in names:
        with contextlib.suppress(OSError, ValueError):
            there = (root / name).stat()
            # Opening a pipe would wait for a writer.
            if stat.S_ISREG(there.st_mode):
                stamps[name] = _stamp(there)
    found = {name: known[name][1] for name, stamp in stamps.items()
             if name in known and known[name][0] == stamp}
    todo = [name for name in stamps if name not in found]
    if todo:
        made = _hash(root, todo)
        # A file may change twice within a tick of the clock, so young files are read again.
        settled = {name: (stamps[name], made[name]) for name in made
                   if max(stamps[name][1:3]) < now - _SETTLED}
        if memory is not None and settled:
            _write(memory, {**known, **settled})
        found |= made
    return {name: found[name] for name in stamps if name in found}


def _hash(root: Path, names: list[str]) -> dict[str, str]:
    def hashed(name: str) -> str:
        with contextlib.suppress(OSError):
            return identity_of_file(root / name)
        return ""

    with (contextlib.ExitStack() as stack, ThreadPoolExecutor(_THREADS) as pool):
        advance: Callable[[], None] = (
            stack.enter_context(console.progress("hash photos", len(names)))
            if len(names) >= _MANY else lambda: None)
        made = {}
        for name, identity in zip(names, pool.map(hashed, names), strict=True):
            advance()
            if identity:
                made[name] = identity
    return made


def _memory_of(root: Path) -> Path | None:
    folder = cache_folder()
    if folder is None:
        return None
    name = hashlib.sha256(str(root.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return folder / "hashes" / f"{name}.json"


def _read(memory: Path | None) -> _Known:
    """Read a cache file; empty if it is missing or damaged."""
    if memory is None:
        return {}
    try:
        content = parse_json(memory.read_text("utf-8"))
        return {str(name): ([int(number) for number in numbers], str(identity))
                for name, (numbers, identity) in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(memory: Path, known: _Known) -> None:
    """Write a cache file, if the folder can be written."""
    part = memory.with_name(f"{memory.name}.{os.getpid()}.part")
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(known), "utf-8")
        part.replace(memory)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
