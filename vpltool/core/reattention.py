"""Patch embeddings from the last block's input, with another attention in that block.

CLIP's last attention serves the class token: it mixes patches from all over the photo. Each method
here replaces it by one that stays with similar or near patches. Only the stored tokens and the head
are needed; the other blocks are not run.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vpltool.core.vit import Head


def neighbour_bias(grid: tuple[int, int], sigma: float, prefix: int = 0) -> Tensor:
    """Return a Gaussian of the distance between patches, to be added to attention logits.

    Args:
        grid: (h, w).
        sigma: its standard deviation, in patches.
        prefix: number of tokens before the patches; they neither give nor get anything.

    Returns:
        (prefix + h·w, prefix + h·w): exp(−distance² / 2σ²), 1 from a patch to itself.
    """
    height, width = grid
    down, across = (torch.exp(-(place[:, None] - place) ** 2 / (2 * sigma**2)) for place in (
        torch.arange(height, dtype=torch.float32), torch.arange(width, dtype=torch.float32)))
    return F.pad(torch.kron(down, across), (prefix, 0, prefix, 0))


@torch.no_grad()
def neighbour_embeddings(head: Head, tokens: Tensor, grid: tuple[int, int], *, sigma: float = 5.0,
                         residual: bool = False) -> Tensor:
    """Let each patch attend to patches with similar keys, and rather to near ones (NACLIP).

    Attention is softmax(k kᵀ / √d + Gaussian), see `neighbour_bias`.

    Args:
        head: the end of CLIP.
        tokens: input of the last block (B, prefix + h·w, width), in the head's number format.
        grid: (h, w).
        sigma: σ of the Gaussian, in patches.
        residual: whether the block's residual and MLP follow.

    Returns:
        L2-normed patch embeddings (B, h·w, dim).
    """
    _, key, value = head.block.heads(head.block.ln_1(tokens))
    bias = neighbour_bias(grid, sigma, head.prefix).to(tokens)
    mixed = F.scaled_dot_product_attention(key, key, value, attn_mask=bias)
    return _embedded(head, tokens, mixed, residual=residual)


@torch.no_grad()
def self_attention_embeddings(head: Head, tokens: Tensor, *, residual: bool = True) -> Tensor:
    """Let each patch attend to patches with similar queries, and with similar keys (SCLIP).

    Attention is softmax(q qᵀ / √d) + softmax(k kᵀ / √d), a sum as in the paper.

    Args:
        head: see `neighbour_embeddings`; the same for tokens and residual.
        tokens: see there.
        residual: see there.

    Returns:
        L2-normed patch embeddings (B, h·w, dim).
    """
    block = head.block
    query, key, value = block.heads(block.ln_1(tokens))
    mixed = block.attend(query, query, value) + block.attend(key, key, value)
    return _embedded(head, tokens, mixed, residual=residual)


@torch.no_grad()
def proxy_embeddings(head: Head, tokens: Tensor, second: Tensor, *, beta: float = 1.2,
                     gamma: float = 3.0) -> Tensor:
    """Let each patch attend to patches that a second encoder finds similar (ProxyCLIP).

    Attention is softmax(γ (cos − β·mean)) of the second encoder's patches, over the patches where
    this is not negative. A patch always attends to itself: where all patches look alike, no other
    may be left.

    Args:
        head: the end of CLIP.
        tokens: input of the last block (B, prefix + n, width), in the head's number format.
        second: patch vectors of the second encoder (B, n, dim').
        beta: β, share of the photo's mean cosine that is subtracted.
        gamma: γ, factor of the logits.

    Returns:
        L2-normed patch embeddings (B, n, dim).
    """
    unit = F.normalize(second.float(), dim=-1)
    cosine = unit @ unit.transpose(1, 2)
    logits = gamma * (cosine - beta * cosine.mean(dim=(1, 2), keepdim=True))
    itself = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
    weights = logits.masked_fill((logits < 0) & ~itself, float("-inf")).softmax(dim=-1)
    value = head.block.values(head.block.ln_1(tokens[:, head.prefix :]))
    mixed = weights.to(value)[:, None] @ value
    return head.patch_embeddings(head.block.attention_output(mixed))


def _embedded(head: Head, tokens: Tensor, mixed: Tensor, *, residual: bool) -> Tensor:
    """Finish the last block from the output of its heads (B, heads, N, head width)."""
    output = (head.block.after_attention(tokens, mixed) if residual
              else head.block.attention_output(mixed))
    return head.patch_embeddings(output[:, head.prefix :])
