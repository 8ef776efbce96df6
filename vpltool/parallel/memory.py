"""Halving of batches on out-of-memory; a single photo that does not fit says what to lower."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from vpltool.errors import VplError, is_out_of_memory
from vpltool.lazy import torch


class Divisible(Protocol):
    """A batch of photos of one size that can be taken apart."""

    def __len__(self) -> int:
        """Number of photos."""

    @property
    def each(self) -> str:
        """How large each photo is, for people: `640×480 pixels`."""

    def split(self: Part, size: int) -> list[Part]:
        """Take it apart into batches of `size` photos at most, in order."""


Part = TypeVar("Part", bound=Divisible)
Result = TypeVar("Result")


def run_within_memory(
    batches: Iterable[Part], run: Callable[[Part], Result], *, warn: Callable[[str], None],
    lower: Callable[[Part], str],
) -> Iterator[tuple[Part, Result]]:
    """Run batches; one that does not fit into memory is halved, and so are all later ones.

    The results are those of a smaller batch size.

    Args:
        warn: told once what size the memory does suffice for, and which option says so at once.
        lower: what to do where it does not suffice for a single photo: the hint of the error.

    Yields:
        each batch, or the parts of it that were run, with its result.

    Raises:
        VplError: the memory does not suffice for one photo; its size is named.
    """
    most, refused = 0, ""
    for batch in batches:
        waiting = batch.split(most) if most else [batch]
        while waiting:
            part = waiting[0]
            try:
                result = run(part)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(part) < 2:
                    raise VplError(f"out of memory with a photo of {part.each}",
                                   lower(part)) from error
            else:
                if refused:
                    warn(f"out of memory with {refused}: continuing with {most} at a time; "
                         f"next time `batch_size={most}`")
                    refused = ""
                yield waiting.pop(0), result
                continue
            # Behind the except clause: until its end the failed run's tensors are held.
            torch.cuda.empty_cache()
            refused = refused or f"{len(part)} photos of {part.each}"
            most = (len(part) + 1) // 2
            waiting = [piece for item in waiting for piece in item.split(most)]


def physical_memory() -> float:
    """Memory of this machine in bytes; infinite where the system does not tell."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return math.inf


@contextlib.contextmanager
def explain_out_of_memory(what: str, lower: str) -> Iterator[None]:
    """Turn a lack of memory into an error that says for what (`6 crops`), and what to lower.

    Raises:
        VplError: the memory did not suffice; the hint is `lower`.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise VplError(f"out of memory with {what}", lower) from error
