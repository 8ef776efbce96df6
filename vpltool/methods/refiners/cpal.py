"""Cosine to the context prototypes that fit the photo, shifted towards it (CPAL, CVPR 2024).

The photo's instance prototype is the mean of the patches that its CAM marks. It chooses the context
prototypes of its class that are most similar (soft positive neighbours), and they are moved towards
it (feature distribution alignment). The map is the weighted mean cosine to them, min-max
normalised: CPAL's prototype-aware CAM. CPAL trains a network with it as its own supervision;
nothing is trained here. `seed-prototypes --method context` makes the prototypes.

No code is public, and the text leaves open what a mask is, how many neighbours there are, their
temperature, and how far the prototypes are moved: settings, all chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vpltool import settings
from vpltool.methods.inputs import PhotoMaps
from vpltool.settings import setting

if TYPE_CHECKING:
    from torch import Tensor

READS = ("patches", "prototypes")


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of the prototype-aware maps."""

    instance: float = setting(0.5, "Threshold of the instance, as a share of a CAM's maximum.",
                              low=0, high=1, source="vpltool")
    neighbours: int = setting(4, "Number of context prototypes per instance; 0: all.", low=0,
                              metavar="K", source="vpltool")
    tau: float = setting(0.05, "Temperature of their weights.", low=1e-6, source="vpltool")
    shift: float = setting(0.5, "How far the prototypes move to the instance; 1: their mean lies "
                                "on it.",
                           low=0, high=1, source="vpltool")


def refine(photo: PhotoMaps, settings: Settings) -> Tensor:
    """Make the prototype-aware map of each class (K, h, w), in [0, 1], float32."""
    from vpltool.core.prototype_aware import prototype_aware_cam

    assert photo.prototypes is not None and photo.class_index is not None
    return prototype_aware_cam(photo.tensors["patches"], photo.cams, photo.classes,
                               photo.prototypes, photo.class_index, share=settings.instance,
                               count=settings.neighbours, tau=settings.tau, shift=settings.shift)
