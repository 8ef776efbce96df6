"""What is in a workspace as a tree: each result below what it was made from last."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from vpltool.console import duration
from vpltool.errors import counted
from vpltool.json_text import JsonObject

_UNITS = ("B", "kB", "MB", "GB", "TB")


class Measured(TypedDict):
    """Size in bytes of a file, or of all in a folder, and when the last was written, in s."""

    bytes: int
    written: float


class Listed(Measured):
    """A result as `status` lists it; see there."""

    name: str
    made_by: str
    settings: str
    sources: list[str]
    stale: list[str]
    failed: list[str]
    failed_here: list[str]
    line: str
    shards: list[JsonObject]
    damaged: str


def measured(path: Path) -> Measured:
    """Measure a file or a folder."""
    sizes, times = zip(*((entry.st_size, entry.st_mtime) for entry in _entries(path)), strict=True)
    return {"bytes": sum(sizes), "written": round(max(times), 3)}


def _entries(path: Path) -> Iterator[os.stat_result]:
    if not path.is_dir():
        yield path.stat()
        return
    with os.scandir(path) as entries:
        for entry in entries:
            # What another process is writing may be gone by now.
            with contextlib.suppress(FileNotFoundError):
                if entry.is_dir():
                    yield from _entries(Path(entry.path))
                else:
                    yield entry.stat()


def format_tree(listed: Sequence[Listed]) -> str:
    """Format results as a tree: what made each, from what else, how large it is and how old."""
    below: dict[str, list[Listed]] = {}
    positions = {entry["name"]: position for position, entry in enumerate(listed)}
    for entry in listed:
        known = [source for source in entry["sources"] if source in positions]
        below.setdefault(max(known, key=positions.__getitem__, default=""), []).append(entry)
    rows = list(_rows(below, "", ""))
    width = max(len(name) for name, _, _ in rows)
    now = time.time()
    lines = []
    for name, parent, entry in rows:
        others = [source for source in entry["sources"] if source != parent]
        notes = [entry["made_by"] + (f", also from {', '.join(others)}" if others else "")
                 ] if entry["made_by"] else []
        notes += [f"without {counted(len(entry['failed']), 'photo', 'photos')}"
                  ] if entry["failed"] else []
        notes += ["STALE"] if entry["stale"] else []
        notes += ["DAMAGED"] if entry["damaged"] else []
        lines.append(f"{name:{width}}  {size(entry['bytes']):>7}  "
                     f"{age(max(now - entry['written'], 0)):>8}  {'; '.join(notes)}")
    return "\n".join(lines)


def _rows(below: Mapping[str, Sequence[Listed]], parent: str, indent: str
          ) -> Iterator[tuple[str, str, Listed]]:
    """Name with its branches, parent and entry of each line below a parent."""
    entries = below.get(parent, ())
    for entry in entries:
        last = entry is entries[-1]
        branch = ("└─ " if last else "├─ ") if parent else ""
        yield indent + branch + entry["name"], parent, entry
        deeper = ("   " if last else "│  ") if parent else ""
        yield from _rows(below, entry["name"], indent + deeper)


def age(seconds: float) -> str:
    """Format an age for people: `40 s`, `12 min`, `3.5 h`, `12 days`."""
    return duration(seconds) if seconds < 172800 else f"{seconds / 86400:.0f} days"


def size(count: int) -> str:
    """Format a number of bytes for people: `340 B`, `12 MB`, `1.5 GB`."""
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit and value < 9.95 else f"{value:.0f} {_UNITS[unit]}"
