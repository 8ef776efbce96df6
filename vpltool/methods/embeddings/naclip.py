"""Key-key attention in the last block, biased towards nearby patches (NACLIP, WACV 2025).

The attention is softmax(k kᵀ / √d + Gaussian of the distance), without the block's residual and
MLP. As in the official code, the Gaussian's maximum is 1, and the class token is one of the keys.
"""

from __future__ import annotations

from dataclasses import dataclass

from vpltool import settings
from vpltool.lazy import F, Tensor, no_grad, torch
from vpltool.methods.inputs import EmbeddingBatch
from vpltool.settings import setting

READS = ("tokens", "head")


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of the neighbourhood."""

    sigma: float = setting(5.0, "Standard deviation of the Gaussian, in patches.", low=0.1,
                           source="NACLIP, official code")
    residual: bool = setting(False, "Keep the block's residual and MLP.",
                             source="NACLIP, official code: the reduced architecture")


@no_grad
def make_patches(batch: EmbeddingBatch, settings: Settings) -> Tensor:
    """Embed patches with the attention of their neighbourhood (B, h·w, dim), L2-normed."""
    head, tokens = batch.head, batch.tensors["tokens"]
    assert head is not None
    _, key, value = head.block.heads(head.block.ln_1(tokens))
    bias = neighbour_bias(batch.grid, settings.sigma, head.prefix).to(tokens)
    mixed = F.scaled_dot_product_attention(key, key, value, attn_mask=bias)
    return head.embed_mixed(tokens, mixed, residual=settings.residual)


def neighbour_bias(grid: tuple[int, int], sigma: float, prefix: int) -> Tensor:
    """Return exp(−distance² / 2σ²) between patches, to be added to attention logits; σ in patches.

    It is (prefix + h·w, prefix + h·w), 1 from a patch to itself, 0 at tokens before the patches.
    """
    height, width = grid
    down, across = (torch.exp(-(place[:, None] - place) ** 2 / (2 * sigma**2)) for place in (
        torch.arange(height, dtype=torch.float32), torch.arange(width, dtype=torch.float32)))
    return F.pad(torch.kron(down, across), (prefix, 0, prefix, 0))
