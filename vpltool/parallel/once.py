"""Locks: one process of this machine does a piece of work, one piece of work writes a folder.

Others get an error. Windows has no such locks: there nobody is told.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TextIO

from vpltool.errors import VplError

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def once(folder: Path, work: str, call: str, *, shards: bool = False) -> Iterator[None]:
    """Run a block unless another process on this machine is running the same work.

    The system gives the lock back when a process ends, however it ends. Processes of other
    machines are not seen; nor do they harm, since files are written whole.

    Args:
        work: what is done there: two processes with the same words do the same.
        call: the work as a call, for who comes second.

    Raises:
        VplError: another process is doing it.
    """
    with contextlib.ExitStack() as stack:
        # Without a lock the work is done all the same.
        with contextlib.suppress(OSError):
            file = stack.enter_context(_lock_file(folder, work).open("a+"))
            if not _claim(file):
                raise _is_running(folder, call, _known(file), shards)
        yield


def _claim(file: TextIO, work: str = "") -> bool:
    """Take a lock and write into it who has it; or tell that another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    file.truncate(0)
    file.write(json.dumps({"process": os.getpid(), "since": time.time(), "work": work}))
    file.flush()
    return True


_writing: ContextVar[tuple[contextlib.ExitStack, str] | None] = ContextVar("writing", default=None)


@contextlib.contextmanager
def writer(work: str) -> Iterator[None]:
    """Run a block that claims what it writes by `write_alone`; it lets go of all in the end.

    Args:
        work: what is done. Those with the same words may write the same: shards, ranks.
    """
    with contextlib.ExitStack() as stack:
        token = _writing.set((stack, hashlib.sha256(work.encode()).hexdigest()))
        try:
            yield
        finally:
            _writing.reset(token)


def write_alone(path: Path) -> None:
    """Let no other work of this machine write a folder or file until the `writer` is done.

    Call this before looking at what is there: else two commands with different settings would mix.

    Raises:
        VplError: another one does.
    """
    writing = _writing.get()
    if writing is None:
        return
    stack, work = writing
    try:
        file = stack.enter_context(_lock_file(path, "output").open("a+"))
        _claim(file, work)
        # The lock is let go of for a moment: who writes its own words then goes first.
        fcntl.flock(file, fcntl.LOCK_SH)
    except OSError:
        # Without a folder for locks the work is done all the same.
        return
    known = _known(file)
    if known is not None and known["work"] != work and known["process"] != os.getpid():
        raise VplError(
            f"{path} is being written with other settings by {_who(known)}",
            f"wait for it, then run this again; kill {known['process']} ends it")


def _known(file: TextIO) -> dict[str, Any] | None:
    """What a lock's holder says of itself; None if it has not said it yet."""
    file.seek(0)
    try:
        known = json.loads(file.read())
        return {"process": int(known["process"]), "since": float(known["since"]),
                "work": str(known.get("work", ""))}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _who(known: Mapping[str, Any]) -> str:
    since = time.strftime("%H:%M:%S", time.localtime(known["since"]))
    return f"process {known['process']}, since {since}"


def _lock_file(folder: Path, work: str) -> Path:
    """The lock of a piece of work; beside the workspace, since that may be read-only or shared."""
    if fcntl is None:
        raise OSError("this system has no locks")
    locks = Path(tempfile.gettempdir()) / f"vpltool-{os.getuid()}"
    locks.mkdir(mode=0o700, exist_ok=True)
    if locks.lstat().st_uid != os.getuid():
        raise PermissionError(f"{locks} belongs to another user")
    name = hashlib.sha256(f"{folder.resolve()}\n{work}".encode("utf-8", "surrogateescape"))
    return locks / f"{name.hexdigest()[:24]}.lock"


def _is_running(folder: Path, call: str, known: dict[str, Any] | None, shards: bool) -> VplError:
    # Else it has the lock, and has not said so yet.
    who = _who(known) if known else "another process, since just now"
    return VplError(f"{call} is already running in {folder.resolve()}: {who}",
                    "wait for it, and run this again to see that all is done"
                    + (f"; kill {known['process']} ends it, and what it has written is kept"
                       if known else "")
                    + ("; with `shard='0/2'` and `shard='1/2'` two processes share it" if shards
                       else ""))
