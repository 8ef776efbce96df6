"""ExCEL's text enrichment and CLIP Surgery's similarity against the formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from as_methods import surgery_cam
from reference import excel as slow
from torch import Tensor

from vpltool.core.prototypes import attribute_centres, with_attributes
from vpltool.methods.cams.surgery import surgery_scores


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize(("count", "share", "dropped"), [
    (112, 0.9, 11), (10, 0.9, 1), (20, 0.9, 2), (7, 0.5, 3), (5, 1.0, 0), (5, 0.0, 4), (1, 0.9, 0)])
def test_attributes_are_taken_in(count: int, share: float, dropped: int) -> None:
    rows, attributes = unit(4, 8), 0.8 * unit(count, 8, seed=1)
    wanted = torch.stack([slow.enriched(row, attributes, dropped) for row in rows])
    torch.testing.assert_close(with_attributes(rows, attributes, share), wanted, atol=1e-6,
                               rtol=1e-5)


def test_attributes_are_the_means_of_clusters() -> None:
    """Two bunches far apart; the means of unit vectors are shorter than 1."""
    bunches = [F.normalize(torch.eye(4)[side] + 0.2 * unit(6, 4, seed=side), dim=-1)
               for side in range(2)]
    centres = attribute_centres(torch.cat(bunches), 2)
    wanted = torch.stack([bunch.mean(dim=0) for bunch in bunches])
    order = centres[:, 1].argsort()
    torch.testing.assert_close(centres[order], wanted[wanted[:, 1].argsort()])
    assert (centres.norm(dim=-1) < 0.999).all()
    assert torch.equal(attribute_centres(bunches[0], 9), bunches[0])


def test_surgery_scores_are_those_of_the_channels() -> None:
    patches, photo, rows = unit(2, 6, 8), unit(2, 8, seed=1), unit(5, 8, seed=2)
    wanted = torch.stack([slow.surgery(*of_photo, rows, 3.0, by_channel=False)
                          for of_photo in zip(patches, photo, strict=True)])
    torch.testing.assert_close(surgery_scores(patches, photo, rows, scale=3.0), wanted, atol=1e-5,
                               rtol=1e-4)


@pytest.mark.parametrize("grid", [(3, 4), (1, 1)])
@pytest.mark.parametrize("normalise", ["patch", "channel"])
@pytest.mark.parametrize("scale", [2.0, 20.0])
def test_surgery_is_the_sum_over_channels(grid: tuple[int, int], normalise: str, scale: float
                                          ) -> None:
    """Photos with no, one and two tags; class 2 has three rows; class 5 has none."""
    count = grid[0] * grid[1]
    patches, photo, rows = unit(3, count, 8), unit(3, 8, seed=1), unit(9, 8, seed=2)
    index = torch.tensor([1, 2, 2, 3, 2, 4, 0, 0, 0])
    present = [torch.tensor([], dtype=torch.long), torch.tensor([2]), torch.tensor([4, 5])]
    found = surgery_cam(patches, photo, grid, rows, index, present, scale=scale,
                        normalise=normalise)
    assert [maps.shape for maps in found] == [(len(own), *grid) for own in present]
    for maps, own, *of_photo in zip(found, present, patches, photo, strict=True):
        scores = slow.surgery(*of_photo, rows, scale, by_channel=normalise == "channel")
        for cam, label in zip(maps, own.tolist(), strict=True):
            best = [max((float(scores[n, row]) for row in range(9) if index[row] == label),
                        default=0.0) for n in range(count)]
            torch.testing.assert_close(cam.flatten(), torch.tensor(slow.stretched(best)),
                                       atol=1e-4, rtol=0)
