"""A frozen CLIP vision transformer, run block by block with open_clip's weights.

open_clip returns no attention maps and accepts only one image size. Here one pass returns all that
CAMs need: the input of the last block, patch embeddings in the joint space, and attention.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpltool.core.blocks import ACTIVATIONS, Block, BlockShape, check_heads, check_numbers
from vpltool.core.tower import Calibration, DenseFeatures, Tower, cache_parts


@dataclass(frozen=True)
class PoolerShape:
    """Sizes of an attention pooler with one query (SigLIP's): heads, MLP, LN epsilon."""

    heads: int
    hidden: int
    eps: float
    activation: str

    def __post_init__(self) -> None:
        check_numbers(self)


class Head(nn.Module):
    """CLIP's last block, ln_post and projection, the only part of the encoder that `cam` needs.

    With attention pooling, each patch is mapped by the pooler's value path, the pooler's output if
    it attended to this patch alone. SigLIP's pooler has an MLP instead of a projection, and its
    tower no class token: photos are pooled by the model's own pooler. A tower trained without text
    has no joint space (`dim=0`): its normed tokens take the place of joint vectors. There may be
    any number of tokens before the patches.
    """

    def __init__(self, shape: BlockShape, *, pool_width: int, dim: int, ln_after_pool: bool,
                 value_path: bool, post_eps: float, value_eps: float | None = None,
                 pooler: dict[str, Any] | None = None, prefix: int | None = None) -> None:
        super().__init__()
        usual = 0 if pooler else 1
        # Number of tokens before the patches: class token and registers.
        self.prefix = usual if prefix is None else int(prefix)
        self.config: dict[str, Any] = {
            "shape": vars(shape), "pool_width": pool_width, "dim": dim,
            "ln_after_pool": ln_after_pool, "value_path": value_path, "post_eps": post_eps,
            # Entries added later are written only if not at their defaults: old headers stay valid.
            **({"value_eps": value_eps} if value_eps not in (None, shape.eps) else {}),
            **({"pooler": pooler} if pooler else {}),
            **({"prefix": self.prefix} if self.prefix != usual else {})}
        self.block = Block(shape)
        self.ln_after_pool = ln_after_pool
        self.value_path = nn.Sequential(
            nn.LayerNorm(shape.width, eps=shape.eps if value_eps is None else float(value_eps)),
            nn.Linear(shape.width, pool_width),
            nn.Linear(pool_width, pool_width)) if value_path else nn.Identity()
        self.ln_post = nn.LayerNorm(pool_width, eps=float(post_eps))
        self.pooler = PoolerShape(**pooler) if pooler else None
        if self.pooler is None:
            self.proj = nn.Parameter(torch.empty(pool_width, dim))
        else:
            check_heads(pool_width, self.pooler.heads)
            self.query = nn.Parameter(torch.empty(pool_width))
            self.key = nn.Linear(shape.width, pool_width)
            self.fc = nn.Linear(pool_width, self.pooler.hidden)
            self.fc_out = nn.Linear(self.pooler.hidden, dim)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Head:
        """Rebuild a head from `Head.config`; load its state dict next."""
        return cls(BlockShape(**config["shape"]),
                   **{key: value for key, value in config.items() if key != "shape"})

    def patch_embeddings(self, tokens: Tensor) -> Tensor:
        """Map the last block's output (B, N, width) to L2-normed joint vectors (B, N, dim)."""
        return F.normalize(self._project(self.value_path(tokens)), dim=-1)

    def last_tokens(self, tokens: Tensor) -> Tensor:
        """Apply the tower's final norm to the last block's output (B, N, width), then L2-normalise.

        No pooling or projection is applied.
        """
        norm = self.value_path[0] if isinstance(self.value_path, nn.Sequential) else self.ln_post
        return F.normalize(norm(tokens), dim=-1)

    def value_embeddings(self, tokens: Tensor) -> Tensor:
        """Map the last block's *input* (B, N, width) to joint vectors by its values alone.

        No patch attends to another (MaskCLIP, ECCV 2022): the result, L2-normed (B, N, dim), is
        localised more precisely but less certain about the class.
        """
        value = self.block.values(self.block.ln_1(tokens))
        return self.patch_embeddings(self.block.attention_output(value))

    def class_embedding(self, tokens: Tensor) -> Tensor:
        """Map the last block's output (B, N, width) to the photo's own vector, L2-normed (B, dim).

        This is the class token's vector or, without one, the output of the model's own pooler.
        """
        return self.patch_embeddings(tokens[:, 0]) if self.prefix else self.pooled(tokens)

    def lone_embeddings(self, tokens: Tensor) -> Tensor:
        """Map the last block's *input* (B, N, width) to joint vectors, each token on its own.

        The block's attention is the identity (TagCLIP, AAAI 2024); unlike `value_embeddings`, this
        keeps the residuals and the MLP. L2-normed (B, N, dim).
        """
        value = self.block.heads(self.block.ln_1(tokens))[2]
        return self.patch_embeddings(self.block.after_attention(tokens, value))

    def embed_mixed(self, tokens: Tensor, mixed: Tensor, *, residual: bool) -> Tensor:
        """Embed patches, L2-normed (B, n, dim), from the last block under any attention.

        Its input is (B, prefix + n, width), its mixed values (B, heads, prefix + n, head width).
        `residual`: whether to apply the block's residual and MLP.
        """
        output = (self.block.after_attention(tokens, mixed) if residual
                  else self.block.attention_output(mixed))
        return self.patch_embeddings(output[:, self.prefix :])

    def pooled(self, tokens: Tensor) -> Tensor:
        """Pool the last block's output (B, N, width) to L2-normed (B, dim).

        With a class token, the mean of the patches replaces it (VPL, Implementation Details;
        CLIP-ES). Without one, the model's own pooler is used.
        """
        if self.pooler is not None:
            return F.normalize(self._project(self._attend(tokens, self.pooler.heads)), dim=-1)
        patches = self.value_path(tokens[:, self.prefix :])
        if self.ln_after_pool:
            mean = self.ln_post(patches.mean(dim=1))
        else:
            mean = self.ln_post(patches).mean(dim=1)
        return F.normalize(self._into_joint_space(mean), dim=-1)

    def _project(self, pooled: Tensor) -> Tensor:
        """Map the pooler's output (..., pool width) to the joint space (..., dim)."""
        if self.pooler is None:
            return self._into_joint_space(self.ln_post(pooled))
        hidden = ACTIVATIONS[self.pooler.activation](self.fc(self.ln_post(pooled)))
        return pooled + self.fc_out(hidden)

    def _into_joint_space(self, normed: Tensor) -> Tensor:
        return normed @ self.proj if self.config["dim"] else normed

    def _attend(self, tokens: Tensor, heads: int) -> Tensor:
        """Pool tokens (B, N, width) by attention of the single query: (B, pool width)."""
        norm, into, out = self.value_path.children()
        normed = norm(tokens)
        key, value = (part(normed).unflatten(-1, (heads, -1)).transpose(1, 2)
                      for part in (self.key, into))
        query = self.query.view(heads, 1, -1).expand(len(tokens), -1, -1, -1)
        return out(F.scaled_dot_product_attention(query, key, value).flatten(1))


@dataclass(frozen=True)
class Resampling:
    """How position embeddings are resampled to another grid.

    The mode is `bilinear`, as in CLIP-ES, or `bicubic`, as in DINO, which adds an offset of 0.1 to
    the new grid's sides when it computes the scale. `antialias` smooths for coarser grids.
    """

    mode: str = "bilinear"
    offset: float = 0.0
    antialias: bool = False


def resample_positions(table: Tensor, grid: tuple[int, int], target: tuple[int, int],
                       how: Resampling) -> Tensor:
    """Resample position embeddings of a grid, float32 (h·w, width), to another (h'·w', width)."""
    if table.is_cuda and table.requires_grad and torch.is_grad_enabled():
        with torch.autocast(table.device.type, enabled=False):
            return resampling_weights(grid, target, how, table.device) @ table
    field = table.view(1, *grid, -1).permute(0, 3, 1, 2)
    return _resample(field, target, how).flatten(2)[0].T


def resampling_weights(grid: tuple[int, int], target: tuple[int, int], how: Resampling,
                       device: torch.device | None = None) -> Tensor:
    """Return the matrix (h'·w', h·w) by which `resample_positions` is a product.

    On a GPU, sums of a product's gradient have a fixed order, those of an interpolation have none.
    """
    cells = torch.eye(grid[0] * grid[1], device=device).view(-1, 1, *grid)
    return _resample(cells, target, how).flatten(1).T


def _resample(field: Tensor, target: tuple[int, int], how: Resampling) -> Tensor:
    """Resample fields (N, C, h, w) to (N, C, h', w')."""
    if not how.offset:
        return F.interpolate(field, size=target, mode=how.mode, align_corners=False,
                             antialias=how.antialias)
    scale = [(side + how.offset) / old for side, old in zip(target, field.shape[2:], strict=True)]
    return F.interpolate(field, scale_factor=scale, mode=how.mode, align_corners=False,
                         antialias=how.antialias)


class VisionTower(Tower):
    """A vision transformer for images of any size that is a multiple of the patch size.

    `by_token`: whether the model takes a photo's embedding from the class token.
    """

    able = frozenset({"tokens", "patches", "attention", "attentions", "layers"})

    def __init__(self, *, patch: int, grid: tuple[int, int], blocks: Sequence[Block], head: Head,
                 width: int, ln_pre: nn.Module, resampling: Resampling = Resampling(),
                 by_token: bool = False) -> None:
        super().__init__()
        self.patch = patch
        self.grid = grid
        self.resampling = resampling
        self.by_token = by_token
        self.conv = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.cls = nn.Parameter(torch.empty(head.prefix, width))
        self.positions = nn.Parameter(torch.empty(head.prefix + grid[0] * grid[1], width))
        self.ln_pre = ln_pre
        self.blocks = nn.ModuleList(blocks)
        self.head = head

    @property
    def depth(self) -> int:
        """Number of blocks, including the last."""
        return len(self.blocks) + 1

    @property
    def width(self) -> int:
        """Width of a token."""
        return self.cls.shape[1]

    @torch.no_grad()
    def embed_photos(self, pixels: Tensor) -> Tensor:
        """Embed whole photos (B, 3, H, W) as the model does, L2-normed (B, dim).

        With an attention pooler and a class token, the mean of the value path replaces the pooler.
        """
        parts = []
        for part in cache_parts(pixels, self.patch):
            x = self.embed(part)
            for block in [*self.blocks, self.head.block]:
                x = block(x)
            parts.append(self.head.patch_embeddings(x[:, 0]) if self.by_token
                         else self.head.pooled(x))
        return torch.cat(parts)

    def embed(self, pixels: Tensor) -> Tensor:
        """Embed normalised pixels (B, 3, H, W) as tokens with positions (B, prefix+n, width)."""
        patches = self.conv(pixels)
        grid = (patches.shape[2], patches.shape[3])
        patches = patches.flatten(2).transpose(1, 2)
        cls = self.cls.expand(len(patches), -1, -1)
        x = torch.cat([cls, patches], dim=1)
        return self.ln_pre(x + self.positions_for(grid).to(x.dtype))

    def positions_for(self, grid: tuple[int, int]) -> Tensor:
        """Return the position embeddings (prefix+h·w, width), resampled to a grid (h, w)."""
        if grid == self.grid:
            return self.positions
        own, table = self.positions.float().tensor_split([self.head.prefix])
        return torch.cat([own, resample_positions(table, self.grid, grid, self.resampling)])

    def encode(self, pixels: Tensor, patches: str, blocks: int, attention: bool, attentions: bool,
               layers: Sequence[int], calibration: Calibration | None) -> DenseFeatures:
        """Encode a part of a batch; see `Tower.encode`."""
        x = self.embed(pixels)
        last, prefix = self.depth - 1, self.head.prefix
        first = self.depth - blocks
        whole = patches in ("block", "last") or last in layers
        total: Tensor | None = None
        each: list[Tensor] = []
        kept: dict[int, Tensor] = {}
        inputs: deque[Tensor] = deque(
            maxlen=calibration.blocks if calibration and patches == "calibrated" else 1)
        for index, block in enumerate([*self.blocks, self.head.block]):
            inputs.append(x)
            weights = None
            if index < first:
                x = block(x) if index < last or whole else x
            elif index < last or whole:
                x, weights = block.forward_with_attention(x)
            else:
                weights = block.attention(x)
            if weights is not None and attentions:
                each.append(weights[:, prefix:, prefix:])
            if weights is not None and attention:
                # Not in place if `each` keeps the first.
                total = (weights if total is None
                         else total + weights if attentions else total.add_(weights))
            if index in layers:
                kept[index] = x[:, prefix:]
        if total is not None:
            total = total[:, prefix:, prefix:] / (self.depth - first)
        return DenseFeatures(
            inputs[-1], self._embed_patches(patches, x, inputs, calibration), total,
            torch.stack(each, dim=1) if each else None,
            torch.stack([kept[index] for index in layers], dim=1) if layers else None)

    def _embed_patches(self, patches: str, output: Tensor, inputs: Sequence[Tensor],
                       calibration: Calibration | None) -> Tensor | None:
        """Embed patches from the last block's output or from the last blocks' inputs."""
        prefix = self.head.prefix
        if patches == "block":
            return self.head.patch_embeddings(output[:, prefix:])
        if patches == "last":
            return self.head.last_tokens(output[:, prefix:])
        if patches == "value":
            return self.head.value_embeddings(inputs[-1][:, prefix:])
        if patches == "calibrated":
            assert calibration is not None
            beside = inputs[0]
            last: list[Any] = [*self.blocks, self.head.block][-len(inputs):]
            for block, tokens in zip(last, inputs, strict=True):
                beside = beside + block.calibrated_output(tokens, calibration.heads)
            return self.head.patch_embeddings(beside[:, prefix:])
        return None
