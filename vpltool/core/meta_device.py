"""Build a network on the meta device, and give it the tensors of a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def rebuild(build: Callable[[], Network], state: Mapping[str, Tensor]) -> Network:
    """Build a network around the tensors of a file; numbers alone take no memory.

    Args:
        build: makes the network, of whatever values.
        state: its state dict; the network takes these tensors as they are.

    Raises:
        ValueError: no network is described, or one of other tensors.
    """
    try:
        with torch.device("meta"):
            network = build()
        network.load_state_dict(dict(state), assign=True)
    except (RuntimeError, TypeError, KeyError, AttributeError, ArithmeticError, LookupError,
            AssertionError) as error:
        raise ValueError(str(error).partition("\n")[0] or type(error).__name__) from error
    return network
