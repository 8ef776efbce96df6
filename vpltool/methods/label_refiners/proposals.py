"""Masks of other tools, or segments of similar colour, that say where classes end.

Scores (of CAMs, or sharpened by the dense CRF first) say which class it is, proposals where it
ends. A proposal's scores are the mean of those inside it, as in S2C (Kweon and Yoon, CVPR 2024) and
SEPL (Chen et al., 2023). It votes for object or background; the weight is its own score times its
agreement: how much larger the share of what it votes for is inside than outside. Its mean and the
pixel's own scores determine the class together. If a proposal has a word that is among the photo's
tags, the word counts, too. Small proposals do not vote; pixels in none keep their scores. A pixel
whose best label stays below `confidence`, since votes and scores disagree, becomes 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vpltool import settings
from vpltool.core.proposals import means_inside, plain_word, with_votes
from vpltool.errors import VplError
from vpltool.lazy import np, npt, torch
from vpltool.methods.inputs import ScoredPhoto
from vpltool.methods.label_refiners import densecrf
from vpltool.methods.labels import BACKGROUND_WORDS
from vpltool.settings import NoEffect, setting

READS = ("photo", "proposals")

CONFIDENCE = 0.6
"""The stage's `confidence` unless it is given: below it half of the pixels are right, above it two
thirds (docs/results.md, masks of other tools)."""


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of the votes of proposals."""

    base: str = setting("densecrf", "Scores that proposals refine: of the dense CRF, or cams, as "
                                    "they are.", choices=("densecrf", "cams"))
    kernels: str = setting(
        "weclip", "Parameters of the CRF: clip-es, weclip, or a JSON file.",
        metavar="NAME-OR-FILE", record="never", aliases=["--preset"],
        source="WeCLIP, official code",
        no_effect=[NoEffect({"base": ("cams",)}, "no CRF is run")])
    min_area: int = setting(100, "Smaller proposals do not vote, in pixels.", low=0,
                            source="segment-anything, example of SamAutomaticMaskGenerator")
    word_share: float = setting(
        0.5, "Share of a proposal's class word in its vote; the rest is that of the scores. 0: "
             "words are ignored.", low=0, high=1,
        source="vpltool: neither the word nor the scores alone decide")


def recorded(settings: Settings) -> dict[str, object]:
    """Return the header's record of the CRF's kernels, if it is run."""
    return densecrf.recorded(_of_crf(settings)) if settings.base == "densecrf" else {}


def runs_on(settings: Settings, device: torch.device) -> torch.device:
    """Return the device of the CRF; votes are counted on the CPU. VplError without its backend."""
    return (densecrf.runs_on(_of_crf(settings), device) if settings.base == "densecrf"
            else torch.device("cpu"))


def warm_up(settings: Settings, device: torch.device, labels: int) -> None:
    """Compile the CRF, if it is run."""
    if settings.base == "densecrf":
        densecrf.warm_up(_of_crf(settings), device, labels)


def memory_of(settings: Settings, device: torch.device, size: tuple[int, int], labels: int) -> int:
    """Estimate the memory that a photo of (height, width) takes, in bytes, beyond its inputs."""
    voting = size[0] * size[1] * 8 * (2 * labels + 4)
    return max(voting, densecrf.memory_of(_of_crf(settings), device, size, labels)
               if settings.base == "densecrf" else 0)


def refine_labels(photos: Sequence[ScoredPhoto], settings: Settings, device: torch.device
                  ) -> list[npt.NDArray[np.float32]]:
    """Return the distribution of the labels of each photo (L, H, W)."""
    if settings.base == "densecrf":
        known = [densecrf.decided(photo, 1.0) for photo in photos]
        left = [photo for photo, field in zip(photos, known, strict=True) if field is None]
        made = iter(densecrf.refine_labels(left, _of_crf(settings), device) if left else ())
        scores = [next(made) if field is None else field for field in known]
    else:
        scores = [photo.scores for photo in photos]
    # As in the CRF, no label is impossible anywhere.
    fields = [field.clip(1e-5, 1) for field in scores]
    return [_voted(photo, field / field.sum(axis=0), settings)
            for photo, field in zip(photos, fields, strict=True)]


def _voted(photo: ScoredPhoto, scores: npt.NDArray[np.float32], settings: Settings
           ) -> npt.NDArray[np.float32]:
    """Multiply the scores of a photo (L, H, W) by the votes of its proposals, if any."""
    proposals = photo.proposals
    if proposals is None:
        raise VplError("no proposals are given", "`propose()` makes some")
    # Without a background, objects have no outline.
    if not len(proposals) or photo.names[:1] != ("",):
        return scores
    # A proposal's word is mixed into its shares, unless it is no tag.
    labels = {plain_word(name): label for label, name in enumerate(photo.names) if name}
    labels |= dict.fromkeys(map(plain_word, BACKGROUND_WORDS), 0)
    shares, word_share = means_inside(proposals, scores), settings.word_share
    sure = np.zeros(len(shares))
    for number, word in enumerate(proposals.words):
        label = labels.get(plain_word(word)) if word else None
        if label is not None:
            shares[number] *= 1 - word_share
            shares[number, label] += word_share
            sure[number] = word_share
    return with_votes(proposals, scores, shares, sure, settings.min_area)


def _of_crf(settings: Settings) -> densecrf.Settings:
    return densecrf.Settings(kernels=settings.kernels)
