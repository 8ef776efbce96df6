"""Stored features in batches of equal grid; files read ahead, and written behind, in a thread."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from vpltool.formats.folders import InputFolder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class FeatureBatch:
    """Photos of one grid: ids, (h, w), and the named tensors stacked (B, …)."""

    ids: list[str]
    grid: tuple[int, int]
    tensors: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def each(self) -> str:
        """Size of each photo, for people."""
        return f"{self.grid[1]}×{self.grid[0]} patches"

    def split(self, size: int) -> list[FeatureBatch]:
        """Take it apart into batches of `size` photos at most."""
        return [FeatureBatch(self.ids[start : start + size], self.grid, {
            name: tensor[start : start + size] for name, tensor in self.tensors.items()})
            for start in range(0, len(self), size)]


def feature_batches(
    features: InputFolder, ids: Sequence[str], names: Sequence[str], batch_size: int, *,
    device: torch.device | None = None,
) -> Iterator[FeatureBatch]:
    """Read features in batches of equal grid.

    Args:
        features: the folder.
        ids: photos to read.
        names: tensors to read of each.
        batch_size: photos in a batch at most.
        device: where the batches will go; for a GPU they come in pinned memory.
    """
    pinned = device is not None and device.type == "cuda"
    photos = ((key, features.read_tensors(key, "grid", *names)) for key in ids)
    return read_ahead(_stack(batch, pinned) for batch in bucketed(
        photos, lambda photo: tuple(photo[1]["grid"].tolist()), batch_size))


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


def _stack(bucket: list[tuple[str, dict[str, Tensor]]], pinned: bool) -> FeatureBatch:
    import torch

    height, width = bucket[0][1]["grid"].tolist()
    stacked = {name: torch.stack([tensors[name] for _, tensors in bucket])
               for name in bucket[0][1] if name != "grid"}
    return FeatureBatch([key for key, _ in bucket], (height, width), {
        name: tensor.pin_memory() if pinned else tensor for name, tensor in stacked.items()})


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
    begun: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1) as thread:

        def hand_over(*args: object) -> None:
            if len(begun) == waiting:
                begun.popleft().result()
            begun.append(thread.submit(write, *args))

        yield hand_over
        while begun:
            begun.popleft().result()


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterator[Result]:
    """Do work on items in threads: results in the items' order, a few ahead of their reader.

    For files, whose coding and decoding lets other threads run. Exceptions are raised here.

    Args:
        work: what is done.
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
