"""The modality gap by hand, and the shift along it against loops over plain numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vpltool.core.gap import feature_centroid, modality_gap, photo_regions, shift_along_gap

ROWS = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0.6, 0.8]])
INDEX = torch.tensor([1, 2, 0, 1])


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_gap_by_hand() -> None:
    """The nearest row of a class counts; the length of a region feature does not."""
    gap = modality_gap(ROWS, INDEX, torch.tensor([[0, 0, 5.0], [0, 0.3, 0.4]]),
                       torch.tensor([1, 2]))
    assert {index: item.cosine for index, item in gap.per_class.items()} == pytest.approx(
        {1: 1 - 0.8, 2: 1 - 0.6})
    assert gap.cosine == pytest.approx((0.2 + 0.4) / 2)
    # Mean of the chosen rows (0, .8, .4) less that of the regions (0, .3, .9).
    assert gap.centroid == pytest.approx(math.hypot(0.5, 0.5))
    # A region alone in its class has no spread; the chord over an angle of cosine .8, and of .6.
    assert gap.spread == pytest.approx(0, abs=1e-6)
    assert gap.per_class[1].centroid == pytest.approx(math.sqrt(2 * 0.2))
    assert gap.per_class[2].centroid == pytest.approx(math.sqrt(2 * 0.4))


def test_several_regions_a_class_by_hand() -> None:
    """Class 1: regions e1 and e3, whose nearest rows are e1 and (0, .6, .8)."""
    regions = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 1, 0]])
    gap = modality_gap(ROWS, INDEX, regions, torch.tensor([1, 1, 2]))
    one = gap.per_class[1]
    assert one.regions == 2
    assert one.cosine == pytest.approx((0 + 0.2) / 2)
    assert one.centroid == pytest.approx(math.hypot(0.3, 0.1))
    assert one.spread == pytest.approx(1 - math.sqrt(0.5))
    # The class with two regions counts no more than that with one.
    assert gap.cosine == pytest.approx(0.05)
    assert gap.centroid == pytest.approx(math.hypot(0.3, 0.1) / 2)


def slow_gap(rows: np.ndarray, index: list[int], regions: np.ndarray, owner: list[int]
             ) -> tuple[float, float]:
    """Loops over regions and rows."""
    ours, theirs, apart = [], [], []
    for wanted in sorted(set(owner)):
        near, found, distance = [], [], []
        for place, region in enumerate(regions):
            if owner[place] == wanted:
                best = max((row for row, number in zip(rows, index, strict=True)
                            if number == wanted), key=lambda row: float(row @ region))
                near.append(best)
                found.append(region)
                distance.append(1 - float(best @ region))
        ours.append(np.mean(near, axis=0))
        theirs.append(np.mean(found, axis=0))
        apart.append(np.mean(distance))
    return (float(np.linalg.norm(np.mean(ours, axis=0) - np.mean(theirs, axis=0))),
            float(np.mean(apart)))


@pytest.mark.parametrize("seed", range(4))
def test_gap_against_loops(seed: int) -> None:
    rows, regions = unit(9, 12, seed=seed), unit(40, 12, seed=seed + 10)
    index = [0, 0, 1, 1, 2, 3, 3, 3, 4]
    owner = [1 + place % 3 for place in range(40)]
    gap = modality_gap(rows, torch.tensor(index), regions, torch.tensor(owner))
    wanted = slow_gap(rows.numpy(), index, regions.numpy(), owner)
    assert (gap.centroid, gap.cosine) == pytest.approx(wanted, abs=1e-5)
    assert list(gap.per_class) == [1, 2, 3]


def test_spread_is_the_least_that_a_single_row_can_reach() -> None:
    regions, owner = unit(30, 8), torch.ones(30, dtype=torch.long)
    best = F.normalize(regions.mean(dim=0), dim=0)[None]
    gap = modality_gap(best, torch.tensor([1]), regions, owner)
    assert gap.cosine == pytest.approx(gap.spread, abs=1e-6)
    for seed in range(5):
        other = F.normalize(best + 0.1 * unit(1, 8, seed=seed), dim=-1)
        assert modality_gap(other, torch.tensor([1]), regions, owner).cosine > gap.spread


def test_prototypes_in_their_regions_have_no_gap() -> None:
    gap = modality_gap(ROWS, INDEX, 3 * ROWS[:2], INDEX[:2])
    assert gap.cosine == pytest.approx(0, abs=1e-6)
    assert gap.centroid == pytest.approx(0, abs=1e-6)


def test_classes_without_regions_do_not_count() -> None:
    regions = F.normalize(torch.tensor([[1.0, 1, 0]]), dim=-1)
    first = modality_gap(ROWS, INDEX, regions, torch.tensor([2]))
    second = modality_gap(ROWS[1:2], INDEX[1:2], regions, torch.tensor([2]))
    assert first == second


def test_no_regions() -> None:
    gap = modality_gap(ROWS, INDEX, torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    assert math.isnan(gap.cosine)
    assert gap.per_class == {}


def test_regions_are_means_by_photo_and_class() -> None:
    pixels = unit(7, 5)
    photo, labels = torch.tensor([1, 0, 0, 0, 1, 1, 0]), torch.tensor([2, 1, 2, 1, 0, 2, -1])
    regions, owner, _ = photo_regions(pixels, photo, labels)
    wanted = [pixels[[1, 3]].mean(0), pixels[2], pixels[[0, 5]].mean(0)]
    torch.testing.assert_close(regions, F.normalize(torch.stack(wanted), dim=-1))
    assert owner.tolist() == [1, 2, 2]


def test_no_pixel_in_a_class_gives_no_region() -> None:
    regions, owner, _ = photo_regions(unit(3, 5), torch.zeros(3, dtype=torch.long),
                                      torch.tensor([0, -1, 0]))
    assert regions.shape == (0, 5)
    assert owner.shape == (0,)


def test_centroid_is_the_mean_of_the_groups_however_it_is_cut() -> None:
    features, groups = unit(20, 6), torch.arange(20) % 7 % 4
    wanted = torch.stack([features[groups == group].mean(0) for group in range(4)]).mean(0)
    for size in (1, 3, 20):
        parts = zip(features.split(size), groups.split(size), strict=True)
        found, seen = feature_centroid(parts, 6)
        torch.testing.assert_close(found, wanted)
        assert seen.tolist() == [True] * 4 + [False] * 2
    plain, _ = feature_centroid([(features, torch.zeros_like(groups))], 1)
    torch.testing.assert_close(plain, features.mean(0))


@pytest.mark.parametrize("parts", [[], [(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))]])
def test_no_centroid_of_nothing(parts: list[tuple[Tensor, Tensor]]) -> None:
    with pytest.raises(ValueError, match="no features"):
        feature_centroid(parts, 2)


def test_the_whole_gap_brings_the_centroids_together_before_normalisation() -> None:
    text, photos = unit(9, 16), unit(50, 16, seed=1) + 0.3
    gap = photos.mean(0) - text.mean(0)
    moved = shift_along_gap(text, gap, 1.0)
    # Each row is the unnormalised one up to its length: what it was divided by is put back.
    free = np.array([[value + step for value, step in zip(row, gap.tolist(), strict=True)]
                     for row in text.tolist()])
    lengths = np.linalg.norm(free, axis=1)
    np.testing.assert_allclose(moved.numpy() * lengths[:, None], free, atol=1e-5)
    np.testing.assert_allclose((moved.numpy() * lengths[:, None]).mean(0), photos.mean(0),
                               atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(moved.numpy(), axis=1), 1, atol=1e-5)


def test_share_of_the_gap() -> None:
    text, gap = unit(9, 16), 0.4 * unit(1, 16, seed=1)[0]
    torch.testing.assert_close(shift_along_gap(text, gap, 0.0), text)
    torch.testing.assert_close(shift_along_gap(text, gap, 0.5), F.normalize(text + gap / 2, dim=-1))
    along = [float((shift_along_gap(text, gap, share) @ gap).mean())
             for share in (-1.0, 0.0, 0.5, 1.0, 2.0)]
    assert along == sorted(along)
