"""PAR against the reference that goes pixel by pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from reference import par as reference

from vpltool.errors import VplError
from vpltool.methods.label_refiners.par import (
    Settings,
    neighbour_weights,
    offsets_of,
    refine_scores,
    runs_on,
)

Array = np.ndarray[Any, Any]


def refine(photo: Array, scores: Array, settings: Settings) -> Array:
    pixels = torch.from_numpy(photo)[None].permute(0, 3, 1, 2)
    made: Array = refine_scores(pixels, torch.from_numpy(scores)[None], settings)[0].numpy()
    return made


def some(height: int, width: int, labels: int, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    photo = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    return photo, rng.random((labels, height, width), np.float32)


@pytest.mark.parametrize(("height", "width", "labels"), [
    (9, 14, 3), (30, 28, 2), (1, 1, 2), (1, 7, 1), (5, 4, 4)])
def test_it_is_the_reference(height: int, width: int, labels: int) -> None:
    """The code's weights sum to 1.01, so its scores grow; the labels are the same."""
    photo, scores = some(height, width, labels)
    settings = Settings(iterations=3)
    wanted = reference.refine(photo, scores, 3)
    made = refine(photo, scores, settings)
    np.testing.assert_allclose(made * 1.01**3, wanted, rtol=2e-5)
    assert (made.argmax(axis=0) == wanted.argmax(axis=0)).all()


def test_other_distances() -> None:
    photo, scores = some(8, 8, 2)
    wanted = reference.refine(photo, scores, 2, (1, 3))
    made = refine(photo, scores, Settings(iterations=2, dilations="3,1"))
    np.testing.assert_allclose(made * 1.01**2, wanted, rtol=2e-5)


def test_flat_colours() -> None:
    """Where all neighbours are alike, each counts the same but for its distance."""
    photo, scores = some(6, 6, 2)
    photo[...] = 90
    photo[3, 3] = 200
    photo[..., 2] = np.arange(36).reshape(6, 6)
    wanted = reference.refine(photo, scores, 2)
    made = refine(photo, scores, Settings(iterations=2))
    np.testing.assert_allclose(made * 1.01**2, wanted, rtol=2e-5)


def test_weights_sum_to_one_and_stay_inside_an_object() -> None:
    photo = np.full((40, 40, 3), 30, np.uint8)
    photo[:, 20:] = 220
    weights = neighbour_weights(torch.from_numpy(photo)[None].permute(0, 3, 1, 2), Settings())
    assert weights.shape == (1, 48, 40, 40)
    assert torch.allclose(weights.sum(dim=1), torch.ones(1, 40, 40), atol=1e-5)
    offsets = offsets_of(Settings())
    across = [number for number, (_, x) in enumerate(offsets) if x >= 12]
    assert float(weights[0, across, :, 12].sum()) < 0.01


def test_photos_of_a_batch_do_not_meet() -> None:
    photos, scores = zip(*(some(12, 10, 2, seed) for seed in (1, 2)), strict=True)
    both = refine_scores(torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2),
                         torch.from_numpy(np.stack(scores)), Settings(iterations=4)).numpy()
    for made, photo, own in zip(both, photos, scores, strict=True):
        np.testing.assert_allclose(made, refine(photo, own, Settings(iterations=4)), rtol=1e-6)


def test_the_constants() -> None:
    settings = Settings()
    dilations = tuple(map(int, settings.dilations.split(",")))
    assert (settings.iterations, dilations, settings.w1, settings.w2) == (
        reference.ITERATIONS, reference.DILATIONS, reference.W1, reference.W2)


@pytest.mark.parametrize("choice", ["", "1,x", "0,2", ",".join(map(str, range(1, 22)))])
def test_distances_that_are_none(choice: str) -> None:
    with pytest.raises(VplError, match="not a list of at most 20 distances"):
        runs_on(Settings(dilations=choice), torch.device("cpu"))
