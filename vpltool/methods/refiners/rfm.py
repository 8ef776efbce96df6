"""WeCLIP's refining module: attention that a trained decoder agrees with (CVPR 2024).

As `attention`, with R = S ⊙ mean of the kept A_l in the place of CLIP's mean attention. S =
sigmoid(F·Fᵀ) comes from the decoder's fused features F, A_l is the attention of a block, and kept
are the blocks whose Σ(S − A_l) is at most the mean of these sums. WeCLIP remakes the labels of each
crop in the second half of its training; here they are remade for whole photos, with `crf`, and
`train-decoder --start` continues from them. The decoder runs without dropout.

Zhang et al., CVPR 2024, and its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vpltool.errors import VplError
from vpltool.methods.inputs import PhotoMaps
from vpltool.methods.refiners._blocks import check_blocks
from vpltool.methods.refiners._boxes import BoxSettings
from vpltool.settings import setting

if TYPE_CHECKING:
    from torch import Tensor

READS = ("attentions", "layers", "decoder")


@dataclass(frozen=True, kw_only=True)
class Settings(BoxSettings):
    """Settings of the refining module."""

    blocks: int = setting(6, "Last blocks to choose from; WeCLIP: 6 for VOC, 10 for COCO.",
                          low=1, source="WeCLIP, official code")


def check(features: Mapping[str, Any], settings: Settings) -> None:
    """Check that the features hold the attention of as many blocks.

    Raises:
        VplError: they do not.
    """
    check_blocks(features, settings.blocks)


def refine(photo: PhotoMaps, settings: Settings) -> Tensor:
    """Spread the maps of a photo along the attention that the decoder agrees with (K, h, w)."""
    import torch

    from vpltool.core.affinity import refine as spread
    from vpltool.core.affinity import refining_map

    assert photo.decoder is not None
    grid = (photo.cams.shape[1], photo.cams.shape[2])
    layers, patches = (photo.tensors[name][None].float() if name in photo.tensors else None
                       for name in ("layers", "patches"))
    with torch.no_grad():
        fused = photo.decoder.embeddings_and_fused(layers, patches, grid)[1]
    if fused is None:
        raise VplError("this decoder has no fused features",
                       "name one of `train_decoder(method='weclip')`: `decoder='NAME'`")
    chosen = refining_map(fused[0], photo.tensors["attentions"][-settings.blocks:])
    return spread(photo.cams, chosen, affinity="attention", mask=settings.mask,
                  threshold=settings.threshold, exclusive=settings.box == "exclusive",
                  normalise=settings.min_max)
