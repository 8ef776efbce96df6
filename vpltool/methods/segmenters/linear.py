"""A linear classifier on layers of the frozen CLIP, with its own weights for each class.

The linear probe of DINOv2 (Oquab et al., TMLR 2024, dense recognition), taught by pseudo masks: one
affine map of the tokens of several layers side by side, and its scores enlarged bilinearly. DINOv2
normalises by BatchNorm; here each token is, by LayerNorm without weights, so that a photo's scores
depend on nothing but the photo. In use, a patch's scores are averaged over the patches that look
like it, by the random walk of `refine --method patches`. The prototypes say which classes there
are, nothing else, so there is no regional contrast: `--lambda-rsc 0`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from vpltool import settings
from vpltool.core import segmenter
from vpltool.methods.inputs import SegmenterParts
from vpltool.settings import setting

READS = ("layers",)


layers_setting = partial(
    setting, "", "CLIP blocks to read; 0 is the first; spread: four, evenly spaced; default: those "
    "stored, or all but the last.", metavar="LIST")


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of the linear classifier."""

    layers: str = layers_setting(source="DINOv2 reads four")
    walk: float = setting(0.1, "Temperature of the random walk at prediction; it goes between "
                               "patches with similar tokens in the last of these blocks. 0: no "
                               "walk.", low=0, source="as `refine --method patches`")


def build(parts: SegmenterParts, settings: Settings) -> segmenter.LinearSegmenter:
    """Build an untrained classifier."""
    return segmenter.LinearSegmenter(parts.layers, parts.input_width, parts.prototypes,
                                     parts.class_index, settings.walk)


def rebuild(config: Mapping[str, Any]) -> segmenter.LinearSegmenter:
    """Rebuild a classifier from its `config`; load its state dict next."""
    return segmenter.LinearSegmenter.from_config(config)
