"""Batches of one shape, and work in threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from vpltool.formats.batches import bucketed, in_threads, read_ahead


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
