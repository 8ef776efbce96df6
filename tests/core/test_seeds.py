"""Seeds by hand and against loops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from as_methods import class_clusters, with_background_clusters
from torch import Tensor

from vpltool.core.distributed import ALONE
from vpltool.core.seeds import (
    UNSURE,
    balancing_weights,
    region_features,
    seed_labels,
    seed_targets,
)
from vpltool.errors import VplError
from vpltool.methods.estimators.means import class_means


def unit(count: int, seed: int, dim: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, dim, generator=generator), dim=-1)


CAM = torch.tensor([[[0.9, 0.4, 0.39], [0.0, 0.1, 0.15]],
                    [[0.2, 0.8, 0.30], [0.1, 0.14, 0.0]]])
CLASSES = torch.tensor([7, 3])
ROWS_OF = torch.tensor([3, 7, 7, 0, 0, 5])
LABELS = torch.tensor([3, 7, 0, 7, 3, 3, 0, 7, 7])


def test_seed_labels_by_hand() -> None:
    """Φ itself counts as reached; the lower bound itself is no longer background."""
    edge = torch.tensor([[[0.5, 0.25, 0.49, 0.24]]])
    assert seed_labels(edge, CLASSES[:1], 0.5, 0.25).tolist() == [7, UNSURE, UNSURE, 0]
    found = seed_labels(CAM, CLASSES, 0.4, 0.15)
    assert found.tolist() == [7, 3, UNSURE, 0, 0, UNSURE]
    assert seed_labels(CAM, CLASSES, 0.0, 0.0).tolist() == [7, 3, 7, 3, 3, 7]
    assert seed_labels(CAM.half(), CLASSES, 0.85, 0.0).tolist() == [7, *[UNSURE] * 5]


def test_where_both_bounds_hold_it_is_background() -> None:
    assert seed_labels(CAM, CLASSES, 0.1, 0.5).tolist() == [7, 3, 0, 0, 0, 0]


def test_a_photo_without_tags_is_background() -> None:
    found = seed_labels(torch.zeros(0, 2, 3), CLASSES[:0], 0.4, 0.15)
    assert found.tolist() == [0] * 6


def test_region_features_are_the_weighted_means() -> None:
    patches = unit(6, 1)
    features, labels = region_features(patches, CAM, CLASSES)
    assert labels.tolist() == [7, 3, 0]
    for row, weights in enumerate([CAM[0], CAM[1], 1 - CAM.amax(dim=0)]):
        total = torch.zeros(8)
        for patch, weight in zip(patches, weights.flatten().tolist(), strict=True):
            total += weight * patch
        torch.testing.assert_close(features[row], total / total.norm())
    alone, label = region_features(patches, CAM[:0], CLASSES[:0])
    assert label.tolist() == [0]
    torch.testing.assert_close(alone[0], F.normalize(patches.sum(dim=0), dim=0))


def test_class_means_are_the_loops() -> None:
    pixels, start = unit(9, 2), unit(6, 3)
    before = start.clone()
    found = class_means(pixels, LABELS, start, ROWS_OF, ALONE)
    for row, index in enumerate(ROWS_OF.tolist()):
        chosen = [pixel for pixel, label in zip(pixels, LABELS.tolist(), strict=True)
                  if label == index]
        if index == 0 or not chosen:
            assert torch.equal(found[row], before[row]), "background and seedless rows stay"
        else:
            torch.testing.assert_close(found[row], F.normalize(sum(chosen), dim=0))
    assert torch.equal(start, before)


def test_class_clusters_find_the_parts_of_a_class() -> None:
    parts = unit(2, 4, dim=32)
    pixels = F.normalize(parts[torch.arange(40) % 2] + 0.03 * unit(40, 5, dim=32), dim=-1)
    start, index = unit(3, 6, dim=32), torch.tensor([1, 2, 0])
    labels = torch.ones(40, dtype=torch.long)
    rows, owner = class_clusters(pixels, labels, start, index, 2)
    assert owner.tolist() == [1, 1, 2, 0]
    assert float((rows[:2] @ parts.T).amax(dim=0).min()) > 0.99
    assert torch.equal(rows[2:], start[1:])
    again, _ = class_clusters(pixels, labels, start, index, 2)
    assert torch.equal(rows, again)


def test_a_class_with_few_seeds_has_few_rows() -> None:
    rows, owner = class_clusters(unit(1, 7), torch.tensor([1]), unit(2, 8), torch.tensor([1, 0]), 4)
    assert owner.tolist() == [1, 0]
    torch.testing.assert_close(rows[0], unit(1, 7)[0])


def test_background_clusters_find_the_parts_of_the_background() -> None:
    parts = unit(2, 11, dim=32)
    pixels = F.normalize(parts[torch.arange(40) % 2] + 0.03 * unit(40, 12, dim=32), dim=-1)
    pixels = torch.cat([pixels, unit(5, 13, dim=32)])
    labels = torch.tensor([0] * 40 + [3] * 5)
    rows, index = unit(6, 14, dim=32), torch.tensor([0, 3, 7, 0, 0, 5])
    found, owner = with_background_clusters(pixels, labels, rows, index, 2)
    assert owner.tolist() == [3, 7, 5, 0, 0]
    assert torch.equal(found[:3], rows[[1, 2, 5]]), "rows of classes stay as they are"
    assert float((found[3:] @ parts.T).amax(dim=0).min()) > 0.99
    again, _ = with_background_clusters(pixels, labels, rows, index, 2)
    assert torch.equal(found, again)


def test_no_cluster_without_background() -> None:
    with pytest.raises(VplError, match="no pixel is background"):
        with_background_clusters(unit(2, 1), torch.tensor([1, UNSURE]), unit(2, 2),
                                 torch.tensor([1, 0]), 3)


def test_seed_targets_pick_the_nearest_row_of_the_class() -> None:
    pixels, rows = unit(9, 9), unit(6, 10)
    found = seed_targets(pixels, LABELS, rows, ROWS_OF)
    for pixel, label, target in zip(pixels, LABELS.tolist(), found, strict=True):
        own = [row for row in range(6) if ROWS_OF[row] == label]
        best = max(own, key=lambda row: float(pixel @ rows[row]))
        assert target.tolist() == [float(row == best) for row in range(6)]


@pytest.mark.parametrize("labels", [[0, 0, 0, 1], [2, 2, 5, 5], [3], [0, 1, 1, 2, 2, 2]])
def test_balancing_weights(labels: list[int]) -> None:
    weights = balancing_weights(torch.tensor(labels))
    totals = {label: sum(float(weight) for weight, other in zip(weights, labels, strict=True)
                         if other == label) for label in labels}
    assert float(weights.mean()) == pytest.approx(1)
    assert list(totals.values()) == pytest.approx([len(labels) / len(totals)] * len(totals))
