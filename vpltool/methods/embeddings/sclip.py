"""Query-query plus key-key attention in the last block (SCLIP, ECCV 2024).

The attention is softmax(q qᵀ / √d) + softmax(k kᵀ / √d), a sum; the block's residual and MLP stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vpltool import settings
from vpltool.methods.inputs import EmbeddingBatch
from vpltool.settings import setting

if TYPE_CHECKING:
    from torch import Tensor

READS = ("tokens", "head")


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of the correlative self-attention."""

    residual: bool = setting(True, "Keep the block's residual and MLP.",
                             source="SCLIP, as NACLIP's official code runs it")


def make_patches(batch: EmbeddingBatch, settings: Settings) -> Tensor:
    """Embed patches with their attention to similar ones (B, h·w, dim), L2-normed."""
    from vpltool.core.reattention import self_attention_embeddings

    assert batch.head is not None
    return self_attention_embeddings(batch.head, batch.tensors["tokens"],
                                     residual=settings.residual)
