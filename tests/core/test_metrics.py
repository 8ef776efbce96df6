"""Scores against double loops and by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from vpltool.core.metrics import (
    LEVELS,
    confusion,
    confusion_at,
    scores,
    seed_histogram,
    threshold_of_alpha,
)

Labels = np.ndarray[Any, Any]


def some_labels(seed: int, classes: int = 4, ignored: bool = True) -> Labels:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, (13, 17)).astype(np.uint8)
    if ignored:
        labels[rng.random(labels.shape) < 0.2] = 255
    return labels


def slow_confusion(truth: Labels, predicted: Labels, classes: int) -> Labels:
    counts = np.zeros((classes, classes), np.int64)
    for y in range(truth.shape[0]):
        for x in range(truth.shape[1]):
            if truth[y, x] < classes:
                counts[truth[y, x], 0 if predicted[y, x] == 255 else predicted[y, x]] += 1
    return counts


@pytest.mark.parametrize("seed", range(3))
def test_confusion_is_the_double_loop(seed: int) -> None:
    truth, predicted = some_labels(seed), some_labels(seed + 10)
    found = confusion(truth, predicted, 4)
    assert (found == slow_confusion(truth, predicted, 4)).all()
    assert found.sum() == (truth != 255).sum()


def test_labels_from_the_number_of_classes_on_are_not_counted() -> None:
    truth = np.array([[0, 1, 2, 3, 200, 255]], np.uint8)
    assert confusion(truth, np.zeros_like(truth), 2).tolist() == [[1, 0], [1, 0]]


def test_another_ignore_label() -> None:
    truth = np.array([[0, 1, 1]], np.uint8)
    assert confusion(truth, truth, 2, ignore=0).tolist() == [[0, 0], [0, 2]]


def test_a_prediction_of_an_unknown_class_is_refused() -> None:
    truth = np.array([[0, 1]], np.uint8)
    with pytest.raises(ValueError, match="label 7"):
        confusion(truth, np.array([[0, 7]], np.uint8), 2)


def test_scores_by_hand() -> None:
    # Background: 6 right, 1 taken for class 1. Class 1: 2 right, 1 missed. Class 2 never occurs;
    # class 3 is predicted once, where the truth is class 1: no true pixel, so not in the mean.
    counts = np.array([[6, 1, 0, 0], [1, 2, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    found = scores(counts)
    assert found.iou[:2].tolist() == pytest.approx([6 / 8, 2 / 5])
    assert math.isnan(found.iou[2])
    assert found.iou[3] == 0
    assert found.miou == pytest.approx((6 / 8 + 2 / 5) / 2)
    assert found.accuracy == pytest.approx(8 / 11)
    assert found.present == 2


def test_scores_of_nothing() -> None:
    found = scores(np.zeros((2, 2), np.int64))
    assert math.isnan(found.miou)
    assert math.isnan(found.accuracy)
    assert found.present == 0


def some_maps(seed: int) -> tuple[Labels, Labels, Labels]:
    rng = np.random.default_rng(seed)
    cams = rng.random((3, 13, 17)).astype(np.float32)
    return some_labels(seed), cams.max(axis=0), (cams.argmax(axis=0) + 1).astype(np.uint8)


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.37, 0.5, 0.9, 1.0])
def test_the_sweep_is_thresholding_each_time(threshold: float) -> None:
    counts, wanted = 0, 0
    for seed in range(3):
        truth, best, best_class = some_maps(seed)
        counts = counts + seed_histogram(truth, best, best_class, 4)
        wanted = wanted + slow_confusion(truth, np.where(best >= threshold, best_class, 0), 4)
    assert (confusion_at(counts, threshold) == wanted).all()


def test_the_histogram_is_not_changed_by_reading_it() -> None:
    histogram = seed_histogram(*some_maps(0), 4)
    before = histogram.copy()
    confusion_at(histogram, 0.3)
    confusion_at(histogram, 0.0)
    assert (histogram == before).all()
    assert histogram.shape == (LEVELS + 1, 4, 4)


def test_the_sweep_leaves_out_what_is_ignored() -> None:
    truth = np.array([[0, 1, 1, 255]], np.uint8)
    histogram = seed_histogram(truth, np.ones((1, 4), np.float32), np.ones((1, 4), np.uint8), 2,
                               ignore=0)
    assert confusion_at(histogram, 0.5).tolist() == [[0, 0], [0, 2]]


def test_a_cam_of_one_counts_as_foreground_at_every_threshold() -> None:
    truth = np.ones((2, 2), np.uint8)
    histogram = seed_histogram(truth, np.ones((2, 2), np.float32), truth, 2)
    assert confusion_at(histogram, 1.0).tolist() == [[0, 0], [0, 4]]


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 4.0, 10.0])
def test_threshold_of_alpha_is_clip_es_rule(alpha: float) -> None:
    rng = np.random.default_rng(int(alpha * 10))
    cams = rng.random((3, 40, 40))
    rule = np.concatenate([(1 - cams.max(axis=0, keepdims=True)) ** alpha, cams]).argmax(axis=0)
    shown = cams.max(axis=0) > threshold_of_alpha(alpha)
    by_threshold = np.where(shown, cams.argmax(axis=0) + 1, 0)
    assert (rule == by_threshold).all()
    assert 0 < (rule == 0).sum() < rule.size


def test_threshold_of_alpha_one_is_a_half() -> None:
    assert threshold_of_alpha(1.0) == pytest.approx(0.5)
