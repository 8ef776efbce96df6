"""Which features the text takes for their own class: softmax of the cosines over the classes."""

from __future__ import annotations

from dataclasses import dataclass

from vpltool.core.classes import BACKGROUND, class_scores
from vpltool.lazy import Tensor
from vpltool.methods.estimators import means
from vpltool.settings import setting


@dataclass(frozen=True, kw_only=True)
class TextFilterSettings(means.Settings):
    """The text's softmax."""

    tau: float = setting(0.01, "Temperature of the text's softmax.", low=1e-6,
                         source="CLIP: logit scale 100")
    rivals: str = setting("classes", "Rows in the text's softmax: classes, or those and the words "
                                     "of the background.", choices=("classes", "words"),
                          source="vpltool")


def class_probability(features: Tensor, wanted: Tensor, text: Tensor, text_index: Tensor,
                      settings: TextFilterSettings) -> Tensor:
    """Return the probability (N,) of each feature's class by the text: softmax(x·T / τ).

    A class without rows has probability 0. Features (N, dim) and text (rows, dim) are L2-normed;
    none of the `wanted` classes (N,) is the background.
    """
    logits = features.float() @ text.T / settings.tau
    if settings.rivals == "classes":
        logits = logits.masked_fill(text_index == BACKGROUND, float("-inf"))
    classes, column = wanted.unique(return_inverse=True)
    scores = class_scores(logits, text_index, classes).gather(1, column[:, None])[:, 0]
    return (scores - logits.logsumexp(dim=-1)).exp()
