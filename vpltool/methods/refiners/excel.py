"""Attention of the last six blocks, doubly stochastic, squared, in tight boxes (ExCEL, CVPR 2025).

It is CLIP-ES's affinity (`attention`) with fewer blocks and boxes from 0.79 of the maximum on. It
reads the attention of each block, so that their number is a setting of each run:
`extract --keep attentions --attention-blocks 12` keeps that of twelve.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vpltool.lazy import Tensor
from vpltool.methods.inputs import PhotoMaps
from vpltool.methods.refiners import _boxes
from vpltool.methods.refiners._blocks import check_blocks
from vpltool.settings import setting

READS = ("attentions",)


@dataclass(frozen=True, kw_only=True)
class Settings(_boxes.BoxSettings):
    """Settings of ExCEL's affinity."""

    blocks: int = setting(6, "Number of last blocks whose attention is averaged.", low=1,
                          source="ExCEL, official code")
    threshold: float = _boxes.threshold(0.79, "ExCEL, official code")


def check(features: Mapping[str, object], settings: Settings) -> None:
    """Check that the features hold the attention of as many blocks.

    Raises:
        VplError: they do not.
    """
    check_blocks(features, settings.blocks)


def refine(photo: PhotoMaps, settings: Settings) -> Tensor:
    """Spread the maps of a photo along the attention of the last blocks (K, h, w), float32."""
    attention = photo.tensors["attentions"][-settings.blocks :].float().mean(dim=0)
    return _boxes.spread_along(attention, photo, settings)
