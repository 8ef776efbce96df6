"""Query-query plus key-key attention in the last block (SCLIP, ECCV 2024).

The attention is softmax(q qᵀ / √d) + softmax(k kᵀ / √d), a sum; the block's residual and MLP stay.
"""

from __future__ import annotations

from dataclasses import dataclass

from vpltool import settings
from vpltool.lazy import Tensor, no_grad
from vpltool.methods.inputs import EmbeddingBatch
from vpltool.settings import setting

READS = ("tokens", "head")


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of the correlative self-attention."""

    residual: bool = setting(True, "Keep the block's residual and MLP.",
                             source="SCLIP, as NACLIP's official code runs it")


@no_grad
def make_patches(batch: EmbeddingBatch, settings: Settings) -> Tensor:
    """Embed patches with their attention to similar ones (B, h·w, dim), L2-normed."""
    head, tokens = batch.head, batch.tensors["tokens"]
    assert head is not None
    query, key, value = head.block.heads(head.block.ln_1(tokens))
    mixed = head.block.attend(query, query, value) + head.block.attend(key, key, value)
    return head.embed_mixed(tokens, mixed, residual=settings.residual)
