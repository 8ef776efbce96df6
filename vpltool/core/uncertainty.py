"""How unsure a segmenter is of a photo: which mask is worth a person's time.

Entropy and margin are the usual measures of active learning (Settles, Active Learning Literature
Survey, 2009, section 3.1), here averaged over a photo's pixels.
"""

from __future__ import annotations

from vpltool.lazy import Tensor, torch

_LEAST = 1e-12


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
