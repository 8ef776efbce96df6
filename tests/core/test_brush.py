"""Label Studio's run lengths: against the format written out bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
from reference import brush

from vpltool.methods.exports.label_studio import brush_lengths, from_brush_lengths


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98, 1.0])
def test_the_reference_reads_what_is_written(share: float) -> None:
    rng = np.random.default_rng(0)
    inside = rng.random((13, 17)) < share
    values = np.reshape(brush.decode(brush_lengths(inside)), (13, 17, 4))
    assert (values == np.where(inside, 255, 0)[..., None]).all()
    assert (from_brush_lengths(brush_lengths(inside), (13, 17)) == inside).all()


def test_long_runs_are_cut() -> None:
    inside = np.zeros((300, 500), bool)
    inside[10:290] = True
    content = brush_lengths(inside)
    assert len(content) < 100
    assert (from_brush_lengths(content, inside.shape) == inside).all()
    assert sum(brush.decode(content)) == 255 * 4 * inside.sum()


def test_values_one_by_one_are_read() -> None:
    """As where colours change from pixel to pixel; what is not transparent counts."""
    rng = np.random.default_rng(1)
    inside = rng.random((5, 6)) < 0.5
    values = rng.integers(0, 256, (5, 6, 4))
    values[..., 3] = np.where(inside, rng.integers(1, 256, (5, 6)), 0)
    content = brush.encode_singly(values.ravel().tolist())
    assert brush.decode(content) == values.ravel().tolist()
    assert (from_brush_lengths(content, (5, 6)) == inside).all()


@pytest.mark.parametrize(("content", "said"), [
    ([1, 2], "too short"), (brush_lengths(np.eye(4, dtype=bool))[:-2], "end too early"),
    (brush_lengths(np.eye(5, dtype=bool)), "hold 25 pixels, not 4×4")])
def test_damaged_ones_are_refused(content: list[int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        from_brush_lengths(content, (4, 4))
