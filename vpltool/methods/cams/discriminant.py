"""Probability of each class under Fisher's discriminant, among the photo's tags and the background.

`seed-prototypes --method discriminant` makes the prototypes: with each row, its scale and bias.
There is no temperature to choose, since the discriminant measures patches by their own covariance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vpltool import settings
from vpltool.methods.inputs import CamBatch

if TYPE_CHECKING:
    from torch import Tensor

READS = ("patches", "scale", "bias")


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """The discriminant's maps have none."""


def make_cams(batch: CamBatch, settings: Settings) -> list[Tensor]:
    """Make the probability of each class of each photo, patch by patch (K_i, h, w), float32."""
    from vpltool.core.gradcam import dense_cam

    rows = batch.prototypes * batch.of_rows["scale"][:, None]
    return dense_cam(batch.tensors["patches"], batch.grid, rows, batch.class_index, batch.present,
                     tau=1.0, bias=batch.of_rows["bias"])
