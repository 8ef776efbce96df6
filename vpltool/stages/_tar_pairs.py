"""Photo-caption pairs of a training from tars: an endless stream, shuffled in windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from vpltool import console
from vpltool.core.photos import read_photo
from vpltool.datasets.webdataset import (
    NO_CAPTION,
    Flaw,
    Flaws,
    Pair,
    find_tars,
    location_of,
    read_tar,
)
from vpltool.errors import VplError
from vpltool.formats.header import identity_of_many
from vpltool.lazy import Tensor, np, torch
from vpltool.parallel import threads
from vpltool.stages._pairs import Cut, ReadPairs, cut_photo

_ROOM = 1 << 28
"""Bytes of photos in a window, after which it is full."""


@dataclass(frozen=True)
class Cursor:
    """A place in the endless stream of pairs; begin there, and what follows is the same.

    Args:
        epoch: how often all tars have been read.
        tar: number of the tar in the epoch's order, where the window begins.
        item: how many pairs and flaws of that tar are before the window.
        done: how many pairs of the window are done.
    """

    epoch: int = 0
    tar: int = 0
    item: int = 0
    done: int = 0


def stream_pairs(
    tars: Sequence[str], *, seed: int, part: int = 0, parts: int = 1, window: int = 512,
    start: Cursor = Cursor(),
) -> Iterator[tuple[Pair | Flaw, Cursor]]:
    """Yield the pairs with captions of all tars, over and over, in an order of each epoch's own.

    The order depends on the arguments alone: a generator that begins at a cursor yields what
    would have followed there. Memory holds `window` pairs, however many there are.

    Args:
        tars: see `find_tars`.
        seed: where chance begins.
        part: number of this process or worker, among `parts`. Tars are shared out; if there are
            fewer than parts, their pairs.
        parts: number of processes and workers.
        window: pairs that are shuffled together.
        start: where to begin.

    Yields:
        a pair or a flaw, and the cursor after it.

    Raises:
        VplError: there is no pair.
    """
    in_vain = 0
    while True:
        in_vain += 1
        for pair, cursor in _epoch(tars, seed, part, parts, window, start):
            in_vain = 0 if isinstance(pair, Pair) else in_vain
            yield pair, cursor
        # A part has other tars in each epoch, so that one without a pair says little.
        if in_vain >= 2 * parts:
            raise VplError(f"no pair of a photo and a caption in {len(tars)} tars, such as "
                           f"{tars[0]}", "a pair is KEY.jpg and KEY.txt, one after the other")
        start = Cursor(start.epoch + 1)


def _epoch(tars: Sequence[str], seed: int, part: int, parts: int, window: int, start: Cursor
           ) -> Iterator[tuple[Pair | Flaw, Cursor]]:
    """Yield what is left of an epoch from a cursor on."""
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
                # Told once, when its window is read first.
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
    """Yield the pairs of a window, in an order that its beginning decides, each with a cursor."""
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
        # Where its caption is empty or no text, that was said just before.
        elif not (isinstance(before, Flaw) and before.where == location_of(pair.tar, pair.key)):
            yield Flaw(NO_CAPTION, location_of(pair.tar, pair.key))
        before = pair


UNREAD = "photos that cannot be read"

_MAX_BROKEN = 1000
"""Photos in a row that cannot be read, after which a training ends."""


@dataclass
class TarPairs:
    """The pairs of tars, for a training; what is left out is counted on the way.

    Args:
        tars: their addresses.
        window: pairs that are shuffled together.
        cursor: place after the pairs that the last step took.
        flaws: what was left out, in one epoch.
    """

    tars: Sequence[str]
    window: int
    cursor: Cursor = Cursor()
    flaws: Flaws = field(default_factory=Flaws)

    @classmethod
    def of(cls, patterns: Sequence[str], window: int, *, allow_pipe: bool) -> TarPairs:
        """Find the tars; see `find_tars`."""
        return cls(find_tars(patterns, allow_pipe=allow_pipe), window)

    @property
    def identity(self) -> str:
        """Hash of the addresses, and of the sizes of files: all bytes would take too long."""
        return identity_of_many({tar: str(Path(tar).stat().st_size) if Path(tar).is_file() else ""
                                 for tar in self.tars})

    def begin_at(self, facts: Mapping[str, Any], rank: int) -> None:
        """Go on from a checkpoint's facts, in the process of this number."""
        if "cursors" in facts:
            self.cursor = Cursor(**facts["cursors"][rank])

    def as_fact(self) -> dict[str, int]:
        """The cursor, as JSON can hold it."""
        return asdict(self.cursor)

    def warn_of_skipped(self) -> None:
        """Warn of what was left out."""
        for remark in self.flaws.remarks():
            console.warn(remark)


@dataclass(frozen=True)
class TarPlan:
    """How the pairs of tars are shared and cut.

    Args:
        source: the pairs.
        cut: how photos are cut.
        share: pairs a step, of this process.
        iterations: number of steps.
        seed: where chance begins.
        rank: number of this process.
        ranks: number of processes.
    """

    source: TarPairs
    cut: Cut
    share: int
    iterations: int
    seed: int
    rank: int = 0
    ranks: int = 1


def read_tar_steps(plan: TarPlan, start: int, *, workers: int, pinned: bool
                   ) -> Iterator[ReadPairs]:
    """Read the pairs of each step from `start` on, from the source's cursor; threads decode ahead.

    The cursor of the source moves with each step that is yielded.

    Raises:
        VplError: there is no pair, or a thousand photos in a row cannot be read.
    """
    source, epoch = plan.source, plan.source.cursor.epoch
    pairs = stream_pairs(source.tars, seed=plan.seed, part=plan.rank, parts=plan.ranks,
                         window=source.window, start=source.cursor)
    held: list[tuple[Tensor, str]] = []
    step, broken = start, 0
    if start >= plan.iterations:
        return
    for made, cursor in threads.in_threads(partial(_decode, plan), pairs, workers):
        if isinstance(made, Flaw):
            broken += made.what == UNREAD
            if cursor.epoch == epoch:
                source.flaws.add(made)
            if broken == _MAX_BROKEN:
                raise VplError(f"{_MAX_BROKEN} photos in a row cannot be read, the last of them "
                               f"{made.where}", "check that these are the right tars")
            continue
        broken = 0
        held.append(made)
        if len(held) == plan.share:
            source.cursor = cursor
            pixels = torch.stack([photo for photo, _ in held])
            yield ReadPairs(pixels.pin_memory() if pinned else pixels,
                            [caption for _, caption in held])
            held, step = [], step + 1
            if step == plan.iterations:
                return


def _decode(plan: TarPlan, item: tuple[Pair | Flaw, Cursor]
            ) -> tuple[tuple[Tensor, str] | Flaw, Cursor]:
    """Decode and cut a pair's photo, and choose one of its captions; chance is the pair's own."""
    pair, cursor = item
    if isinstance(pair, Flaw):
        return pair, cursor
    rng = np.random.default_rng((plan.seed, 5, plan.rank, *asdict(cursor).values()))
    try:
        photo = read_photo(pair.photo)
    except OSError as error:
        return Flaw(UNREAD, f"{location_of(pair.tar, pair.key)}.{pair.suffix} ({error})"), cursor
    return (cut_photo(photo, plan.cut, rng),
            pair.captions[int(rng.integers(len(pair.captions)))]), cursor
