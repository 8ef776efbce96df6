"""Stored features in batches of equal grid."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from vpltool.formats.input_folders import InputFolder
from vpltool.formats.values import BadValues
from vpltool.lazy import Tensor, torch
from vpltool.parallel.threads import read_ahead

Item = TypeVar("Item")


@dataclass(frozen=True)
class FeatureBatch:
    """Photos of one grid: ids, (h, w), and the named tensors stacked (B, …).

    `failed` says why others cannot be used: their files are damaged.
    """

    ids: list[str]
    grid: tuple[int, int]
    tensors: dict[str, Tensor]
    failed: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def each(self) -> str:
        """Size of each photo, for people."""
        return f"{self.grid[1]}×{self.grid[0]} patches"

    def split(self, size: int) -> list[FeatureBatch]:
        """Take it apart into batches of `size` photos at most."""
        return [FeatureBatch(self.ids[start : start + size], self.grid, {
            name: tensor[start : start + size] for name, tensor in self.tensors.items()},
            {} if start else self.failed)
            for start in range(0, len(self), size)]


def feature_batches(
    features: InputFolder, ids: Sequence[str], names: Sequence[str], batch_size: int, *,
    device: torch.device | None = None,
) -> Iterator[FeatureBatch]:
    """Read features in batches of equal grid.

    Args:
        device: where the batches will go; for a GPU they come in pinned memory.
    """
    pinned = device is not None and device.type == "cuda"
    failed: dict[str, str] = {}

    def readable() -> Iterator[tuple[str, dict[str, Tensor]]]:
        for key in ids:
            try:
                yield key, features.read_tensors(key, "grid", *names)
            except BadValues as error:
                failed[key] = error.message

    def batches() -> Iterator[FeatureBatch]:
        for bucket in bucketed(readable(), lambda photo: tuple(photo[1]["grid"].tolist()),
                               batch_size):
            yield replace(_stack(bucket, pinned), failed=dict(failed))
            failed.clear()
        if failed:
            yield FeatureBatch([], (0, 0), {}, dict(failed))

    return read_ahead(batches())


def to_device(tensors: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
              ) -> dict[str, Tensor]:
    """Move named tensors to a device, in one number format."""
    return {name: tensor.to(device, non_blocking=True).to(dtype)
            for name, tensor in tensors.items()}


def bucketed(
    items: Iterable[Item], shape_of: Callable[[Item], Hashable], size: int
) -> Iterator[list[Item]]:
    """Put items of one shape together.

    At most four batches wait for company; then the fullest goes as it is. So memory does not grow
    with the number of items or of shapes.
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
    height, width = bucket[0][1]["grid"].tolist()
    stacked = {name: torch.stack([tensors[name] for _, tensors in bucket])
               for name in bucket[0][1] if name != "grid"}
    return FeatureBatch([key for key, _ in bucket], (height, width), {
        name: tensor.pin_memory() if pinned else tensor for name, tensor in stacked.items()})
