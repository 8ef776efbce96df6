"""WeCLIP's refining module: attention that a trained decoder agrees with (CVPR 2024).

As `attention`, with R = S ⊙ mean of the kept A_l in the place of CLIP's mean attention. S =
sigmoid(F·Fᵀ) comes from the decoder's fused features F, A_l is the attention of a block, and kept
are the blocks whose Σ(S − A_l) is at most the mean of these sums. WeCLIP remakes the labels of each
crop in the second half of its training; here they are remade for whole photos, with `crf`, and
`train-decoder --start` continues from them. The decoder runs without dropout.

Zhang et al., CVPR 2024, and its code.
"""

from __future__ import annotations

from dataclasses import dataclass

from vpltool.core.training import patch_affinity
from vpltool.errors import VplError
from vpltool.lazy import Tensor, no_grad, torch
from vpltool.methods.inputs import PhotoMaps
from vpltool.methods.refiners import attention, excel
from vpltool.parallel.device import widest
from vpltool.settings import setting

READS = ("attentions", "layers", "decoder")


@dataclass(frozen=True, kw_only=True)
class Settings(attention.Settings):
    """Settings of the refining module."""

    blocks: int = setting(6, "Last blocks to choose from; WeCLIP: 6 for VOC, 10 for COCO.",
                          low=1, source="WeCLIP, official code")


check = excel.check


@no_grad
def refine(photo: PhotoMaps, settings: Settings) -> Tensor:
    """Spread the maps of a photo along the attention that the decoder agrees with (K, h, w)."""
    assert photo.decoder is not None
    grid = (photo.cams.shape[1], photo.cams.shape[2])
    layers, patches = (photo.tensors[name][None].float() if name in photo.tensors else None
                       for name in ("layers", "patches"))
    fused = photo.decoder.embeddings_and_fused(layers, patches, grid)[1]
    if fused is None:
        raise VplError("this decoder has no fused features",
                       "name one of `train_decoder(method='weclip')`: `decoder='NAME'`")
    chosen = refining_map(fused[0], photo.tensors["attentions"][-settings.blocks:])
    return attention.spread_along(chosen, photo, settings)


def refining_map(fused: Tensor, attentions: Tensor) -> Tensor:
    """Return the attention R (n, n), float32, of WeCLIP's refining module (CVPR 2024).

    R = S ⊙ mean of the kept A_l, where S = sigmoid(F·Fᵀ) of a decoder's fused features (n, width),
    d_l = Σ(S − A_l), and A_l (blocks, n, n) is kept if d_l is at most the mean of all d. R is
    neither row-stochastic nor symmetric: `sinkhorn_scaling` follows.
    """
    affinity = patch_affinity(fused[None].float())[0]
    maps = attentions.float()
    distance = (affinity - maps).sum(dim=(1, 2), dtype=widest(maps.device))
    # The nearest is always kept, also where rounding puts the mean of equal distances below them.
    kept = distance <= torch.maximum(distance.mean(), distance.amin())
    return affinity * (maps * kept[:, None, None]).sum(dim=0) / kept.sum()
