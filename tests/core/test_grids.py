"""Grids of a second encoder, resampled to those of the first."""

from __future__ import annotations

import pytest
import torch

from vpltool.core.grids import is_same_view, resample_attention, resample_patches


def test_the_same_grid_gives_the_same_values() -> None:
    patches, attention = torch.randn(12, 5), torch.rand(12, 12)
    assert torch.equal(resample_patches(patches, (3, 4), (3, 4)), patches)
    assert torch.equal(resample_attention(attention, (3, 4), (3, 4)), attention)


def test_a_finer_grid_keeps_what_is_where() -> None:
    """The object's corner stays in its corner: rows are not taken for columns."""
    patches = torch.zeros(6, 1)
    patches[2] = 1  # top right of 2 × 3
    finer = resample_patches(patches, (2, 3), (4, 6)).view(4, 6)
    assert finer.argmax() == 5
    assert finer[2:].max() < finer[:2].max()


def test_attention_keeps_its_rows_sums() -> None:
    attention = torch.rand(6, 6).softmax(dim=-1)
    finer = resample_attention(attention, (2, 3), (4, 6))
    assert finer.shape == (24, 24)
    torch.testing.assert_close(finer.sum(dim=-1).mean(), torch.tensor(1.0), atol=0.05, rtol=0)
    # A patch of the new grid attends to where its old patch did.
    sharp = resample_attention(torch.eye(6), (2, 3), (4, 6))
    assert sharp[0].argmax() == 0 and sharp[-1].argmax() == 23


@pytest.mark.parametrize(("first", "second", "same"), [
    ((26, 20), (52, 40), True), ((26, 20), (20, 26), False), ((16, 16), (14, 14), True)])
def test_the_aspect_ratio_tells_the_same_photo(
    first: tuple[int, int], second: tuple[int, int], same: bool
) -> None:
    assert is_same_view(first, second) is same
