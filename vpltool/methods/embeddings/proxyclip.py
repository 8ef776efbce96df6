"""Attention from a second encoder's patch similarity, on CLIP's values (ProxyCLIP, ECCV 2024).

The attention is softmax(γ (cos − β·mean)) over the patches where this is not negative, without the
block's residual and MLP. Here the second encoder's patches are resampled to CLIP's grid; the
official code resamples CLIP's values to the other grid. It also slides a window of 336 pixels;
here the whole photo is seen at once. What the code leaves open is a patch without any partner,
itself included, where all patches look alike: here it attends to itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vpltool import settings
from vpltool.methods.inputs import EmbeddingBatch
from vpltool.settings import setting

if TYPE_CHECKING:
    from torch import Tensor

READS = ("tokens", "head", "second_patches")


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of the proxy attention."""

    beta: float = setting(1.2, "Share of the photo's mean cosine that is subtracted.", low=0,
                          source="ProxyCLIP, official code")
    gamma: float = setting(3.0, "Factor of the logits.", low=1e-6,
                           source="ProxyCLIP, official code")


def make_patches(batch: EmbeddingBatch, settings: Settings) -> Tensor:
    """Embed patches with the attention of a second encoder (B, h·w, dim), L2-normed."""
    from vpltool.core.reattention import proxy_embeddings

    assert batch.head is not None
    return proxy_embeddings(batch.head, batch.tensors["tokens"],
                            batch.tensors["second_patches"], beta=settings.beta,
                            gamma=settings.gamma)
