"""Border saliency, divided among the photo's classes by the prototypes; meant for seeds.

Patches that do not look like the photo's border are salient (the border prior of Zhu et al., CVPR
2014); the prototypes say which class each of them shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vpltool import settings
from vpltool.methods.inputs import CamBatch
from vpltool.settings import setting

if TYPE_CHECKING:
    from torch import Tensor

READS = ("patches",)


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of the salient maps."""

    tau: float = setting(0.05, "Temperature of the class probabilities.", low=1e-6,
                         source="vpltool, chosen on the demo scenes of another seed")


def make_cams(batch: CamBatch, settings: Settings) -> list[Tensor]:
    """Make a map in [0, 1] of each class of each photo (K_i, h, w), float32."""
    from vpltool.core.saliency import salient_cam

    return salient_cam(batch.tensors["patches"], batch.grid, batch.prototypes, batch.class_index,
                       batch.present, tau=settings.tau)
