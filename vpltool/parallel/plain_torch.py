"""torch as it is when it is imported, in a program that has set it otherwise."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from vpltool.lazy import torch


@contextlib.contextmanager
def plain_torch(*, whole: bool = False) -> Iterator[None]:
    """Run the block with torch's defaults; then restore the program's settings.

    These are gradients, inference mode, autocast and the default device, which each thread has for
    itself. `whole` adds what is one for all threads: the default dtype, and the state of the random
    generators, which the block may seed. torch is not imported for it.
    """
    with contextlib.ExitStack() as stack:
        if "torch" in sys.modules:
            for setting in _defaults(whole):
                stack.enter_context(setting)
        elif whole:
            stack.callback(_seed_anew)
        yield


def _seed_anew() -> None:
    """Seed the generators by chance, as importing torch does, if the block has imported it."""
    if "torch" in sys.modules:
        torch.seed()


def _defaults(whole: bool) -> Iterator[contextlib.AbstractContextManager[object]]:
    yield torch.inference_mode(False)
    yield torch.enable_grad()
    for kind in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        yield torch.autocast(kind, enabled=False)
    # Within this context, each of torch's functions would pass through Python.
    if torch.empty(0).device.type != "cpu":
        yield torch.device("cpu")
    if whole:
        # A GPU that was not used yet has no state.
        gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        yield torch.random.fork_rng(gpus)
        yield _single_precision()


@contextlib.contextmanager
def _single_precision() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
