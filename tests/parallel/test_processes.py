"""Worker processes end with their parent, however it ends; so do those that read photos."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vpltool
from vpltool.parallel import processes
from vpltool.parallel.device import default_workers, worker_count
from vpltool.parallel.processes import core_count, run_jobs
from vpltool.parallel.signals import block_interrupts, defer_interrupts, interrupt_at_sigterm

LIMIT = 5.0
"""Seconds within which workers must be gone; their jobs would take a minute."""

JOBS = """
import ctypes, os, sys, time
from pathlib import Path
from vpltool.parallel import processes
from vpltool.parallel.processes import run_jobs
from vpltool.parallel.signals import interrupt_at_sigterm

folder, mode = Path(sys.argv[1]), sys.argv[2]
if mode == "portable":
    processes._end_by_kernel = lambda: None

def work(number):
    (folder / f"{number}-{os.getpid()}").touch()
    if number < 2:
        # PyDLL keeps the interpreter's lock, as pydensecrf does.
        (ctypes.PyDLL(None).sleep if mode == "locked" else time.sleep)(60)

if __name__ == "__main__":
    # As a module: workers do not know the script.
    import script
    with interrupt_at_sigterm():
        # The third worker has nothing to do: it waits for jobs.
        for _ in run_jobs(script.work, range(4), 3):
            pass
"""

PHOTOS = """
import os, sys, time
from pathlib import Path
from vpltool.core.photos import PhotoSettings
from vpltool.parallel import batches

folder = Path(sys.argv[1])

def slow(path):
    (folder / f"{path.stem}-{os.getpid()}").touch()
    time.sleep(60)

batches.read_photo = slow
settings = PhotoSettings(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
list(batches.load_batches([(str(n), folder / f"{n}.png") for n in range(2)], settings,
                          batch_size=1, workers=2))
"""

UNGUARDED = """
import sys
from pathlib import Path
from vpltool.parallel.processes import run_jobs

folder = Path(sys.argv[1])
with (folder / "runs").open("a") as file:
    file.write("again ")
results = sorted(run_jobs(abs, range(-5, 1), 2))
(folder / "results").write_text(str(results))
"""


ROUNDS = """
import os, sys, time
from pathlib import Path
from vpltool.parallel.processes import run_jobs
from vpltool.parallel.signals import interrupt_at_sigterm

folder, mode = Path(sys.argv[1]), sys.argv[2]

def work(number):
    (folder / f"{number}-{os.getpid()}").touch()
    if mode == "fails" and number == 1:
        while not (folder / "go").exists():
            time.sleep(0.05)
        raise ValueError("the second job failed")
    try:
        time.sleep(60)
    finally:
        (folder / f"kept{number}").touch()

if __name__ == "__main__":
    import script
    with interrupt_at_sigterm():
        for _ in run_jobs(script.work, range(6), 2, finish=False):
            pass
"""


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # Nobody may be there to ask for its exit code.
    status = Path(f"/proc/{process}/stat")
    with contextlib.suppress(FileNotFoundError):
        return not status.parent.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_for_workers(folder: Path, count: int) -> set[int]:
    """Process ids of the workers, from the files with which they tell that they have begun."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = {int(path.name.rpartition("-")[2]) for path in folder.glob("*-*")}
        if len(list(folder.glob("[01]-*"))) == 2 and len(found) >= count:
            return found
        time.sleep(0.05)
    raise AssertionError("the workers did not begin")


@contextlib.contextmanager
def started(script: str, folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    path = folder / "script.py"
    path.write_text(script)
    parent = subprocess.Popen(
        [sys.executable, str(path), str(folder), *words], text=True, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(vpltool.__file__).parent.parent)})
    try:
        yield parent
    finally:
        parent.kill()
        parent.communicate()


def assert_gone(workers: set[int]) -> None:
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline and any(map(alive, workers)):
        time.sleep(0.05)
    left = {worker for worker in workers if alive(worker)}
    for worker in left:
        os.kill(worker, signal.SIGKILL)
    assert not left


def test_workers_leave_the_script_alone(tmp_path: Path) -> None:
    """A script without `if __name__ == "__main__":` is run once, not once more in each worker."""
    with started(UNGUARDED, tmp_path) as parent:
        said = parent.communicate(timeout=120)[1]
    assert parent.returncode == 0, said
    assert (tmp_path / "runs").read_text() == "again "
    assert (tmp_path / "results").read_text() == "[0, 1, 2, 3, 4, 5]"


