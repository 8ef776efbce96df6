"""Softmax of each patch over the photo's classes and the background prototypes (MaskCLIP's way).

A patch's score is the cosine of its embedding to the prototypes; no network is run.
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
    """Settings of the dense maps."""

    tau: float = setting(0.05, "Temperature of the softmax.", low=1e-6,
                         source="vpltool, chosen on the demo scenes of another seed")
    join: str = setting(
        "sum", "How the rows of a class are combined: sum of their probabilities; or mean, so that "
               "a class, or the background, is not likelier because it has more rows.",
        choices=("sum", "mean"),
        record="changed")


def make_cams(batch: CamBatch, settings: Settings) -> list[Tensor]:
    """Make the probability of each class of each photo, patch by patch (K_i, h, w), float32."""
    from vpltool.core.gradcam import dense_cam

    return dense_cam(batch.tensors["patches"], batch.grid, batch.prototypes, batch.class_index,
                     batch.present, tau=settings.tau, join=settings.join)
