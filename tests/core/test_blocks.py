"""Attention in parts: the bits of the whole, in products short enough for Ctrl-C."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vpltool.core import blocks
from vpltool.core.blocks import Block, BlockShape


def test_many_tokens_attend_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    block = Block(BlockShape(32, 8, 2, 1e-5, "gelu"))
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 4500, 16).unbind()
    asked: list[int] = []
    whole = F.scaled_dot_product_attention

    def counted(query: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        asked.append(query.shape[-2])
        return whole(query, *rest)

    monkeypatch.setattr(blocks.F, "scaled_dot_product_attention", counted)
    found = block.attend(query, key, value)
    assert asked == [1024] * 4 + [404]
    assert torch.equal(found, whole(query, key, value))
    block.attend(query[..., :4000, :], key, value)
    assert asked[-1] == 4000
