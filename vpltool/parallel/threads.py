"""Thread pools: reading ahead, writing behind, and concurrent calls."""

from __future__ import annotations

import atexit
import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_reading: dict[threading.Thread, threading.Event] = {}
"""Threads of `read_ahead` to the events that stop them; ended ones until the next call."""


@atexit.register
def _stop_reading() -> None:
    """Stop threads that a traceback has kept: torch aborts if the interpreter ends beneath it."""
    for thread, stopped in list(_reading.items()):
        stopped.set()
        thread.join(timeout=10)  # seconds, for its item; a disk may hang


def _forget_ended() -> None:
    """Forget ended threads, not by their own last line: only after it they free their tensors."""
    for thread in [*_reading]:
        if thread.ident and not thread.is_alive():
            _reading.pop(thread, None)


def read_ahead(batches: Iterator[Item]) -> Iterator[Item]:
    """Run an iterator in a thread, one item ahead; its exceptions are raised here."""
    ready: queue.Queue[Item | BaseException | None] = queue.Queue(maxsize=1)
    stopped = threading.Event()

    def offer(item: Item | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def fill() -> None:
        try:
            for batch in batches:
                offer(batch)
                if stopped.is_set():
                    return
            offer(None)
        except BaseException as error:  # noqa: BLE001 - it is raised again by the reader
            offer(error)

    _forget_ended()
    # Not a pool, whose threads are joined at exit: Ctrl-C would wait for a disk that hangs.
    thread = threading.Thread(target=fill, daemon=True)
    _reading[thread] = stopped
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()


@contextlib.contextmanager
def write_behind(write: Callable[..., None], waiting: int) -> Iterator[Callable[..., None]]:
    """Yield a function that calls `write` in a thread, in order, so that a GPU need not wait.

    Its exceptions surface in a later call, or at the end. At most `waiting` calls are pending,
    which bounds memory; with 0, `write` itself is yielded, since a busy CPU has no time to spare.
    """
    if not waiting:
        yield write
        return
    pending: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1) as thread:

        def hand_over(*args: object) -> None:
            if len(pending) == waiting:
                pending.popleft().result()
            pending.append(thread.submit(write, *args))

        yield hand_over
        while pending:
            pending.popleft().result()


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterator[Result]:
    """Apply a function to items in threads; yield results in order, a few ahead of the consumer.

    For file work, where encoding and decoding release the lock; with 0 threads, in the calling
    thread. Items are consumed as results are, so that memory does not grow with their number.
    """
    if not threads:
        yield from map(work, items)
        return
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
