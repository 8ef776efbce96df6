"""Probability of each class under Fisher's discriminant, among the photo's tags and the background.

`seed-prototypes --method discriminant` makes the prototypes: with each row, its scale and bias.
There is no temperature to choose, since the discriminant measures patches by their own covariance.
"""

from __future__ import annotations

from vpltool.lazy import Tensor
from vpltool.methods.cams.dense import class_probabilities, row_logits
from vpltool.methods.inputs import CamBatch
from vpltool.settings import Settings

READS = ("patches", "scale", "bias")


def make_cams(batch: CamBatch, settings: Settings) -> list[Tensor]:
    """Make the probability of each class of each photo, patch by patch (K_i, h, w), float32."""
    rows = batch.prototypes * batch.of_rows["scale"][:, None]
    return class_probabilities(batch, row_logits(batch, rows, 1.0) + batch.of_rows["bias"])
