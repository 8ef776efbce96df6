"""Whether this process is ours alone, or a program's that imports vpltool."""

from __future__ import annotations

_own: list[bool] = []


def mark_own() -> None:
    """Note that this process runs nothing else, so that what is one for all of it may be changed.

    A program that imports vpltool keeps its own way of freeing memory, and Pillow's limit.
    """
    _own[:] = [True]


def is_own() -> bool:
    """Return whether `mark_own` was called in this process."""
    return bool(_own)
