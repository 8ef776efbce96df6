"""The endless stream of photo-caption pairs that a training draws from tars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vpltool.datasets.webdataset import NO_CAPTION, Flaw, Pair, location_of, read_tar
from vpltool.errors import VplError
from vpltool.lazy import np

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
