"""Pools of worker processes, which finish running jobs when interrupted."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from vpltool import process
from vpltool.parallel import signals

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_jobs(function: Callable[[Job], Result], jobs: Sequence[Job], processes: int, *,
             fewest: int = 4, finish: bool = True) -> Iterator[Result]:
    """Run jobs in worker processes, or in this one if there are fewer than 2 workers or few jobs.

    Args:
        function: runs a job. It is sent to each worker once, with all that a `partial` of it or
            its object holds; must be importable from a module, not the script.
        jobs: arguments of `function`. Results come in any order.
        processes: number of workers.
        fewest: minimum number of jobs for which workers are started.
        finish: whether running jobs are finished after an interrupt or an error. Otherwise they
            are interrupted, too.
    """
    if processes < 2 or len(jobs) < fewest:
        yield from map(function, jobs)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    # A forked process can hang in torch's thread pool if torch was used before; a fresh one cannot.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin,
                             initargs=(function, signals.in_main_thread(), finish)) as pool:
        waiting = set()
        # A job in the pool's queue cannot be taken back.
        most = 4 * processes if finish else processes
        try:
            for job in jobs:
                with signals.block_interrupts(), no_script():
                    waiting.add(pool.submit(_run_one, job))
                if len(waiting) >= most:
                    done = next(as_completed(waiting))
                    waiting.remove(done)
                    yield done.result()
            for done in as_completed(waiting):
                yield done.result()
        except BaseException:
            # Running jobs finish despite a second Ctrl-C, because they may be writing files.
            with signals.block_interrupts():
                for worker in () if finish else multiprocessing.active_children():
                    worker.terminate()
                pool.shutdown(cancel_futures=True)
            raise


@contextlib.contextmanager
def no_script() -> Iterator[None]:
    """Start processes that do not import the program's script.

    A spawned process imports it, and would run all of it again if it lacks
    `if __name__ == "__main__":`. Code of our workers is in modules.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


_function: list[Callable[..., Any]] = []
"""Runs a job, in a worker process."""


def _begin(function: Callable[[Job], Result], from_main_thread: bool, finish: bool) -> None:
    process.mark_own()
    _function[:] = [function if finish else functools.partial(_interrupted, function)]
    if not finish:
        signal.signal(signal.SIGTERM, signals.remember)
    signals.begin_worker()
    end_with_parent(from_main_thread)


def _run_one(job: object) -> Any:
    return _function[0](job)


def _interrupted(function: Callable[[Job], Result], job: Job) -> Result:
    with signals.interrupted_by_sigterm():
        return function(job)


def end_with_parent(from_main_thread: bool) -> None:
    """Have this worker process end when its parent does, even if the parent is killed.

    Otherwise a worker would wait for its next job forever. On any system, a thread notices the
    parent's end, once it gets the interpreter's lock. A job in C may hold the lock for minutes; on
    Linux the kernel ends the process then, if the parent started it in its main thread: Linux ends
    a process with the thread that started it, and other threads may end early.
    """
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if from_main_thread and parent.pid == os.getppid():
        _end_by_kernel()

    def watch() -> None:
        # Also detects a parent that ended before this thread began.
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _end_by_kernel() -> None:
    """Have Linux kill this process when the thread that started it ends; else do nothing."""
    set_death_signal = 1
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)


def core_count() -> int:
    """Return the number of cores available to this process; all cores if that is unknown."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
