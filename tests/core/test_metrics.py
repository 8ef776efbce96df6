"""Scores against double loops and by hand."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest

from vpltool.core.metrics import (
    LEVELS,
    Confusion,
    SeedHistogram,
    confusion,
    confusion_at,
    scores,
    seed_histogram,
    strongest,
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
    assert (found.matrix() == slow_confusion(truth, predicted, 4)).all()
    assert found.matrix().sum() == (truth != 255).sum()


def test_labels_from_the_number_of_classes_on_are_not_counted() -> None:
    truth = np.array([[0, 1, 2, 3, 200, 255]], np.uint8)
    assert confusion(truth, np.zeros_like(truth), 2).matrix().tolist() == [[1, 0], [1, 0]]


def test_another_ignore_label() -> None:
    truth = np.array([[0, 1, 1]], np.uint8)
    assert confusion(truth, truth, 2, ignore=0).matrix().tolist() == [[0, 0], [0, 2]]


def test_a_prediction_of_an_unknown_class_is_refused() -> None:
    truth = np.array([[0, 1]], np.uint8)
    with pytest.raises(ValueError, match="label 7"):
        confusion(truth, np.array([[0, 7]], np.uint8), 2)


def test_scores_by_hand() -> None:
    # Background: 6 right, 1 taken for class 1. Class 1: 2 right, 1 missed. Class 2 never occurs;
    # class 3 is predicted once, where the truth is class 1: no true pixel, so no IoU.
    found = scores(Confusion(4, {(0, 0): 6, (0, 1): 1, (1, 0): 1, (1, 1): 2, (1, 3): 1}))
    assert found.iou[:2].tolist() == pytest.approx([6 / 8, 2 / 5])
    assert np.isnan(found.iou[2:]).all()
    assert found.miou == pytest.approx((6 / 8 + 2 / 5) / 2)
    assert found.accuracy == pytest.approx(8 / 11)
    assert found.present == 2


def test_scores_of_nothing() -> None:
    found = scores(Confusion(2, {}))
    assert math.isnan(found.miou)
    assert math.isnan(found.accuracy)
    assert found.present == 0


def some_maps(seed: int) -> tuple[Labels, Labels, Labels]:
    rng = np.random.default_rng(seed)
    cams = rng.random((3, 13, 17)).astype(np.float32)
    return some_labels(seed), cams.max(axis=0), (cams.argmax(axis=0) + 1).astype(np.uint8)


def dense(histogram: SeedHistogram) -> Labels:
    """A cell for all that could occur: level, truth, strongest class."""
    counts = np.zeros((LEVELS + 1, histogram.classes, histogram.classes), np.int64)
    for pair, row in histogram.rows.items():
        counts[(slice(None), *pair)] = row
    return counts


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.37, 0.5, 0.9, 1.0])
def test_the_sweep_is_thresholding_each_time(threshold: float) -> None:
    counts: Any = 0
    wanted: Any = 0
    for seed in range(3):
        truth, best, best_class = some_maps(seed)
        counts = counts + seed_histogram(truth, best, best_class, 4)
        wanted = wanted + slow_confusion(truth, np.where(best >= threshold, best_class, 0), 4)
    assert (confusion_at(counts, threshold).matrix() == wanted).all()


def test_the_histogram_is_not_changed_by_reading_it() -> None:
    histogram = seed_histogram(*some_maps(0), 4)
    before = dense(histogram)
    confusion_at(histogram, 0.3)
    confusion_at(histogram, 0.0)
    assert (dense(histogram) == before).all()
    assert dense(histogram).shape == (LEVELS + 1, 4, 4)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_strongest_cam_is_the_first_of_the_largest(count: int) -> None:
    cams = np.random.default_rng(count).integers(0, 4, (count, 13, 17)).astype(np.float32)
    classes = [7, 3, 200, 1, 2][:count]
    best, best_class = strongest(cams, classes)
    assert (best == cams.max(axis=0)).all()
    assert (best_class == np.array(classes)[cams.argmax(axis=0)]).all()
    assert (best.dtype.name, best_class.dtype.name) == ("float32", "uint8")


def plain_histogram(truth: Labels, best: Labels, best_class: Labels, classes: int,
                    ignore: int = 255) -> Labels:
    """The plain way, with a cell for all that could occur."""
    scored = (truth < classes) & (truth != ignore)
    level = np.clip((best[scored] * LEVELS).astype(np.int64), 0, LEVELS)
    joint = (level * classes + truth[scored]) * classes + best_class[scored]
    shape = (LEVELS + 1, classes, classes)
    return np.bincount(joint, minlength=int(np.prod(shape))).reshape(shape)


@pytest.mark.parametrize(("classes", "ignore"), [(4, 255), (3, 255), (4, 2), (7, 0)])
def test_the_histogram_is_the_plain_one(classes: int, ignore: int) -> None:
    """Of each photo and of their sum; no number is exempt, nor what is outside [0, 1]."""
    wanted: Any = 0
    photos = []
    for seed in range(4):
        truth, best, best_class = some_maps(seed)
        best[0, :4] = 0, 1, -0.01, 1.5
        best_class %= classes
        photos.append(seed_histogram(truth, best, best_class, classes, ignore))
        plain = plain_histogram(truth, best, best_class, classes, ignore)
        assert (dense(photos[-1]) == plain).all()
        wanted = wanted + plain
    total = sum(photos, start=photos[0])
    assert (dense(total) == wanted + dense(photos[0])).all()
    for threshold in (0.0, 0.001, 0.5, 1.0):
        level = round(threshold * LEVELS)
        counts = (wanted + dense(photos[0]))[level:].sum(axis=0)
        counts[:, 0] += (wanted + dense(photos[0]))[:level].sum(axis=(0, 2))
        assert (confusion_at(total, threshold).matrix() == counts).all()


def test_a_histogram_takes_memory_for_what_occurs() -> None:
    """A photo among 254 classes shows a few of them; a cell for each pair would be half a GB."""
    truth = np.zeros((40, 50), np.uint8)
    truth[:20, :20], truth[20:, 20:] = 200, 253
    best = np.random.default_rng(0).random(truth.shape).astype(np.float32)
    tracemalloc.start()
    total = sum((seed_histogram(truth, best, np.where(best < 0.5, 200, 253).astype(np.uint8), 254)
                 for _ in range(3)), start=SeedHistogram(254, {}))
    counts = confusion_at(total, 0.4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6
    assert len(total.rows) == 6
    assert sum(counts.pairs.values()) == 3 * truth.size


def test_scores_of_65534_classes_take_memory_for_what_occurs() -> None:
    """A matrix of all pairs would be 34 GB. The numbers are those of fewer classes."""
    few = [np.random.default_rng(seed).integers(0, 6, (2, 40, 50)) for seed in range(5)]
    names = np.array([0, 1, 255, 256, 40_000, 65_533], np.uint16)
    tracemalloc.start()
    total: Any = sum(confusion(*names[photo], 65_534) for photo in few)
    found = scores(total)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8e6
    wanted: Any = 0
    for truth, said in few:
        kept = truth != 2
        said = np.where(said == 2, 0, said)
        wanted = wanted + np.bincount(6 * truth[kept] + said[kept], minlength=36).reshape(6, 6)
    hits = np.diag(wanted)
    iou = hits / np.maximum(wanted.sum(axis=0) + wanted.sum(axis=1) - hits, 1)
    assert [round(float(value), 9) for value in found.iou[names]] == pytest.approx(
        [value if number != 2 else math.nan for number, value in enumerate(iou)], nan_ok=True)
    assert found.miou == pytest.approx(np.delete(iou, 2).mean())
    assert found.accuracy == pytest.approx(hits.sum() / wanted.sum())
    assert found.present == 5


def test_a_cam_of_an_unknown_class_is_refused() -> None:
    truth = np.zeros((2, 2), np.uint8)
    with pytest.raises(ValueError, match="class 7"):
        seed_histogram(truth, np.ones((2, 2), np.float32), truth + 7, 2)


def test_the_sweep_leaves_out_what_is_ignored() -> None:
    truth = np.array([[0, 1, 1, 255]], np.uint8)
    histogram = seed_histogram(truth, np.ones((1, 4), np.float32), np.ones((1, 4), np.uint8), 2,
                               ignore=0)
    assert confusion_at(histogram, 0.5).matrix().tolist() == [[0, 0], [0, 2]]


def test_a_cam_of_one_counts_as_foreground_at_every_threshold() -> None:
    truth = np.ones((2, 2), np.uint8)
    histogram = seed_histogram(truth, np.ones((2, 2), np.float32), truth, 2)
    assert confusion_at(histogram, 1.0).matrix().tolist() == [[0, 0], [0, 4]]


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
