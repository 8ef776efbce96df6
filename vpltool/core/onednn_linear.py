"""Linear layers through oneDNN, on the CPUs where torch's own way is slower."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """`nn.Linear` with the same parameters; what needs no gradients is computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Wᵀ + b; in float32 on AMD's CPUs, without gradients, as a convolution of one pixel.

    There torch takes MKL, which uses less of these CPUs than oneDNN does, and copies the bias
    before the product. A convolution is torch's only way to oneDNN in float32.

    Args:
        x: (..., in).
        weight: W (out, in).
        bias: b (out,), or None.

    Returns:
        (..., out).
    """
    if (torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type != "cpu"
            or x.dtype != torch.float32 or weight.dtype != torch.float32 or not x.numel()
            or not convolves_faster()):
        return F.linear(x, weight, bias)
    rows = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)
    mapped = F.conv2d(rows, weight[..., None, None], bias)
    return mapped.permute(0, 2, 3, 1).reshape(*x.shape[:-1], weight.shape[0])


@functools.cache
def convolves_faster() -> bool:
    """Tell whether this is a CPU of AMD, and torch has oneDNN; told by name, not by timing.

    Results then do not depend on what else the machine does.
    """
    try:
        named = Path("/proc/cpuinfo").read_text("ascii", errors="ignore")
    except OSError:
        named = platform.processor()
    return torch.backends.mkldnn.is_available() and "AuthenticAMD" in named
