"""Confusion matrix, IoU, mIoU; and a sweep over all thresholds of CAMs from one pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEVELS = 1000
"""Resolution of the threshold sweep: 1/1000 of the CAM's range."""

Counts = npt.NDArray[np.int64]


def confusion(truth: npt.NDArray[np.uint8], predicted: npt.NDArray[np.uint8],
              classes: int, ignore: int = 255) -> Counts:
    """Count pixels by true and predicted class.

    Args:
        truth: true labels (H, W); values from `classes` on, and `ignore`, are not counted.
        predicted: predicted labels (H, W); 255 counts as background, as no pixel escapes a score.
        classes: number of classes, the background included.
        ignore: label of pixels that are not scored.

    Returns:
        (classes, classes): rows are the truth.
    """
    # All 256 labels are counted and the unwanted ones dropped: faster than picking pixels.
    joint = (truth.astype(np.uint16) << 8) | predicted
    counts = np.bincount(joint.ravel(), minlength=65536).reshape(256, 256)[:classes]
    if ignore < classes:
        counts[ignore] = 0
    counts[:, 0] += counts[:, 255]
    unknown = np.flatnonzero(counts[:, classes:255].sum(axis=0))
    if unknown.size:
        raise ValueError(f"label {classes + unknown[-1]} in a prediction of {classes} classes")
    return counts[:, :classes].copy()


@dataclass(frozen=True)
class Scores:
    """Scores of one confusion matrix, in [0, 1].

    Args:
        iou: per class (classes,); NaN where neither truth nor prediction has a pixel.
        miou: mean over the classes that the truth shows.
        accuracy: share of the pixels that are right.
        present: number of classes in that mean.
    """

    iou: npt.NDArray[np.float64]
    miou: float
    accuracy: float
    present: int


def scores(counts: Counts) -> Scores:
    """IoU = TP / (TP + FP + FN) of each class, mIoU over the classes with true pixels, accuracy."""
    hits = np.diag(counts).astype(np.float64)
    truth, predicted = counts.sum(axis=1), counts.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = hits / (truth + predicted - hits)
    present = truth > 0
    total = counts.sum()
    return Scores(iou, float(iou[present].mean()) if present.any() else float("nan"),
                  float(hits.sum() / total) if total else float("nan"), int(present.sum()))


def seed_histogram(truth: npt.NDArray[np.uint8], best: npt.NDArray[np.float32],
                   best_class: npt.NDArray[np.uint8], classes: int, ignore: int = 255) -> Counts:
    """Count pixels by truth, strongest class and strength: all thresholds at once.

    Args:
        truth: true labels (H, W).
        best: value of the strongest CAM at each pixel (H, W), in [0, 1].
        best_class: its class (H, W).
        classes: number of classes, the background included.
        ignore: label of pixels that are not scored.

    Returns:
        (LEVELS + 1, classes, classes): level, truth, strongest class.
    """
    scored = (truth < classes) & (truth != ignore)
    level = np.clip((best[scored] * LEVELS).astype(np.int64), 0, LEVELS)
    joint = (level * classes + truth[scored]) * classes + best_class[scored]
    shape = (LEVELS + 1, classes, classes)
    return np.bincount(joint, minlength=int(np.prod(shape))).reshape(shape)


def confusion_at(histogram: Counts, threshold: float) -> Counts:
    """Confusion matrix of the seeds that a threshold gives: class where CAM ≥ threshold.

    Args:
        histogram: from `seed_histogram` (LEVELS + 1, classes, classes).
        threshold: in [0, 1], taken to the next of LEVELS steps.
    """
    level = min(max(round(threshold * LEVELS), 0), LEVELS + 1)
    counts = histogram[level:].sum(axis=0)
    counts[:, 0] += histogram[:level].sum(axis=(0, 2))
    return counts


def threshold_of_alpha(alpha: float) -> float:
    """Threshold that equals CLIP-ES's background score (1 − max)^α: where m = (1 − m)^α.

    As m rises from 0 to 1 and (1 − m)^α falls, one m parts foreground from background.
    """
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if middle < (1 - middle) ** alpha:
            low = middle
        else:
            high = middle
    return (low + high) / 2
