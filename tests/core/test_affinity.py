"""The affinity by matrix-vector products against the n × n matrices of the formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from as_methods import refine
from reference import clip_es, weclip
from torch import Tensor

from vpltool.core.affinity import (
    box_mask,
    patch_walk,
    sinkhorn_scaling,
)
from vpltool.core.grids import min_max
from vpltool.methods.refiners.rfm import refining_map


def some_attention(count: int, seed: int) -> Tensor:
    """Rows that sum to less than 1, as when CLS is cut off."""
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(count, count, generator=generator)
    return scores.softmax(dim=-1) * (0.5 + 0.5 * torch.rand(count, 1, generator=generator))


def some_maps(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return min_max(torch.rand(count, height, width, generator=generator) ** 4)


def slow_refine(cams: Tensor, attention: Tensor, masks: Tensor) -> Tensor:
    """The reference's matrices in double precision, before min-max."""
    matrix = clip_es.transition(attention.double())
    return torch.stack([clip_es.spread(cam, matrix, mask)
                        for cam, mask in zip(cams.double(), masks.double(), strict=True)])


def slow_boxes(cams: Tensor, threshold: float, *, exclusive: bool = False) -> Tensor:
    """The reference's boxes; maps of minimum 0 and maximum 1 as its second min-max leaves them."""
    return torch.stack([clip_es.boxes(cam / (1 + 1e-7), threshold, exclusive=exclusive)
                        for cam in cams]).bool()


@pytest.mark.parametrize("shape", [(1, 3, 4), (3, 5, 4), (2, 1, 6)])
@pytest.mark.parametrize("mask", ["box", "none"])
def test_refine_is_the_explicit_matrix(shape: tuple[int, int, int], mask: str) -> None:
    cams = some_maps(*shape, seed=shape[1])
    attention = some_attention(shape[1] * shape[2], seed=shape[0])
    boxes = slow_boxes(cams, 0.4) if mask == "box" else torch.ones_like(cams, dtype=torch.bool)
    slow = slow_refine(cams, attention, boxes)
    found = refine(cams, attention, mask=mask, normalise=False)
    torch.testing.assert_close(found.double(), slow.clamp(0, 1), atol=1e-6, rtol=1e-5)
    scaled = refine(cams, attention, mask=mask)
    wanted = (slow - slow.amin((1, 2), keepdim=True))
    wanted = wanted / (wanted.amax((1, 2), keepdim=True) + 1e-7)
    torch.testing.assert_close(scaled.double(), wanted, atol=1e-4, rtol=0)


def test_the_threshold_of_the_boxes_counts() -> None:
    cams = some_maps(2, 5, 4)
    attention = some_attention(20, seed=1)
    wanted = slow_refine(cams, attention, slow_boxes(cams, 0.9))
    found = refine(cams, attention, threshold=0.9, normalise=False)
    torch.testing.assert_close(found.double(), wanted.clamp(0, 1), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(found, refine(cams, attention, threshold=0.1, normalise=False))


def test_half_precision_attention_is_computed_in_full() -> None:
    cams, attention = some_maps(2, 4, 4).half(), some_attention(16, seed=2).half()
    found = refine(cams, attention)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, refine(cams.float(), attention.float()))


def test_refine_of_no_classes() -> None:
    found = refine(torch.zeros(0, 3, 4), some_attention(12, seed=0))
    assert tuple(found.shape) == (0, 3, 4)


def test_sinkhorn_is_nearly_doubly_stochastic() -> None:
    attention = some_attention(8, seed=3)[None].double()
    rows, columns = sinkhorn_scaling(attention, rounds=200)
    matrix = rows[0][:, None] * attention[0] * columns[0][None, :]
    torch.testing.assert_close(matrix.sum(dim=0), torch.ones(8).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(8).double(), atol=1e-6, rtol=0)


PICTURES = {
    "ring": ["........", ".#####..", ".#...#..", ".#.#.#..", ".#...#..", ".#####..", "........"],
    "diagonal": ["#......", ".#.....", "..#....", ".......", ".....#.", "......#"],
    "borders": ["##...##", "#.....#", ".......", "...#...", ".......", "#.....#", "##...##"],
    "snake": ["######.", ".....#.", ".####..", "#......", ".#####.", "......#"],
    "empty": ["....", "....", "...."],
    "full": ["####", "####"],
    "one": ["#"],
    "two far apart": ["#..........", "...........", "..........#"],
}


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("name", PICTURES)
def test_box_mask_of_drawn_shapes(name: str, exclusive: bool) -> None:
    cam = torch.tensor([[float(letter == "#") for letter in row] for row in PICTURES[name]])
    assert torch.equal(box_mask(cam[None], 0.4, exclusive=exclusive),
                       slow_boxes(cam[None], 0.4, exclusive=exclusive))


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.7, 1.0])
def test_box_mask_of_random_maps(threshold: float, exclusive: bool) -> None:
    cams = some_maps(40, 9, 7, seed=5)
    assert torch.equal(box_mask(cams, threshold, exclusive=exclusive),
                       slow_boxes(cams, threshold, exclusive=exclusive))


