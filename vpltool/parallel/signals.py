"""Handling of SIGINT and SIGTERM: both end a run alike, never within a write."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

_STOPS = (signal.SIGINT, signal.SIGTERM)


def in_main_thread() -> bool:
    """Tell whether this is the main thread: no other may say what a signal does."""
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def interrupt_at_sigterm() -> Iterator[None]:
    """Have SIGTERM raise KeyboardInterrupt, as Ctrl-C does: workers end, the user is told.

    A program that has its own way with SIGTERM keeps it. In other threads this does nothing.
    """
    if not in_main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


_come: list[int] = []
"""Ctrl-C that has raised KeyboardInterrupt since `remember_interrupts` began."""


@contextlib.contextmanager
def remember_interrupts() -> Iterator[None]:
    """Remember Ctrl-C while the block runs: its KeyboardInterrupt may be dropped on its way.

    Python drops what is raised in a destructor, some of which run at every import, and libraries
    drop it by a bare `except`. So whoever runs for long calls `check_interrupts` now and then.
    """
    _come.clear()
    if not in_main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def note(number: int, _frame: object) -> None:
        _come.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def was_interrupted() -> bool:
    """Tell whether Ctrl-C has come since `remember_interrupts` began."""
    return bool(_come)


def check_interrupts() -> None:
    """Raise KeyboardInterrupt in the main thread if Ctrl-C has come and was dropped.

    Raises:
        KeyboardInterrupt: whoever is still at work has not heard of it.
    """
    if _come and in_main_thread():
        raise KeyboardInterrupt


def interrupt(_signal: int, _frame: object) -> None:
    """Raise KeyboardInterrupt: what a signal handler may do."""
    raise KeyboardInterrupt


@contextlib.contextmanager
def defer_interrupts(*, every: bool = False) -> Iterator[Callable[[], bool]]:
    """Defer Ctrl-C and SIGTERM until the caller asks: a step of a training is done or not begun.

    What the program ignores stays ignored. In other threads than the main one nothing is deferred.

    Args:
        every: whether the second one is deferred, too; else it comes at once.

    Yields:
        tells whether one has come. The caller then keeps what is done and raises KeyboardInterrupt.

    Raises:
        KeyboardInterrupt: at the end, if one has come.
    """
    if not in_main_thread():
        yield lambda: False
        return
    come: list[int] = []

    def note(number: int, _frame: object) -> None:
        if come and not every:
            raise KeyboardInterrupt
        come.append(number)

    before = {number: signal.signal(number, note) for number in _STOPS
              if signal.getsignal(number) is not signal.SIG_IGN}
    try:
        yield lambda: bool(come)
    finally:
        for number, handler in before.items():
            # None: set by a library in C, which cannot be set again from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    if come:
        raise KeyboardInterrupt


@contextlib.contextmanager
def block_interrupts() -> Iterator[None]:
    """Block Ctrl-C and SIGTERM while workers start or end: half started, one is never told to end.

    Workers inherit this: Ctrl-C reaches the whole group, and only the parent decides. For itself
    the parent defers them: a signal that one thread blocks goes to another, such as torch's.
    Windows cannot block them; there a worker ignores Ctrl-C from `begin_worker` on.
    """
    blocks = hasattr(signal, "pthread_sigmask")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS) if blocks else ()
    try:
        with defer_interrupts(every=True):
            yield
    finally:
        if blocks:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_worker() -> None:
    """Leave Ctrl-C to the parent, and let SIGTERM end this worker: another may break the pool."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
