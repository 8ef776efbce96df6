"""Attention of the last six blocks, doubly stochastic, squared, in tight boxes (ExCEL, CVPR 2025).

It is CLIP-ES's affinity (`attention`) with fewer blocks and boxes from 0.79 of the maximum on. It
reads the attention of each block, so that their number is a setting of each run:
`extract --keep attentions --attention-blocks 12` keeps that of twelve.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vpltool.errors import VplError
from vpltool.lazy import Tensor
from vpltool.methods.inputs import PhotoMaps
from vpltool.methods.refiners import attention
from vpltool.settings import setting

READS = ("attentions",)


@dataclass(frozen=True, kw_only=True)
class Settings(attention.Settings):
    """Settings of ExCEL's affinity."""

    blocks: int = setting(6, "Number of last blocks whose attention is averaged.", low=1,
                          source="ExCEL, official code")
    threshold: float = attention.threshold(0.79, source="ExCEL, official code")


def check(features: Mapping[str, Any], settings: Settings) -> None:
    """Raise a VplError if features, by their options, lack the attention of as many blocks.

    A model with fewer blocks gives the attention of all.
    """
    blocks, stored = settings.blocks, features.get("attention_blocks", 8)
    if blocks > stored:
        keep, layers = (",".join(map(str, features[name])) for name in ("keep", "layers"))
        chosen = f"layers={layers!r}, " if layers else ""
        raise VplError(
            f"`blocks={blocks}`: the features hold the attention of {stored} blocks",
            f"`blocks={stored}`, or `extract(split={features['split']!r}, keep={keep!r}, {chosen}"
            f"attention_blocks={blocks}, overwrite=True)`")


def refine(photo: PhotoMaps, settings: Settings) -> Tensor:
    """Spread the maps of a photo along the attention of the last blocks (K, h, w), float32."""
    mean = photo.tensors["attentions"][-settings.blocks :].float().mean(dim=0)
    return attention.spread_along(mean, photo, settings)
