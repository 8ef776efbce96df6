"""A random walk between patches that look alike.

The walk goes by the cosine of centred patch embeddings; no attention is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

from vpltool.core.affinity import patch_walk
from vpltool.lazy import Tensor
from vpltool.methods.inputs import PhotoMaps
from vpltool.methods.refiners import attention
from vpltool.settings import setting

READS = ("patches",)


@dataclass(frozen=True, kw_only=True)
class Settings(attention.Settings):
    """Settings of the random walk."""

    steps: int = setting(1, "Steps of the random walk.", low=1, record="changed", source="vpltool")
    tau: float = setting(0.1, "Temperature of the transitions: the softmax of the cosines / TAU.",
                         low=1e-3, record="changed", source="vpltool, chosen on photos20's train-a")


def refine(photo: PhotoMaps, settings: Settings) -> Tensor:
    """Spread the maps of a photo between patches that look alike (K, h, w), float32."""
    def spread(maps: Tensor) -> Tensor:
        walk = patch_walk(photo.tensors["patches"][None].float(), settings.tau)[0]
        for _ in range(settings.steps):
            maps = walk @ maps
        return maps

    return attention.refined(photo, settings, spread)
