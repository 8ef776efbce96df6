"""A random walk between patches that look alike.

The walk goes by the cosine of centred patch embeddings; no attention is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vpltool.methods.inputs import PhotoMaps
from vpltool.methods.refiners._boxes import BoxSettings
from vpltool.settings import setting

if TYPE_CHECKING:
    from torch import Tensor

READS = ("patches",)


@dataclass(frozen=True, kw_only=True)
class Settings(BoxSettings):
    """Settings of the random walk."""

    steps: int = setting(1, "Steps of the random walk.", low=1, record="changed", source="vpltool")
    tau: float = setting(0.1, "Temperature of the transitions: the softmax of the cosines / TAU.",
                         low=1e-3, record="changed",
                         source="vpltool, chosen on photos20's train-a")


def refine(photo: PhotoMaps, settings: Settings) -> Tensor:
    """Spread the maps of a photo between patches that look alike (K, h, w), float32."""
    from vpltool.core.affinity import refine as spread

    return spread(photo.cams, photo.tensors["patches"], affinity="patches",
                  mask=settings.mask, threshold=settings.threshold,
                  exclusive=settings.box == "exclusive", normalise=settings.min_max,
                  steps=settings.steps, tau=settings.tau)
