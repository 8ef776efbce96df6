"""Calibration of pixel probabilities by one temperature, from photos whose tags are known.

Temperature scaling (Guo et al., ICML 2017) divides logits by a number that makes held-out labels
most likely. Here nothing but tags is held out: they say which classes a photo may show, and the
background it always may. So the temperature maximises the probability of these together, the
likelihood of partial labels (Jin and Ghahramani, NIPS 2002). It is taken over the pixels that were
said to be of a class: of the others tags say nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from vpltool.lazy import F, Tensor, torch

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Least probabilities that a table of reliability has a row for."""

_LOW, _HIGH, _STEPS = 0.25, 8.0, 121
_TINY = 1e-6


@dataclass
class Sample:
    """Pixels of held-out photos.

    Args:
        probabilities: of each class (n, classes), the background first.
        allowed: whether the tags of the pixel's photo allow a class (n, classes).
    """

    probabilities: Tensor
    allowed: Tensor


def tempered(probabilities: Tensor, temperature: float, dim: int = 0) -> Tensor:
    """Return probabilities whose logits were divided by a temperature, along `dim`."""
    if temperature == 1:
        return probabilities
    logits = probabilities.float().clamp_min(_TINY).log() / temperature
    return logits.softmax(dim=dim)


def fit_temperature(sample: Sample) -> float:
    """Return the temperature that makes what the tags allow most likely; 1 without any pixel.

    It is searched on a grid of 121 values from 1/4 to 8.
    """
    said = sample.probabilities.argmax(dim=1) > 0
    if not said.any():
        return 1.0
    logits = sample.probabilities[said].float().clamp_min(_TINY).log()
    forbidden = ~sample.allowed[said]
    steps = torch.linspace(0, 1, _STEPS, dtype=torch.float64)
    grid = (_LOW * (_HIGH / _LOW) ** steps).tolist()
    losses = [float(-(logits / each).log_softmax(dim=1).masked_fill(forbidden, -torch.inf)
                    .logsumexp(dim=1).double().mean()) for each in grid]
    return round(grid[losses.index(min(losses))], 4)


@dataclass(frozen=True)
class Kept:
    """What is left where less sure pixels are not labelled.

    Args:
        level: least probability.
        share: of the pixels that keep a label.
        right: of the pixels that keep the label of a class, the share whose photo is tagged with
            it; NaN, if there are none.
    """

    level: float
    share: float
    right: float


def kept_at(sample: Sample, temperature: float, levels: tuple[float, ...] = LEVELS) -> list[Kept]:
    """Tell how many pixels keep their label at each level, and how often the tags agree."""
    sure, label = tempered(sample.probabilities, temperature, dim=1).max(dim=1)
    tagged = sample.allowed.gather(1, label[:, None])[:, 0]
    found = []
    for level in levels:
        kept = sure >= level
        of_class = kept & (label > 0)
        right = float(tagged[of_class].double().mean()) if of_class.any() else float("nan")
        found.append(Kept(level, float(kept.double().mean()), right))
    return found


def spread(probabilities: Tensor, classes: Tensor, count: int) -> Tensor:
    """Give classes that were stored nowhere the probability that is left, in equal parts.

    Args:
        probabilities: of the stored classes (K, h, w).
        classes: their indices (K,).
        count: number of classes, with the background.

    Returns:
        (count, h, w).
    """
    rest = (1 - probabilities.float().sum(dim=0)).clamp_min(0)
    others = max(count - len(classes), 1)
    whole = (rest / others).expand(count, -1, -1).clone()
    whole[classes] = probabilities.float()
    return F.normalize(whole.clamp_min(_TINY), p=1, dim=0)
