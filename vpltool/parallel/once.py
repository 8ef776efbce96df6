"""A lock: only one process of this machine does a piece of work; others get an error."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from vpltool.errors import VplError


@contextlib.contextmanager
def once(folder: Path, work: str, call: str) -> Iterator[None]:
    """Run a block unless another process on this machine is running the same work.

    The system gives the lock back when a process ends, however it ends. Processes of other
    machines are not seen; nor do they harm, since files are written whole.

    Args:
        folder: the workspace.
        work: what is done there: two processes with the same words do the same.
        spelled: the work as a call, for who comes second.

    Raises:
        VplError: another process is doing it.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(_lock_file(folder, work).open("a+"))
        except OSError:
            # Without a folder for locks the work is done all the same.
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise _is_running(folder, call, file.read()) from None
        except OSError:
            yield
            return
        file.truncate(0)
        file.write(json.dumps({"process": os.getpid(), "since": time.time()}))
        file.flush()
        yield


def _lock_file(folder: Path, work: str) -> Path:
    """The lock of a piece of work; beside the workspace, since that may be read-only or shared."""
    locks = Path(tempfile.gettempdir()) / f"vpltool-{os.getuid()}"
    locks.mkdir(mode=0o700, exist_ok=True)
    if locks.lstat().st_uid != os.getuid():
        raise PermissionError(f"{locks} belongs to another user")
    name = hashlib.sha256(f"{folder.resolve()}\n{work}".encode("utf-8", "surrogateescape"))
    return locks / f"{name.hexdigest()[:24]}.lock"


def _is_running(folder: Path, call: str, content: str) -> VplError:
    try:
        known = json.loads(content)
        process, since = int(known["process"]), time.localtime(float(known["since"]))
        who = f"process {process}, since {time.strftime('%H:%M:%S', since)}"
    except (ValueError, KeyError, TypeError):
        # It has the lock, and has not said so yet.
        process, who = 0, "another process, since just now"
    return VplError(f"{call} is already running in {folder.resolve()}: {who}",
                    "wait for it, and run this again to see that all is done"
                    + (f"; kill {process} ends it, and what it has written is kept" if process
                       else "") + "; with `shard='0/2'` and `shard='1/2'` two processes share it")
