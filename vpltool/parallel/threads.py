"""Pools of threads: reading ahead, writing behind, several calls at a time."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(batches: Iterator[Item]) -> Iterator[Item]:
    """Run an iterator in a thread, one item ahead; its exception is raised here."""
    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(lambda: next(batches, None))
        while (item := ahead.result()) is not None:
            ahead = thread.submit(lambda: next(batches, None))
            yield item


@contextlib.contextmanager
def write_behind(write: Callable[..., None], waiting: int) -> Iterator[Callable[..., None]]:
    """Let a thread do the writing, so that a GPU need not wait for the disk.

    Args:
        write: called in the thread, with what the yielded function is called with, in order.
        waiting: calls that may wait at most, then the caller does: bounds the memory. 0: no
            thread, `write` itself. A CPU that computes has no time to give away.

    Yields:
        what to call in place of `write`; its exceptions come out of a later call, or at the end.
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
    """Do work on items in threads: results in the items' order, a few ahead of their reader.

    For files, whose coding and decoding lets other threads run. Exceptions are raised here.

    Args:
        items: taken as results are, so that memory does not grow with their number.
        threads: number of threads; 0: none, the reader does the work itself.
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
