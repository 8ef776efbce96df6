"""Fisher's linear discriminant on layers of the frozen CLIP: one pass over the features, no steps.

The network is that of `linear`: an affine map of the tokens of several layers, whose scores are
averaged over patches that look alike. Here the map is not trained but computed, from the mean token
of each class and the covariance that all share (Fisher 1936). So there is no learning rate, no
number of steps and nothing random, and it needs fewer photos: few patches determine a mean, and
all patches the covariance. Patches that are partly of a class count for it by their share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vpltool.core import segmenter
from vpltool.core.discriminant import Moments, discriminant, label_shares
from vpltool.errors import VplError
from vpltool.lazy import Tensor, torch
from vpltool.methods.inputs import LabelledPhoto
from vpltool.methods.segmenters import linear
from vpltool.settings import setting

READS = ("layers",)


@dataclass(frozen=True, kw_only=True)
class Settings(linear.Settings):
    """Settings of the linear discriminant."""

    layers: str = linear.layers_setting()
    shrinkage: float = setting(
        0.1, "Shrinkage of the covariance towards a multiple of the identity: more with very few "
             "photos.", low=1e-6, high=1, source="vpltool, chosen on photos of six animals")
    prior: float = setting(
        0.5, "Exponent of the class frequency: 1 is Bayes' rule, 0 treats all classes as equally "
             "likely.", low=0, source="vpltool, chosen on photos of six animals")


build, rebuild = linear.build, linear.rebuild
"""The network's scores are all 0 until it is fitted."""


def fit(network: segmenter.SegmenterNetwork, photos: Iterable[LabelledPhoto], settings: Settings,
        total: Callable[[Tensor], Tensor]) -> None:
    """Set the network's affine map from all photos; see `SegmenterParts`.

    Raises a VplError if no patch of the masks is labelled.
    """
    from vpltool.core.segmenter import LinearSegmenter

    assert isinstance(network, LinearSegmenter)
    weight, bias = network.classifier.weight, network.classifier.bias
    moments = Moments.zeros(len(bias), weight.shape[1], weight.device)
    with torch.no_grad():
        for photo in photos:
            assert photo.layers is not None
            tokens = network.embeddings(photo.layers[None], None, photo.grid)[0]
            moments.add(tokens, label_shares(photo.labels, len(weight)))
        moments = Moments(*map(total, (moments.counts, moments.sums, moments.products)))
        if not moments.counts.sum():
            raise VplError("no patch of the masks has a label to learn from",
                           "`crf()` makes masks whose patches have one")
        for parameter, value in zip((weight, bias), discriminant(
                moments, settings.shrinkage, settings.prior), strict=True):
            parameter.copy_(value)
