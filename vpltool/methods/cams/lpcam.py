"""Cosine to the prototypes of a class minus that to its context's (LPCAM, CVPR 2023).

ReLU(mean cosine to the class's rows − mean cosine to its context's rows), divided by the maximum of
the map. `seed-prototypes --method lpcam` makes the prototypes. LPCAM adds maps of four scales and
mirrored photos; here the features are those of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vpltool import settings
from vpltool.methods.inputs import CamBatch

if TYPE_CHECKING:
    from torch import Tensor

READS = ("patches", "context_of")


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """LPCAM's maps have none."""


def make_cams(batch: CamBatch, settings: Settings) -> list[Tensor]:
    """Make a map in [0, 1] of each class of each photo (K_i, h, w), float32."""
    from vpltool.core.context import class_minus_context_cam

    return class_minus_context_cam(batch.tensors["patches"], batch.grid, batch.prototypes,
                                   batch.class_index, batch.of_rows["context_of"], batch.present)
