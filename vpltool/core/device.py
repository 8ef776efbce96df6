"""Where the work is done, and in which number format."""

from __future__ import annotations

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
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(choice)
    except RuntimeError:
        raise VplError(f"`{choice}` is no device", "--device auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise VplError(f"{choice}: {torch.cuda.device_count()} CUDA devices are there",
                       "--device cpu")
    return device


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
