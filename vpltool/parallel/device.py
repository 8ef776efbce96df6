"""Where the work is done, and in which number format."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os

import torch

from vpltool.errors import VplError

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
