"""Attention of the last six blocks, doubly stochastic, squared, in tight boxes (ExCEL, CVPR 2025).

It is CLIP-ES's affinity (`attention`) with fewer blocks and boxes from 0.79 of the maximum on. It
reads the attention of each block, so that their number is a setting of each run:
`extract --keep attentions --attention-blocks 12` keeps that of twelve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vpltool.errors import VplError
from vpltool.methods.inputs import PhotoMaps
from vpltool.methods.refiners import _boxes
from vpltool.settings import setting

if TYPE_CHECKING:
    from torch import Tensor

READS = ("attentions",)


@dataclass(frozen=True, kw_only=True)
class Settings(_boxes.BoxSettings):
    """Settings of ExCEL's affinity."""

    blocks: int = setting(6, "Last blocks whose attention is averaged.", low=1,
                          source="ExCEL, official code")
    threshold: float = _boxes.threshold(0.79, "ExCEL, official code")


def refine(photo: PhotoMaps, settings: Settings) -> Tensor:
    """Spread the maps of a photo along the attention of the last blocks (K, h, w), float32."""
    from vpltool.core.affinity import refine as spread

    each = photo.tensors["attentions"]
    if settings.blocks > len(each):
        raise VplError(f"`blocks={settings.blocks}`: the features hold the attention of "
                       f"{len(each)} blocks",
                       f"`blocks={len(each)}`, or `extract(keep='tokens,patches,attentions', "
                       f"attention_blocks={settings.blocks}, overwrite=True)`")
    return spread(photo.cams, each[-settings.blocks :].float().mean(dim=0), affinity="attention",
                  mask=settings.mask, threshold=settings.threshold,
                  exclusive=settings.box == "exclusive", normalise=settings.min_max)
