"""Sums and gathers over the processes of a distributed run; without one, identities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from vpltool.lazy import Tensor, torch

T = TypeVar("T")
Losses = tuple[Tensor, ...]


@dataclass(frozen=True)
class Group:
    """A process in a group. Exchanges are identities here; `parallel.ranks` has real ones."""

    rank: int  # number of this process
    count: int  # number of all processes

    def total(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all processes."""
        return tensor

    def collect(self, item: T) -> list[T]:
        """List what each process has, by their numbers."""
        return [item]

    def gather(self, rows: Tensor) -> Tensor:
        """Join the rows of all processes; each row's gradient is the sum of what all have."""
        return rows

    def share(self, module: torch.nn.Module) -> torch.nn.Module:
        """Have the gradients of a module averaged over all processes."""
        return module


ALONE = Group(0, 1)


def share_losses(trained: torch.nn.Module, losses: Callable[[T], Losses], group: Group
                 ) -> Callable[[T], Losses]:
    """Return the losses of a step's crops with gradients averaged over all processes of a group.

    `trained` holds the parameters; the first loss depends on most of them.
    """
    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trained = trained

        def forward(self, batch: T) -> Losses:
            first, *others = losses(batch)
            if group.count > 1:
                # Parameters that a step does not use need a gradient too.
                first = first + 0 * torch.stack([part.sum() for part in trained.parameters()
                                                 if part.requires_grad]).sum()
            return first, *others

    return group.share(Step())
