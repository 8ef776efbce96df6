"""Halving of batches that do not fit into memory, and hints if work does not."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

from vpltool.errors import VplError, is_out_of_memory
from vpltool.lazy import torch


class Divisible(Protocol):
    """A batch of photos of the same size that can be split."""

    @property
    def ids(self) -> Sequence[str]:
        """Ids of the photos."""

    def __len__(self) -> int:
        """Number of photos."""

    @property
    def each(self) -> str:
        """Size of each photo for messages: `640×480 pixels`."""

    def split(self: Part, size: int) -> list[Part]:
        """Split into batches of at most `size` photos, in order."""


Part = TypeVar("Part", bound=Divisible)
Result = TypeVar("Result")


def run_within_memory(
    batches: Iterable[Part], run: Callable[[Part], Result], *, warn: Callable[[str], None],
    too_large: Callable[[Part], Result],
) -> Iterator[tuple[Part, Result]]:
    """Run batches; if one does not fit into memory, it and all later ones are halved.

    Yields each batch, or the parts in which it was run, with its result, which is that of a smaller
    batch size. `warn` is called once with the size that fits, and the option that sets it.
    `too_large` returns the result of a single photo for which memory does not suffice.
    """
    most, refused = 0, ""
    for batch in batches:
        waiting = batch.split(most) if most else [batch]
        while waiting:
            part, fits = waiting[0], True
            try:
                result = run(part)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                fits = False
            if not fits:
                # After the except clause, which keeps the failed run's tensors alive.
                torch.cuda.empty_cache()
            if fits or len(part) < 2:
                if refused and fits:
                    warn(f"out of memory with {refused}: continuing with {most} at a time; "
                         f"next time `batch_size={most}`")
                    refused = ""
                yield waiting.pop(0), result if fits else too_large(part)
                continue
            refused = refused or f"{len(part)} photos of {part.each}"
            most = (len(part) + 1) // 2
            waiting = [piece for item in waiting for piece in item.split(most)]


def physical_memory() -> float:
    """Return this machine's memory in bytes; infinity if unknown."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return math.inf


@contextlib.contextmanager
def explain_out_of_memory(what: str, lower: str) -> Iterator[None]:
    """Turn a lack of memory into a VplError that names its cause (`6 crops`), with a hint."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise VplError(f"out of memory with {what}", lower) from error
