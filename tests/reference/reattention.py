"""NACLIP, SCLIP, ProxyCLIP and ExCEL's calibration, token by token, with open_clip's modules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def heads_of(block: Any, tokens: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Query, key and value of each head (N, d), of one photo's tokens (N, width)."""
    attention = block.attn
    qkv = block.ln_1(tokens) @ attention.in_proj_weight.T + attention.in_proj_bias
    parts = qkv.split(tokens.shape[1], dim=1)
    size = tokens.shape[1] // attention.num_heads
    q, k, v = ([part[:, head * size : (head + 1) * size] for head in range(attention.num_heads)]
               for part in parts)
    return q, k, v


def softmax(values: Sequence[float]) -> list[float]:
    top = max(values)
    powers = [math.exp(value - top) for value in values]
    return [power / sum(powers) for power in powers]


def likeness(first: Tensor, second: Tensor) -> list[list[float]]:
    """Products over √d of all pairs."""
    return [[float(a @ b) / math.sqrt(len(a)) for b in second] for a in first]


def mix(weights: Sequence[Sequence[float]], value: Tensor) -> Tensor:
    return torch.stack([sum((w * v for w, v in zip(row, value, strict=True)), 0 * value[0])
                        for row in weights])


def projected(block: Any, mixed: Sequence[Tensor]) -> Tensor:
    """What attention would add to the residual: all heads side by side, projected, scaled."""
    whole = torch.cat(list(mixed), dim=1)
    return block.ls_1(whole @ block.attn.out_proj.weight.T + block.attn.out_proj.bias)


def embedded(visual: Any, tokens: Tensor) -> Tensor:
    joint = visual.ln_post(tokens) @ visual.proj
    return torch.stack([row / row.norm() for row in joint])


def finished(visual: Any, tokens: Tensor, added: Tensor, *, residual: bool) -> Tensor:
    block = visual.transformer.resblocks[-1]
    if residual:
        middle = tokens + added
        added = middle + block.ls_2(block.mlp(block.ln_2(middle)))
    return embedded(visual, added)[1:]


def naclip(visual: Any, tokens: Tensor, grid: tuple[int, int], sigma: float, *, residual: bool
           ) -> Tensor:
    block = visual.transformer.resblocks[-1]
    _, keys, values = heads_of(block, tokens)
    mixed = []
    for key, value in zip(keys, values, strict=True):
        logits = likeness(key, key)
        for one in range(grid[0] * grid[1]):
            for other in range(grid[0] * grid[1]):
                down = one // grid[1] - other // grid[1]
                across = one % grid[1] - other % grid[1]
                logits[1 + one][1 + other] += math.exp(-(down**2 + across**2) / (2 * sigma**2))
        mixed.append(mix([softmax(row) for row in logits], value))
    return finished(visual, tokens, projected(block, mixed), residual=residual)


def sclip(visual: Any, tokens: Tensor, *, residual: bool) -> Tensor:
    block = visual.transformer.resblocks[-1]
    mixed = []
    for query, key, value in zip(*heads_of(block, tokens), strict=True):
        by_query = [softmax(row) for row in likeness(query, query)]
        by_key = [softmax(row) for row in likeness(key, key)]
        mixed.append(mix([[a + b for a, b in zip(one, other, strict=True)]
                          for one, other in zip(by_query, by_key, strict=True)], value))
    return finished(visual, tokens, projected(block, mixed), residual=residual)


def proxyclip(visual: Any, tokens: Tensor, second: Tensor, beta: float, gamma: float) -> Tensor:
    block = visual.transformer.resblocks[-1]
    unit = [row / row.norm() for row in second]
    cosine = [[float(a @ b) for b in unit] for a in unit]
    mean = sum(map(sum, cosine)) / len(unit) ** 2
    weights = []
    for place, row in enumerate(cosine):
        logits = [gamma * (value - beta * mean) for value in row]
        kept = [value if value >= 0 or other == place else -math.inf
                for other, value in enumerate(logits)]
        weights.append(softmax(kept))
    _, _, values = heads_of(block, tokens[1:])
    return embedded(visual, projected(block, [mix(weights, value) for value in values]))


def calibrated(visual: Any, tokens: Tensor, blocks: int, heads: str) -> Tensor:
    """From the embedded tokens (N, width) of one photo, through all blocks."""
    stack = list(visual.transformer.resblocks)
    own, path = tokens, tokens
    for number, block in enumerate(stack):
        if number == len(stack) - blocks:
            path = own
        if number >= len(stack) - blocks:
            count = len(own)
            shared = [[0.0] * count for _ in range(count)]
            parts = heads_of(block, own)
            for head in range(block.attn.num_heads):
                for part in parts:
                    for i, row in enumerate(likeness(part[head], part[head])):
                        for j, weight in enumerate(softmax(row)):
                            shared[i][j] += weight / 3
            if heads == "mean":
                shared = [[weight / block.attn.num_heads for weight in row] for row in shared]
            path = path + projected(block, [mix(shared, value) for value in parts[2]])
        own = block(own[None])[0]
    return embedded(visual, path)[1:]
