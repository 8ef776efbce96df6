"""Attention from a second encoder's patch similarity, on CLIP's values (ProxyCLIP, ECCV 2024).

The attention is softmax(γ (cos − β·mean)) over the patches where this is not negative, without the
block's residual and MLP. Here the second encoder's patches are resampled to CLIP's grid; the
official code resamples CLIP's values to the other grid. It also slides a window of 336 pixels;
here the whole photo is used at once. The code leaves open what a patch without any partner does,
not even itself, if all patches look alike: here it attends to itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from vpltool import settings
from vpltool.lazy import F, Tensor, no_grad, torch
from vpltool.methods.inputs import EmbeddingBatch
from vpltool.settings import setting

READS = ("tokens", "head", "second_patches")


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of the proxy attention."""

    beta: float = setting(1.2, "Share of the photo's mean cosine that is subtracted.", low=0,
                          source="ProxyCLIP, official code")
    gamma: float = setting(3.0, "Factor of the logits.", low=1e-6,
                           source="ProxyCLIP, official code")


@no_grad
def make_patches(batch: EmbeddingBatch, settings: Settings) -> Tensor:
    """Embed patches with the attention of a second encoder (B, h·w, dim), L2-normed."""
    head = batch.head
    assert head is not None
    unit = F.normalize(batch.tensors["second_patches"].float(), dim=-1)
    cosine = unit @ unit.transpose(1, 2)
    mean = cosine.mean(dim=(1, 2), keepdim=True)
    logits = settings.gamma * (cosine - settings.beta * mean)
    itself = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
    weights = logits.masked_fill((logits < 0) & ~itself, float("-inf")).softmax(dim=-1)
    value = head.block.values(head.block.ln_1(batch.tensors["tokens"][:, head.prefix :]))
    mixed = weights.to(value)[:, None] @ value
    return head.patch_embeddings(head.block.attention_output(mixed))
