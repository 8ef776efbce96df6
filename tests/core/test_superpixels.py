"""Regions, masks and the walk along two attentions, against SSR's formulas written out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from as_methods import refine
from PIL import Image
from reference import ssr
from torch import Tensor

from vpltool.methods.inputs import PhotoMaps
from vpltool.methods.refiners import superpixels
from vpltool.methods.refiners.superpixels import Settings, cluster, colour_regions, target_mask


def chance(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def some_maps(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    maps = chance(seed).random((count, height, width)) ** 3
    return torch.tensor(maps / maps.max((1, 2), keepdims=True), dtype=torch.float32)


def some_attention(count: int, seed: int) -> Tensor:
    """Rows that sum to other numbers, as without the class token."""
    weights = chance(seed).random((count, count)) ** 4 + 1e-3
    return torch.tensor(weights / weights.sum(1, keepdims=True)
                        * chance(seed + 1).uniform(0.2, 0.9, (count, 1)), dtype=torch.float32)


def some_labels(height: int, width: int, detail: int, regions: int, seed: int = 0) -> Any:
    """Regions as large as a patch or two, so that targets cover some patches in part."""
    coarse = chance(seed).integers(0, regions, (height, width)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(
        (width * detail, height * detail), Image.Resampling.NEAREST, box=(0.3, 0.2, width - .1,
                                                                         height - .2)))


def shares_of(labels: Any, height: int, width: int) -> Tensor:
    cells = labels.reshape(height, len(labels) // height, width, -1)
    return torch.from_numpy(np.stack([(cells == label).mean(axis=(1, 3)) for label in range(
        int(labels.max()) + 1)])).float()


def refine_masked(cams: Tensor, attentions: list[Tensor], shares: Sequence[float],
                  mask: Tensor | None, *, normalise: bool = True) -> Tensor:
    """The method with a mask that is given."""
    names = [str(number) for number in range(len(attentions))]
    photo = PhotoMaps("photo", cams, torch.arange(len(cams)) + 1,
                      dict(zip(names, attentions, strict=True)))
    with mock.patch.object(superpixels, "region_mask", return_value=mask):
        return superpixels.refine_in_regions(photo, dict(zip(names, shares, strict=True)),
                                             Settings(min_max=normalise))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 4), (3, 6, 7)])
@pytest.mark.parametrize("shares", [(0.4, 0.6), (1.0, 0.0), (0.0, 1.0)])
def test_the_walk_is_the_fused_matrix_squared(shape: tuple[int, int, int],
                                              shares: tuple[float, float]) -> None:
    cams = some_maps(*shape)
    both = [some_attention(shape[1] * shape[2], seed) for seed in (3, 8)]
    mask = some_maps(*shape, seed=2) > 0.05
    mask[:, 0, 0] = True
    found = refine_masked(cams, both, shares, mask)
    for number, cam in enumerate(cams):
        wanted = ssr.correct(cam, both, shares, mask[number])
        torch.testing.assert_close(found[number], wanted.float(), atol=1e-5, rtol=0)


def test_with_clip_alone_and_without_a_mask_it_is_clip_es() -> None:
    cams, attention = some_maps(2, 5, 6), some_attention(30, 1)
    for normalise in (True, False):
        wanted = refine(cams, attention, mask="none", normalise=normalise)
        found = refine_masked(cams, [attention, attention], (0.4, 0.6), None, normalise=normalise)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_shares_do_not_depend_on_what_the_class_token_takes() -> None:
    """An attention that is ten times as large has no more say."""
    cams, one, other = some_maps(2, 5, 6), some_attention(30, 1), some_attention(30, 5)
    torch.testing.assert_close(refine_masked(cams, [one, other], (0.4, 0.6), None),
                               refine_masked(cams, [one, 10 * other], (0.4, 0.6), None),
                               atol=1e-5, rtol=0)


def test_a_mask_that_leaves_nothing_is_not_used() -> None:
    cams, attention = some_maps(2, 4, 4), some_attention(16, 1)
    mask = torch.ones(2, 4, 4, dtype=torch.bool)
    mask[0] = False
    found = refine_masked(cams, [attention], [1.0], mask)
    torch.testing.assert_close(found, refine_masked(cams, [attention], [1.0], None))


@pytest.mark.parametrize("total", ["map", "region"])
@pytest.mark.parametrize(("confident", "share", "coverage"), [
    (0.4, 0.05, 0.5), (0.0, 0.1, 0.5), (0.7, 0.3, 0.2), (0.4, 1.0, 0.5), (0.4, 0.0, 0.9),
    (1.0, 0.1, 0.5)])
def test_targets_pixel_by_pixel(total: str, confident: float, share: float, coverage: float
                                ) -> None:
    how: dict[str, Any] = {"confident": confident, "share": share, "total": total,
                           "coverage": coverage}
    seen = set()
    for number, (height, width, detail, regions) in enumerate(
            [(6, 5, 4, 4), (4, 7, 3, 9), (1, 1, 4, 3), (3, 3, 1, 2)]):
        cams = torch.cat([some_maps(2, height, width, number), torch.zeros(1, height, width)])
        labels = some_labels(height, width, detail, regions, number)
        found = target_mask(cams, shares_of(labels, height, width), Settings(**how))
        for cam, mask in zip(cams, found, strict=True):
            assert torch.equal(mask, ssr.target_mask(cam, labels, detail, **how))
            seen |= set(mask.flatten().tolist())
        assert not found[2].any()
    # Nothing is above the maximum: a map of which the mask leaves nothing is spread whole.
    assert seen == ({False} if confident == 1 else {True, False})


def test_half_a_patch_is_not_more_than_half() -> None:
    labels = np.array([[0, 0, 0, 0], [1, 1, 0, 0]])
    cams, shares = torch.tensor([[[1.0, 0.5]]]), shares_of(labels, 1, 2)
    how: dict[str, Any] = {"confident": 0.4, "share": 0.9, "total": "map"}
    for coverage, wanted in ((0.5, [[[False, True]]]), (0.49, [[[True, True]]])):
        found = target_mask(cams, shares, Settings(coverage=coverage, **how))
        assert found.tolist() == wanted
        assert torch.equal(found[0], ssr.target_mask(cams[0], labels, 2, coverage=coverage, **how))


@pytest.mark.parametrize("count", [1, 2, 8, 40])
def test_clusters(count: int) -> None:
    points = chance(count).random((30, 3)).round(2)
    points[5] = points[9]
    assert cluster(points, count).tolist() == ssr.cluster(points, count)


def test_equal_points_are_one_cluster() -> None:
    assert cluster(np.ones((4, 3)), 8).tolist() == [0, 0, 0, 0]


def test_regions_are_those_of_the_superpixels_colours() -> None:
    segmentation = pytest.importorskip("skimage.segmentation")
    blocks = chance(0).integers(0, 255, (7, 9, 3)).astype(np.uint8)
    photo = np.asarray(Image.fromarray(blocks).resize((61, 47), Image.Resampling.NEAREST))
    coarse = Settings(superpixels=30, colours=4, space="rgb", detail=8)
    for how, grid in ((Settings(superpixels=30, colours=5), (5, 6)), (coarse, (3, 4)),
                      (Settings(), (1, 1))):
        size = (grid[1] * how.detail, grid[0] * how.detail)
        scaled = np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BOX))
        labels = segmentation.slic(scaled, how.superpixels, how.compactness, how.rounds)
        wanted = ssr.regions_of(scaled, labels, how.colours, in_lab=how.space == "lab")
        found = colour_regions(photo, grid, how)
        assert torch.equal(found, shares_of(wanted, *grid))
        torch.testing.assert_close(found.sum(0), torch.ones(grid))


@pytest.mark.parametrize("colour", [0, 128, 255])
def test_a_photo_of_one_colour_is_one_region(colour: int) -> None:
    pytest.importorskip("skimage")
    photo = np.full((20, 30, 3), colour, dtype=np.uint8)
    assert torch.equal(colour_regions(photo, (2, 3), Settings()), torch.ones(1, 2, 3))
