"""The transformer block of towers and decoders, which gives access to its attention.

Its linear layers are computed by oneDNN on CPUs where torch's own way is slower.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


class Linear(nn.Linear):
    """`nn.Linear` computed by `linear`, with the same parameters."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Wᵀ + b (..., out) of x (..., in), W (out, in) and b (out,).

    In float32 on AMD's CPUs, without gradients, it is a convolution of one pixel: torch's only way
    to oneDNN in float32. Otherwise torch takes MKL, which uses less of these CPUs than oneDNN does,
    and copies the bias before the product.
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
    """Return whether this is a CPU of AMD, and torch has oneDNN.

    By name, not by timing: results then do not depend on the machine's load.
    """
    try:
        name = Path("/proc/cpuinfo").read_text("ascii", errors="ignore")
    except OSError:
        name = platform.processor()
    return torch.backends.mkldnn.is_available() and "AuthenticAMD" in name


def _quick_gelu(x: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        return x * torch.sigmoid(1.702 * x)
    # The same bits with one new tensor instead of three.
    return (1.702 * x).sigmoid_().mul_(x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
}

_MANY, _QUERIES = 4096, 1024
"""More tokens than the first number attend in parts of the second: of 16,384 tokens of width 768, a
part takes a second on a core."""


@dataclass(frozen=True)
class BlockShape:
    """Sizes of a `Block`: width, hidden width of the MLP, heads, LN epsilon, activation."""

    width: int
    hidden: int
    heads: int
    eps: float
    activation: str

    def __post_init__(self) -> None:
        check_numbers(self)
        check_heads(self.width, self.heads)


def check_heads(width: int, heads: int) -> None:
    """Raise a ValueError if a width cannot be divided among the heads of an attention."""
    if heads < 1 or width % heads:
        raise ValueError(f"a width of {width} cannot be divided among {heads} heads")


def check_numbers(shape: Any) -> None:
    """Raise a TypeError if a dataclass from a file lacks a number in a field that declares one."""
    kinds: dict[Any, type | tuple[type, ...]] = {"int": int, "float": (int, float)}
    for entry in fields(shape):
        value = getattr(shape, entry.name)
        if not isinstance(value, kinds.get(entry.type, object)):
            raise TypeError(f"`{entry.name}` is no number: {str(value)[:40]}")


class Block(nn.Module):
    """Pre-LN transformer block: x += γ₁·attention(ln_1(x)); x += γ₂·mlp(ln_2(x))."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.shape = shape
        self.ln_1 = nn.LayerNorm(shape.width, eps=shape.eps)
        self.qkv = Linear(shape.width, 3 * shape.width)
        self.out = Linear(shape.width, shape.width)
        self.ln_2 = nn.LayerNorm(shape.width, eps=shape.eps)
        self.fc = Linear(shape.width, shape.hidden)
        self.proj = Linear(shape.hidden, shape.width)
        self.gamma_1 = nn.Parameter(torch.ones(shape.width))
        self.gamma_2 = nn.Parameter(torch.ones(shape.width))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, width) to tokens (B, N, width)."""
        return self.after_attention(x, self.attend(*self.heads(self.ln_1(x))))

    def forward_with_attention(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run the block without gradients: its tokens (B, N, width) and head-averaged attention.

        Attention is (B, N, N) in float32, rows summing to 1.
        """
        mixed, mean = self._weigh_and_average(self.ln_1(x), values=True)
        return self.after_attention(x, mixed), mean

    def attention(self, x: Tensor) -> Tensor:
        """Return only the head-averaged attention (B, N, N), float32."""
        return self._weigh_and_average(self.ln_1(x), values=False)[1]

    def heads(self, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map ln_1's output (B, N, width) to query, key and value (B, heads, N, head width)."""
        batch, count, width = normed.shape
        qkv = self.qkv(normed).view(batch, count, 3, self.shape.heads, width // self.shape.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def values(self, normed: Tensor) -> Tensor:
        """Map ln_1's output (B, N, width) to the values only (B, heads, N, head width)."""
        width = self.shape.width
        value = linear(normed, self.qkv.weight[2 * width :], self.qkv.bias[2 * width :])
        return value.unflatten(-1, (self.shape.heads, -1)).transpose(1, 2)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Mix values (B, heads, N, head width) by attention; its matrix is not returned."""
        if query.device.type == "cpu" and query.dtype == torch.bfloat16:
            # For bfloat16 on a CPU, torch's fused attention takes twice as long as plain products.
            if not torch.is_grad_enabled():
                return _weigh(query, key, value)
            scaled = query * query.shape[-1] ** -0.5
            return torch.softmax(scaled @ key.transpose(-2, -1), dim=-1) @ value
        exported = torch.compiler.is_compiling()
        if exported or query.device.type != "cpu" or query.shape[-2] <= _MANY:
            return F.scaled_dot_product_attention(query, key, value)
        # The same numbers: queries do not see each other. Ctrl-C acts between two parts.
        return torch.cat([F.scaled_dot_product_attention(part, key, value)
                          for part in query.split(_QUERIES, dim=-2)], dim=-2)

    def _weigh_and_average(self, normed: Tensor, *, values: bool) -> tuple[Tensor, Tensor]:
        """Mix values (if wanted) by attention; and return its average over the heads (B, N, N)."""
        query, key, value = self.heads(normed)
        batch, heads, count, _ = query.shape
        total = query.new_zeros(batch, count, count, dtype=torch.float32)
        mixed = _weigh(query, key, value if values else value[..., :0], total)
        return mixed, total.div_(heads)

    def attention_output(self, mixed: Tensor) -> Tensor:
        """Project the heads' output (B, heads, N, head width) to what is added to the tokens."""
        return self.gamma_1 * self._joined(mixed)

    def calibrated_output(self, x: Tensor, heads: str) -> Tensor:
        """Return what the block adds to ExCEL's second path (B, N, width), without gradients.

        γ₁·out(A v), of its input x on CLIP's own path. A is the mean attention of queries to
        queries, keys to keys and values to values, shared by all heads: their `sum` or `mean`.
        """
        parts = self.heads(self.ln_1(x))
        value = parts[2]
        shared = value.new_zeros(len(x), x.shape[1], x.shape[1], dtype=torch.float32)
        for part in parts:
            _weigh(part, part, part[..., :0], shared)
        shared /= len(parts)
        if heads == "mean":
            shared /= self.shape.heads
        return self.attention_output(shared.to(value)[:, None] @ value)

    def _joined(self, mixed: Tensor) -> Tensor:
        return self.out(mixed.transpose(1, 2).flatten(2))

    def after_attention(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Run the rest of the block on tokens x (B, N, width): output projection, residual, MLP.

        `mixed` is the output of the heads (B, heads, N, head width).
        """
        x = torch.addcmul(x, self.gamma_1, self._joined(mixed))
        hidden = ACTIVATIONS[self.shape.activation](self.fc(self.ln_2(x)))
        return torch.addcmul(x, self.gamma_2, self.proj(hidden))


def _weigh(query: Tensor, key: Tensor, value: Tensor, total: Tensor | None = None) -> Tensor:
    """Mix values (B, heads, N, d) by attention, without gradients.

    Query and key are (B, heads, N, head width). The sum of the heads' attention is added to `total`
    (B, N, N), float32, if it is given.
    """
    query = query * query.shape[-1] ** -0.5
    if query.device.type != "cpu":
        weights = torch.softmax(query @ key.transpose(-2, -1), dim=-1)
        if total is not None:
            total += weights.sum(dim=1, dtype=torch.float32)
        return weights @ value
    # On a CPU one head at a time: its N×N matrix stays in the cache, and only one exists.
    mixed = value.new_empty(value.shape)
    for photo, heads in enumerate(zip(query, key, value, mixed, strict=True)):
        for queries, keys, values, into in zip(*heads, strict=True):
            weights = torch.softmax(queries @ keys.T, dim=-1)
            into.copy_(weights @ values)
            if total is not None:
                total[photo] += weights
    return mixed


def rebuild(build: Callable[[], Network], state: Mapping[str, Tensor]) -> Network:
    """Build a network on the meta device, without memory, and give it a file's tensors as they are.

    Raises a ValueError if no network is described, or one of other tensors.
    """
    try:
        with torch.device("meta"):
            network = build()
        network.load_state_dict(dict(state), assign=True)
    except (RuntimeError, TypeError, KeyError, AttributeError, ArithmeticError, LookupError,
            AssertionError) as error:
        raise ValueError(str(error).partition("\n")[0] or type(error).__name__) from error
    return network
