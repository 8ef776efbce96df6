"""Batches of stored features of equal grid, and of photos of equal size read by workers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from vpltool import process
from vpltool.core.photos import PhotoSettings, describe_failure, photo_size, read_photo, to_pixels
from vpltool.formats.input_folders import InputFolder
from vpltool.formats.kinds import BadValues
from vpltool.lazy import Tensor, torch
from vpltool.parallel.processes import end_with_parent, no_script
from vpltool.parallel.signals import in_main_thread
from vpltool.parallel.threads import in_threads, read_ahead

Item = TypeVar("Item")

_SIZES_AT_ONCE = 8
"""Number of threads that read photo sizes: over a network, each request waits."""


@dataclass(frozen=True)
class FeatureBatch:
    """Features of photos with the same grid."""

    ids: list[str]
    grid: tuple[int, int]  # (h, w)
    tensors: dict[str, Tensor]  # stacked (B, …), by name
    failed: dict[str, str] = field(default_factory=dict)  # reason by id, of damaged files

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def each(self) -> str:
        """Size of each photo for messages."""
        return f"{self.grid[1]}×{self.grid[0]} patches"

    def split(self, size: int) -> list[FeatureBatch]:
        """Split into batches of at most `size` photos; the first keeps the failures."""
        return [FeatureBatch(self.ids[start : start + size], self.grid, {
            name: tensor[start : start + size] for name, tensor in self.tensors.items()},
            {} if start else self.failed)
            for start in range(0, max(len(self), 1), size)]


def feature_batches(
    features: InputFolder, ids: Sequence[str], names: Sequence[str], batch_size: int, *,
    device: torch.device | None = None, complete: bool = False,
) -> Iterator[FeatureBatch]:
    """Read features in batches of equal grid, in pinned memory if their destination is a GPU.

    Damaged files are in `failed` of a batch. If features must be `complete`, they raise a VplError.
    """
    pinned = device is not None and device.type == "cuda"
    failed: dict[str, str] = {}

    def readable() -> Iterator[tuple[str, dict[str, Tensor]]]:
        for key in ids:
            try:
                yield key, features.read_tensors(key, "grid", *names)
            except BadValues as error:
                if complete:
                    raise
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
    """Move named tensors to a device and dtype."""
    return {name: tensor.to(device, non_blocking=True).to(dtype)
            for name, tensor in tensors.items()}


def bucketed(
    items: Iterable[Item], shape_of: Callable[[Item], Hashable], size: int
) -> Iterator[list[Item]]:
    """Group items of equal shape into batches.

    At most four batches are pending; then the fullest is yielded incomplete. So memory does not
    grow with the number of items or shapes.
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


@dataclass(frozen=True)
class Batch:
    """Preprocessed photos of equal size."""

    ids: list[str]  # without failed ones
    pixels: Tensor  # normalised photos (B, 3, H, W)
    sizes: list[tuple[int, int]]  # original (height, width) of each photo, upright
    failed: dict[str, str]  # reason by id, of photos that could not be decoded

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def each(self) -> str:
        """Preprocessed size of each photo for messages."""
        return f"{self.pixels.shape[3]}×{self.pixels.shape[2]} pixels"

    def split(self, size: int) -> list[Batch]:
        """Split into batches of at most `size` photos; the first keeps the failures."""
        return [Batch(self.ids[start : start + size], self.pixels[start : start + size],
                      self.sizes[start : start + size], {} if start else self.failed)
                for start in range(0, max(len(self), 1), size)]

    def pin_memory(self) -> Batch:
        """Return a copy in pinned memory, for asynchronous transfer; called by DataLoader."""
        return replace(self, pixels=self.pixels.pin_memory())


class _Batches:
    """A map-style `Dataset`; not derived from torch's class, so that torch is imported late."""

    def __init__(self, batches: list[list[tuple[str, Path]]], settings: PhotoSettings) -> None:
        self.batches = batches
        self.settings = settings

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        ids, pixels, sizes, failed = [], [], [], {}
        used = self.settings
        for key, path in self.batches[index]:
            try:
                photo = read_photo(path)
            except OSError as error:
                failed[key] = describe_failure(path, error)
                continue
            size = (photo.shape[0], photo.shape[1])
            target = used.fit(size)
            pixels.append(to_pixels(photo, target, used.mean, used.std))
            ids.append(key)
            sizes.append(size)
        stacked = torch.stack(pixels) if pixels else torch.empty(0)
        return Batch(ids, stacked, sizes, failed)


def load_batches(
    photos: Sequence[tuple[str, Path]], settings: PhotoSettings, *, batch_size: int, workers: int,
    device: torch.device | None = None, sized: Callable[[], object] = lambda: None,
) -> Iterator[Batch]:
    """Read, resize and batch photos in worker processes; photos of equal size share a batch.

    Batches come largest first, so that a lack of memory shows at once. Memory does not grow with
    the number of photos: each worker holds at most two batches. Workers end with this process,
    however it ends; with 0 workers, photos are read in this process. Batches for a GPU are in
    pinned memory. `sized` is called after each photo size is read, all before the first batch.
    """
    buckets: dict[tuple[int, int], list[tuple[str, Path]]] = defaultdict(list)
    failed: dict[str, str] = {}
    sizes = in_threads(_size_of, [path for _, path in photos], min(_SIZES_AT_ONCE, len(photos)))
    for (key, path), size in zip(photos, sizes, strict=True):
        sized()
        if isinstance(size, str):
            failed[key] = size
            continue
        target = settings.fit(size)
        buckets[target].append((key, path))
    if failed:
        yield Batch([], torch.empty(0), [], failed)
    batches = [
        members[start : start + batch_size]
        for _, members in sorted(buckets.items(), key=lambda entry: -entry[0][0] * entry[0][1])
        for start in range(0, len(members), batch_size)
    ]
    processes = min(workers, len(batches))
    options: dict[str, Any] = {"prefetch_factor": 2} if processes else {}
    loader = torch.utils.data.DataLoader(
        cast("torch.utils.data.Dataset[Batch]", _Batches(batches, settings)), batch_size=None,
        num_workers=processes, pin_memory=device is not None and device.type == "cuda",
        worker_init_fn=partial(_begin, in_main_thread()), **options)
    with no_script():
        read = iter(loader)
    yield from read


def _size_of(path: Path) -> tuple[int, int] | str:
    """Return (height, width) of a photo, or the reason why it cannot be read."""
    try:
        return photo_size(path)
    except OSError as error:
        return describe_failure(path, error)


def _begin(from_main_thread: bool, _worker: int) -> None:
    process.mark_own()
    end_with_parent(from_main_thread)
