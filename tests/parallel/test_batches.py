"""Batches of one shape; pinned memory for a GPU; files read and written in threads."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from conftest import Run
from torch import Tensor
from torch.utils.data._utils.pin_memory import pin_memory

from vpltool.formats import open_input
from vpltool.parallel import threads
from vpltool.parallel.batches import Batch, bucketed, feature_batches
from vpltool.parallel.threads import in_threads, read_ahead, write_behind


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the tensors that were pinned: without a GPU there is no such memory."""
    shapes: list[tuple[int, ...]] = []

    def pin(self: Tensor, _device: object = None) -> Tensor:
        shapes.append(tuple(self.shape))
        return self + 1

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    return shapes


def test_the_loader_of_photos_can_pin_a_batch(pinned: list[tuple[int, ...]]) -> None:
    """torch passes over what it does not know: a batch must bring its own method."""
    batch = Batch(["a", "b"], torch.zeros(2, 3, 8, 8), [(8, 8)] * 2, {"c": "torn"})
    found = pin_memory(batch)
    assert pinned == [(2, 3, 8, 8)]
    assert bool((found.pixels == 1).all())
    assert (found.ids, found.sizes, found.failed) == (batch.ids, batch.sizes, batch.failed)


@pytest.mark.parametrize(("device", "count"), [("cuda:1", 4), ("cpu", 0), (None, 0)])
def test_features_are_pinned_for_a_gpu_alone(device: str | None, count: int, ready: Path,
                                             pinned: list[tuple[int, ...]]) -> None:
    features = open_input(ready / "work/features/train", ("features",))
    ids = [f"scene{number}" for number in range(6)]
    batches = list(feature_batches(features, ids, ["patches", "tokens"], 4,
                                   device=torch.device(device) if device else None))
    assert sorted(key for batch in batches for key in batch.ids) == ids
    assert sorted(pinned) == sorted([(3, 30, 16), (3, 31, 32)] * (count // 2))


@pytest.mark.parametrize("waiting", [0, 1, 4])
def test_all_is_written_in_order(waiting: int) -> None:
    written: list[tuple[str, int]] = []
    with write_behind(lambda key, value: written.append((key, value)), waiting) as write:
        for number in range(20):
            write("a", number)
    assert written == [("a", number) for number in range(20)]


def test_it_is_written_in_another_thread_and_the_caller_goes_on() -> None:
    gate = threading.Event()
    threads = []

    def slow(_key: str) -> None:
        gate.wait(10)
        threads.append(threading.current_thread())

    with write_behind(slow, 2) as write:
        write("a")
        write("b")
        gate.set()
    assert len(threads) == 2
    assert threading.current_thread() not in threads


def test_few_calls_wait() -> None:
    """The caller stops for the slower writer: so the memory of what is to be written is bounded."""
    written: list[int] = []
    ahead = []

    def slow(number: int) -> None:
        time.sleep(0.005)
        written.append(number)

    with write_behind(slow, 3) as write:
        for number in range(12):
            write(number)
            ahead.append(number + 1 - len(written))
    assert max(ahead) <= 4
    assert written == list(range(12))


@pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt()])
def test_its_exception_comes_out(error: BaseException) -> None:
    """At a later call or at the end; what waited is written all the same."""
    written: list[int] = []

    def full(number: int) -> None:
        if number == 3:
            raise error
        written.append(number)

    with pytest.raises(type(error)), write_behind(full, 2) as write:
        for number in range(5):
            write(number)
    assert written[:3] == [0, 1, 2]


