"""Stored features in batches of equal grid, read ahead in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from vpltool.formats.folders import InputFolder

if TYPE_CHECKING:
    from torch import Tensor

Item = TypeVar("Item")


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

    At most four batches wait for company; then the fullest goes as it is. So memory does not grow
    with the number of photos or of grids.

    Args:
        features: the folder.
        ids: photos to read.
        names: tensors to read of each.
        batch_size: photos in a batch at most.
    """
    return read_ahead(_bucketed(features, ids, names, batch_size))


def _bucketed(
    features: InputFolder, ids: Sequence[str], names: Sequence[str], batch_size: int
) -> Iterator[FeatureBatch]:
    waiting: dict[tuple[int, int], list[tuple[str, dict[str, Tensor]]]] = {}
    for key in ids:
        tensors = features.read_tensors(key, "grid", *names)
        height, width = tensors.pop("grid").tolist()
        bucket = waiting.setdefault((height, width), [])
        bucket.append((key, tensors))
        if len(bucket) == batch_size:
            yield _stack((height, width), waiting.pop((height, width)))
        elif sum(map(len, waiting.values())) >= 4 * batch_size:
            fullest = max(waiting, key=lambda grid: len(waiting[grid]))
            yield _stack(fullest, waiting.pop(fullest))
    for grid, bucket in waiting.items():
        yield _stack(grid, bucket)


def _stack(grid: tuple[int, int], bucket: list[tuple[str, dict[str, Tensor]]]) -> FeatureBatch:
    import torch

    names = bucket[0][1]
    return FeatureBatch([key for key, _ in bucket], grid, {
        name: torch.stack([tensors[name] for _, tensors in bucket]) for name in names})


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
