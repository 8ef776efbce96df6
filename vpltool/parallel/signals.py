"""Handling of SIGINT and SIGTERM, which both end a run, but never within a write."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

_STOPS = (signal.SIGINT, signal.SIGTERM)


def in_main_thread() -> bool:
    """Return whether this is the main thread, the only one that can set signal handlers."""
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def interrupt_at_sigterm() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt like Ctrl-C, so that workers end and users are told.

    Keeps a program's own SIGTERM handler. Does nothing outside of the main thread.
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
"""Signals that raised KeyboardInterrupt since `remember_interrupts` began."""


@contextlib.contextmanager
def remember_interrupts() -> Iterator[None]:
    """Let Ctrl-C be recorded while the block runs, since its KeyboardInterrupt may be swallowed.

    Python swallows exceptions in destructors, some of which run at every import, and libraries do
    by a bare `except`. So long-running code calls `check_interrupts` now and then.
    """
    _come.clear()
    if not in_main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def was_interrupted() -> bool:
    """Return whether Ctrl-C or SIGTERM came since `remember_interrupts` began."""
    return bool(_come)


def check_interrupts() -> None:
    """Raise KeyboardInterrupt in the main thread if an earlier one was swallowed."""
    if _come and in_main_thread():
        raise KeyboardInterrupt


def interrupt(number: int, _frame: object) -> None:
    """Record the signal, and raise KeyboardInterrupt; a signal handler."""
    _come.append(number)
    raise KeyboardInterrupt


def remember(number: int, _frame: object) -> None:
    """Record the signal for `check_interrupts`; a signal handler."""
    _come.append(number)


@contextlib.contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt while a worker has a job, also if it came before.

    Between two jobs it is remembered: ending an idle worker would break the pool.
    """
    signal.signal(signal.SIGTERM, interrupt)
    try:
        check_interrupts()
        yield
    finally:
        signal.signal(signal.SIGTERM, remember)


@contextlib.contextmanager
def defer_interrupts(*, every: bool = False) -> Iterator[Callable[[], bool]]:
    """Defer Ctrl-C and SIGTERM until the caller asks, so that a training step is never cut short.

    Yields a function that returns whether a signal came; the caller then saves, and the end of the
    block raises KeyboardInterrupt. Unless `every` signal is deferred, a second one interrupts at
    once. Ignored signals stay ignored; nothing is deferred outside of the main thread.
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
            # None: the handler was set in C, and cannot be restored from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    if come:
        raise KeyboardInterrupt


@contextlib.contextmanager
def block_interrupts() -> Iterator[None]:
    """Block Ctrl-C and SIGTERM while workers start or end: one half started would never be ended.

    Workers inherit the mask: Ctrl-C reaches the whole process group, but only the parent decides.
    The parent also defers them, because a signal blocked in one thread goes to another, such as
    torch's. Windows cannot block signals; there workers ignore Ctrl-C from `begin_worker` on.
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
    """Leave Ctrl-C to the parent, but let SIGTERM end this worker, as when the pool breaks."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
