"""A frozen CLIP vision transformer, forwarded block by block from open_clip's weights.

open_clip gives neither attention maps nor varying image sizes. What is needed for CAMs (tokens
before the last block, joint-space patch embeddings, attention) comes out of one pass here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ATTENTION_BLOCKS = 8
"""CLIP-ES averages the attention of the last 8 blocks."""

CPU_PATCHES = 1024
"""On a CPU as many patches go through the blocks together, a photo at least: what is between two
layers then stays in the cache, and more at a time gains nothing."""


def _quick_gelu(x: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        return x * torch.sigmoid(1.702 * x)
    # The same bits with one new tensor in place of three.
    return (1.702 * x).sigmoid_().mul_(x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
}


@dataclass(frozen=True)
class BlockShape:
    """What rebuilds a `Block`: width, hidden width of the MLP, heads, LN epsilon, activation."""

    width: int
    hidden: int
    heads: int
    eps: float
    activation: str


class Block(nn.Module):
    """Pre-LN transformer block: x += γ₁·attention(ln_1(x)); x += γ₂·mlp(ln_2(x))."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.shape = shape
        self.ln_1 = nn.LayerNorm(shape.width, eps=shape.eps)
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)
        self.ln_2 = nn.LayerNorm(shape.width, eps=shape.eps)
        self.fc = nn.Linear(shape.width, shape.hidden)
        self.proj = nn.Linear(shape.hidden, shape.width)
        self.gamma_1 = nn.Parameter(torch.ones(shape.width))
        self.gamma_2 = nn.Parameter(torch.ones(shape.width))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, width) to tokens (B, N, width)."""
        return self.forward_from(x, self.ln_1(x))

    def forward_from(self, x: Tensor, normed: Tensor) -> Tensor:
        """Run the block with ln_1's output given: GradCAM's target activation.

        Args:
            x: tokens (B, N, width), the residual branch.
            normed: ln_1(x), or whatever stands for it, (B, N, width).
        """
        return self._after_attention(x, self.attend(*self.heads(normed)))

    def forward_with_attention(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run the block without gradients; also give its head-averaged attention.

        Returns:
            tokens (B, N, width); attention (B, N, N) in float32, rows summing to 1.
        """
        mixed, mean = self._weigh_and_average(self.ln_1(x), values=True)
        return self._after_attention(x, mixed), mean

    def attention(self, x: Tensor) -> Tensor:
        """Give the head-averaged attention alone (B, N, N), float32."""
        return self._weigh_and_average(self.ln_1(x), values=False)[1]

    def heads(self, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map ln_1's output (B, N, width) to query, key and value (B, heads, N, head width)."""
        batch, count, width = normed.shape
        qkv = self.qkv(normed).view(batch, count, 3, self.shape.heads, width // self.shape.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Mix values (B, heads, N, head width) by attention whose matrix is not needed."""
        if query.device.type == "cpu" and query.dtype == torch.bfloat16:
            # torch's fused attention takes twice as long there as plain products.
            return _weigh(query, key, value)
        return F.scaled_dot_product_attention(query, key, value)

    def _weigh_and_average(self, normed: Tensor, *, values: bool) -> tuple[Tensor, Tensor]:
        """Mix values, or none of them, by attention; and average it over the heads (B, N, N)."""
        query, key, value = self.heads(normed)
        batch, heads, count, _ = query.shape
        total = query.new_zeros(batch, count, count, dtype=torch.float32)
        mixed = _weigh(query, key, value if values else value[..., :0], total)
        return mixed, total.div_(heads)

    def _after_attention(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = torch.addcmul(x, self.gamma_1, self.out(mixed.transpose(1, 2).flatten(2)))
        hidden = ACTIVATIONS[self.shape.activation](self.fc(self.ln_2(x)))
        return torch.addcmul(x, self.gamma_2, self.proj(hidden))


def _weigh(query: Tensor, key: Tensor, value: Tensor, total: Tensor | None = None) -> Tensor:
    """Mix values (B, heads, N, d) by attention, without gradients.

    Args:
        query: (B, heads, N, head width); the same for key.
        key: see query.
        value: (B, heads, N, d).
        total: the sum of the heads' attention is added to it (B, N, N), float32; None: not needed.
    """
    query = query * query.shape[-1] ** -0.5
    if query.is_cuda:
        weights = torch.softmax(query @ key.transpose(-2, -1), dim=-1)
        if total is not None:
            total += weights.sum(dim=1, dtype=torch.float32)
        return weights @ value
    # On a CPU a head at a time: one N×N matrix stays in the cache, and all of them need not exist.
    mixed = value.new_empty(value.shape)
    for photo, heads in enumerate(zip(query, key, value, mixed, strict=True)):
        for asked, known, seen, into in zip(*heads, strict=True):
            weights = torch.softmax(asked @ known.T, dim=-1)
            into.copy_(weights @ seen)
            if total is not None:
                total[photo] += weights
    return mixed


@dataclass(frozen=True)
class PoolerShape:
    """What rebuilds an attention pooler with one query (SigLIP's): heads, MLP, LN epsilon."""

    heads: int
    hidden: int
    eps: float
    activation: str


class Head(nn.Module):
    """CLIP's end: the last block, ln_post and projection. `cam` needs nothing else of the encoder.

    A tower with attention pooling maps each patch by the pooler's value path: what its attention
    would return if it saw this patch alone. SigLIP's pooler has an MLP in the projection's place,
    and its tower no class token: there the photo is pooled as the model itself does.
    """

    def __init__(self, shape: BlockShape, *, pool_width: int, dim: int, ln_after_pool: bool,
                 value_path: bool, post_eps: float, value_eps: float | None = None,
                 pooler: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "shape": vars(shape), "pool_width": pool_width, "dim": dim,
            "ln_after_pool": ln_after_pool, "value_path": value_path, "post_eps": post_eps,
            # Later parts stand in a header only where they are not at their defaults.
            **({"value_eps": value_eps} if value_eps not in (None, shape.eps) else {}),
            **({"pooler": pooler} if pooler else {})}
        self.block = Block(shape)
        self.ln_after_pool = ln_after_pool
        self.value_path = nn.Sequential(
            nn.LayerNorm(shape.width, eps=shape.eps if value_eps is None else value_eps),
            nn.Linear(shape.width, pool_width),
            nn.Linear(pool_width, pool_width)) if value_path else nn.Identity()
        self.ln_post = nn.LayerNorm(pool_width, eps=post_eps)
        self.pooler = PoolerShape(**pooler) if pooler else None
        if self.pooler is None:
            self.proj = nn.Parameter(torch.empty(pool_width, dim))
        else:
            self.query = nn.Parameter(torch.empty(pool_width))
            self.key = nn.Linear(shape.width, pool_width)
            self.fc = nn.Linear(pool_width, self.pooler.hidden)
            self.fc_out = nn.Linear(self.pooler.hidden, dim)

    @property
    def prefix(self) -> int:
        """Number of tokens before the patches: a class token, or none."""
        return 1 if self.pooler is None else 0

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Head:
        """Rebuild an empty head from `Head.config`; load its state dict next."""
        return cls(BlockShape(**config["shape"]),
                   **{key: value for key, value in config.items() if key != "shape"})

    def patch_embeddings(self, tokens: Tensor) -> Tensor:
        """Map the last block's output (B, N, width) to L2-normed joint vectors (B, N, dim)."""
        return F.normalize(self._project(self.value_path(tokens)), dim=-1)

    def value_embeddings(self, tokens: Tensor) -> Tensor:
        """Map the last block's *input* (B, N, width) to joint vectors by its value path alone.

        No patch sees another there (MaskCLIP, ECCV 2022): sharper in place, less sure of the
        class. L2-normed (B, N, dim).
        """
        width = tokens.shape[-1]
        weight, bias = self.block.qkv.weight[2 * width :], self.block.qkv.bias[2 * width :]
        value = F.linear(self.block.ln_1(tokens), weight, bias)
        return self.patch_embeddings(self.block.gamma_1 * self.block.out(value))

    def pooled(self, tokens: Tensor) -> Tensor:
        """Pool the last block's output (B, N, width) to L2-normed (B, dim).

        With a class token, the patches' average takes its place (VPL, Implementation Details;
        CLIP-ES does the same). Without one, the model's own pooler pools.
        """
        if self.pooler is not None:
            return F.normalize(self._project(self._attend(tokens, self.pooler.heads)), dim=-1)
        patches = self.value_path(tokens[:, self.prefix :])
        if self.ln_after_pool:
            mean = self.ln_post(patches.mean(dim=1))
        else:
            mean = self.ln_post(patches).mean(dim=1)
        return F.normalize(mean @ self.proj, dim=-1)

    def _project(self, pooled: Tensor) -> Tensor:
        """Map what the pooler gives (..., pool width) to the joint space (..., dim)."""
        if self.pooler is None:
            return self.ln_post(pooled) @ self.proj
        hidden = ACTIVATIONS[self.pooler.activation](self.fc(self.ln_post(pooled)))
        return pooled + self.fc_out(hidden)

    def _attend(self, tokens: Tensor, heads: int) -> Tensor:
        """Attention of the one query to the tokens (B, N, width): (B, pool width)."""
        norm, into, out = self.value_path.children()
        normed = norm(tokens)
        key, value = (part(normed).unflatten(-1, (heads, -1)).transpose(1, 2)
                      for part in (self.key, into))
        query = self.query.view(heads, 1, -1).expand(len(tokens), -1, -1, -1)
        return out(F.scaled_dot_product_attention(query, key, value).flatten(1))


@dataclass(frozen=True)
class DenseFeatures:
    """One pass of the encoder over a batch of equal size, on a grid of h·w = n patches.

    Args:
        tokens: input of the last block (B, 1+n, width); (B, n, width) if no class token.
        patches: L2-normed joint-space patch embeddings (B, n, dim), or None.
        attention: mean head-averaged attention of the last blocks, CLS removed (B, n, n), or None.
        layers: outputs of chosen blocks, CLS removed (B, L, n, width), or None.
    """

    tokens: Tensor
    patches: Tensor | None
    attention: Tensor | None
    layers: Tensor | None


class VisionTower(nn.Module):
    """CLIP's vision transformer for images of any size that is a multiple of the patch."""

    def __init__(self, *, patch: int, grid: tuple[int, int], blocks: Sequence[Block], head: Head,
                 width: int, ln_pre: nn.Module) -> None:
        super().__init__()
        self.patch = patch
        self.grid = grid
        self.conv = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.cls = nn.Parameter(torch.empty(head.prefix, width))
        self.positions = nn.Parameter(torch.empty(head.prefix + grid[0] * grid[1], width))
        self.ln_pre = ln_pre
        self.blocks = nn.ModuleList(blocks)
        self.head = head

    @property
    def depth(self) -> int:
        """Number of blocks, the last one included."""
        return len(self.blocks) + 1

    @property
    def width(self) -> int:
        """Width of a token."""
        return self.cls.shape[1]

    def embed(self, pixels: Tensor) -> Tensor:
        """Cut normalised pixels (B, 3, H, W) into tokens with positions (B, 1+n, width)."""
        patches = self.conv(pixels)
        grid = (patches.shape[2], patches.shape[3])
        patches = patches.flatten(2).transpose(1, 2)
        cls = self.cls.expand(len(patches), -1, -1)
        x = torch.cat([cls, patches], dim=1)
        return self.ln_pre(x + self.positions_for(grid).to(x.dtype))

    def positions_for(self, grid: tuple[int, int]) -> Tensor:
        """Interpolate the position embedding to a grid, bilinear as CLIP-ES: (1+h·w, width)."""
        if grid == self.grid:
            return self.positions
        own, table = self.positions.float().tensor_split([self.head.prefix])
        table = table.view(1, *self.grid, -1).permute(0, 3, 1, 2)
        table = F.interpolate(table, size=grid, mode="bilinear", align_corners=False)
        return torch.cat([own, table.flatten(2)[0].T])

    @torch.no_grad()
    def forward(self, pixels: Tensor, *, patches: str = "block", attention: bool = True,
                layers: Sequence[int] = ()) -> DenseFeatures:
        """Encode a batch. What is not asked for costs nothing.

        Args:
            pixels: normalised photos (B, 3, H, W), H and W multiples of the patch.
            patches: where patch embeddings come from: `block`, the last block's output; `value`,
                its value path alone; or `none`.
            attention: whether to average the attention of the last blocks.
            layers: indices of the blocks whose output is wanted (0 is the first).
        """
        parts = [self._encode(part, patches, attention, layers)
                 for part in cache_parts(pixels, self.patch)]
        return parts[0] if len(parts) == 1 else _joined(parts)

    def _encode(self, pixels: Tensor, patches: str, attention: bool, layers: Sequence[int]
                ) -> DenseFeatures:
        x = self.embed(pixels)
        last, prefix = self.depth - 1, self.head.prefix
        first = self.depth - min(ATTENTION_BLOCKS, self.depth) if attention else self.depth
        whole = patches == "block" or last in layers
        total: Tensor | None = None
        kept: dict[int, Tensor] = {}
        tokens = x
        for index, block in enumerate([*self.blocks, self.head.block]):
            tokens, weights = x, None
            if index < first:
                x = block(x) if index < last or whole else x
            elif index < last or whole:
                x, weights = block.forward_with_attention(x)
            else:
                weights = block.attention(x)
            if weights is not None:
                total = weights if total is None else total.add_(weights)
            if index in layers:
                kept[index] = x[:, prefix:]
        embeddings = None
        if patches == "block":
            embeddings = self.head.patch_embeddings(x[:, prefix:])
        elif patches == "value":
            embeddings = self.head.value_embeddings(tokens[:, prefix:])
        if total is not None:
            total = total[:, prefix:, prefix:] / (self.depth - first)
        return DenseFeatures(
            tokens, embeddings, total,
            torch.stack([kept[index] for index in layers], dim=1) if layers else None)


def cache_parts(pixels: Tensor, patch: int) -> tuple[Tensor, ...]:
    """Split photos (B, 3, H, W) into parts that a CPU's cache suits; for a GPU they stay whole."""
    if pixels.device.type != "cpu":
        return (pixels,)
    each = pixels.shape[2] * pixels.shape[3] // patch**2
    return pixels.split(max(1, CPU_PATCHES // each))


def _joined(parts: Sequence[DenseFeatures]) -> DenseFeatures:
    fields: dict[str, Any] = {}
    for name in vars(parts[0]):
        own = [getattr(part, name) for part in parts]
        fields[name] = None if own[0] is None else torch.cat(own)
    return DenseFeatures(**fields)