@pytest.mark.parametrize("mode", ["both", "portable", pytest.param("locked", marks=(
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends them then")))])
def test_workers_end_when_their_parent_is_killed(mode: str, tmp_path: Path) -> None:
    """Those at work and those that wait for work; each of the two ways does for itself."""
    with started(JOBS, tmp_path, mode) as parent:
        workers = wait_for_workers(tmp_path, 3)
        parent.kill()
        assert_gone(workers)


def test_sigterm_ends_as_an_interrupt_does(tmp_path: Path) -> None:
    script = JOBS.replace("(60)", "(3)")
    with started(script, tmp_path, "both") as parent:
        workers = wait_for_workers(tmp_path, 3)
        parent.terminate()
        _, said = parent.communicate(timeout=30)
        assert "KeyboardInterrupt" in said
        assert_gone(workers)


def test_readers_of_photos_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    for number in range(2):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / f"{number}.png")
    with started(PHOTOS, tmp_path) as parent:
        workers = wait_for_workers(tmp_path, 2)
        parent.kill()
        assert_gone(workers)


def _double(number: int) -> int:
    return 2 * number


def test_workers_started_in_another_thread_outlive_it() -> None:
    """Linux ends a process with the thread that started it: not if that is not the main one."""
    results = run_jobs(_double, range(24), 2)
    first: list[int] = []
    starter = threading.Thread(target=lambda: first.append(next(results)))
    starter.start()
    starter.join()
    time.sleep(0.2)
    assert sorted([*first, *results]) == [2 * number for number in range(24)]


def test_sigterm_is_left_to_who_has_it() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with interrupt_at_sigterm():
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    with pytest.raises(KeyboardInterrupt), interrupt_at_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_until_it_is_asked_for(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    done = []
    with pytest.raises(KeyboardInterrupt), defer_interrupts() as interrupted:
        for step in range(5):
            if step == 2:
                os.kill(os.getpid(), number)
            done.append(step)
            if interrupted():
                raise KeyboardInterrupt
    assert done == [0, 1, 2]
    assert signal.getsignal(number) == before


def test_an_interrupt_that_nobody_asked_for_comes_at_the_end() -> None:
    done = False
    with pytest.raises(KeyboardInterrupt), defer_interrupts():
        os.kill(os.getpid(), signal.SIGINT)
        done = True
    assert done


def test_a_second_interrupt_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt), defer_interrupts():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("it waited")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_blocked_interrupts_come_afterwards(number: signal.Signals) -> None:
    """However many; and another thread that does not block them changes nothing."""
    gate = threading.Event()
    other = threading.Thread(target=gate.wait, args=(10,))
    other.start()
    done = []
    with pytest.raises(KeyboardInterrupt), interrupt_at_sigterm():
        with block_interrupts():
            for step in range(3):
                os.kill(os.getpid(), number)
                time.sleep(0.01)
                done.append(step)
        raise AssertionError("it did not come")
    gate.set()
    other.join()
    assert done == [0, 1, 2]


@pytest.mark.parametrize(("mode", "number"), [
    ("stopped", signal.SIGINT), ("stopped", signal.SIGTERM), ("fails", None)])
def test_no_round_begins_after_the_end(mode: str, number: signal.Signals | None, tmp_path: Path
                                       ) -> None:
    """Rounds in progress are interrupted and keep their work; those that wait never begin."""
    with started(ROUNDS, tmp_path, mode) as parent:
        wait_for_workers(tmp_path, 2)
        began = time.monotonic()
        if number is None:
            (tmp_path / "go").touch()
        else:
            parent.send_signal(number)
        _, errors = parent.communicate(timeout=30)
    assert time.monotonic() - began < LIMIT + 5
    assert {path.name[0] for path in tmp_path.glob("?-*")} == {"0", "1"}
    assert {path.name for path in tmp_path.glob("kept*")} >= {"kept0"}
    assert "in initializer" not in errors and "SpawnProcess" not in errors


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with defer_interrupts() as interrupted, block_interrupts():
            os.kill(os.getpid(), signal.SIGTERM)
        assert not interrupted()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_cores_are_counted_where_the_system_does_not_tell_which_are_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on macOS."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert core_count() == 6
    assert default_workers() == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert core_count() == 1
    assert default_workers() == 1
    assert worker_count(3) == 3


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="not on this system")
def test_only_our_cores_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {1, 4, 7})
    assert processes.core_count() == 3
