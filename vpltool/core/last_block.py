"""Gradients through CLIP's last block, as few as GradCAM needs.

GradCAM wants, of every (photo, class) pair, the gradient at ln_1's output *averaged over the
patches*. Autograd gives the gradient of every token, by another forward and backward pass for each
class. Here a photo is run forward once; and the average is carried through query, key and value
before their weights are applied, so that a pair costs the MLP's backward and one product with the
attention instead of five.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vpltool.core.vit import ACTIVATIONS, Block


@dataclass(frozen=True)
class Trace:
    """One forward pass of a block over B photos of N tokens, kept for `mean_patch_gradient`.

    Args:
        normed: ln_1's output (B, N, width), GradCAM's target activation.
        query: of each head (B, heads, N, head width); the same for key and value.
        key: see query.
        value: see query.
        mixed: the heads' output, before the output projection (B, heads, N, head width).
        middle: tokens after the attention's residual (B, N, width).
        slope: derivative of the MLP's activation (B, N, hidden).
        output: the block's output (B, N, width).
    """

    normed: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    mixed: Tensor
    middle: Tensor
    slope: Tensor
    output: Tensor


def trace(block: Block, tokens: Tensor) -> Trace:
    """Run a block over tokens (B, N, width), and keep what gradients are made of."""
    with torch.no_grad():
        normed = block.ln_1(tokens)
        query, key, value = block.heads(normed)
        mixed = block.attend(query, key, value)
        middle = tokens + block.gamma_1 * block.out(mixed.transpose(1, 2).flatten(2))
        hidden = block.fc(block.ln_2(middle))
    with torch.enable_grad():
        hidden.requires_grad_(True)
        active = ACTIVATIONS[block.shape.activation](hidden)
        (slope,) = torch.autograd.grad(active.sum(), hidden)
    with torch.no_grad():
        output = middle + block.gamma_2 * block.proj(active)
    return Trace(normed, query, key, value, mixed, middle, slope, output)


@torch.no_grad()
def mean_patch_gradient(block: Block, kept: Trace, photo_of: Tensor, counts: Sequence[int],
                        gradient: Tensor, prefix: int = 1) -> Tensor:
    """Average over the patches of the gradients at ln_1's output, the residual path left out.

    Args:
        block: the block.
        kept: its forward pass over B photos.
        photo_of: photo of each of P pairs (P,), ascending.
        counts: number of pairs of each photo, B of them.
        gradient: of each pair's score at the block's output (P, N, width); that at the class
            token must be nil, as it is where only patches are pooled.
        prefix: 1 if the first token is a class token, 0 if all are patches.

    Returns:
        (P, width): what a hook at ln_1 would see, averaged over the patches.
    """
    hidden = (gradient * block.gamma_2) @ block.proj.weight * kept.slope[photo_of]
    with torch.enable_grad():
        middle = kept.middle[photo_of].requires_grad_(True)
        (through,) = torch.autograd.grad(block.ln_2(middle), middle, hidden @ block.fc.weight)
    mixed = ((gradient + through) * block.gamma_1) @ block.out.weight
    pairs, tokens, width = mixed.shape
    mixed = mixed.view(pairs, tokens, block.shape.heads, -1).transpose(1, 2)
    parts = [_attention_gradient(kept.query[photo], kept.key[photo], kept.value[photo],
                                 kept.mixed[photo], own, prefix)
             for photo, own in enumerate(mixed.split(list(counts))) if len(own)]
    return torch.cat(parts) @ block.qkv.weight / (tokens - prefix)


def _attention_gradient(query: Tensor, key: Tensor, value: Tensor, mixed: Tensor,
                        gradient: Tensor, prefix: int) -> Tensor:
    """Sum over the patches of the gradients at query, key and value, one photo's K pairs.

    With S = softmax(scale·q kᵀ) and g the gradient at o = S v, that at the logits is
    ds_ji = S_ji (g_j·v_i − g_j·o_j). Its column sums weigh the keys, and since its rows sum to
    nothing, those without the class token's column are that column, negated.

    Args:
        query: (heads, N, d); the same for key, value and mixed, the output o.
        key: see query.
        value: see query.
        mixed: see query.
        gradient: g (K, heads, N, d), nil at the class token.
        prefix: 1 with a class token; without one, the gradients at the keys sum to nothing.

    Returns:
        (K, 3·heads·d) in the order of the rows of `qkv`.
    """
    pairs, heads, tokens, size = gradient.shape
    scale = size**-0.5
    weights = (query * scale) @ key.transpose(-2, -1)
    torch.softmax(weights, dim=-1, out=weights)
    share = (gradient * mixed).sum(dim=-1)
    # One product for all pairs: theirs are more columns, with g_j·o_j as the last of each.
    columns = torch.cat([gradient, share[..., None]], dim=-1).permute(1, 2, 0, 3)
    carried = weights.transpose(-2, -1) @ columns.reshape(heads, tokens, pairs * (size + 1))
    carried = carried.view(heads, tokens, pairs, size + 1)
    into_value = carried[..., :size]
    of_key = torch.einsum("hnpd,hnd->phn", into_value, value) - carried[..., size].permute(2, 0, 1)
    into_query = torch.einsum("phn,hnd->phd", of_key, key) * scale
    into_key = torch.zeros_like(into_query)
    if prefix:
        of_class = weights[..., 0] * (torch.einsum("phnd,hd->phn", gradient, value[:, 0]) - share)
        into_key = torch.einsum("phn,hnd->phd", of_class, query) * -scale
    return torch.cat([into_query, into_key, into_value[:, prefix:].sum(dim=1).transpose(0, 1)],
                     dim=1).reshape(pairs, -1)
