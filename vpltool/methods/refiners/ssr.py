"""Attention of CLIP and of a second encoder such as DINO, in superpixels (SSR, eq. 7 to 11).

It is the Superpixel-Guided Correction of SSR (AAAI 2026). SSR concatenates and
normalises both attentions; here each is made doubly stochastic, and their mean, 0.4 to 0.6, takes
the two steps of CLIP-ES. SSR leaves the values of SLIC, of the colours and of both thresholds open:
they are settings. Another encoder's features: vpltool extract --encoder. Needs scikit-image: pip
install 'vpltool[superpixels]'.
"""

from __future__ import annotations

from dataclasses import dataclass

from vpltool.lazy import Tensor
from vpltool.methods.inputs import PhotoMaps
from vpltool.methods.refiners import superpixels
from vpltool.settings import setting

READS = ("attention", "second_attention", "photo")


@dataclass(frozen=True, kw_only=True)
class Settings(superpixels.Settings):
    """Settings of both encoders and the superpixels."""

    second_share: float = setting(
        0.6, "Share of the second encoder in the affinity; the rest is CLIP's.", low=0, high=1,
        source="SSR, eq. 9")


check = superpixels.check


def refine(photo: PhotoMaps, settings: Settings) -> Tensor:
    """Spread the maps of a photo along both attentions (K, h, w), float32."""
    second = settings.second_share
    return superpixels.refine_in_regions(
        photo, {"attention": 1 - second, "second_attention": second}, settings)
