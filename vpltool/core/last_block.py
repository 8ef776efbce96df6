"""Gradients through CLIP's last block, only as many as GradCAM needs.

For every (photo, class) pair, GradCAM needs the gradient at ln_1's output *averaged over the
patches*. Autograd computes the gradient at every token, with a forward and a backward pass for each
class. Here a photo runs forward once, and gradients are averaged at query, key and value, before
these weights are applied: a pair costs the backward pass of the MLP and one product with the
attention instead of five.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vpltool.core.blocks import ACTIVATIONS, Block


@dataclass(frozen=True)
class Trace:
    """Results of a block's forward pass on B photos of N tokens, for `mean_patch_gradient`.

    Args:
        normed: ln_1's output (B, N, width), GradCAM's target activation.
        query: query of each head (B, heads, N, head width); the same for key and value.
        key: see query.
        value: see query.
        mixed: output of the heads, before the output projection (B, heads, N, head width).
        middle: tokens after the residual of the attention (B, N, width).
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
    """Run a block on tokens (B, N, width), and keep what its gradients need."""
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
    """Return the mean of the patches' gradients at ln_1's output, without the residual path.

    Args:
        block: the block.
        kept: its forward pass on B photos.
        photo_of: photo of each of P pairs (P,), ascending.
        counts: number of pairs of each of the B photos.
        gradient: gradient of each pair's score at the block's output (P, N, width); it must be
            zero at the class token, as it is if only patches are pooled.
        prefix: 1 if the first token is a class token, 0 if all are patches.

    Returns:
        (P, width): the gradient that a hook at ln_1 would see, averaged over the patches.
    """
    hidden = (gradient * block.gamma_2) @ block.proj.weight * kept.slope[photo_of]
    with torch.enable_grad():
        middle = kept.middle[photo_of].requires_grad_(True)
        # A sum has the gradient 1. Given another one, torch first imports sympy: 0.4 s a command.
        (through,) = torch.autograd.grad((block.ln_2(middle) * (hidden @ block.fc.weight)).sum(),
                                         middle)
    mixed = ((gradient + through) * block.gamma_1) @ block.out.weight
    pairs, tokens, width = mixed.shape
    mixed = mixed.view(pairs, tokens, block.shape.heads, -1).transpose(1, 2)
    parts = [_attention_gradient(kept.query[photo], kept.key[photo], kept.value[photo],
                                 kept.mixed[photo], own, prefix)
             for photo, own in enumerate(mixed.split(list(counts))) if len(own)]
    return torch.cat(parts) @ block.qkv.weight / (tokens - prefix)


def _attention_gradient(query: Tensor, key: Tensor, value: Tensor, mixed: Tensor,
                        gradient: Tensor, prefix: int) -> Tensor:
    """Return the sum over the patches of the gradients at query, key and value, for one photo.

    With S = softmax(scale·q kᵀ) and g the gradient at o = S v, the gradient at the logits is
    ds_ji = S_ji (g_j·v_i − g_j·o_j). Its column sums are the weights of the keys. Its rows sum to
    zero, so their sums without the class token's column, the weights of the queries, are that
    column, negated.

    Args:
        query: (heads, N, d); the same for key, value and mixed, the output o.
        key: see query.
        value: see query.
        mixed: see query.
        gradient: g of the photo's K pairs (K, heads, N, d), zero at the class token.
        prefix: 1 with a class token; without one, the gradients at the keys sum to zero.

    Returns:
        (K, 3·heads·d) in the order of the rows of `qkv`.
    """
    pairs, heads, tokens, size = gradient.shape
    scale = size**-0.5
    weights = (query * scale) @ key.transpose(-2, -1)
    torch.softmax(weights, dim=-1, out=weights)
    share = (gradient * mixed).sum(dim=-1)
    # One product for all pairs: each has its own columns, the last of which is g_j·o_j.
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
