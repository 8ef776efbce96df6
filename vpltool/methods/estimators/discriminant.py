"""One prototype per class by Fisher's discriminant, which teaches itself within the tags.

It is fitted to the seeds, labels every pixel with one of its photo's tags or the background, and is
fitted again to the labels that it is sure of. Patches are measured by their own covariance, so the
same settings serve encoders whose cosines lie elsewhere. `cam --method discriminant` reads the
result; each row is also a prototype like any other, without its scale and bias.
"""

from __future__ import annotations

from dataclasses import dataclass

from vpltool import settings
from vpltool.core.classes import BACKGROUND, allowed_rows
from vpltool.core.discriminant import Moments, discriminant
from vpltool.core.distributed import ALONE, Group
from vpltool.core.phase_one import Pixels
from vpltool.lazy import F, Tensor, torch
from vpltool.settings import setting

READS = ("patches",)

_CHUNK = 65536
"""Number of pixels that are scored at a time: bounds the memory."""

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
    classes = int(text_index.max()) + 1
    weight, bias = tagged_discriminant(pool, classes, settings, group or ALONE)
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


def tagged_discriminant(pixels: Pixels, classes: int, settings: Settings, group: Group
                        ) -> tuple[Tensor, Tensor]:
    """Return weight (K, dim) and bias (K,) of a discriminant that teaches itself within the tags.

    It is fitted to the seeds first. In each round it labels every pixel with one of its photo's
    tags or the background, and is fitted again to the labels that it is sure of: self-training
    (Yarowsky, ACL 1995), which for a discriminant is hard EM (Celeux and Govaert, 1992). Since it
    whitens the pixels by their own covariance, no threshold depends on how an encoder's cosines
    are spread.

    Args:
        pixels: of many photos; those without a seed label take part from the first round on.
        classes: number of classes K, with the background, which is class 0.
        settings: of this method.
        group: processes that hold the pixels.

    Returns:
        float32; a class without seeds keeps a weight of 0 and is never chosen.
    """
    allowed = allowed_rows(torch.arange(classes, device=pixels.labels.device), pixels.tags)
    labels = pixels.labels
    weight, bias = _fit(pixels.embeddings, labels, classes, settings, group)
    for _ in range(settings.rounds):
        found = []
        for part, photos in zip(pixels.embeddings.split(_CHUNK), pixels.photo_of.split(_CHUNK),
                                strict=True):
            scores = (part.float() @ weight.T + bias).masked_fill(~allowed[photos], float("-inf"))
            likely, label = scores.softmax(dim=-1).max(dim=-1)
            found.append(label.where(likely >= settings.confidence, -1))
        labels = torch.cat(found) if found else labels
        weight, bias = _fit(pixels.embeddings, labels, classes, settings, group)
    return weight, bias


def _fit(tokens: Tensor, labels: Tensor, classes: int, settings: Settings, group: Group
         ) -> tuple[Tensor, Tensor]:
    """Fit the discriminant to labels (N,); -1 is none."""
    moments = Moments.zeros(classes, tokens.shape[1], tokens.device)
    for part, own in zip(tokens.split(_CHUNK), labels.split(_CHUNK), strict=True):
        known = own >= BACKGROUND
        moments.add(part[known].float(), F.one_hot(own[known], classes).float())
    moments = Moments(*(group.total(sums) for sums in (
        moments.counts, moments.sums, moments.products)))
    return discriminant(moments, settings.shrinkage, settings.prior)
