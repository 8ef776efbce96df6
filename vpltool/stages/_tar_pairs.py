"""Photo-caption pairs of a training from WebDataset tars: read in order, a window at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from vpltool import console
from vpltool.datasets.pairs import Cursor, stream_pairs
from vpltool.datasets.webdataset import Flaw, Flaws, Pair, find_tars, location_of
from vpltool.errors import VplError
from vpltool.formats.header import identity_of_many
from vpltool.lazy import Tensor, np, torch
from vpltool.parallel.threads import in_threads
from vpltool.stages._pairs import Cut, ReadPairs, cut_photo

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
    for made, cursor in in_threads(partial(_decode, plan), pairs, workers):
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
    from vpltool.core.photos import read_photo

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
