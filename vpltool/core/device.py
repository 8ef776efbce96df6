"""Where the work is done, and in which number format."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

import torch

from vpltool.errors import VplError, is_out_of_memory

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def find_device(choice: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda` or `cuda:N` into a device that is there.

    Raises:
        VplError: no such device.
    """
    if choice == "auto":
        choice = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(choice)
    except RuntimeError:
        raise VplError(f"`{choice}` is no device", "--device auto, cpu, cuda or cuda:N") from None
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise VplError(f"{choice}: {torch.cuda.device_count()} CUDA devices are there",
                       "--device cpu")
    return device


@functools.cache
def keep_freed_memory() -> None:
    """Have glibc keep the memory of freed tensors for the next ones; elsewhere, nothing.

    A block of the encoder frees megabytes several times. Given back to the system, each page of
    them is cleared and mapped again for the next tensor. What the environment says wins.
    """
    trim_threshold, mmap_threshold, most = -1, -3, 32 * 2**20
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, most)
        libc.mallopt(trim_threshold, 2**31 - 1)


def find_precision(choice: str, device: torch.device) -> torch.dtype:
    """Turn `fp32`, `bf16` or `fp16` into a number format that the device computes in.

    Raises:
        VplError: no such format, or half precision on a CPU.
    """
    if choice not in PRECISIONS:
        raise VplError(f"`{choice}` is no precision", "--precision fp32, bf16 or fp16")
    if choice == "fp16" and device.type == "cpu":
        raise VplError("fp16 is not computed on a CPU", "--precision fp32, or bf16")
    return PRECISIONS[choice]


def worker_count(choice: int) -> int:
    """Number of worker processes: as asked, or the cores less one, between 1 and 8, for -1."""
    if choice >= 0:
        return choice
    return max(1, min(8, len(os.sched_getaffinity(0)) - 1))


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


def halving(batches: Iterable[Part], run: Callable[[Part], Result], *, warn: Callable[[str], None],
            lower: Callable[[Part], str]) -> Iterator[tuple[Part, Result]]:
    """Run batches; one for which the memory does not suffice is halved, and so are all later ones.

    The results are those of a smaller batch size.

    Args:
        batches: what to run, in order.
        run: takes a batch to the device and gives a result.
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
                    warn(f"out of memory with {refused}: going on with {most} at a time; "
                         f"next time --batch-size {most}")
                    refused = ""
                yield waiting.pop(0), result
                continue
            # Behind the except clause: until its end the failed run's tensors are held.
            torch.cuda.empty_cache()
            refused = refused or f"{len(part)} photos of {part.each}"
            most = (len(part) + 1) // 2
            waiting = [piece for item in waiting for piece in item.split(most)]


@contextlib.contextmanager
def naming_shortage(what: str, lower: str) -> Iterator[None]:
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
