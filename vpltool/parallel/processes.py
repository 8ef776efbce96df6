"""Pools of worker processes that finish the jobs they have begun when interrupted."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from vpltool.parallel.signals import begin_worker, block_interrupts, in_main_thread

Job = TypeVar("Job")
Result = TypeVar("Result")
Task = TypeVar("Task")


def run_jobs(
    function: Callable[[Job], Result], jobs: Sequence[Job], processes: int,
    start: Callable[[Task], None], task: Task, *, fewest: int = 4, finish: bool = True,
) -> Iterator[Result]:
    """Do jobs in worker processes; in this one if that is too few to pay for starting them.

    Args:
        function: does a job; of a module, not of the script, so that a process can find it.
        jobs: what is given to it, one by one. Results come in any order.
        processes: number of workers; below 2 there are none.
        start: called in each worker first.
        fewest: number of jobs from which workers pay.
        finish: at an interrupt, whether the jobs that are begun are finished. If not, they are
            sent SIGTERM, which `start` may turn into an interrupt of their own.
    """
    if processes < 2 or len(jobs) < fewest:
        start(task)
        yield from map(function, jobs)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    # Forking a process that has run torch can hang in its thread pool; a fresh one cannot.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin,
                             initargs=(start, task, in_main_thread())) as pool:
        waiting = set()
        try:
            for job in jobs:
                with block_interrupts(), no_script():
                    waiting.add(pool.submit(function, job))
                if len(waiting) >= 4 * processes:
                    done = next(as_completed(waiting))
                    waiting.remove(done)
                    yield done.result()
            for done in as_completed(waiting):
                yield done.result()
        except BaseException:
            # What is begun is finished, and a second Ctrl-C waits for it: files may be written.
            with block_interrupts():
                for worker in () if finish else multiprocessing.active_children():
                    worker.terminate()
                pool.shutdown(cancel_futures=True)
            raise


@contextlib.contextmanager
def no_script() -> Iterator[None]:
    """Start processes that do not import the program's script.

    A process that is spawned imports it, and would run all of it once more where it has no
    `if __name__ == "__main__":`. What our processes do is in modules.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _begin(start: Callable[[Task], None], task: Task, from_main_thread: bool) -> None:
    begin_worker()
    end_with_parent(from_main_thread)
    start(task)


def end_with_parent(from_main_thread: bool) -> None:
    """Have this worker process end when its parent does, even if that is killed.

    A worker that waits for its next job would wait for ever. A thread sees the parent go, on any
    system, as soon as it gets the interpreter's lock. A job in C may hold that for minutes; Linux
    itself ends the process then.

    Args:
        from_main_thread: whether the parent started this process in its main thread. Linux ends
            a process with the thread that started it, and another one may end early.
    """
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if from_main_thread and parent.pid == os.getppid():
        _end_by_kernel()

    def watch() -> None:
        # A parent that has gone before this began is seen as well.
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _end_by_kernel() -> None:
    """Have Linux kill this process when the thread that started it ends; elsewhere, nothing."""
    set_death_signal = 1
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)


def core_count() -> int:
    """Number of cores that this process may use; of all, where the system does not tell."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
