"""CLIP Surgery's similarity: class scores minus their mean over all classes (as used by ExCEL).

Each class is weighted by the photo's own vector, and the mean over all classes and background words
is taken off (Li et al., CLIP Surgery, 2023; ExCEL, CVPR 2025). All rows of the prototypes take
part; of a class with several, the best row of each patch counts. ExCEL combines it with
`extract --patches calibrated` and `text-prototypes --attributes`.

The official code divides each channel by its norm over the photo's tokens, where a cosine would
divide each token by its own. `normalise` has both; stored patches are divided by their own norm in
any case. The code stretches a map over the patches and the class token, here over the patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vpltool import settings
from vpltool.methods.inputs import CamBatch
from vpltool.settings import setting

if TYPE_CHECKING:
    from torch import Tensor

READS = ("tokens", "patches", "head")


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of the similarity."""

    scale: float = setting(2.0, "Factor of the photo's class scores before their softmax.", low=0,
                           source="CLIP Surgery, official code")
    normalise: str = setting(
        "patch", "Normalisation of the patches; patch: cosines; channel: each channel is also "
                 "divided by its norm over the photo, as in the official code.",
        choices=("patch", "channel"))
    pool: str = setting(
        "class", "The photo's vector: class (the class token, or the model's own pooling), or mean "
                 "(of the patches, for a CLIP that pools by the mean).", choices=("class", "mean"),
        source="CLIP Surgery, official code")


def make_cams(batch: CamBatch, settings: Settings) -> list[Tensor]:
    """Make a map in [0, 1] of each class of each photo (K_i, h, w), float32."""
    import torch

    from vpltool.core.surgery import surgery_cam

    head = batch.head
    assert head is not None
    with torch.no_grad():
        output = head.block(batch.tensors["tokens"])
        photo = head.class_embedding(output) if settings.pool == "class" else head.pooled(output)
    return surgery_cam(batch.tensors["patches"], photo, batch.grid, batch.prototypes,
                       batch.class_index, batch.present, scale=settings.scale,
                       normalise=settings.normalise)
