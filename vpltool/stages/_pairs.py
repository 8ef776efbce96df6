"""Photo-caption pairs for each step of a training, read and cropped.

Pairs of a workspace are permuted in each epoch; pairs of tars are an endless stream, shuffled in
windows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vpltool import console
from vpltool.core.photos import describe_failure, read_photo
from vpltool.datasets.webdataset import NO_CAPTION, Flaw, Flaws, Pair, location_of, read_tar
from vpltool.errors import VplError, part_of
from vpltool.formats import Workspace, header
from vpltool.lazy import Image, Tensor, np, npt, torch
from vpltool.parallel import threads

_TOLD = 5
"""Maximum number of unreadable photos to name; all are counted."""

_MAX_BROKEN = 1000
"""Number of consecutive unreadable photos of tars at which a training ends."""

_ROOM = 1 << 28
"""Maximum size of a window, in bytes of photos."""

UNREAD = "photos that cannot be read"


@dataclass(frozen=True)
class Plan:
    """How a process takes and crops pairs.

    Args:
        side: side of a crop in pixels.
        least: minimum share of a photo's area in a crop; 1: only proportions change.
        share: number of pairs per step of this process.
        workers: number of threads that read ahead; 0: none.
        pinned: whether to use pinned memory, from which a GPU copies without waiting.
    """

    side: int
    least: float
    mirror: bool
    share: int
    iterations: int
    seed: int
    rank: int = 0
    ranks: int = 1
    workers: int = 0
    pinned: bool = False

    def joined(self, pairs: Sequence[tuple[Tensor, str]]) -> ReadPairs:
        """Stack the pairs of a step."""
        pixels = torch.stack([photo for photo, _ in pairs])
        return ReadPairs(pixels.pin_memory() if self.pinned else pixels,
                         [caption for _, caption in pairs])


@dataclass(frozen=True)
class ReadPairs:
    """Photos of a step (B, 3, side, side) uint8, and a caption for each."""

    pixels: Tensor
    captions: list[str]


@dataclass(frozen=True)
class Cursor:
    """A position in the endless stream of pairs, from which it can be resumed.

    Args:
        epoch: how often all tars have been read.
        tar: index, in the epoch's order, of the tar where the window begins.
        item: number of pairs and flaws of that tar before the window.
        done: number of pairs of the window already taken.
    """

    epoch: int = 0
    tar: int = 0
    item: int = 0
    done: int = 0


class WorkspacePairs:
    """The photos with captions among the first `limit` of a split; 0: all."""

    cursor: Cursor | None = None
    """Not needed, since a step's number determines its pairs."""

    def __init__(self, workspace: Workspace, split: str, limit: int) -> None:
        photos = workspace.photos(split, limit)
        self.workspace, self.split = workspace, split
        self.photos = [photo for photo in photos if photo.captions]
        self.broken: set[str] = set()
        if not self.photos:
            raise VplError(f"no photo of the split `{split}` has a caption",
                           "`prepare('folder', images='IMAGES', captions='FILE.csv')`, or "
                           "`demo()`")
        without = len(photos) - len(self.photos)
        if without:
            console.warn(part_of(without, len(photos), "photos", "has no caption and is skipped",
                                 "have no caption and are skipped"))

    @property
    def identities(self) -> dict[str, str]:
        """Hash of the captions."""
        return {"captions": self.workspace.captions_identity(self.split)}

    def steps(self, plan: Plan, start: int) -> Iterator[ReadPairs]:
        """Read the pairs of each step from `start` on."""
        def make(iteration: int) -> ReadPairs:
            first = (iteration * plan.ranks + plan.rank) * plan.share
            return plan.joined([self._read(plan, position)
                                for position in range(first, first + plan.share)])

        return threads.in_threads(make, range(start, plan.iterations), plan.workers)

    def _read(self, plan: Plan, position: int) -> tuple[Tensor, str]:
        """Read and crop the pair at a position of the stream, or the next readable one."""
        rng = np.random.default_rng((plan.seed, 3, position))
        count = len(self.photos)
        for further in range(10):
            epoch, index = divmod(position + further, count)
            photo = self.photos[int(_order(plan.seed, epoch, count)[index])]
            path = self.workspace.image_path(photo)
            try:
                pixels = read_photo(path)
            except OSError as error:
                reason = f"{path}: {describe_failure(path, error)}"
                if reason not in self.broken:
                    self.broken.add(reason)
                    if len(self.broken) <= _TOLD:
                        console.warn(f"{reason}; skipped")
                continue
            return cut_photo(pixels, plan, rng), photo.captions[int(rng.integers(
                len(photo.captions)))]
        raise VplError("ten photos in a row cannot be read",
                       "check that they are still where `prepare` found them")

    def warn_of_skipped(self) -> None:
        """Report how many photos could not be read, if any."""
        if self.broken:
            console.warn(part_of(len(self.broken), len(self.photos),
                                 "photos could not be read, and", "was replaced by another",
                                 "were replaced by others"))


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> npt.NDArray[np.uint32]:
    """Return the permutation of an epoch."""
    return np.random.default_rng((seed, 1, epoch)).permutation(count).astype(np.uint32)


