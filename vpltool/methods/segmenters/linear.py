"""A linear classifier over layers of the frozen CLIP, with rows of its own for each class.

The probe of DINOv2 (Oquab et al., TMLR 2024, section 7.4), taught by pseudo masks: one affine map
of the layers' tokens, one after the other, and its scores enlarged bilinearly. DINOv2 normalises
by BatchNorm; here each token is, by LayerNorm without weights, so that a photo's scores depend on
nothing but the photo. The prototypes say which classes there are, nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vpltool import settings
from vpltool.methods.inputs import SegmenterParts
from vpltool.settings import setting

if TYPE_CHECKING:
    from vpltool.core.linear import LinearSegmenter

READS = ("layers",)


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of the linear classifier."""

    layers: str = setting("", "CLIP blocks to read, 0 is the first; default: those stored, or all "
                              "but the last.", metavar="LIST", source="DINOv2, section 7.4: four")


def build(parts: SegmenterParts, settings: Settings) -> LinearSegmenter:
    """Build an untrained classifier."""
    from vpltool.core.linear import LinearSegmenter

    return LinearSegmenter(parts.layers, parts.input_width, parts.prototypes, parts.class_index)


def rebuild(config: Mapping[str, Any]) -> LinearSegmenter:
    """Rebuild a classifier from its `config`; load its state dict next."""
    from vpltool.core.linear import LinearSegmenter

    return LinearSegmenter.from_config(config)
