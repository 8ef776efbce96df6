"""How a segmenter agrees with the tags of photos, and how unsure it is of them, without a mask.

Precision, recall and F1 of the classes that photos are predicted to show, class by class (the
usual multi-label scores), and the calibration of a photo's class probabilities (Guo et al., ICML
2017: expected calibration error over bins of equal width). Entropy and margin are the usual
measures of active learning (Settles, Active Learning Literature Survey, 2009, section 3.1), here
averaged over a photo's pixels: they say which mask is worth a person's time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from vpltool.lazy import Tensor, np, npt, torch

Flags: TypeAlias = "npt.NDArray[np.bool_]"
Floats: TypeAlias = "npt.NDArray[np.float64]"

_LEAST = 1e-12
"""Probability whose logarithm stands for that of 0."""


def class_shares(labels: npt.NDArray[np.uint8], classes: int) -> Floats:
    """Share of a photo's pixels that each class takes (classes,), from labels (H, W).

    Unlabelled pixels, 255, count among the pixels and for no class.
    """
    return np.bincount(labels.ravel(), minlength=max(256, classes))[:classes] / max(labels.size, 1)


def photo_probabilities(pixels: Floats, share: float) -> Floats:
    """Probability that a photo shows each class (K,), from those of its pixels (K, n).

    The mean over the class's likeliest `share` of the pixels, one pixel at least: the maximum would
    be that of the luckiest pixel, the mean over all that of the largest object.
    """
    count = max(1, round(share * pixels.shape[1]))
    return np.asarray(np.sort(pixels, axis=1)[:, -count:].mean(axis=1), np.float64)


@dataclass(frozen=True)
class Agreement:
    """Scores of predicted tags, in [0, 1]; NaN where nothing is counted.

    Args:
        precision: share of the photos predicted to show a class that are tagged with it (classes,).
        recall: share of the photos tagged with a class that are predicted to show it (classes,).
        f1: their harmonic mean (classes,); NaN for a class neither predicted nor tagged.
    """

    precision: Floats
    recall: Floats
    f1: Floats

    def means(self) -> dict[str, float]:
        """Mean of each score over the classes that have one; NaN where none has."""
        scores = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        return {name: float(values[counted].mean()) if (counted := ~np.isnan(values)).any()
                else float("nan") for name, values in scores.items()}


def agreement(predicted: Flags, tagged: Flags) -> Agreement:
    """Score predicted against given tags, both (photos, classes), class by class."""
    hits = (predicted & tagged).sum(axis=0).astype(np.float64)
    said, given = predicted.sum(axis=0), tagged.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return Agreement(hits / said, hits / given, 2 * hits / (said + given))


def overlap(predicted: Flags, tagged: Flags) -> Floats:
    """Jaccard index of predicted and given tags of each photo (photos,); 1 where both are none."""
    both = (predicted & tagged).sum(axis=1).astype(np.float64)
    either = (predicted | tagged).sum(axis=1)
    return np.asarray(np.where(either == 0, 1.0, both / np.maximum(either, 1)), np.float64)


@dataclass(frozen=True)
class Bin:
    """Pairs of photo and class whose probability is in [low, high).

    Args:
        low: lower bound.
        high: upper bound; 1 belongs to the last bin.
        pairs: their number.
        said: mean probability; NaN without a pair.
        tagged: share of the pairs that are tagged; NaN without a pair.
    """

    low: float
    high: float
    pairs: int
    said: float
    tagged: float


def reliability(probabilities: Floats, tagged: Flags, bins: int = 10) -> list[Bin]:
    """Sort pairs of photo and class by their probability into bins of equal width."""
    values, truth = probabilities.ravel(), tagged.ravel()
    numbers = np.minimum((values * bins).astype(int), bins - 1)
    found = []
    for number in range(bins):
        inside = numbers == number
        count = int(inside.sum())
        found.append(Bin(number / bins, (number + 1) / bins, count,
                         float(values[inside].mean()) if count else float("nan"),
                         float(truth[inside].mean()) if count else float("nan")))
    return found


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: |said - tagged|, weighted by the pairs of each bin."""
    pairs = sum(entry.pairs for entry in bins)
    return sum(entry.pairs * abs(entry.said - entry.tagged)
               for entry in bins if entry.pairs) / max(pairs, 1)


def mean_entropy(probabilities: Tensor) -> float:
    """Entropy of the pixels' classes, in nats, averaged over a photo: (classes, h, w)."""
    shares = _shares(probabilities)
    return float(-(shares * shares.clamp_min(_LEAST).log()).sum(dim=0).mean())


def mean_margin(probabilities: Tensor) -> float:
    """1 - (first - second probability) of the pixels, averaged over a photo: (classes, h, w)."""
    if len(probabilities) < 2:
        return 0.0
    first, second = _shares(probabilities).topk(2, dim=0).values
    return float(1 - (first - second).mean())


def _shares(probabilities: Tensor) -> Tensor:
    """Probabilities that sum to 1: classes that were nowhere likely are not stored."""
    values = probabilities.to(torch.float64)
    return values / values.sum(dim=0).clamp_min(_LEAST)
