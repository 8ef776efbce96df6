"""Stored features in batches of equal grid, read ahead in a thread; work on files in threads."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from vpltool.formats.folders import InputFolder

if TYPE_CHECKING:
    from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class FeatureBatch:
    """Photos of one grid: ids, (h, w), and the named tensors stacked (B, …)."""

    ids: list[str]
    grid: tuple[int, int]
    tensors: dict[str, Tensor]


def feature_batches(
    features: InputFolder, ids: Sequence[str], names: Sequence[str], batch_size: int
) -> Iterator[FeatureBatch]:
    """Read features in batches of equal grid.

    Args:
        features: the folder.
        ids: photos to read.
        names: tensors to read of each.
        batch_size: photos in a batch at most.
    """
    photos = ((key, features.read_tensors(key, "grid", *names)) for key in ids)
    return read_ahead(map(_stack, bucketed(
        photos, lambda photo: tuple(photo[1]["grid"].tolist()), batch_size)))


def bucketed(
    items: Iterable[Item], shape_of: Callable[[Item], Hashable], size: int
) -> Iterator[list[Item]]:
    """Put items of one shape together.

    At most four batches wait for company; then the fullest goes as it is. So memory does not grow
    with the number of items or of shapes.

    Args:
        items: what is to be batched.
        shape_of: what those of a batch have in common.
        size: items in a batch at most.
    """
    waiting: dict[Hashable, list[Item]] = {}
    for item in items:
        shape = shape_of(item)
        bucket = waiting.setdefault(shape, [])
        bucket.append(item)
        if len(bucket) == size:
            yield waiting.pop(shape)
        elif sum(map(len, waiting.values())) >= 4 * size:
            yield waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))
    yield from waiting.values()


def _stack(bucket: list[tuple[str, dict[str, Tensor]]]) -> FeatureBatch:
    import torch

    height, width = bucket[0][1]["grid"].tolist()
    return FeatureBatch([key for key, _ in bucket], (height, width), {
        name: torch.stack([tensors[name] for _, tensors in bucket])
        for name in bucket[0][1] if name != "grid"})


def read_ahead(batches: Iterator[Item]) -> Iterator[Item]:
    """Run an iterator in a thread, one item ahead; its exception is raised here."""
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

    threading.Thread(target=fill, daemon=True).start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterator[Result]:
    """Do work on items in threads: results in the items' order, a few ahead of their reader.

    For files, whose coding and decoding lets other threads run. Exceptions are raised here.

    Args:
        work: what is done.
        items: taken as results are, so that memory does not grow with their number.
        threads: number of threads.
    """
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
