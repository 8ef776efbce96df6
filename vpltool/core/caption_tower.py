"""A text tower that is trained along with the photos: captions to vectors (as CLIP's)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vpltool.core.blocks import BlockShape
from vpltool.core.grouping import EPS, TokenBlock


@dataclass(frozen=True)
class CaptionShape:
    """Sizes of a text tower; the defaults are GroupViT's.

    Args:
        width: of a token.
        depth: number of blocks.
        heads: of the attention.
        context: tokens of a caption at most.
        vocabulary: number of tokens that there are; CLIP's.
    """

    width: int = 256
    depth: int = 12
    heads: int = 4
    context: int = 77
    vocabulary: int = 49408


class CaptionTower(nn.Module):
    """A causal transformer; the end token, which has the highest number, speaks for the caption."""

    def __init__(self, shape: CaptionShape) -> None:
        super().__init__()
        self.words = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = nn.Parameter(torch.empty(shape.context, shape.width))
        block = BlockShape(shape.width, 4 * shape.width, shape.heads, EPS, "quick_gelu")
        self.blocks = nn.ModuleList(TokenBlock(block, causal=True) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, eps=EPS)
        nn.init.normal_(self.words.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token numbers (B, length) to vectors (B, width), not normed."""
        x = self.words(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        ends = tokens.argmax(dim=1)
        last: Tensor = self.norm(x[torch.arange(len(x), device=x.device), ends])
        return last
