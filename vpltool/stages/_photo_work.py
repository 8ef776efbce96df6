"""The frame of all work on single photos: find what is left to do, start, write, finish."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from vpltool import console
from vpltool.formats import Header, OutputFolder, finish_all, open_output
from vpltool.formats.shards import WHOLE, Shard, find_shard
from vpltool.parallel.threads import write_behind

if TYPE_CHECKING:
    from vpltool.parallel.memory import Divisible


@dataclass(frozen=True)
class Failed:
    """Why a photo could not be done; the others are processed."""

    reason: str


Made = tuple[str, Any]
"""A photo's id, and what is to be written for it, or `Failed`."""


@dataclass(frozen=True)
class Photos:
    """The photos that a stage is asked for.

    Args:
        ids: those that can be done.
        own: id to what of a photo's own the result depends on, see `open_output`.
        left_out: id to reason, of those that an earlier stage failed on.
        whole: whether these are all photos of the split, or all of the shard.
        shard: which photos this process does: the ids, `own` and `left_out` are of these.
    """

    ids: Sequence[str]
    own: Mapping[str, str]
    left_out: Mapping[str, str]
    whole: bool = True
    shard: Shard = WHOLE


class Sharded(Protocol):
    """The setting that says which photos are whose."""

    @property
    def shard(self) -> str:
        """Which photos this process does; empty: as the environment says."""


class Running(Sharded, Protocol):
    """The settings that the frame itself reads."""

    @property
    def overwrite(self) -> bool:
        """Whether to replace what is there."""

    @property
    def update(self) -> bool:
        """Whether to recompute stale results."""

    @property
    def device(self) -> str:
        """Where the work is done."""

    @property
    def batch_size(self) -> int:
        "Photos per batch."


def chosen_shard(settings: Sharded) -> Shard:
    """The shard that this process does; said, unless it is all photos.

    Raises:
        VplError: what the settings or the environment say is no shard.
    """
    shard = find_shard(settings.shard)
    if shard.count > 1:
        console.note(f"shard {shard} of the photos, {shard.set_by}")
    return shard


Named = TypeVar("Named")


def assigned(photos: Iterable[Named], shard: Shard, key: Callable[[Named], str] = str
             ) -> list[Named]:
    """Choose the photos that this process does.

    Every stage that works on single photos asks this function, and no other.

    Args:
        photos: ids, or anything that has one.
        shard: see `chosen_shard`.
        key: gives the id.
    """
    return [photo for photo in photos if shard.holds(key(photo))]


def open_outputs(
    folders: Mapping[Path, Header], photos: Photos, settings: Running
) -> list[OutputFolder]:
    """Open the folders that a stage writes, the most wanted first; nothing is changed yet.

    Raises:
        VplError: one was made with other settings.
    """
    return [open_output(path, header, photos.ids,
                        overwrite=settings.overwrite, update=settings.update,
                        left_out=photos.left_out, own=photos.own, whole=photos.whole,
                        shard=photos.shard)
            for path, header in folders.items()]


def make_photos(
    title: str, outputs: Sequence[OutputFolder],
    start: Callable[[list[str]], Iterable[Made]],
    write: Callable[[OutputFolder, str, Any], None], settings: Running,
    on_start: Callable[[], None] | None = None,
) -> list[Path]:
    """Do the work of a stage for all photos that are left, and write it down.

    Args:
        title: for the progress.
        outputs: what is written; see `open_outputs`.
        start: given the ids to do. It loads and checks everything that can be refused before it
            returns; what it returns yields each photo. Nothing that an earlier run left is
            deleted before.
        write: writes what was made for a photo to one of the outputs.
        settings: device and batch size. On a GPU a thread writes, and so many results may wait.
        on_start: called when the outputs have been begun, to write what belongs beside them.

    Returns:
        paths of the outputs.

    Raises:
        PhotosFailed: some photos failed; the others are done.
    """
    todo = list(dict.fromkeys(key for output in outputs for key in output.todo))
    results = start(todo) if todo else ()
    for output in outputs:
        output.begin()
    if on_start is not None:
        on_start()
    pending = [(output, set(output.todo)) for output in outputs]

    def put(key: str, made: Any) -> None:
        for output, keys in pending:
            if isinstance(made, Failed):
                output.fail(key, made.reason)
            elif key in keys:
                write(output, key, made)

    with (console.progress(title, len(todo)) as advance,
          write_behind(put, _write_ahead(settings) if todo else 0) as write_out):
        for key, made in results:
            write_out(key, made)
            advance()
    return finish_all(outputs)


def _write_ahead(settings: Running) -> int:
    from vpltool.parallel.device import find_device

    return settings.batch_size if find_device(settings.device).type == "cuda" else 0


_MANY = 2000
"""Photos from which reading their sizes takes long enough to be shown."""


def count_sizes(total: int) -> Callable[[], None]:
    """Show how many sizes of photos have been read; call the result after each of them."""
    if total < _MANY:
        return lambda: None
    stack = contextlib.ExitStack()
    advance = stack.enter_context(console.progress("read sizes", total))
    left = total

    def sized() -> None:
        nonlocal left
        advance()
        left -= 1
        if not left:
            stack.close()

    return sized


def run_batches(
    batches: Iterable[Divisible], run: Callable[[Any], Iterable[Made]],
    too_large: Callable[[Any], str],
) -> Iterator[Made]:
    """Run batches, and yield the photos of each; batches that do not fit into memory are split.

    Args:
        batches: what to run, in order.
        run: gives what was made for each photo of a batch.
        too_large: what to do where not even one photo fits: the hint of the error.

    Raises:
        VplError: the memory does not suffice for one photo.
    """
    from vpltool.parallel.memory import run_within_memory

    for _, made in run_within_memory(batches, lambda batch: list(run(batch)), warn=console.warn,
                                     lower=too_large):
        yield from made