def cut_photo(photo: npt.NDArray[np.uint8], plan: Plan, rng: np.random.Generator) -> Tensor:
    """Crop a photo (H, W, 3) at random, and scale it to a square (3, side, side) uint8.

    As in Inception's training, the crop has a random share of the photo's area, and between 3:4 and
    4:3 of its proportions.
    """
    share = rng.uniform(plan.least, 1.0)
    ratio = math.exp(rng.uniform(-1, 1) * min(math.log(4 / 3), -math.log(share)))
    height, width = (max(length * math.sqrt(share * part), 1.0) for length, part in zip(
        photo.shape, (1 / ratio, ratio), strict=False))
    top, left = (rng.uniform(0, max(length - part, 0.0)) for length, part in zip(
        photo.shape, (height, width), strict=False))
    box = (left, top, min(left + width, photo.shape[1]), min(top + height, photo.shape[0]))
    made = Image.fromarray(photo).resize((plan.side, plan.side), Image.Resampling.BICUBIC, box=box,
                                         reducing_gap=2.0)
    pixels = torch.from_numpy(np.array(made)).permute(2, 0, 1)
    return (pixels.flip(2) if plan.mirror and rng.random() < 0.5 else pixels).contiguous()


@dataclass
class TarPairs:
    """The pairs of tars, see `find_tars`, shuffled in windows.

    Args:
        cursor: position after the last step.
        flaws: what one epoch left out.
    """

    tars: Sequence[str]
    window: int
    cursor: Cursor = Cursor()
    flaws: Flaws = field(default_factory=Flaws)

    @property
    def identities(self) -> dict[str, str]:
        """Hash of the addresses and sizes of tars, since hashing all bytes would take too long."""
        return {"pairs": header.identity_of_many(
            {tar: str(Path(tar).stat().st_size) if Path(tar).is_file() else ""
             for tar in self.tars})}

    def warn_of_skipped(self) -> None:
        """Warn of pairs that were left out."""
        for remark in self.flaws.remarks():
            console.warn(remark)

    def steps(self, plan: Plan, start: int) -> Iterator[ReadPairs]:
        """Read the pairs of each step from `start` on, beginning at the cursor, and advance it."""
        epoch, step, broken = self.cursor.epoch, start, 0
        pairs = stream_pairs(self.tars, seed=plan.seed, part=plan.rank, parts=plan.ranks,
                             window=self.window, start=self.cursor)
        held: list[tuple[Tensor, str]] = []
        if start >= plan.iterations:
            return
        for made, cursor in threads.in_threads(functools.partial(_decode, plan), pairs,
                                               plan.workers):
            if isinstance(made, Flaw):
                broken += made.what == UNREAD
                if cursor.epoch == epoch:
                    self.flaws.add(made)
                if broken == _MAX_BROKEN:
                    raise VplError(f"{_MAX_BROKEN} photos in a row cannot be read, the last of "
                                   f"them {made.where}", "check that these are the right tars")
                continue
            broken = 0
            held.append(made)
            if len(held) == plan.share:
                self.cursor = cursor
                yield plan.joined(held)
                held, step = [], step + 1
                if step == plan.iterations:
                    return


