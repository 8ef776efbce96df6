"""Asking a bank against loops; memory does not grow with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import banks
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vpltool.core import seeds as module
from vpltool.core.seeds import nearest_rows, rows_of_others
from vpltool.methods.cams import knn
from vpltool.methods.inputs import CamBatch, PhotoMaps
from vpltool.methods.refiners import retrieval
from vpltool.methods.refiners.retrieval import supports

DIM = 6


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def soft_labels(patches: Tensor, tags: Sequence[int], photo: int,
                bank: tuple[Tensor, Tensor, Tensor], count: int) -> Tensor:
    """The method's map of a photo, its patches in a row."""
    rows, index, photo_of = bank
    batch = CamBatch([str(photo)], (1, len(patches)), {"patches": patches[None]},
                     [torch.tensor(tags, dtype=torch.long)], rows, index,
                     of_rows={"photo_of": photo_of}, row_photos=list("0123456"))
    (maps,) = knn.make_cams(batch, knn.Settings(neighbours=count, tau=0.1))
    return maps[:, 0].T


def supported_maps(patches: Tensor, cams: Tensor, tags: Sequence[int], photo: int,
                   bank: tuple[Tensor, Tensor, Tensor], share: float) -> Tensor:
    rows, index, photo_of = bank
    maps = PhotoMaps(str(photo), cams, torch.tensor(tags), {"patches": patches}, prototypes=rows,
                     class_index=index, of_rows={"photo_of": photo_of},
                     row_photos=list("0123456"))
    return retrieval.refine(maps, retrieval.Settings(neighbours=3, support=share, tau=0.1))


@pytest.fixture
def bank() -> tuple[Tensor, Tensor, Tensor]:
    """Rows, their classes (0 to 3), their photos (0 to 6; the last two rows are of none)."""
    generator = torch.Generator().manual_seed(1)
    photo_of = torch.randint(0, 7, (60,), generator=generator).sort().values
    photo_of[-2:] = -1
    return (unit(60, DIM, seed=2), torch.randint(0, 4, (60,), generator=generator), photo_of)


@pytest.mark.parametrize("tags", [[], [2], [1, 3], [1, 2, 3]])
@pytest.mark.parametrize("photo", [3, -1])
@pytest.mark.parametrize("count", [1, 5, 200])
def test_soft_labels_are_the_loops(tags: list[int], photo: int, count: int,
                                   bank: tuple[Tensor, Tensor, Tensor]) -> None:
    rows, index, photo_of = bank
    patches = unit(11, DIM, seed=3)
    found = soft_labels(patches, tags, photo, bank, count)
    wanted = banks.soft_labels(patches.numpy(), tags, photo, rows.numpy(), index.tolist(),
                               photo_of.tolist(), count, 0.1)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)


def test_a_patch_does_not_ask_its_own_photo(bank: tuple[Tensor, Tensor, Tensor]) -> None:
    """Which holds the patch itself: it would always be the nearest."""
    rows, index, photo_of = bank
    tags = torch.tensor([1, 2, 3])
    mine = (photo_of == 3).nonzero()[:, 0]
    allowed = rows_of_others(index, photo_of, tags, 3).nonzero()[:, 0]
    cosines, found = nearest_rows(rows[mine], rows, allowed, 4)
    assert not torch.isin(found, mine).any()
    assert float(cosines.max()) < 0.999
    everyone = rows_of_others(index, photo_of, tags, -1).nonzero()[:, 0]
    assert nearest_rows(rows[mine], rows, everyone, 4)[1][:, 0].tolist() == mine.tolist()


def test_without_a_row_to_ask_maps_are_zero(bank: tuple[Tensor, Tensor, Tensor]) -> None:
    rows, index, photo_of = bank
    found = soft_labels(unit(5, DIM, seed=4), [1, 2], 3,
                        (rows, index, torch.full_like(photo_of, -1)), 3)
    assert torch.equal(found, torch.zeros(5, 2))


@pytest.mark.parametrize("entries", [1, 12, 100])
def test_parts_change_nothing(entries: int, bank: tuple[Tensor, Tensor, Tensor],
                              monkeypatch: pytest.MonkeyPatch) -> None:
    rows = bank[0]
    queries, allowed = unit(12, DIM, seed=5), torch.arange(0, 60, 2)
    whole = nearest_rows(queries, rows, allowed, 7)
    monkeypatch.setattr(module, "_ENTRIES", entries)
    parts = nearest_rows(queries, rows, allowed, 7)
    torch.testing.assert_close(parts[0], whole[0])
    assert torch.equal(parts[1], whole[1])


class Largest(TorchDispatchMode):
    """Watches for the largest tensor that any operation makes."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for item in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(item, Tensor):
                self.size = max(self.size, item.numel())
        return made


def test_memory_does_not_grow_with_the_bank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ENTRIES", 20_000)
    queries = unit(100, DIM, seed=6)
    sizes = []
    for count in (2_000, 20_000):
        rows = unit(count, DIM, seed=7)
        allowed = torch.arange(count)
        with Largest() as watch:
            nearest_rows(queries, rows, allowed, 30)
        sizes.append(watch.size)
    assert sizes[0] == sizes[1] <= 20_000, "not 100 × 20,000 cosines"


@pytest.mark.parametrize("tags", [[2], [1, 3]])
@pytest.mark.parametrize("photo", [3, -1])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("grid", [(3, 4), (1, 1)])
def test_supported_maps_are_the_loops(tags: list[int], photo: int, share: float,
                                      grid: tuple[int, int],
                                      bank: tuple[Tensor, Tensor, Tensor]) -> None:
    rows, index, photo_of = bank
    patches = unit(grid[0] * grid[1], DIM, seed=8)
    cams = torch.rand(len(tags), *grid, generator=torch.Generator().manual_seed(9))
    found = supported_maps(patches, cams, tags, photo, bank, share)
    wanted = banks.supported_maps(patches.numpy(), cams.numpy(), tags, photo, rows.numpy(),
                                  index.tolist(), photo_of.tolist(), 3, share, 0.1)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)


def test_an_empty_map_stays_empty(bank: tuple[Tensor, Tensor, Tensor]) -> None:
    rows, index, photo_of = bank
    patches, cams = unit(4, DIM, seed=12), torch.tensor([[[0.0] * 4], [[0.9, 0.1, 0.2, 0.0]]])
    found = supported_maps(patches, cams, [1, 3], 3, bank, 0.5)
    wanted = banks.supported_maps(patches.numpy(), cams.numpy(), [1, 3], 3, rows.numpy(),
                                  index.tolist(), photo_of.tolist(), 3, 0.5, 0.1)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)
    assert float(found[0].max()) == 0


def test_background_comes_from_photos_that_share_a_tag() -> None:
    """Photo 0 shows class 1, photo 1 class 2: only the first is asked for class 1's background."""
    rows = torch.eye(4)
    found = supports(torch.full((2, 4), 0.5), torch.tensor([1, 0]), rows,
                     torch.tensor([1, 0, 2, 0]), torch.tensor([0, 0, 1, 1]), -1, count=20)
    assert torch.equal(found, rows[:2])


def test_a_region_that_nobody_shares_supports_itself() -> None:
    regions = unit(2, DIM, seed=10)
    found = supports(regions, torch.tensor([5, 0]), unit(3, DIM, seed=11), torch.tensor([1, 2, 0]),
                     torch.tensor([0, 1, 1]), -1, count=2)
    assert torch.equal(found, regions)
