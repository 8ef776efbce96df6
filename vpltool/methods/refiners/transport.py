"""Optimal transport of a photo's patches to its classes, in a second encoder's features (DHR).

From DHR (ECCV 2024): the classes of a photo, and its background, are means of the second encoder's
patches under the maps. Sinkhorn with uniform marginals shares the patches out; the plan, from 0 to
1 for each class, is the result. Where two classes look alike to the second encoder, their cosines
are multiplied by the plan in CLIP's features; DHR takes its segmenter's features there, which do
not exist yet at this point. Uniform marginals give each class the same mass: expect small objects
to grow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vpltool import settings
from vpltool.methods.inputs import PhotoMaps
from vpltool.settings import setting

if TYPE_CHECKING:
    from torch import Tensor

READS = ("patches", "second_patches")


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of the transport."""

    background: float = setting(0.4, "Background threshold: patches where all maps are below it "
                                     "are background.", low=0,
                                high=1, source="vpltool")
    alike: float = setting(0.8, "Cosine above which two classes of a photo look alike.", low=-1,
                           high=1, source="DHR, official code")
    epsilon: float = setting(0.1, "Weight of the entropy.", low=0.01, source="DHR, official code")
    rounds: int = setting(100, "Maximum number of Sinkhorn iterations.", low=1,
                          source="DHR, official code")
    tolerance: float = setting(0.01, "Sinkhorn stops when the mean change of a scaling is below "
                                     "this.", low=0,
                               source="DHR, official code")


def refine(photo: PhotoMaps, settings: Settings) -> Tensor:
    """Share a photo's patches out among its classes (K, h, w), float32."""
    import torch

    from vpltool.core.transport import transport_maps

    cams = photo.cams.float()
    if not len(cams):
        return cams
    with torch.no_grad():
        maps = transport_maps(
            cams.flatten(1), photo.tensors["patches"], photo.tensors["second_patches"],
            background=settings.background, alike=settings.alike, epsilon=settings.epsilon,
            rounds=settings.rounds, tolerance=settings.tolerance)
    return maps.view_as(cams)
