"""CLIP's doubly stochastic attention, squared, in boxes of each class (CLIP-ES, eq. 5 to 7).

Patches that attend to the object join it; a CAM stays inside the boxes of its class.
"""

from __future__ import annotations

from vpltool.lazy import Tensor
from vpltool.methods.inputs import PhotoMaps
from vpltool.methods.refiners._boxes import BoxSettings, spread_along

READS = ("attention",)

Settings = BoxSettings


def refine(photo: PhotoMaps, settings: Settings) -> Tensor:
    """Spread the maps of a photo along its attention (K, h, w), float32."""
    return spread_along(photo.tensors["attention"], photo, settings)