def test_extract_writes_the_same_from_a_thread(run: Run, ready: Path, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does with a GPU."""
    monkeypatch.setattr("vpltool.engine.photo_work.write_behind",
                        lambda write, _waiting: write_behind(write, 4))
    result = run("extract", "--workers", 0, "--out", tmp_path / "x", work=ready / "work")
    assert result.code == 0, result.err
    for path in (ready / "work/features/train").iterdir():
        assert (tmp_path / "x" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.cpu
@pytest.mark.parametrize("command", [
    ("cam",), ("cam", "--method", "dense"), ("refine", "--cams", "text")], ids=" ".join)
def test_cam_and_refine_write_the_same_from_a_thread(
    command: tuple[str, ...], run: Run, ready: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As they do with a GPU."""
    threads = set()

    def behind(write: Callable[..., None], waiting: int) -> AbstractContextManager[Callable[
            ..., None]]:
        def watched(*args: object) -> None:
            threads.add(threading.current_thread())
            write(*args)

        assert waiting == 0
        return write_behind(watched, 2)

    assert run(*command, "--out", tmp_path / "apart", work=ready / "work").code == 0
    monkeypatch.setattr("vpltool.engine.photo_work.write_behind", behind)
    result = run(*command, "--out", tmp_path / "behind", work=ready / "work")
    assert result.code == 0, result.err
    assert len(threads) == 1
    assert threading.current_thread() not in threads
    names = sorted(path.name for path in (tmp_path / "apart").iterdir())
    assert len(names) == 7
    for name in names:
        assert (tmp_path / "behind" / name).read_bytes() == (tmp_path / "apart" / name).read_bytes()


def test_predict_writes_the_same_from_a_thread(run: Run, layered: Path, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does with a GPU."""
    for name, waiting in (("apart", 0), ("behind", 2)):
        monkeypatch.setattr("vpltool.engine.photo_work._write_ahead",
                            lambda _settings, n=waiting: n)
        result = run("predict", "--decoder", "tiny", "--source", "photos", "--workers", 0, "--out",
                     tmp_path / name, work=layered / "work")
        assert result.code == 0, result.err
    for path in (tmp_path / "apart").iterdir():
        assert (tmp_path / "behind" / path.name).read_bytes() == path.read_bytes()


def test_batches_are_of_one_shape_and_nothing_is_lost() -> None:
    words = ["a", "bb", "c", "dd", "e", "fff", "g", "hh"]
    batches = list(bucketed(words, len, 2))
    assert sorted(word for batch in batches for word in batch) == sorted(words)
    assert all(len({len(word) for word in batch}) == 1 and len(batch) <= 2 for batch in batches)
    assert batches[0] == ["a", "c"]


def test_few_items_wait() -> None:
    """With a shape each, no more than four batches' worth are held back."""
    taken = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    first = next(bucketed(items(), lambda number: number, 3))
    assert first == [0]
    assert len(taken) == 12


def test_results_come_in_order() -> None:
    def slow(number: int) -> int:
        time.sleep(0.01 * (number % 3))
        return number * number

    assert list(in_threads(slow, range(20), 4)) == [number * number for number in range(20)]


def test_without_threads_the_reader_works() -> None:
    done = []

    def work(number: int) -> int:
        done.append((number, threading.current_thread()))
        return number

    results = in_threads(work, range(3), 0)
    assert next(results) == 0
    assert done == [(0, threading.current_thread())]
    assert list(results) == [1, 2]


def test_few_are_ahead_of_the_reader() -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    results = in_threads(lambda number: number, items(), 2)
    assert next(results) == 0
    assert len(taken) <= 6
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("threaded", [True, False])
def test_an_exception_is_the_readers(threaded: bool) -> None:
    before = threading.active_count()

    def work(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number

    results = (in_threads(work, range(10), 2) if threaded
               else read_ahead(map(work, range(10))))
    with pytest.raises(ValueError, match="three"):
        list(results)
    deadline = time.time() + 5
    while threading.active_count() > before and time.time() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_a_reader_that_stops_does_not_wait_for_the_disk() -> None:
    """A network disk may hang for minutes; Ctrl-C leaves at once."""
    asked, released = threading.Event(), threading.Event()

    def slow() -> Iterator[int]:
        yield 1
        asked.set()
        released.wait(20)
        yield 2

    def stop() -> None:
        for _ in read_ahead(slow()):
            asked.wait(20)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert not released.is_set()
    before = threading.active_count()
    released.set()
    deadline = time.time() + 5
    while threading.active_count() >= before and time.time() < deadline:
        time.sleep(0.01)
    assert threading.active_count() < before


BUSY = """
import torch
from vpltool.parallel.threads import read_ahead

def work():
    while True:
        yield torch.randn(3000, 3000).sort()

batches = read_ahead(work())
next(batches)
raise ValueError("as it was")
"""


def test_an_exception_does_not_end_in_an_abort() -> None:
    """The traceback keeps the iterator, whose thread is in torch when the interpreter ends."""
    ended = subprocess.run([sys.executable, "-c", BUSY], check=False, text=True,
                           capture_output=True, cwd=Path(__file__).parents[2])
    assert ended.returncode == 1
    assert ended.stderr.endswith("ValueError: as it was\n")


FREEING = """
import threading, time
from vpltool.parallel.threads import read_ahead

class Item:
    def __del__(self):
        if threading.current_thread() is not threading.main_thread():
            time.sleep(1)
            print("freed")

batches = read_ahead(Item() for _ in range(5))
next(batches)
batches.close()
time.sleep(0.5)
"""


def test_a_thread_that_has_ended_may_still_free_its_item() -> None:
    """If those are tensors, torch aborts, too; about one failed run in 40 ended so."""
    ended = subprocess.run([sys.executable, "-c", FREEING], check=False, text=True,
                           capture_output=True, cwd=Path(__file__).parents[2])
    assert (ended.returncode, ended.stdout) == (0, "freed\n")


def test_ended_threads_are_forgotten() -> None:
    for _ in range(100):
        assert list(read_ahead(iter([1, 2]))) == [1, 2]
    assert len(threads._reading) < 20
