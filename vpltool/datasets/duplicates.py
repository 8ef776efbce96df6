"""Photos that are listed twice, under several ids: files with the same bytes."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vpltool.datasets.tags import some
from vpltool.formats import Photo


def same_photos(images: Path, photos: Sequence[Photo]) -> list[str]:
    """Return a remark if photos with the same bytes have different ids; else nothing."""
    groups = _same_files([images / photo.image for photo in photos])
    if not groups:
        return []
    splits = {images / photo.image: set(photo.splits) for photo in photos}
    names = [" and ".join(path.relative_to(images).as_posix() for path in group)
             for group in groups]
    apart = sum(any(splits[path] != splits[group[0]] for path in group) for group in groups)
    return [f"the same photo is listed under several ids: {some(names, '; ')}"
            + (f" ({apart} of these {len(groups)} in different splits: scores would be too good)"
               if apart else "")]


def _same_files(paths: Sequence[Path]) -> list[list[Path]]:
    """Return groups of files with the same bytes; only files of equal size are read."""
    groups = [list(paths)]
    # Threads: on a network disk each access costs a round trip.
    with ThreadPoolExecutor(16) as pool:
        for look in (_size, _middle, _digest):
            parts: dict[Hashable, list[Path]] = defaultdict(list)
            for number, group in enumerate(groups):
                for path, seen in zip(group, pool.map(look, group), strict=True):
                    if seen:
                        parts[number, seen].append(path)
            groups = [part for part in parts.values() if len(part) > 1]
    return groups


def _size(path: Path) -> int:
    """Return the size of a file in bytes; 0 if it is missing."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _middle(path: Path) -> bytes:
    """Return 4096 bytes from the middle of a file, where pixels are; empty if it is unreadable."""
    try:
        with path.open("rb") as file:
            file.seek(file.seek(0, 2) // 2)
            return file.read(4096)
    except OSError:
        return b""


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file; empty if it is unreadable."""
    try:
        with path.open("rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return ""
