"""Border saliency against a walk written out step by step."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from as_methods import salient_cam
from torch import Tensor

from vpltool.core.affinity import border_saliency, patch_walk, salient_means


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def slow_walk(patches: list[list[float]], tau: float) -> list[list[float]]:
    """Transition probabilities of `patch_walk`, in plain Python."""
    count, dim = len(patches), len(patches[0])
    mean = [sum(patch[k] for patch in patches) / count for k in range(dim)]
    centred = []
    for patch in patches:
        moved = [a - b for a, b in zip(patch, mean, strict=True)]
        length = math.sqrt(sum(a * a for a in moved))
        centred.append([a / length for a in moved])
    rows = []
    for first in centred:
        exps = [math.exp(sum(a * b for a, b in zip(first, other, strict=True)) / tau)
                for other in centred]
        rows.append([value / sum(exps) for value in exps])
    return rows


def slow_saliency(patches: list[list[float]], height: int, width: int, tau: float,
                  steps: int) -> list[float]:
    """Probability to be on the border after the steps; then the rank, the rarest first."""
    walk = slow_walk(patches, tau)
    count = height * width
    ends = []
    for begin in range(count):
        place = [float(node == begin) for node in range(count)]
        for _ in range(steps):
            place = [sum(place[i] * walk[i][j] for i in range(count)) for j in range(count)]
        ends.append(sum(place[y * width + x] for y in range(height) for x in range(width)
                        if y in (0, height - 1) or x in (0, width - 1)))
    return [sum(other > ends[node] for other in ends) / (count - 1) for node in range(count)]


@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_walk_is_the_loops_and_its_rows_sum_to_one(tau: float) -> None:
    patches = unit(2, 12, 6, seed=1)
    found = patch_walk(patches, tau)
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(2, 12))
    for photo in range(2):
        wanted = torch.tensor(slow_walk(patches[photo].tolist(), tau))
        torch.testing.assert_close(found[photo], wanted, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("grid", [(3, 4), (5, 4), (4, 6)])
@pytest.mark.parametrize(("tau", "steps"), [(0.1, 2), (0.4, 1), (0.4, 3)])
def test_saliency_is_the_loops(grid: tuple[int, int], tau: float, steps: int) -> None:
    patches = unit(2, grid[0] * grid[1], 7, seed=grid[1])
    found = border_saliency(patches, grid, tau=tau, steps=steps)
    for photo in range(2):
        wanted = slow_saliency(patches[photo].double().tolist(), *grid, tau, steps)
        assert found[photo].tolist() == pytest.approx(wanted, abs=1e-5)


def test_saliency_finds_an_object_in_the_middle() -> None:
    object_, ground = unit(2, 16, seed=3)
    inside = torch.zeros(6, 7, dtype=torch.bool)
    inside[2:4, 2:5] = True
    patches = torch.where(inside.flatten()[:, None], object_, ground)
    patches = F.normalize(patches + 0.1 * unit(42, 16, seed=4), dim=-1)
    found = border_saliency(patches[None], (6, 7))[0]
    assert float(found[inside.flatten()].min()) > float(found[~inside.flatten()].max())
    assert sorted(found.tolist()) == pytest.approx([rank / 41 for rank in range(42)])


def test_salient_cam_by_hand() -> None:
    """Class 1 has two rows, class 2 one, class 3 is not in the photo, 0 has no part in it."""
    grid, tau = (3, 3), 0.2
    patches, rows = unit(1, 9, 8, seed=5), unit(5, 8, seed=6)
    index = torch.tensor([1, 2, 0, 1, 3])
    found = salient_cam(patches, grid, rows, index, [torch.tensor([2, 1])], tau=tau)
    assert len(found) == 1
    assert tuple(found[0].shape) == (2, 3, 3)
    saliency = slow_saliency(patches[0].double().tolist(), 3, 3, 0.1, 2)
    for place in range(9):
        heat = [math.exp(float(patches[0, place] @ row) / tau) for row in rows]
        two, one = heat[1], heat[0] + heat[3]
        share = torch.tensor([two / max(one, two), one / max(one, two)])
        torch.testing.assert_close(found[0].flatten(1)[:, place], share * saliency[place],
                                   atol=1e-5, rtol=1e-4)
    assert {round(value, 6) for value in saliency} == {round(rank / 8, 6) for rank in range(9)}


def test_salient_cam_of_a_photo_without_tags() -> None:
    found = salient_cam(unit(2, 6, 8, seed=7), (2, 3), unit(2, 8, seed=8), torch.tensor([1, 0]),
                        [torch.tensor([], dtype=torch.long), torch.tensor([1])])
    assert [tuple(maps.shape) for maps in found] == [(0, 2, 3), (1, 2, 3)]
    assert sorted(found[1].flatten().tolist()) == pytest.approx([rank / 5 for rank in range(6)])


def test_a_photo_of_one_patch_is_that_patch() -> None:
    """Its rank was 0, and the mean of none NaN."""
    patch = torch.nn.functional.normalize(torch.randn(1, 1, 5), dim=-1)
    assert border_saliency(patch, (1, 1)).tolist() == [[1.0]]
    torch.testing.assert_close(salient_means(patch, (1, 1), 0.2), patch[:, 0])
