"""Stored features in batches of equal grid; files read ahead, and written behind, in a thread."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from vpltool.formats.folders import InputFolder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Item = TypeVar("Item")


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

    At most four batches wait for company; then the fullest goes as it is. So memory does not grow
    with the number of photos or of grids.

    Args:
        features: the folder.
        ids: photos to read.
        names: tensors to read of each.
        batch_size: photos in a batch at most.
        device: where the batches will go; for a GPU they come in pinned memory.
    """
    pinned = device is not None and device.type == "cuda"
    return read_ahead(_bucketed(features, ids, names, batch_size, pinned))


def _bucketed(
    features: InputFolder, ids: Sequence[str], names: Sequence[str], batch_size: int, pinned: bool
) -> Iterator[FeatureBatch]:
    waiting: dict[tuple[int, int], list[tuple[str, dict[str, Tensor]]]] = {}
    for key in ids:
        tensors = features.read_tensors(key, "grid", *names)
        height, width = tensors.pop("grid").tolist()
        bucket = waiting.setdefault((height, width), [])
        bucket.append((key, tensors))
        if len(bucket) == batch_size:
            yield _stack((height, width), waiting.pop((height, width)), pinned)
        elif sum(map(len, waiting.values())) >= 4 * batch_size:
            fullest = max(waiting, key=lambda grid: len(waiting[grid]))
            yield _stack(fullest, waiting.pop(fullest), pinned)
    for grid, bucket in waiting.items():
        yield _stack(grid, bucket, pinned)


def _stack(grid: tuple[int, int], bucket: list[tuple[str, dict[str, Tensor]]],
           pinned: bool) -> FeatureBatch:
    import torch

    stacked = {name: torch.stack([tensors[name] for _, tensors in bucket])
               for name in bucket[0][1]}
    return FeatureBatch([key for key, _ in bucket], grid, {
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
