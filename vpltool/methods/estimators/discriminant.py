"""One prototype per class by Fisher's discriminant, which teaches itself within the tags.

It is fitted to the seeds, labels every pixel with one of its photo's tags or the background, and is
fitted again to the labels that it is sure of. Patches are measured by their own covariance, so the
same settings serve encoders whose cosines lie elsewhere. `cam --method discriminant` reads the
result; each row is also a prototype like any other, without its scale and bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vpltool import settings
from vpltool.settings import setting

if TYPE_CHECKING:
    from torch import Tensor

    from vpltool.core.group import Group
    from vpltool.core.phase_one import Pixels

READS = ("patches",)

UNLABELLED = True
"""Pixels that are no seeds are read, too."""


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of the discriminant and its rounds."""

    rounds: int = setting(6, "Rounds of labelling all pixels and fitting again.", low=0,
                          source="vpltool")
    confidence: float = setting(0.8, "Probability at which a label counts in the next round.",
                                low=0, high=1, source="vpltool")
    shrinkage: float = setting(0.1, "Shrinkage of the covariance towards a multiple of the "
                                    "identity.", low=1e-6, high=1,
                               source="as `train-decoder --method discriminant`")
    prior: float = setting(1.0, "Exponent of the class frequency: 1 is Bayes' rule, 0 treats all "
                                "classes as equally likely.", low=0, source="Bayes' rule")


def divides(settings: Settings) -> bool:
    """Tell whether several processes can share the work: all of it is sums over pixels."""
    return True


def estimate(pool: Pixels, text: Tensor, text_index: Tensor, settings: Settings, seed: int,
             group: Group | None = None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Fit the discriminant, and teach it by its own labels.

    Args: those of `means.estimate`.

    Returns:
        L2-normed rows (classes + 1, dim), float32, the background last; their classes; and the
        `scale` and `bias` of each: a patch x scores scale · (x · row) + bias.
    """
    import torch

    from vpltool.core.discriminant import tagged_discriminant
    from vpltool.core.group import ALONE

    classes = int(text_index.max()) + 1
    weight, bias = tagged_discriminant(
        pool, classes, rounds=settings.rounds, confidence=settings.confidence,
        shrinkage=settings.shrinkage, prior=settings.prior, group=group or ALONE)
    order = torch.arange(1, classes + 1, device=weight.device) % classes
    weight, bias = weight[order], bias[order]
    scale = weight.norm(dim=-1)
    rows = weight / scale.clamp_min(1e-12)[:, None]
    for number in (scale == 0).nonzero()[:, 0].tolist():
        own = text[text_index == order[number]]
        if len(own):
            # A class without seeds keeps its row, as in the other methods.
            rows[number] = own[0]
    return rows, order, {"scale": scale, "bias": bias}
