"""Confusion matrix, IoU, mIoU, F of boundaries; and a sweep over all thresholds of CAMs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from vpltool.core.classes import label_type
from vpltool.lazy import np, npt, scipy

LEVELS = 1000
"""Resolution of the threshold sweep: 1/1000 of the CAM's range."""

Counts: TypeAlias = "npt.NDArray[np.int64]"
Labels: TypeAlias = "npt.NDArray[np.uint8]"
Mask: TypeAlias = "npt.NDArray[np.bool_]"
Pair = tuple[int, int]
"""A true class and another: the predicted one, or that of the strongest CAM."""


@dataclass(frozen=True)
class Confusion:
    """Pixels by (true, predicted) class, for the pairs that occur; `sum` adds them up.

    With thousands of classes, most pairs never occur.
    """

    classes: int  # number of classes, the background included
    pairs: dict[Pair, int]

    def __add__(self, other: Confusion) -> Confusion:
        pairs = dict(self.pairs)
        for pair, pixels in other.pairs.items():
            pairs[pair] = pairs.get(pair, 0) + pixels
        return Confusion(self.classes, pairs)

    def __radd__(self, nothing: int) -> Confusion:
        """Allow `sum`, which starts from 0."""
        return self if nothing == 0 else NotImplemented

    def totals(self) -> tuple[Counts, Counts, Counts]:
        """Count each class's true pixels, predicted pixels and hits, each (classes,)."""
        truth, predicted, both = np.zeros((3, self.classes), np.int64)
        if self.pairs:
            rows, columns = np.array([*self.pairs], np.int64).T
            pixels = np.array([*self.pairs.values()], np.int64)
            np.add.at(truth, rows, pixels)
            np.add.at(predicted, columns, pixels)
            hits = rows == columns
            both[rows[hits]] = pixels[hits]
        return truth, predicted, both

    def matrix(self) -> Counts:
        """Return all pairs (classes, classes): rows are the truth."""
        counts = np.zeros((self.classes, self.classes), np.int64)
        for pair, pixels in self.pairs.items():
            counts[pair] = pixels
        return counts


