"""Photo-caption pairs of a training: which ones a step takes, and how they are read and cut."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vpltool import console
from vpltool.core.photos import describe_failure, read_photo
from vpltool.errors import VplError, part_of
from vpltool.formats import Workspace
from vpltool.lazy import Image, Tensor, np, npt, torch
from vpltool.parallel import threads

_TOLD = 5
"""Photos that cannot be read and are named; all are counted."""


class PairSource(Protocol):
    """Photos with captions, in an order that does not change."""

    def __len__(self) -> int:
        """Number of photos."""

    def read(self, number: int) -> tuple[npt.NDArray[np.uint8], Sequence[str]]:
        """Read a photo, RGB (H, W, 3), and its captions, one at least.

        Raises:
            OSError: it cannot be read; the message names it.
        """


class WorkspacePairs:
    """The photos of a split that have captions.

    Args:
        workspace: where they are found.
        split: of the photos.
        limit: only the first of the split; 0: all.

    Raises:
        VplError: none of them has a caption.
    """

    def __init__(self, workspace: Workspace, split: str, limit: int) -> None:
        photos = workspace.photos(split, limit)
        self.workspace = workspace
        self.photos = [photo for photo in photos if photo.captions]
        if not self.photos:
            raise VplError(f"no photo of the split `{split}` has a caption",
                           "`prepare('folder', images='IMAGES', captions='FILE.csv')`, or "
                           "`demo()`")
        without = len(photos) - len(self.photos)
        if without:
            console.warn(part_of(without, len(photos), "photos", "has no caption and is skipped",
                                 "have no caption and are skipped"))

    def __len__(self) -> int:
        return len(self.photos)

    def read(self, number: int) -> tuple[npt.NDArray[np.uint8], Sequence[str]]:
        """Read a photo and its captions, see `PairSource`."""
        photo = self.photos[number]
        path = self.workspace.image_path(photo)
        try:
            return read_photo(path), photo.captions
        except OSError as error:
            raise OSError(f"{path}: {describe_failure(path, error)}") from error


@dataclass(frozen=True)
class Cut:
    """How photos are cut for a step.

    Args:
        side: pixels of a side.
        least: least share of a photo's area; 1: only its proportions change.
        mirror: whether every second one is mirrored.
    """

    side: int
    least: float
    mirror: bool


@dataclass(frozen=True)
class Plan:
    """Which pairs the steps take.

    Args:
        source: the pairs.
        cut: how their photos are cut.
        batch_size: pairs a step, of all processes.
        iterations: number of steps.
        seed: where chance begins.
        rank: number of this process.
        ranks: number of processes.
    """

    source: PairSource
    cut: Cut
    batch_size: int
    iterations: int
    seed: int
    rank: int = 0
    ranks: int = 1
    broken: set[str] = field(default_factory=set)

    def positions(self, iteration: int) -> range:
        """Return the positions of this process's pairs of a step in the stream of all pairs."""
        share = self.batch_size // self.ranks
        first = iteration * self.batch_size + self.rank * share
        return range(first, first + share)


@dataclass(frozen=True)
class ReadPairs:
    """Photos of a step (B, 3, side, side) uint8, and a caption of each."""

    pixels: Tensor
    captions: list[str]

    def normalised(self, mean: Tensor, std: Tensor) -> Tensor:
        """Photos for the network, on the device of mean and deviation (3, 1, 1)."""
        return (self.pixels.to(mean.device, non_blocking=True).float().div_(255) - mean) / std


def read_steps(plan: Plan, start: int, *, workers: int, pinned: bool) -> Iterator[ReadPairs]:
    """Read the pairs of each step from `start` on; threads do it ahead.

    Args:
        plan: which pairs.
        start: first step.
        workers: number of threads; 0: none.
        pinned: whether photos come in memory from which a GPU copies without waiting.
    """
    def make(iteration: int) -> ReadPairs:
        parts = [_read_one(plan, position) for position in plan.positions(iteration)]
        pixels = torch.stack([part for part, _ in parts])
        return ReadPairs(pixels.pin_memory() if pinned else pixels,
                         [caption for _, caption in parts])

    return threads.in_threads(make, range(start, plan.iterations), workers)


def _read_one(plan: Plan, position: int) -> tuple[Tensor, str]:
    """Read and cut the pair at a position; if its photo cannot be read, the next one.

    Raises:
        VplError: none of ten in a row can be read.
    """
    rng = np.random.default_rng((plan.seed, 3, position))
    count = len(plan.source)
    for further in range(10):
        epoch, index = divmod(position + further, count)
        try:
            photo, captions = plan.source.read(int(_order(plan.seed, epoch, count)[index]))
        except OSError as error:
            _warn_and_skip(plan, str(error))
            continue
        return cut_photo(photo, plan.cut, rng), captions[int(rng.integers(len(captions)))]
    raise VplError("ten photos in a row cannot be read",
                   "check that they are still where `prepare` found them")


def _warn_and_skip(plan: Plan, error: str) -> None:
    if error in plan.broken:
        return
    plan.broken.add(error)
    if len(plan.broken) <= _TOLD:
        console.warn(f"{error}; skipped")


def warn_of_broken(plan: Plan) -> None:
    """Say how many photos could not be read, if any."""
    if plan.broken:
        console.warn(part_of(len(plan.broken), len(plan.source), "photos could not be read, and",
                             "was replaced by another", "were replaced by others"))


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> npt.NDArray[np.uint32]:
    """The order of an epoch: each pair once."""
    return np.random.default_rng((seed, 1, epoch)).permutation(count).astype(np.uint32)


def cut_photo(photo: npt.NDArray[np.uint8], cut: Cut, rng: np.random.Generator) -> Tensor:
    """Cut a part out of a photo at random and scale it to a square.

    As Inception's training does: its area is a share of the photo's, its proportions are between
    3:4 and 4:3 of the photo's own.

    Args:
        photo: RGB (H, W, 3).
        cut: how.
        rng: chance.

    Returns:
        (3, side, side) uint8.
    """
    share = rng.uniform(cut.least, 1.0)
    ratio = math.exp(rng.uniform(-1, 1) * min(math.log(4 / 3), -math.log(share)))
    height, width = (max(length * math.sqrt(share * part), 1.0) for length, part in zip(
        photo.shape, (1 / ratio, ratio), strict=False))
    top, left = (rng.uniform(0, max(length - part, 0.0)) for length, part in zip(
        photo.shape, (height, width), strict=False))
    box = (left, top, min(left + width, photo.shape[1]), min(top + height, photo.shape[0]))
    made = Image.fromarray(photo).resize((cut.side, cut.side), Image.Resampling.BICUBIC, box=box,
                                         reducing_gap=2.0)
    pixels = torch.from_numpy(np.array(made)).permute(2, 0, 1)
    return (pixels.flip(2) if cut.mirror and rng.random() < 0.5 else pixels).contiguous()
