"""Work shared among processes, in pieces, so that an interrupt loses none that is begun."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")
Task = TypeVar("Task")


def run_jobs(
    function: Callable[[Job], Result], jobs: Sequence[Job], processes: int,
    start: Callable[[Task], None], task: Task,
) -> Iterator[Result]:
    """Do jobs in worker processes; in this one if that is too few to pay for starting them.

    Args:
        function: does a job; of a module, so that a process can find it.
        jobs: what is given to it, one by one. Results come in any order.
        processes: number of workers; below 2 there are none.
        start: called in each worker first.
        task: what `start` is called with: all that the jobs share.
    """
    if processes < 2 or len(jobs) < 4:
        start(task)
        yield from map(function, jobs)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    # Forking a process that has run torch can hang in its thread pool; a fresh one cannot.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=start,
                             initargs=(task,)) as pool:
        waiting = set()
        try:
            for job in jobs:
                with _no_interrupt():
                    waiting.add(pool.submit(function, job))
                if len(waiting) >= 4 * processes:
                    done = next(as_completed(waiting))
                    waiting.remove(done)
                    yield done.result()
            for done in as_completed(waiting):
                yield done.result()
        except BaseException:
            # What is begun is finished; a second Ctrl-C would leave workers that wait for ever.
            with _no_interrupt():
                pool.shutdown(cancel_futures=True)
            raise


@contextlib.contextmanager
def _no_interrupt() -> Iterator[None]:
    """Put Ctrl-C off while workers start or end: one that is half started is never told to end.

    Workers inherit this: Ctrl-C reaches the whole group, and the parent alone decides.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
