"""Agreement with tags, calibration and uncertainty against their definitions in loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from reference import agreement as reference

from vpltool.core.agreement import (
    agreement,
    calibration_error,
    class_shares,
    mean_entropy,
    mean_margin,
    overlap,
    photo_probabilities,
    reliability,
)


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Said and tagged classes of 30 photos; class 5 is never tagged, 6 never said, 7 neither."""
    rng = np.random.default_rng(seed)
    said, tagged = rng.random((2, 30, 8)) < 0.3
    tagged[:, [5, 7]] = False
    said[:, [6, 7]] = False
    return said, tagged


@pytest.mark.parametrize("seed", range(3))
def test_scores_of_classes(seed: int) -> None:
    said, tagged = drawn(seed)
    found = agreement(said, tagged)
    sets = [[set(np.flatnonzero(row)) for row in flags] for flags in (said, tagged)]
    for index in range(8):
        wanted = reference.scores_of_class(*sets, index)
        got = found.precision[index], found.recall[index], found.f1[index]
        assert got == pytest.approx(wanted, nan_ok=True)
    counted = [index for index in range(8) if any(index in row for row in sets[1])]
    assert found.means()["f1"] == pytest.approx(
        sum(reference.scores_of_class(*sets, index)[2] for index in counted) / len(counted))
    assert overlap(said, tagged) == pytest.approx(
        [reference.jaccard(one, other) for one, other in zip(*sets, strict=True)])
    assert overlap(np.zeros((1, 3), bool), np.zeros((1, 3), bool)) == [1]


@pytest.mark.parametrize("bins", [1, 4, 10])
def test_calibration(bins: int) -> None:
    rng = np.random.default_rng(bins)
    values = np.append(rng.random(200), [0, 1])
    truth = rng.random(202) < values**2
    found = reliability(values, truth, bins)
    assert sum(entry.pairs for entry in found) == 202
    assert calibration_error(found) == pytest.approx(
        reference.calibration_error(values.tolist(), truth.tolist(), bins))


def test_a_calibrated_segmenter_has_no_error() -> None:
    values = np.repeat([0.25, 0.75], 4)
    truth = np.array([1, 0, 0, 0, 1, 1, 1, 0], bool)
    found = reliability(values, truth)
    assert calibration_error(found) == 0
    assert [entry.pairs for entry in found] == [0, 0, 4, 0, 0, 0, 0, 4, 0, 0]
    assert math.isnan(found[0].said)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 1.0])
def test_probability_of_a_photo(share: float) -> None:
    pixels = np.random.default_rng(0).random((3, 150))
    assert photo_probabilities(pixels, share) == pytest.approx(
        [reference.top_mean(row, share) for row in pixels.tolist()])


def test_shares_count_what_is_not_said() -> None:
    labels = np.array([[0, 1, 1, 255], [2, 2, 2, 2]], np.uint8)
    assert class_shares(labels, 4).tolist() == [0.125, 0.25, 0.5, 0]


@pytest.mark.parametrize("classes", [2, 5])
def test_uncertainty(classes: int) -> None:
    values = torch.rand((classes, 4, 3), generator=torch.Generator().manual_seed(classes))
    pixels = values.flatten(1).T.double().tolist()
    assert mean_entropy(values) == pytest.approx(reference.entropy(pixels))
    assert mean_margin(values) == pytest.approx(reference.margin(pixels))


def test_one_class_is_sure() -> None:
    values = torch.full((1, 2, 2), 0.9)
    assert mean_entropy(values) == pytest.approx(0)
    assert mean_margin(values) == 0
    sure = torch.tensor([1.0, 0.0]).view(2, 1, 1)
    assert mean_entropy(sure) == mean_margin(sure) == 0
