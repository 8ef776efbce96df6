"""DINO's and DINOv2's vision transformer, written out from the papers, a token at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

HEAD_WIDTH = 64
EPS = 1e-6


def random_state(width: int = 128, depth: int = 3, patch: int = 8, side: int = 4, *,
                 registers: int = 0, scaled: bool = False, seed: int = 0) -> dict[str, Tensor]:
    """A state dict with the names of the released files; `scaled`: DINOv2's layer scale."""
    chance = torch.Generator().manual_seed(seed)

    def draw(*shape: int, around: float = 0.0) -> Tensor:
        return around + torch.randn(*shape, generator=chance) * 0.1

    state = {"cls_token": draw(1, 1, width), "pos_embed": draw(1, 1 + side * side, width),
             "patch_embed.proj.weight": draw(width, 3, patch, patch),
             "patch_embed.proj.bias": draw(width),
             "norm.weight": draw(width, around=1), "norm.bias": draw(width)}
    if registers:
        state["register_tokens"] = draw(1, registers, width)
    if scaled:
        state["mask_token"] = draw(1, width)
    for number in range(depth):
        at = f"blocks.{number}."
        for norm in ("norm1", "norm2"):
            state |= {f"{at}{norm}.weight": draw(width, around=1), f"{at}{norm}.bias": draw(width)}
        for name, out, into in (("attn.qkv", 3 * width, width), ("attn.proj", width, width),
                                ("mlp.fc1", 4 * width, width), ("mlp.fc2", width, 4 * width)):
            state |= {f"{at}{name}.weight": draw(out, into), f"{at}{name}.bias": draw(out)}
        # Else a token would attend to all others alike.
        state[f"{at}attn.qkv.weight"] *= 3
        if scaled:
            state |= {f"{at}ls1.gamma": draw(width, around=0.5),
                      f"{at}ls2.gamma": draw(width, around=0.5)}
    return state


def _norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    x = x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt()
    return x * state[f"{name}.weight"] + state[f"{name}.bias"]


def _linear(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _cubic(distance: float) -> float:
    """Keys's kernel with a = −0.75, as torch's bicubic interpolation has it."""
    a, d = -0.75, abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def resampled(table: Tensor, grid: tuple[int, int], offset: float) -> Tensor:
    """Positions (side, side, width) on another grid (h·w, width), without smoothing."""
    side = len(table)

    def weights(count: int) -> Tensor:
        matrix = torch.zeros(count, side, dtype=table.dtype)
        for place in range(count):
            source = (place + 0.5) * side / (count + offset) - 0.5
            first = math.floor(source)
            for tap in range(first - 1, first + 3):
                matrix[place, min(max(tap, 0), side - 1)] += _cubic(source - tap)
        return matrix

    rows, columns = weights(grid[0]), weights(grid[1])
    return torch.einsum("hy,wx,yxc->hwc", rows, columns, table).flatten(0, 1)


def encode(state: dict[str, Tensor], pixels: Tensor, *, last_blocks: int = 8,
           offset: float = 0.1) -> tuple[Tensor, Tensor]:
    """Patch tokens, L2-normed (n, width), and the mean attention of the last blocks (n, n).

    Args:
        state: see `random_state`.
        pixels: one photo, normalised (3, H, W).
        last_blocks: whose attention is averaged.
        offset: of the resampled positions.
    """
    kernel = state["patch_embed.proj.weight"]
    width, patch = kernel.shape[0], kernel.shape[-1]
    h, w = pixels.shape[1] // patch, pixels.shape[2] // patch
    tokens = torch.stack([
        (kernel * pixels[:, y * patch:(y + 1) * patch, x * patch:(x + 1) * patch]).sum((1, 2, 3))
        + state["patch_embed.proj.bias"] for y in range(h) for x in range(w)])
    positions = state["pos_embed"][0]
    side = math.isqrt(len(positions) - 1)
    table = positions[1:].view(side, side, width)
    tokens = tokens + (table.flatten(0, 1) if (h, w) == (side, side)
                       else resampled(table, (h, w), offset))
    registers = state.get("register_tokens", tokens.new_zeros(1, 0, width))[0]
    x = torch.cat([state["cls_token"][0] + positions[:1], registers, tokens])
    before = 1 + len(registers)
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    seen = []
    for number in range(depth):
        at = f"blocks.{number}"
        qkv = _linear(_norm(x, state, f"{at}.norm1"), state, f"{at}.attn.qkv")
        mixed, maps = [], []
        for head in range(width // HEAD_WIDTH):
            own = slice(head * HEAD_WIDTH, (head + 1) * HEAD_WIDTH)
            query, key, value = (part[:, own] for part in qkv.split(width, dim=1))
            maps.append(torch.softmax(query @ key.T / HEAD_WIDTH**0.5, dim=1))
            mixed.append(maps[-1] @ value)
        seen.append(sum(maps) / len(maps))
        x = x + state.get(f"{at}.ls1.gamma", 1) * _linear(
            torch.cat(mixed, dim=1), state, f"{at}.attn.proj")
        hidden = _linear(_norm(x, state, f"{at}.norm2"), state, f"{at}.mlp.fc1")
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        x = x + state.get(f"{at}.ls2.gamma", 1) * _linear(hidden, state, f"{at}.mlp.fc2")
    patches = _norm(x, state, "norm")[before:]
    last = seen[-last_blocks:]
    return (patches / patches.norm(dim=1, keepdim=True),
            (sum(last) / len(last))[before:, before:])
