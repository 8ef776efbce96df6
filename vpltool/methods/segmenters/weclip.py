"""WeCLIP's decoder over several layers of the frozen CLIP (Zhang et al., CVPR 2024).

Three transformer blocks fuse the layers. The output lies in CLIP's joint space, where the
prototypes are the pixel classifier (VPL, eq. 12).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vpltool import settings
from vpltool.core import segmenter
from vpltool.errors import VplError
from vpltool.methods.inputs import SegmenterParts
from vpltool.methods.segmenters.linear import layers_setting
from vpltool.settings import setting

READS = ("layers", "patches")

_HEAD_WIDTH = 32
"""Channels of an attention head: WeCLIP's 256 in 8 heads. Narrow decoders have fewer heads."""


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of the decoder."""

    tau: float = setting(0.07, "Temperature of the pixel classifier.", low=1e-3,
                         source="TCL, official code: where its contrast begins; VPL gives none")
    width: int = setting(256, "Width of the decoder.", low=8, source="WeCLIP, official code")
    residual: bool = setting(
        False, "Add the output to CLIP's own patch embeddings: better with few photos or steps.")
    layers: str = layers_setting(source="WeCLIP, official code")


def build(parts: SegmenterParts, settings: Settings) -> segmenter.Decoder:
    """Build an untrained decoder; VplError if the width cannot be divided among the heads."""
    width = settings.width
    if width > _HEAD_WIDTH and width % _HEAD_WIDTH:
        raise VplError(f"`width={width}`: not a multiple of {_HEAD_WIDTH}, the width of an "
                       "attention head", "`width=256`")
    shape = segmenter.DecoderShape(
        parts.layers, parts.input_width, parts.prototypes.shape[1], width=width,
        heads=max(width // _HEAD_WIDTH, 1), residual=settings.residual)
    return segmenter.Decoder(shape, parts.prototypes, parts.class_index, settings.tau)


def rebuild(config: Mapping[str, Any]) -> segmenter.Decoder:
    """Rebuild a decoder from its `config`; load its state dict next."""
    return segmenter.Decoder.from_config(config)
