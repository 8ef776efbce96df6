"""Agreement of a segmenter with the tags of photos, and its uncertainty, without masks.

Precision, recall and F1 of predicted tags are the usual multi-label scores; the calibration of a
photo's class probabilities is the expected calibration error over bins of equal width (Guo et al.,
ICML 2017). Entropy and margin are the usual measures of active learning (Settles, Active Learning
Literature Survey, 2009, section 3.1), averaged over a photo's pixels: they rank masks for review.

Temperature scaling (Guo et al., ICML 2017) divides logits by the number that makes held-out labels
most likely. Here only tags are held out: a photo may show its tags and the background. So the
temperature maximises the probability of these together, the likelihood of partial labels (Jin and
Ghahramani, NIPS 2002), over the pixels predicted to be of a class: for others tags mean nothing.
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
    """Return each class's share of a photo's pixels (classes,), from labels (H, W).

    Unlabelled pixels, 255, count among the pixels, but for no class.
    """
    return np.bincount(labels.ravel(), minlength=max(256, classes))[:classes] / max(labels.size, 1)


def photo_probabilities(pixels: Floats, share: float) -> Floats:
    """Return the probability that a photo shows each class (K,), from those of its pixels (K, n).

    It is the mean over the class's likeliest `share` of the pixels, at least one: a maximum would
    depend on one outlier, a mean over all on the object's size.
    """
    count = max(1, round(share * pixels.shape[1]))
    return np.asarray(np.sort(pixels, axis=1)[:, -count:].mean(axis=1), np.float64)


@dataclass(frozen=True)
class Agreement:
    """Scores of predicted tags, in [0, 1] (classes,); NaN for a class that no photo is tagged with,
    and the precision of one that is never predicted."""

    precision: Floats
    recall: Floats
    f1: Floats  # harmonic mean of both

    def means(self) -> dict[str, float]:
        """Return the mean of each score over the classes that have one; NaN where none has."""
        scores = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        return {name: float(values[counted].mean()) if (counted := ~np.isnan(values)).any()
                else float("nan") for name, values in scores.items()}


def agreement(predicted: Flags, tagged: Flags) -> Agreement:
    """Score predicted against given tags, both (photos, classes), class by class."""
    ours, given = predicted.sum(axis=0), tagged.sum(axis=0)
    hits = np.where(given > 0, (predicted & tagged).sum(axis=0), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        return Agreement(hits / ours, hits / given, 2 * hits / (ours + given))


def overlap(predicted: Flags, tagged: Flags) -> Floats:
    """Return the Jaccard index of each photo's predicted and given tags (photos,); of none, 1."""
    both = (predicted & tagged).sum(axis=1).astype(np.float64)
    either = (predicted | tagged).sum(axis=1)
    return np.asarray(np.where(either == 0, 1.0, both / np.maximum(either, 1)), np.float64)


@dataclass(frozen=True)
class Bin:
    """Pairs of photo and class whose probability is in [low, high); 1 belongs to the last bin."""

    low: float
    high: float
    pairs: int  # number of pairs
    said: float  # mean probability; NaN without pairs
    tagged: float  # share of pairs that are tagged; NaN without pairs


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
    """Return probabilities that sum to 1: unlikely classes are not stored."""
    values = probabilities.to(torch.float64)
    return values / values.sum(dim=0).clamp_min(_LEAST)


LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Least probabilities in the rows of a table of reliability."""

_LOW, _HIGH, _STEPS = 0.25, 8.0, 121
_TINY = 1e-6


def tempered(probabilities: Tensor, temperature: float, dim: int = 0) -> Tensor:
    """Return probabilities after their logits are divided by a temperature, along `dim`."""
    if temperature == 1:
        return probabilities
    logits = probabilities.float().clamp_min(_TINY).log() / temperature
    return logits.softmax(dim=dim)


def fit_temperature(probabilities: Tensor, allowed: Tensor) -> float:
    """Return the temperature that makes allowed classes most likely; 1 without any pixel.

    For held-out pixels (n, classes), the background first, `probabilities` are given, and `allowed`
    marks classes that the photo's tags allow. The grid has 121 values from 1/4 to 8.
    """
    labelled = probabilities.argmax(dim=1) > 0
    if not labelled.any():
        return 1.0
    logits = probabilities[labelled].float().clamp_min(_TINY).log()
    forbidden = ~allowed[labelled]
    steps = torch.linspace(0, 1, _STEPS, dtype=torch.float64)
    grid = (_LOW * (_HIGH / _LOW) ** steps).tolist()
    losses = [float(-(logits / each).log_softmax(dim=1).masked_fill(forbidden, -torch.inf)
                    .logsumexp(dim=1).double().mean()) for each in grid]
    return round(grid[losses.index(min(losses))], 4)


def kept_at(probabilities: Tensor, allowed: Tensor, temperature: float,
            levels: tuple[float, ...] = LEVELS) -> list[dict[str, float]]:
    """Return the effect of leaving pixels (n, classes) below a least probability unlabelled.

    For each `level`: the `share` of the pixels that keep a label; and `right`, of those that keep
    the label of a class, the share whose photo is tagged with it, NaN if there are none.
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
    """Return probabilities of all `count` classes (count, h, w), from those that are stored.

    Classes other than the stored ones (K,), with probabilities (K, h, w), share the remainder to 1
    equally.
    """
    remainder = (1 - probabilities.float().sum(dim=0)).clamp_min(0)
    others = max(count - len(classes), 1)
    whole = (remainder / others).expand(count, -1, -1).clone()
    whole[classes] = probabilities.float()
    return F.normalize(whole.clamp_min(_TINY), p=1, dim=0)