def _decode(plan: Plan, item: tuple[Pair | Flaw, Cursor]
            ) -> tuple[tuple[Tensor, str] | Flaw, Cursor]:
    """Decode and crop a pair's photo, and choose a caption, with a generator of the pair's own."""
    pair, cursor = item
    if isinstance(pair, Flaw):
        return pair, cursor
    rng = np.random.default_rng((plan.seed, 5, plan.rank, *asdict(cursor).values()))
    try:
        photo = read_photo(pair.photo)
    except OSError as error:
        return Flaw(UNREAD, f"{location_of(pair.tar, pair.key)}.{pair.suffix} ({error})"), cursor
    return (cut_photo(photo, plan, rng),
            pair.captions[int(rng.integers(len(pair.captions)))]), cursor


def stream_pairs(
    tars: Sequence[str], *, seed: int, part: int = 0, parts: int = 1, window: int = 512,
    start: Cursor = Cursor(),
) -> Iterator[tuple[Pair | Flaw, Cursor]]:
    """Yield the pairs of all tars endlessly, each epoch in another order.

    The order depends only on the arguments, so a generator can resume at any cursor. Memory holds
    one window of pairs, which are shuffled together. Each process takes its part of the tars, or of
    the pairs if there are fewer tars than processes.

    Yields:
        a pair or a flaw, and the cursor after it.

    Raises:
        VplError: the tars contain no pair.
    """
    in_vain = 0
    while True:
        in_vain += 1
        for pair, cursor in _epoch(tars, seed, part, parts, window, start):
            in_vain = 0 if isinstance(pair, Pair) else in_vain
            yield pair, cursor
        # A part has other tars in each epoch, so a single epoch without a pair proves nothing.
        if in_vain >= 2 * parts:
            raise VplError(f"no pair of a photo and a caption in {len(tars)} tars, such as "
                           f"{tars[0]}", "a pair is KEY.jpg and KEY.txt, one after the other")
        start = Cursor(start.epoch + 1)


def _epoch(tars: Sequence[str], seed: int, part: int, parts: int, window: int, start: Cursor
           ) -> Iterator[tuple[Pair | Flaw, Cursor]]:
    """Yield the rest of an epoch from a cursor on."""
    order = np.random.default_rng((seed, 3, start.epoch)).permutation(len(tars)).tolist()
    by_tar = len(tars) >= parts
    own = order[part::parts] if by_tar else order
    waiting: list[Pair] = []
    opened, done, held = start, start.done, 0
    for number in range(start.tar, len(own)):
        for item, pair in enumerate(_captioned(tars[own[number]])):
            if number == start.tar and item < start.item:
                continue
            if not by_tar and (number + item) % parts != part:
                continue
            if isinstance(pair, Flaw):
                # Reported once, when its window is first read.
                if not done:
                    yield pair, opened
                continue
            waiting.append(pair)
            held += len(pair.photo)
            if len(waiting) == window or held > _ROOM:
                yield from _shuffled(waiting, seed, part, opened, done,
                                     Cursor(start.epoch, number, item + 1))
                waiting, opened, done, held = [], Cursor(start.epoch, number, item + 1), 0, 0
    yield from _shuffled(waiting, seed, part, opened, done, Cursor(start.epoch + 1))


def _shuffled(pairs: list[Pair], seed: int, part: int, opened: Cursor, done: int, behind: Cursor
              ) -> Iterator[tuple[Pair, Cursor]]:
    """Yield the pairs of a window with cursors, in an order determined by its beginning."""
    chance = np.random.default_rng((seed, 4, part, opened.epoch, opened.tar, opened.item))
    order = chance.permutation(len(pairs)).tolist()
    for position in range(done, len(order)):
        last = position == len(order) - 1
        yield pairs[order[position]], behind if last else Cursor(
            opened.epoch, opened.tar, opened.item, position + 1)


def _captioned(address: str) -> Iterator[Pair | Flaw]:
    """Yield the pairs of a tar; those without a caption as flaws."""
    before: Pair | Flaw | None = None
    for pair in read_tar(address):
        if isinstance(pair, Flaw) or pair.captions:
            yield pair
        # An empty or unreadable caption has just been reported as a flaw.
        elif not (isinstance(before, Flaw) and before.where == location_of(pair.tar, pair.key)):
            yield Flaw(NO_CAPTION, location_of(pair.tar, pair.key))
        before = pair
