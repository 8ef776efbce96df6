"""Locks within one machine: against the same work twice, and against two writers of a folder.

The second process gets an error. On Windows there are no such locks, and no error.
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
from typing import Any, TextIO, TypeAlias

from vpltool.errors import VplError

_TRIES = 50
"""Looks at the record of a lock, 10 ms apart, before a round gives up."""

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def once(folder: Path, work: str, call: str, *, shards: bool = False) -> Iterator[None]:
    """Run a block, or raise a VplError if another process on this machine is doing the same work.

    Processes with the same description of their `work` do the same; `call` is the work as a call,
    for the error message. The system releases the lock when the process ends, however it ends.
    Rounds of one run wait for each other.
    Processes on other machines are not detected, but do no harm: files are written atomically.
    """
    with contextlib.ExitStack() as stack:
        # If no lock file can be made, the work is done anyway.
        with contextlib.suppress(OSError):
            file = stack.enter_context(_lock_file(folder, work).open("a+"))
            if not _claim(file):
                if not _is_of_a_round_beside(file):
                    raise _is_running(folder, call, _known(file), shards)
                # Another round does the same; then all is done.
                fcntl.flock(file, fcntl.LOCK_EX)
                _claim(file)
        yield


_Round: TypeAlias = tuple[str, ...]
"""Name of a run, and the rounds of it that are nested here, such as `tau 0.1`."""

_round: ContextVar[_Round] = ContextVar("round", default=())


@contextlib.contextmanager
def one_round(outer: _Round, title: str) -> Iterator[None]:
    """Run a block as the round `tau 0.1` in an outer one, see `this_round`; see `write_alone`."""
    token = _round.set((*outer, title))
    try:
        yield
    finally:
        _round.reset(token)


def this_round() -> _Round:
    """Return the round that runs here; outside of any, the name of a new run."""
    return _round.get() or (f"{os.getpid()}-{time.time_ns()}",)


def _is_of_a_round_beside(file: TextIO) -> bool:
    """Return whether a round of this run holds a lock; it may have no record of it yet."""
    run = _round.get()[:1]
    for _ in range(_TRIES if run else 0):
        known = _known(file)
        if known is not None and known["round"][:1] == run:
            return True
        time.sleep(0.01)
    return False


def _claim(file: TextIO, work: str = "") -> bool:
    """Acquire a lock and record its holder; return False if another process holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    file.truncate(0)
    file.write(json.dumps({"process": os.getpid(), "since": time.time(), "work": work,
                           "round": _round.get()}))
    file.flush()
    return True


_writing: ContextVar[tuple[contextlib.ExitStack, str] | None] = ContextVar("writing", default=None)


@contextlib.contextmanager
def writer(work: str = "") -> Iterator[None]:
    """Run a block whose outputs are locked by `write_alone`; all locks are released at the end.

    Processes with the same description of their `work` (shards, ranks) may write to the same
    output. By default, the work is that of the block around this one.
    """
    around = "" if work else (_writing.get() or (None, ""))[1]
    with contextlib.ExitStack() as stack:
        token = _writing.set((stack, around or hashlib.sha256(work.encode()).hexdigest()))
        try:
            yield
        finally:
            _writing.reset(token)


def write_alone(path: Path) -> None:
    """Lock a folder or file against other work on this machine until the `writer` block ends.

    Call this before looking at existing files: otherwise commands with other settings could mix.
    Raises a VplError if other work is writing it, or if another round has written it: rounds run in
    any order, so the last one would be chosen by chance.
    """
    writing = _writing.get()
    if writing is None:
        return
    stack, work = writing
    try:
        file = stack.enter_context(_lock_file(path, "output").open("a+"))
        before = _known(file)
        if before is not None and before["work"] != work:
            _check_round(path, before["round"])
        _claim(file, work)
        # The lock is released for a moment; a process that claims it meanwhile goes first.
        fcntl.flock(file, fcntl.LOCK_SH)
    except OSError:
        # Without a folder for locks the work is done anyway.
        return
    known = _known(file)
    if known is not None and known["work"] != work and known["process"] != os.getpid():
        _check_round(path, known["round"])
        raise VplError(
            f"{path} is being written with other settings by {_who(known)}",
            f"wait for it, then run this again; kill {known['process']} ends it")


def _check_round(path: Path, before: _Round) -> None:
    """Check that the round that wrote a path is none beside this one."""
    here = _round.get()
    # An inner round and the lines beside it in the outer one follow each other.
    differing = next((pair for pair in zip(before, here, strict=False) if pair[0] != pair[1]), None)
    if here[:1] == before[:1] and differing:
        other, title = differing
        raise VplError(f"the rounds {other} and {title} both write {path}",
                       f"put ${title.partition(' ')[0]} into the name or path of each result of a "
                       "round")


def _known(file: TextIO) -> dict[str, Any] | None:
    """Return the record of a lock's holder; None if it has not been written yet."""
    file.seek(0)
    try:
        known = json.loads(file.read())
        return {"process": int(known["process"]), "since": float(known["since"]),
                "work": str(known.get("work", "")), "round": tuple(known.get("round", ()))}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _who(known: Mapping[str, Any]) -> str:
    since = time.strftime("%H:%M:%S", time.localtime(known["since"]))
    return f"process {known['process']}, since {since}"


def _lock_file(folder: Path, work: str) -> Path:
    """Return the lock file of some work; not in the workspace, which may be read-only or shared."""
    if fcntl is None:
        raise OSError("this system has no locks")
    locks = Path(tempfile.gettempdir()) / f"vpltool-{os.getuid()}"
    locks.mkdir(mode=0o700, exist_ok=True)
    if locks.lstat().st_uid != os.getuid():
        raise PermissionError(f"{locks} belongs to another user")
    name = hashlib.sha256(f"{folder.resolve()}\n{work}".encode("utf-8", "surrogateescape"))
    return locks / f"{name.hexdigest()[:24]}.lock"


def _is_running(folder: Path, call: str, known: dict[str, Any] | None, shards: bool) -> VplError:
    # Without a record, the holder has just acquired the lock.
    who = _who(known) if known else "another process, since just now"
    return VplError(f"{call} is already running in {folder.resolve()}: {who}",
                    "wait for it"
                    + (f"; kill {known['process']} ends it, and what it has written is kept"
                       if known else "")
                    + ("; with `shard='0/2'` and `shard='1/2'` two processes share it" if shards
                       else ""))
