"""One step of a random walk between patches that look alike.

The walk goes by the cosine of centred patch embeddings; no attention is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vpltool.methods.inputs import PhotoMaps
from vpltool.methods.refiners._boxes import BoxSettings

if TYPE_CHECKING:
    from torch import Tensor

READS = ("patches",)


@dataclass(frozen=True, kw_only=True)
class Settings(BoxSettings):
    """Settings of the random walk."""


def refine(photo: PhotoMaps, settings: Settings) -> Tensor:
    """Spread the maps of a photo between patches that look alike (K, h, w), float32."""
    from vpltool.core.affinity import refine as spread

    return spread(photo.cams, photo.tensors["patches"], affinity="patches",
                  mask=settings.mask, threshold=settings.threshold,
                  exclusive=settings.box == "exclusive", normalise=settings.min_max)