def test_half_precision_begins_its_boxes_at_the_same_level() -> None:
    """Where the maximum is 1 and not 0.9999999, λ must not begin a level later."""
    cam = torch.tensor([[[1.0, 0.0, 102.5 / 255, 0.0, 101.5 / 255]]])
    wanted = [[[True, False, True, False, False]]]
    assert box_mask(cam, 0.4).tolist() == wanted
    assert box_mask(cam.half().float(), 0.4).tolist() == wanted
    assert slow_boxes(cam, 0.4).tolist() == wanted


def test_maps_in_one_call_do_not_touch_each_other() -> None:
    cams = some_maps(5, 6, 8, seed=7)
    alone = torch.cat([box_mask(cam[None], 0.4) for cam in cams])
    assert torch.equal(box_mask(cams, 0.4), alone)


def test_a_level_equal_to_the_threshold_is_dark() -> None:
    """CLIP-ES: strictly greater. 101 = int(0.4 · 254)."""
    cam = torch.tensor([[[1.0, 0.0, 101 / 255 + 1e-4, 0.0, 102 / 255 + 1e-4]]])
    assert box_mask(cam, 0.4).tolist() == [[[True, False, False, False, True]]]


@pytest.mark.parametrize("mask", ["box", "none"])
@pytest.mark.parametrize("normalise", [True, False])
def test_refine_along_patches_is_one_step_of_the_explicit_walk(mask: str, normalise: bool) -> None:
    cams = some_maps(3, 5, 4, seed=9)
    patches = torch.nn.functional.normalize(
        torch.randn(20, 8, generator=torch.Generator().manual_seed(10)), dim=-1)
    centred = (patches - patches.mean(dim=0)).double()
    centred = centred / centred.norm(dim=1, keepdim=True)
    heat = torch.tensor([[float(a @ b) / 0.1 for b in centred] for a in centred]).double().exp()
    walk = heat / heat.sum(dim=1, keepdim=True)
    masked = cams * slow_boxes(cams, 0.4) if mask == "box" else cams
    wanted = torch.stack([(walk @ cam.flatten().double()).view(5, 4) for cam in masked])
    if normalise:
        wanted = wanted - wanted.amin((1, 2), keepdim=True)
        wanted = wanted / (wanted.amax((1, 2), keepdim=True) + 1e-7)
    found = refine(cams, patches.half() if normalise else patches, affinity="patches", mask=mask,
                   normalise=normalise)
    torch.testing.assert_close(found.double(), wanted, atol=1e-2 if normalise else 1e-5, rtol=0)


@pytest.mark.parametrize(("steps", "tau"), [(1, 0.3), (3, 0.1)])
def test_refine_takes_as_many_steps_as_are_asked_for(steps: int, tau: float) -> None:
    patches = F.normalize(torch.randn(12, 6), dim=-1)
    cams = torch.rand(2, 3, 4)
    walk = torch.linalg.matrix_power(patch_walk(patches[None], tau)[0].double(), steps)
    wanted = (walk @ cams.flatten(1).T.double()).T.view_as(cams)
    found = refine(cams, patches, affinity="patches", mask="none", normalise=False, steps=steps,
                   tau=tau)
    torch.testing.assert_close(found.double(), wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("patches", "blocks"), [(12, 6), (12, 1), (1, 3)])
def test_refining_map_is_weclips(patches: int, blocks: int) -> None:
    maps = torch.stack([some_attention(patches, seed) for seed in range(blocks)])
    fused = torch.randn(patches, 5, generator=torch.Generator().manual_seed(8))
    found = refining_map(fused, maps)
    torch.testing.assert_close(found.double(), weclip.refining(fused, list(maps)), atol=1e-6,
                               rtol=1e-5)
    if blocks == 6:
        everything = refining_map(fused, maps.mean(dim=0, keepdim=True))
        assert not torch.allclose(found, everything, atol=1e-3), "no block was left out"


def test_blocks_that_are_all_as_near_are_all_kept() -> None:
    """Rows that sum to 1, as without a class token: all distances are the same but for rounding."""
    maps = torch.stack([some_attention(9, seed) for seed in range(7)])
    maps = maps[:1].repeat(7, 1, 1)
    fused = torch.randn(9, 5, generator=torch.Generator().manual_seed(8))
    torch.testing.assert_close(refining_map(fused, maps), refining_map(fused, maps[:1]))
