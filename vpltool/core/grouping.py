"""Grouping: learned tokens gather the patches of a photo (GroupViT, CVPR 2022, section 3.1).

A grouping block looks at patches with its group tokens, then gives each patch to one group:

    a_gn = exp(q_g·k_n + γ_g) / Σ_g' exp(q_g'·k_n + γ_g'),      γ Gumbel noise, in training only
    s_g  = ĝ_g + W_o Σ_n â_gn W_v x_n / (Σ_n â_gn + 1),         â one-hot, with the gradient of a

The softmax is over the groups: they compete for a patch. The ones of all patches of a group are
summed with 1 below the line, so that an empty group gives no infinity.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpltool.core.blocks import Block, BlockShape

EPS = 1e-5
"""Of every LayerNorm."""


class TokenBlock(Block):
    """A transformer block that is trained: with gradients, drop-path, and a causal form.

    Args:
        shape: sizes.
        causal: whether a token sees only itself and those before it.
        drop_path: share of the photos that skip the block in training (stochastic depth).
    """

    def __init__(self, shape: BlockShape, *, causal: bool = False, drop_path: float = 0.0) -> None:
        super().__init__(shape)
        self.causal = causal
        self.drop_path = drop_path
        self.gamma_1.requires_grad_(False)
        self.gamma_2.requires_grad_(False)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Mix values (B, heads, N, head width) by attention."""
        return F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, width) to tokens (B, N, width)."""
        done = super().forward(x)
        if not self.training or not self.drop_path:
            return done
        kept = torch.rand(len(x), 1, 1, device=x.device) >= self.drop_path
        return x + (done - x) * kept / (1 - self.drop_path)


class Mixer(nn.Module):
    """An MLP over tokens: each of the new ones is made of all old ones (MLP-Mixer).

    Args:
        width: of a token.
        before: number of old tokens.
        hidden: width of the MLP.
        after: number of new tokens.
    """

    def __init__(self, width: int, before: int, hidden: int, after: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.fc = nn.Linear(before, hidden)
        self.proj = nn.Linear(hidden, after)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, before, width) to (B, after, width)."""
        mixed: Tensor = self.proj(F.gelu(self.fc(self.norm(tokens).transpose(1, 2))))
        return mixed.transpose(1, 2)


class Mlp(nn.Sequential):
    """LayerNorm, then two layers over the width, with GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.LayerNorm(width, eps=EPS), nn.Linear(width, hidden), nn.GELU(),
                         nn.Linear(hidden, width))


class CrossAttention(nn.Module):
    """Groups look at patches: attention, residual, MLP, LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.mlp = Mlp(width, 4 * width)
        self.norm = nn.LayerNorm(width, eps=EPS)

    def forward(self, groups: Tensor, patches: Tensor) -> Tensor:
        """Map groups (B, G, width), which look at patches (B, N, width), to (B, G, width)."""
        query, key, value = (
            part(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part, tokens in ((self.query, groups), (self.key, patches), (self.value, patches)))
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        groups = groups + self.out(mixed)
        normed: Tensor = self.norm(groups + self.mlp(groups))
        return normed


@dataclass(frozen=True)
class Grouped:
    """What a grouping block makes of a stage's tokens.

    Args:
        segments: a vector of each group (B, G, width).
        soft: share of each group in each token (B, G, N), summing to 1 over the groups.
        groups: the group tokens before the assignment (B, G, width): what NPR regularises.
    """

    segments: Tensor
    soft: Tensor
    groups: Tensor


class GroupingBlock(nn.Module):
    """Group tokens mix, look at the patches, and each patch goes to one of them.

    Args:
        width: of a token.
        heads: of the cross-attention.
        groups: number of groups.
    """

    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.mixer = Mixer(width, groups, width // 2, groups)
        self.norm_groups = nn.LayerNorm(width, eps=EPS)
        self.norm_patches = nn.LayerNorm(width, eps=EPS)
        self.look = CrossAttention(width, heads)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, groups: Tensor, patches: Tensor) -> Grouped:
        """Group patches (B, N, width) by group tokens (B, G, width)."""
        patches = self.norm_patches(patches)
        groups = self.look(self.norm_groups(self.mixer(groups)), patches)
        logits = self.query(groups) @ self.key(patches).mT * groups.shape[-1] ** -0.5
        logits = logits.float()
        given = assign(logits, noisy=self.training)
        shares = given / (given.sum(dim=-1, keepdim=True) + 1)
        segments = groups + self.out(shares.to(groups.dtype) @ self.value(patches))
        return Grouped(segments + self.mlp(segments), logits.softmax(dim=1), groups)


def assign(logits: Tensor, *, noisy: bool) -> Tensor:
    """Give each patch to its strongest group: one-hot over the groups, with the softmax's gradient.

    Args:
        logits: (B, G, N).
        noisy: whether Gumbel noise is added first, as in training.

    Returns:
        (B, G, N).
    """
    if noisy:
        return F.gumbel_softmax(logits, tau=1.0, hard=True, dim=1)
    soft = logits.softmax(dim=1)
    hard = torch.zeros_like(soft).scatter_(1, soft.argmax(dim=1, keepdim=True), 1.0)
    return hard + soft - soft.detach()
