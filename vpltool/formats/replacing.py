"""What `update` may write: what the same command made before in this workspace, and new files.

A header is data: anybody may have written it. So `update` does not only check what a header says,
but also, where an artifact is about to be written, that it is the one that the header belongs to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path

from vpltool.errors import VplError

_limits: ContextVar[tuple[Path, frozenset[Path]] | None] = ContextVar("limits", default=None)


@contextlib.contextmanager
def replacing_only(work: Path, artifacts: Iterable[Path]) -> Iterator[None]:
    """Let the block write below a folder, and of other settings only these artifacts."""
    token = _limits.set((work.resolve(), frozenset(path.resolve() for path in artifacts)))
    try:
        yield
    finally:
        _limits.reset(token)


def check_replacing(path: Path, *, same: bool) -> None:
    """Check that an artifact may be written where `replacing_only` sets limits.

    Args:
        path: the folder or file.
        same: whether nothing is there, or something that was made with the same settings.

    Raises:
        VplError: it may not.
    """
    limits, target = _limits.get(), path.resolve()
    if limits is None or target in limits[1]:
        return
    if not target.is_relative_to(limits[0]):
        raise VplError(f"{path} is outside of the workspace", "`update` writes nothing there; type "
                       "the command yourself")
    if not same:
        raise VplError(f"{path} was made with other settings than the file whose header asks to "
                       "replace it", "that file was not made here: move it out of the workspace")
