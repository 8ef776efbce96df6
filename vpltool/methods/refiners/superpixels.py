"""CLIP's attention, doubly stochastic, squared, in superpixels of the colours of each class.

It is SSR's Superpixel-Guided Correction (AAAI 2026) without the second encoder, which
`ssr` has. SLIC's superpixels are joined to regions of one colour; a class spreads from the regions
that its map is sure of. Needs scikit-image: pip install 'vpltool[superpixels]'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vpltool.methods.inputs import PhotoMaps
from vpltool.methods.refiners._regions import RegionSettings, check_regions, refine_in_regions

if TYPE_CHECKING:
    from torch import Tensor

READS = ("attention", "photo")


@dataclass(frozen=True, kw_only=True)
class Settings(RegionSettings):
    """Settings of the superpixels."""


def check(_features: Mapping[str, Any], settings: Settings) -> None:
    """Refuse, before the work, what cannot be done."""
    check_regions(settings)


def refine(photo: PhotoMaps, settings: Settings) -> Tensor:
    """Spread the maps of a photo along its attention (K, h, w), float32."""
    return refine_in_regions(photo, {"attention": 1.0}, settings)
