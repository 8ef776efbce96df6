"""Key-key attention in the last block, biased towards nearby patches (NACLIP, WACV 2025).

The attention is softmax(k kᵀ / √d + Gaussian of the distance), without the block's residual and
MLP. As in the official code, the Gaussian's maximum is 1, and the class token is one of the keys.
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
    """Settings of the neighbourhood."""

    sigma: float = setting(5.0, "Standard deviation of the Gaussian, in patches.", low=0.1,
                           source="NACLIP, official code")
    residual: bool = setting(False, "Keep the block's residual and MLP.",
                             source="NACLIP, official code: the reduced architecture")


def make_patches(batch: EmbeddingBatch, settings: Settings) -> Tensor:
    """Embed patches with the attention of their neighbourhood (B, h·w, dim), L2-normed."""
    from vpltool.core.reattention import neighbour_embeddings

    assert batch.head is not None
    return neighbour_embeddings(batch.head, batch.tensors["tokens"], batch.grid,
                                sigma=settings.sigma, residual=settings.residual)
