"""A light head of small convolutions over layers, which `train-student` puts on a small network.

It has no prototypes and no walk, and gives 2×2 values a patch (sub-pixel convolution, Shi et al.,
CVPR 2016). Here it is trained on the frozen encoder, with `--lambda-rsc 0`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vpltool import settings
from vpltool.core import segmenter
from vpltool.methods.inputs import SegmenterParts
from vpltool.methods.segmenters.linear import layers_setting
from vpltool.settings import setting

READS = ("layers",)


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of the light head."""

    layers: str = layers_setting()
    width: int = setting(128, "Width of its hidden layers.", low=1)


def build(parts: SegmenterParts, settings: Settings) -> segmenter.LightHead:
    """Build an untrained head."""
    return segmenter.LightHead(parts.layers, parts.input_width, int(parts.class_index.max()) + 1,
                               settings.width)


def rebuild(config: Mapping[str, Any]) -> segmenter.LightHead:
    """Rebuild a head from its `config`; load its state dict next."""
    return segmenter.LightHead.from_config(config)
