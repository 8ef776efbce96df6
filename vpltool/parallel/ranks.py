"""Processes that torchrun starts and that work together: what they tell each other, and their end.

A process on its own is a group of one, in which every exchange is the identity.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from vpltool.core.distributed import Group
from vpltool.errors import VplError
from vpltool.formats.shards import WHOLE, Shard, rank_of_process
from vpltool.lazy import Tensor, torch
from vpltool.parallel.device import find_device
from vpltool.parallel.signals import in_main_thread

__all__ = ["Ranks", "joined", "rank_of_process"]

_GRACE = 10.0
"""Seconds that a process has for its end after a signal; it may wait in C for one that has gone."""

_PATIENCE = timedelta(hours=2)
"""Time that a process waits for another one that lives: one may have more to read than the others.
One that dies is noticed at once, by its closed connection or by torchrun."""

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks(Group):
    """The processes of a run, as one of them sees them.

    Args:
        rank: its number; process 0 writes the files.
    """

    device: torch.device

    @property
    def shard(self) -> Shard:
        """The photos that this process reads."""
        return WHOLE if self.count == 1 else Shard(self.rank, self.count, "RANK and WORLD_SIZE")

    def gather(self, rows: Tensor) -> Tensor:
        """Join the rows (B, …) of all processes, by their numbers; gradients flow back.

        Each has as many. A row's gradient is the sum of those that all processes have for it.
        """
        return rows if self.count == 1 else _gather().apply(rows)

    def total(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all processes, without gradient."""
        if self.count == 1:
            return tensor
        total = tensor.detach().clone()
        torch.distributed.all_reduce(total)
        return total

    def mean(self, tensor: Tensor) -> Tensor:
        """Average a tensor over all processes, without gradient."""
        return tensor if self.count == 1 else self.total(tensor) / self.count

    def any(self, *values: bool) -> list[bool]:
        """Tell of each value whether it holds in any process; a GPU is not waited for."""
        return (list(values) if self.count == 1
                else (self.total(torch.tensor(values, dtype=torch.int64)) > 0).tolist())

    def collect(self, item: T) -> list[T]:
        """List what each process has, by their numbers; anything that can be pickled."""
        if self.count == 1:
            return [item]
        items: list[T | None] = [None] * self.count
        torch.distributed.all_gather_object(items, item)
        return items  # type: ignore[return-value]

    def share(self, module: torch.nn.Module) -> torch.nn.Module:
        """Have the gradients of a module averaged over all processes."""
        if self.count == 1:
            return module
        with warnings.catch_warnings():
            # Later versions have another name for it, which earlier ones do not know. Our buffers
            # are frozen; sending them would make a GPU read them again at each step.
            warnings.simplefilter("ignore", FutureWarning)
            return torch.nn.parallel.DistributedDataParallel(module, broadcast_buffers=False)


@functools.cache
def _gather() -> type[torch.autograd.Function]:
    """The rows of all processes; each row's gradient is the sum of those of all processes."""
    class Gather(torch.autograd.Function):
        @staticmethod
        def forward(_context: object, rows: Tensor) -> Tensor:
            parts = [torch.empty_like(rows, memory_format=torch.contiguous_format)
                     for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather(parts, rows.contiguous())
            return torch.cat(parts)

        @staticmethod
        def backward(_context: object, *gradients: Tensor) -> Tensor:
            total = gradients[0].clone(memory_format=torch.contiguous_format)
            torch.distributed.all_reduce(total)
            return total.chunk(torch.distributed.get_world_size())[torch.distributed.get_rank()]

    return Gather


@contextlib.contextmanager
def joined(choice: str, *, double: bool = False) -> Iterator[Ranks]:
    """Join the processes that torchrun has started: NCCL between GPUs, gloo between CPUs.

    Args:
        double: whether it must compute in double precision.

    Raises:
        VplError: no such device, or another process has ended.
    """
    rank, count = rank_of_process()
    device = find_device(choice, double=double)
    if count == 1:
        yield Ranks(0, 1, device)
        return
    if "MASTER_ADDR" not in os.environ:
        raise VplError(f"RANK={rank}, WORLD_SIZE={count}, but no MASTER_ADDR: processes that work "
                       "together are started by torchrun",
                       "start it by torchrun, or unset WORLD_SIZE")
    with _ended_by_signals():
        try:
            if device.type == "cuda":
                torch.cuda.set_device(device)
            # On GPUs both: numbers that the host has are exchanged without waiting for the GPU.
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            torch.distributed.init_process_group(backend, timeout=_PATIENCE)
            yield Ranks(rank, count, device)
        except BaseException as error:
            atexit.register(_exit_at_once, 130 if isinstance(error, KeyboardInterrupt) else 1)
            if not (isinstance(error, RuntimeError) and _is_of_group(error)):
                raise
            raise VplError(f"rank {rank} of {count} ends, since another one has ended",
                           "its message, above or below, gives the reason; then run the same "
                           "command again") from error
        torch.distributed.destroy_process_group()


def _exit_at_once(code: int) -> None:
    """End this process without taking the group down: that would wait for those that have gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _is_of_group(error: RuntimeError) -> bool:
    """Tell whether an exchange failed; gloo raises a bare RuntimeError."""
    text = str(error).lower()
    return isinstance(error, torch.distributed.DistError) or any(
        word in text for word in ("gloo", "nccl", "connection closed by peer"))


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Have this process end soon after a signal, even while it waits in C for another one.

    Python runs a handler only between two of its own steps. The signal itself is written to a pipe
    at once, and a thread reads that.
    """
    if not in_main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    over = threading.Event()

    def watch() -> None:
        while number := os.read(reader, 1):
            if number[0] in (signal.SIGINT, signal.SIGTERM):
                over.wait(_GRACE)
                if not over.is_set():
                    os._exit(128 + number[0])

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        os.close(writer)
        watcher.join()
        os.close(reader)
