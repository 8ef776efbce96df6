"""Softmax of each patch over the photo's classes and the background prototypes (MaskCLIP's way).

A patch's score is the cosine of its embedding to the prototypes; no network is run.
"""

from __future__ import annotations

from dataclasses import dataclass

from vpltool import settings
from vpltool.core.classes import allowed_rows, class_scores
from vpltool.lazy import Tensor, no_grad
from vpltool.methods.inputs import CamBatch
from vpltool.settings import setting

READS = ("patches",)


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of the dense maps."""

    tau: float = setting(0.05, "Temperature of the softmax.", low=1e-6,
                         source="vpltool, chosen on the demo scenes of another seed")
    join: str = setting(
        "sum", "How the rows of a class are combined: sum of their probabilities; or mean, so that "
               "a class, or the background, is not likelier because it has more rows.",
        choices=("sum", "mean"), record="changed")


def make_cams(batch: CamBatch, settings: Settings) -> list[Tensor]:
    """Make the probability of each class of each photo, patch by patch (K_i, h, w), float32."""
    logits = row_logits(batch, batch.prototypes, settings.tau)
    if settings.join == "mean":
        _, number, counts = batch.class_index.unique(return_inverse=True, return_counts=True)
        logits -= counts[number].log()
    return class_probabilities(batch, logits)


def row_logits(batch: CamBatch, rows: Tensor, tau: float) -> Tensor:
    """Return the products of patches and rows (rows, dim), divided by τ: (B, h·w, rows)."""
    patches = batch.tensors["patches"]
    return (patches @ rows.to(patches).T).float() / tau


@no_grad
def class_probabilities(batch: CamBatch, logits: Tensor) -> list[Tensor]:
    """Return the softmax over the rows of the photo's classes and the background, summed by class.

    From logits (B, h·w, rows) to maps (K_i, h, w) of each photo; the rest to 1 is the background.
    """
    allowed = allowed_rows(batch.class_index, batch.present)
    logits = logits.masked_fill(~allowed[:, None], float("-inf"))
    total = logits.logsumexp(dim=-1, keepdim=True)
    maps = []
    for photo, classes in enumerate(batch.present):
        scores = class_scores(logits[photo], batch.class_index, classes)
        maps.append((scores - total[photo]).exp().T.reshape(len(classes), *batch.grid))
    return maps
