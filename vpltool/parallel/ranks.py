"""A training in several processes, which torchrun starts: what they tell each other.

A process on its own is a group of one, in which every exchange is the identity.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vpltool.errors import VplError
from vpltool.parallel.device import find_device


@dataclass(frozen=True)
class Ranks:
    """The processes of a training, as one of them sees them.

    Args:
        rank: its number; process 0 writes the files.
        count: number of processes.
        device: where it computes.
    """

    rank: int
    count: int
    device: torch.device

    def gather(self, rows: Tensor) -> Tensor:
        """Join the rows (B, …) of all processes, by their numbers; gradients flow back."""
        return rows if self.count == 1 else _Gather.apply(rows)

    def mean(self, tensor: Tensor) -> Tensor:
        """Average a tensor over all processes, without gradient."""
        if self.count == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total / self.count

    def any(self, told: bool) -> bool:
        """Tell whether something holds in any process."""
        if self.count == 1:
            return told
        return bool(self.mean(torch.tensor(float(told), device=self.device)) > 0)

    def share(self, module: nn.Module) -> nn.Module:
        """Have the gradients of a module averaged over all processes."""
        if self.count == 1:
            return module
        return DistributedDataParallel(
            module, device_ids=[self.device] if self.device.type == "cuda" else None)


class _Gather(torch.autograd.Function):
    """The rows of all processes; each row's gradient is the sum of those of all processes."""

    @staticmethod
    def forward(_context: object, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(_context: object, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def rank_of_process() -> tuple[int, int]:
    """Number of this process, and how many there are, as torchrun says; 0 and 1 without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


@contextlib.contextmanager
def joined(choice: str) -> Iterator[Ranks]:
    """Join the processes that torchrun has started, by NCCL on GPUs and by gloo on CPUs.

    Args:
        choice: `auto`, `cpu`, `cuda` or `cuda:N`; of several processes each takes its own GPU.

    Raises:
        VplError: no such device.
    """
    rank, count = rank_of_process()
    device = find_device(choice)
    if count == 1:
        yield Ranks(0, 1, device)
        return
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", 0))
        if local >= torch.cuda.device_count():
            raise VplError(f"process {local} has no GPU: there are {torch.cuda.device_count()}",
                           "start as many processes as there are GPUs, or `device='cpu'`")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(rank, count, device)
    finally:
        dist.destroy_process_group()
