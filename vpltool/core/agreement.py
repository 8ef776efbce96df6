"""How a segmenter agrees with the tags of photos, and how unsure it is of them, without a mask.

Precision, recall and F1 of the classes that photos are predicted to show, class by class (the
usual multi-label scores), and the calibration of a photo's class probabilities (Guo et al., ICML
2017: expected calibration error over bins of equal width). Entropy and margin are the usual
measures of active learning (Settles, Active Learning Literature Survey, 2009, section 3.1), here
averaged over a photo's pixels: they say which mask is worth a person's time.

Temperature scaling (Guo et al., ICML 2017) divides logits by a number that makes held-out labels
most likely. Here nothing but tags is held out: they say which classes a photo may show, and the
background it always may. So the temperature maximises the probability of these together, the
likelihood of partial labels (Jin and Ghahramani, NIPS 2002). It is taken over the pixels that were
said to be of a class: of the others tags say nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from vpltool.lazy import F, Tensor, np, npt, torch

Flags: TypeAlias = "npt.NDArray[np.bool_]"
Floats: TypeAlias = "npt.NDArray[np.float64]"

_LEAST = 1e-12
"""Probability whose logarithm stands for that of 0."""


def class_shares(labels: npt.NDArray[np.uint8], classes: int) -> Floats:
    """Return the share of a photo's pixels that each class takes (classes,), from labels (H, W).

    Unlabelled pixels, 255, count among the pixels and for no class.
    """
    return np.bincount(labels.ravel(), minlength=max(256, classes))[:classes] / max(labels.size, 1)


def photo_probabilities(pixels: Floats, share: float) -> Floats:
    """Return the probability that a photo shows each class (K,), from those of its pixels (K, n).

    The mean over the class's likeliest `share` of the pixels, one pixel at least: the maximum would
    be that of the luckiest pixel, the mean over all that of the largest object.
    """
    count = max(1, round(share * pixels.shape[1]))
    return np.asarray(np.sort(pixels, axis=1)[:, -count:].mean(axis=1), np.float64)


@dataclass(frozen=True)
class Agreement:
    """Scores of predicted tags, in [0, 1] (classes,); NaN where nothing is counted.

    Precision: the share of the photos predicted to show a class that are tagged with it. Recall:
    the share of the photos tagged with it that are predicted to show it. F1: their harmonic mean.
    """

    precision: Floats
    recall: Floats
    f1: Floats

    def means(self) -> dict[str, float]:
        """Return the mean of each score over the classes that have one; NaN where none has."""
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
    """Return the Jaccard index of each photo's predicted and given tags (photos,); of none, 1."""
    both = (predicted & tagged).sum(axis=1).astype(np.float64)
    either = (predicted | tagged).sum(axis=1)
    return np.asarray(np.where(either == 0, 1.0, both / np.maximum(either, 1)), np.float64)


@dataclass(frozen=True)
class Bin:
    """Pairs of photo and class whose probability is in [low, high); 1 belongs to the last bin.

    Their number, mean probability, and the share of them that is tagged: both NaN without a pair.
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
    """Return the expected calibration error: |said - tagged|, weighted by the pairs of each bin."""
    pairs = sum(entry.pairs for entry in bins)
    return sum(entry.pairs * abs(entry.said - entry.tagged)
               for entry in bins if entry.pairs) / max(pairs, 1)


def mean_entropy(probabilities: Tensor) -> float:
    """Return the entropy of the pixels' classes, in nats, averaged over a photo (classes, h, w)."""
    shares = _shares(probabilities)
    return float(-(shares * shares.clamp_min(_LEAST).log()).sum(dim=0).mean())


def mean_margin(probabilities: Tensor) -> float:
    """Return 1 - (first - second probability), averaged over a photo's pixels (classes, h, w)."""
    if len(probabilities) < 2:
        return 0.0
    first, second = _shares(probabilities).topk(2, dim=0).values
    return float(1 - (first - second).mean())


def _shares(probabilities: Tensor) -> Tensor:
    """Probabilities that sum to 1: classes that were nowhere likely are not stored."""
    values = probabilities.to(torch.float64)
    return values / values.sum(dim=0).clamp_min(_LEAST)


LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Least probabilities that a table of reliability has a row for."""

_LOW, _HIGH, _STEPS = 0.25, 8.0, 121
_TINY = 1e-6


def tempered(probabilities: Tensor, temperature: float, dim: int = 0) -> Tensor:
    """Return probabilities whose logits were divided by a temperature, along `dim`."""
    if temperature == 1:
        return probabilities
    logits = probabilities.float().clamp_min(_TINY).log() / temperature
    return logits.softmax(dim=dim)


def fit_temperature(probabilities: Tensor, allowed: Tensor) -> float:
    """Return the temperature that makes what the tags allow most likely; 1 without any pixel.

    Of held-out pixels (n, classes), the background first: each class's probability, and whether the
    tags of the photo allow it. It is searched on a grid of 121 values from 1/4 to 8.
    """
    said = probabilities.argmax(dim=1) > 0
    if not said.any():
        return 1.0
    logits = probabilities[said].float().clamp_min(_TINY).log()
    forbidden = ~allowed[said]
    steps = torch.linspace(0, 1, _STEPS, dtype=torch.float64)
    grid = (_LOW * (_HIGH / _LOW) ** steps).tolist()
    losses = [float(-(logits / each).log_softmax(dim=1).masked_fill(forbidden, -torch.inf)
                    .logsumexp(dim=1).double().mean()) for each in grid]
    return round(grid[losses.index(min(losses))], 4)


def kept_at(probabilities: Tensor, allowed: Tensor, temperature: float,
            levels: tuple[float, ...] = LEVELS) -> list[dict[str, float]]:
    """Tell what is left where pixels (n, classes) below a least probability are not labelled.

    For each `level`, the `share` of the pixels that keep a label; and, as `right`, of those that
    keep the label of a class, the share whose photo is tagged with it: NaN, if there are none.
    """
    sure, label = tempered(probabilities, temperature, dim=1).max(dim=1)
    tagged = allowed.gather(1, label[:, None])[:, 0]
    found = []
    for level in levels:
        kept = sure >= level
        of_class = kept & (label > 0)
        right = float(tagged[of_class].double().mean()) if of_class.any() else float("nan")
        found.append({"level": level, "share": float(kept.double().mean()), "right": right})
    return found


def spread(probabilities: Tensor, classes: Tensor, count: int) -> Tensor:
    """Give each of `count` classes a probability (count, h, w), from those that were stored.

    Classes that are not among the stored ones (K,), with probabilities (K, h, w), get what is left
    to 1, in equal parts.
    """
    rest = (1 - probabilities.float().sum(dim=0)).clamp_min(0)
    others = max(count - len(classes), 1)
    whole = (rest / others).expand(count, -1, -1).clone()
    whole[classes] = probabilities.float()
    return F.normalize(whole.clamp_min(_TINY), p=1, dim=0)
