"""Distributed processes started by torchrun: exchange of tensors, and clean termination.

A single process is a group of one, in which every exchange is the identity.
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
"""Seconds until a signalled process is ended, since it may wait in C for one that has ended."""

_PATIENCE = timedelta(hours=2)
"""Timeout for other living processes, since one may have more to read than the others. A process
that dies is noticed at once, by its closed connection or by torchrun."""

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks(Group):
    """A process in a group started by torchrun; rank 0 writes the files."""

    device: torch.device

    @property
    def shard(self) -> Shard:
        """The shard of photos that this process reads."""
        return WHOLE if self.count == 1 else Shard(self.rank, self.count, "RANK and WORLD_SIZE")

    def gather(self, rows: Tensor) -> Tensor:
        """Concatenate rows (B, …) of all processes by rank; differentiable.

        All processes have the same number of rows. A row's gradient is summed over all processes.
        """
        return rows if self.count == 1 else _gather().apply(rows)

    def total(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes, without gradient."""
        if self.count == 1:
            return tensor
        total = tensor.detach().clone()
        torch.distributed.all_reduce(total)
        return total

    def mean(self, tensor: Tensor) -> Tensor:
        """Average a tensor over all processes, without gradient."""
        return tensor if self.count == 1 else self.total(tensor) / self.count

    def any(self, *values: bool) -> list[bool]:
        """Return for each value whether it is true in any process, without waiting for a GPU."""
        return (list(values) if self.count == 1
                else (self.total(torch.tensor(values, dtype=torch.int64)) > 0).tolist())

    def collect(self, item: T) -> list[T]:
        """Gather a picklable object from every process, by rank."""
        if self.count == 1:
            return [item]
        items: list[T | None] = [None] * self.count
        torch.distributed.all_gather_object(items, item)
        return items  # type: ignore[return-value]

    def share(self, module: torch.nn.Module) -> torch.nn.Module:
        """Wrap a module so that its gradients are averaged over all processes."""
        if self.count == 1:
            return module
        with warnings.catch_warnings():
            # Later versions rename the argument, which earlier ones do not know. Our buffers are
            # frozen: broadcasting them would make a GPU read them again at each step.
            warnings.simplefilter("ignore", FutureWarning)
            return torch.nn.parallel.DistributedDataParallel(module, broadcast_buffers=False)


@functools.cache
def _gather() -> type[torch.autograd.Function]:
    """Return the function that gathers rows; its backward pass sums gradients over processes."""
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
    """Join the process group started by torchrun: NCCL between GPUs, gloo between CPUs.

    `double`: whether the device must support double precision. Raises a VplError if there is no
    such device, or another process has ended.
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
                torch.cuda.set_device(device.index or 0)
            # Both on GPUs, so that numbers on the host are exchanged without waiting for the GPU.
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
    """Exit without destroying the group, which would wait for processes that have ended."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _is_of_group(error: RuntimeError) -> bool:
    """Return whether a collective operation failed; gloo raises a bare RuntimeError."""
    text = str(error).lower()
    return isinstance(error, torch.distributed.DistError) or any(
        word in text for word in ("gloo", "nccl", "connection closed by peer"))


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Have this process end soon after a signal, even while it waits in C for another process.

    Python runs handlers only between bytecode instructions. The wakeup file descriptor gets the
    signal at once, and a thread reads it.
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