def confusion(truth: npt.NDArray[np.uint8], predicted: npt.NDArray[np.uint8],
              classes: int, ignore: int = 255) -> Confusion:
    """Count pixels by true and predicted class, from labels (H, W).

    True labels from `classes` on, and `ignore`, are not counted; a predicted 255 counts as
    background, so that no pixel escapes a score. The number of classes includes the background.
    Raises a ValueError if a prediction is none of the classes.
    """
    joint, trues, others = _joint(truth, predicted)
    counts = np.bincount(joint.ravel(), minlength=len(trues) * len(others))
    pairs: dict[Pair, int] = {}
    for place in np.flatnonzero(counts).tolist():
        label, found = int(trues[place // len(others)]), int(others[place % len(others)])
        if label >= classes or label == ignore:
            continue
        found = 0 if found == 255 else found
        if found >= classes:
            raise ValueError(f"label {found} in a prediction of {classes} classes")
        pairs[label, found] = pairs.get((label, found), 0) + int(counts[place])
    return Confusion(classes, pairs)


def _joint(truth: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]
           ) -> tuple[npt.NDArray[np.int64], Counts, Counts]:
    """Number each pair of labels (H, W), place · others + place; and return the places' labels."""
    if truth.dtype == other.dtype == np.uint8:
        # All 256 labels have a place: faster than finding those that occur.
        every = np.arange(256)
        return (truth.astype(np.uint16) << 8) | other, every, every
    (trues, first), (others, second) = map(_places, (truth, other))
    return first * len(others) + second, trues, others


def _places(labels: npt.NDArray[np.uint8]) -> tuple[Counts, npt.NDArray[np.int64]]:
    """Return the labels that occur (n,), and the place of each pixel's among them (H, W)."""
    found = np.flatnonzero(np.bincount(labels.ravel(), minlength=1))
    places = np.zeros(int(labels.max(initial=0)) + 1, np.int64)
    places[found] = np.arange(len(found))
    return found, places[labels]


@dataclass(frozen=True)
class Scores:
    """Scores of one confusion matrix, in [0, 1]."""

    iou: npt.NDArray[np.float64]  # of each class (classes,), NaN without true pixels
    miou: float  # mean IoU over the classes with true pixels
    accuracy: float  # share of correct pixels
    present: int  # number of classes with true pixels


def scores(counts: Confusion) -> Scores:
    """Compute IoU = TP / (TP + FP + FN), its mean over the classes with true pixels, accuracy."""
    truth, predicted, hits = counts.totals()
    present = truth > 0
    iou = np.where(present, hits / np.maximum(truth + predicted - hits, 1), np.nan)
    total = truth.sum()
    return Scores(iou, float(iou[present].mean()) if present.any() else float("nan"),
                  float(hits.sum() / total) if total else float("nan"), int(present.sum()))


@dataclass(frozen=True)
class SeedHistogram:
    """Pixels by (true, strongest) class and strength: all thresholds of CAMs at once."""

    classes: int
    rows: dict[Pair, Counts]  # of pairs that occur, pixels at each level (LEVELS + 1,)

    def __add__(self, other: SeedHistogram) -> SeedHistogram:
        rows = dict(self.rows)
        for pair, counts in other.rows.items():
            rows[pair] = rows[pair] + counts if pair in rows else counts
        return SeedHistogram(self.classes, rows)

    def __radd__(self, nothing: int) -> SeedHistogram:
        """Allow `sum`, which starts from 0."""
        return self if nothing == 0 else NotImplemented

    @cached_property
    def from_level(self) -> Counts:
        """Pixels of each row from each level on (rows, LEVELS + 2); the last entry is 0."""
        counts = np.zeros((len(self.rows), LEVELS + 2), np.int64)
        for above, row in zip(counts, self.rows.values(), strict=True):
            above[LEVELS::-1] = row[::-1].cumsum()
        return counts


def strongest(cams: npt.NDArray[np.float32], classes: Sequence[int]
              ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Return value and class of the strongest of K ≥ 1 CAMs (K, H, W) at each pixel, both (H, W).

    Of equal CAMs the first counts; `classes` are their class indices.
    """
    best, best_class = cams[0], np.full(cams.shape[1:], classes[0], label_type(max(classes)))
    # Class by class: an argmax over so few values a pixel takes twice as long.
    for cam, label in zip(cams[1:], classes[1:], strict=True):
        np.putmask(best_class, cam > best, label)
        best = np.maximum(best, cam)
    return best, best_class


def seed_histogram(truth: npt.NDArray[np.uint8], best: npt.NDArray[np.float32],
                   best_class: npt.NDArray[np.uint8], classes: int,
                   ignore: int = 255) -> SeedHistogram:
    """Count pixels (H, W) by true label, see `confusion`, and value and class of `strongest`.

    Values are in [0, 1]. Raises a ValueError if a strongest class is none of the classes.
    """
    joint, trues, others = _joint(truth, best_class)
    span = len(trues) * len(others)
    pairs = np.flatnonzero(np.bincount(joint.ravel(), minlength=span))
    first = np.zeros(span, np.int32)
    first[pairs] = np.arange(len(pairs)) * (LEVELS + 1)
    level = np.clip(best * LEVELS, 0, LEVELS).astype(np.int32)
    counts = np.bincount((first[joint] + level).ravel(), minlength=len(pairs) * (LEVELS + 1))
    rows = {}
    for pair, row in zip(pairs.tolist(), counts.reshape(-1, LEVELS + 1), strict=True):
        label, strongest = int(trues[pair // len(others)]), int(others[pair % len(others)])
        if label >= classes or label == ignore:
            continue
        if strongest >= classes:
            raise ValueError(f"class {strongest} among the CAMs of {classes} classes")
        # A copy: a view would keep the rows that are dropped.
        rows[label, strongest] = row.copy()
    return SeedHistogram(classes, rows)


def labels_at(cams: npt.NDArray[np.float32], classes: Sequence[int], threshold: float
              ) -> npt.NDArray[np.uint8]:
    """Label CAMs (K, H, W) as (H, W): the strongest class where it reaches the threshold, or 0."""
    best, best_class = strongest(cams, classes)
    return np.where(best >= threshold, best_class, np.uint8(0))


def confusion_at(histogram: SeedHistogram, threshold: float) -> Confusion:
    """Return the confusion of seeds with CAM ≥ threshold, in [0, 1], rounded to LEVELS steps."""
    level = min(max(round(threshold * LEVELS), 0), LEVELS + 1)
    pairs: dict[Pair, int] = {}
    for (truth, strongest), above in zip(histogram.rows, histogram.from_level, strict=True):
        for label, pixels in ((strongest, above[level]), (0, above[0] - above[level])):
            pairs[truth, label] = pairs.get((truth, label), 0) + int(pixels)
    return Confusion(histogram.classes, pairs)


def threshold_of_alpha(alpha: float) -> float:
    """Return the threshold equivalent to CLIP-ES's background (1 − max)^α: m with m = (1 − m)^α.

    It is unique, since m rises from 0 to 1 and (1 − m)^α falls.
    """
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if middle < (1 - middle) ** alpha:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def boundary_counts(truth: Labels, predicted: Labels, classes: int, tolerance: float,
                    ignore: int = 255) -> Counts:
    """Count each class's boundary pixels, and those with a partner.

    A pixel is on a class's boundary if it is of the class and one of its four neighbours is not.
    Its partner is a boundary pixel of the other labels within the tolerance, a share of the photo's
    diagonal (Csurka et al., BMVC 2013). Predicted boundaries without partner on ignored pixels are
    not counted. Labels are as in `confusion`.

    Returns:
        (classes, 4): predicted pixels with partner and all, true pixels with partner and all. The
        background, whose boundaries are those of the classes, has none.
    """
    reach = tolerance * float(np.hypot(*truth.shape))
    unknown = truth == ignore
    counts = np.zeros((classes, 4), np.int64)
    for label in np.union1d(np.unique(truth), np.unique(predicted)).tolist():
        if not 0 < label < classes or label == ignore:
            continue
        ours, true = _boundary(predicted == label), _boundary(truth == label)
        found, met = ours & _near(true, reach), true & _near(ours, reach)
        counts[label] = (found.sum(), (found | (ours & ~unknown)).sum(), met.sum(), true.sum())
    return counts


def boundary_f(counts: Counts) -> float:
    """Return the mean F, 2 · P · R / (P + R), over the true classes; NaN if there are none."""
    shown = counts[counts[:, 3] > 0].astype(np.float64)
    precision = shown[:, 0] / np.maximum(shown[:, 1], 1)
    recall = shown[:, 2] / shown[:, 3]
    both = precision + recall
    values = np.where(both > 0, 2 * precision * recall / np.maximum(both, 1e-12), 0.0)
    return float(values.mean()) if len(values) else float("nan")


def _boundary(inside: Mask) -> Mask:
    """Mark the pixels of a mask (H, W) with one of four neighbours outside it, within the photo."""
    return np.asarray(inside & ~scipy.ndimage.binary_erosion(inside, border_value=1))


def _near(edge: Mask, reach: float) -> Mask:
    """Mark the pixels within a distance of an edge (H, W)."""
    if not edge.any():
        return np.zeros_like(edge)
    return np.asarray(scipy.ndimage.distance_transform_edt(~edge) <= reach)
