"""Choice of device, precision, and number of workers."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import time
import warnings
from collections.abc import Callable, Iterator

from vpltool import process
from vpltool.errors import VplError
from vpltool.lazy import torch
from vpltool.parallel import processes

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

_SLOW = 2.0
"""Slowdown against fp32 that deserves a warning; CPUs with native support are faster."""


def find_device(choice: str, *, double: bool = False) -> torch.device:
    """Turn `auto`, `cpu`, `mps`, `cuda` or `cuda:N` into an available device.

    Each of several torchrun processes on this machine takes its own GPU, also if Slurm shows it
    that one alone; none takes Apple's, over which processes cannot communicate. If `double`
    precision is needed, which Apple's GPUs lack, the CPU takes their place. Raises a VplError if
    there is no such device.
    """
    apple = torch.backends.mps.is_available()
    if choice == "auto":
        alone = apple and "LOCAL_RANK" not in os.environ
        choice = "cuda" if torch.cuda.is_available() else "mps" if alone else "cpu"
    if choice == "mps" and double:
        choice = "cpu"
    bound = (torch.cuda.device_count() == 1 and "CUDA_VISIBLE_DEVICES" in os.environ
             and os.environ.get("LOCAL_WORLD_SIZE", "1") == "1")
    if choice == "cuda" and not bound and os.environ.get("LOCAL_RANK", "").isdecimal():
        choice = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(choice)
    except RuntimeError:
        raise VplError(f"`{choice}` is not a device",
                       "one of auto, cpu, mps, cuda or cuda:N") from None
    if device.type == "cpu" and process.is_own():
        keep_freed_memory()
    if device.type == "mps" and not apple:
        raise VplError("mps: torch finds no GPU of Apple's", "`device='cpu'`")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise VplError(f"{choice}: {torch.cuda.device_count()} CUDA devices found",
                       "`device='cpu'`")
    return device


@functools.cache
def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next tensors; does nothing on other systems.

    A block of the encoder frees megabytes several times; returned to the system, each page would be
    cleared and mapped again for the next tensor. Settings in the environment take precedence. It
    holds for the whole process, so it is only for our own.
    """
    trim_threshold, mmap_threshold, most = -1, -3, 32 * 2**20
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, most)
        libc.mallopt(trim_threshold, 2**31 - 1)


def settle_precision(choice: str, device: torch.device, there: str = "") -> str:
    """Resolve `auto` to bf16 where the device supports it, else fp32.

    A CPU supports it if it multiplies faster in bf16 than in float32; a GPU from Ampere on; Apple's
    GPUs are untested and excluded. `there` is the precision of existing results, which `auto` keeps
    unless it is much slower here.
    """
    if choice != "auto":
        return choice
    if device.type == "mps" or there == "fp32":
        return "fp32"
    if device.type == "cuda":
        has_it = torch.cuda.get_device_capability(device)[0] >= 8
    else:
        has_it = slowdown_of(torch.bfloat16) < (_SLOW if there == "bf16" else 1)
    return "bf16" if has_it else "fp32"


def find_precision(choice: str, device: torch.device,
                   warn: Callable[[str], None] | None = None) -> torch.dtype:
    """Turn `fp32`, `bf16`, `fp16` or `auto` into a dtype that the device can compute in.

    `warn` is called if the format is slower than fp32, which is allowed, since results depend on
    the format; None: speed is not measured. Raises a VplError if there is no such format, or for
    fp16 on a CPU.
    """
    choice = settle_precision(choice, device)
    if choice not in _DTYPES:
        raise VplError(f"`{choice}` is not a precision", "one of fp32, bf16, fp16 or auto")
    if choice == "fp16" and device.type == "cpu":
        raise VplError("fp16 is not available on CPUs", "`precision='fp32'`, or `precision='bf16'`")
    if choice == "bf16" and device.type == "cpu" and warn is not None:
        slower = slowdown_of(dtype_of(choice))
        if slower > _SLOW:
            warn(f"{choice} is about {slower:.0f} times slower than fp32 on this CPU, which lacks "
                 "the instructions for it: `precision='fp32'`")
    return dtype_of(choice)


@contextlib.contextmanager
def fixed_order(device: torch.device | None) -> Iterator[None]:
    """Let a GPU sum in a fixed order, where torch has one, so that a seed gives the same bits."""
    if device is None or device.type != "cuda":
        yield
        return
    # Read by cuBLAS when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    mode = torch.get_deterministic_debug_mode()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deterministic.*")
        torch.set_deterministic_debug_mode("warn")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        try:
            # The gradients of the others have no fixed order.
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                yield
        finally:
            torch.set_deterministic_debug_mode(mode)
            torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


def widest(device: torch.device) -> torch.dtype:
    """Return the dtype for long sums: double precision, or single on devices without it."""
    return torch.float32 if device.type == "mps" else torch.float64


def dtype_of(precision: str) -> torch.dtype:
    """Return the dtype of `fp32`, `bf16` or `fp16`."""
    found: torch.dtype = getattr(torch, _DTYPES[precision])
    return found


@functools.cache
def slowdown_of(precision: torch.dtype) -> float:
    """Measure how many times slower a CPU multiplies matrices in a dtype than in float32.

    Runs on one core, in 15 ms, or up to 450 ms if the dtype is slow; returns the least of three
    ratios, since one may double on a busy machine. Instruction sets are a poor guide: a CPU with
    AVX-512 but without its bf16 part needs 4 times as long as in float32, one with AVX2 only 10 to
    70 times.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return min(_seconds_in(precision) / _seconds_in(torch.float32) for _ in range(3))
    finally:
        torch.set_num_threads(threads)


def _seconds_in(precision: torch.dtype) -> float:
    """Return the seconds for a product of 64 tokens and 512×512 weights: the best of three."""
    tokens, weights = torch.ones(64, 512, dtype=precision), torch.ones(512, 512, dtype=precision)
    taken = []
    # The first run selects and prepares the kernel.
    for _ in range(4):
        started = time.thread_time()
        torch.nn.functional.linear(tokens, weights)
        taken.append(time.thread_time() - started)
    return max(min(taken[1:]), 1e-9)


def worker_count(choice: int) -> int:
    """Return the number of worker processes: `choice`, or `default_workers` for -1."""
    return choice if choice >= 0 else default_workers()


def default_workers() -> int:
    """Return the default number of worker processes: the cores less one, between 1 and 8.

    torchrun processes on this machine share its cores.
    """
    beside = os.environ.get("LOCAL_WORLD_SIZE", "")
    share = int(beside) if beside.isdecimal() else 1
    return max(1, min(8, processes.core_count() // max(share, 1) - 1))
