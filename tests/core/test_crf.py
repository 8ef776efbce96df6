"""The CRF's backends against each other; the lattice against the Gaussian that it approximates."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from reference import clip_es

from vpltool.core import crf_numba
from vpltool.core.crf import (
    KERNELS,
    CrfKernels,
    decided,
    fastest_backend,
    labels_at,
    mean_field,
    mean_fields,
    scores_of_labels,
    with_background,
    wrap_image,
)
from vpltool.core.permutohedral import Lattice


def some_photo(height: int = 40, width: int = 48, seed: int = 0) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    photo = np.full((height, width, 3), (90, 110, 100)) + rng.integers(-10, 11, (height, width, 3))
    photo[10:28, 8:24] = (200, 60, 50) + rng.integers(-10, 11, (18, 16, 3))
    photo[20:36, 28:44] = (40, 60, 210) + rng.integers(-10, 11, (16, 16, 3))
    return photo.astype(np.uint8)


def some_scores(height: int = 40, width: int = 48, seed: int = 1) -> np.ndarray[Any, Any]:
    """Blurred, shifted and noisy maps of the two boxes, and their background."""
    rng = np.random.default_rng(seed)
    cams = np.zeros((2, height // 4, width // 4), np.float32)
    cams[0, 2:6, 1:6] = 0.8
    cams[1, 5:9, 7:10] = 0.7
    cams += rng.random(cams.shape, np.float32) * 0.3
    full = torch.nn.functional.interpolate(torch.from_numpy(cams)[None], size=(height, width),
                                           mode="bilinear", align_corners=False)[0].clamp(0, 1)
    scores: np.ndarray[Any, Any] = with_background(full).numpy()
    return scores


@pytest.mark.parametrize("preset", KERNELS)
@pytest.mark.parametrize("labels", [2, 3])
def test_torch_is_pydensecrf(preset: str, labels: int) -> None:
    pytest.importorskip("pydensecrf")
    photo, scores = some_photo(), some_scores()[:labels]
    first, second = (mean_field(photo, scores, KERNELS[preset], backend=backend)
                     for backend in ("torch", "pydensecrf"))
    # torch filters what each label has more than the first, pydensecrf each label.
    assert (first.argmax(axis=0) == second.argmax(axis=0)).mean() >= 0.9999
    assert np.abs(first - second).mean() < 1e-5
    assert np.abs(first - second).max() < 1e-3
    # The CRF must have had something to do.
    assert (first.argmax(axis=0) != scores.argmax(axis=0)).mean() > 0.005


@pytest.mark.parametrize("preset", KERNELS)
@pytest.mark.parametrize("labels", [2, 3, 4, 5, 6, 21])
def test_loops_are_torch(preset: str, labels: int) -> None:
    """For each number of columns whose loops are unrolled, and beyond."""
    scores = np.concatenate([some_scores(seed=seed)[min(seed, 1):] for seed in range(12)])[:labels]
    first, second = (mean_field(some_photo(), scores, KERNELS[preset], backend=backend)
                     for backend in ("torch", "numba"))
    assert second.dtype == np.float32
    assert second.flags["C_CONTIGUOUS"]
    assert np.abs(first - second).mean() < 1e-5
    assert np.abs(first - second).max() < 2e-3
    assert (first.argmax(axis=0) != scores.argmax(axis=0)).mean() > 0.005


@pytest.mark.parametrize("dims", [2, 5])
@pytest.mark.parametrize("columns", [1, 3, 7])
def test_loops_filter_as_tensors_do(dims: int, columns: int) -> None:
    """The lattices have the same vertices, however many there are, and the same sums."""
    generator = torch.Generator().manual_seed(dims)
    points = 12 * torch.rand(20_000, dims, generator=generator)
    values = torch.rand(len(points), columns, generator=generator)
    plain = Lattice(points)
    lattice = crf_numba.build_lattice(points.numpy())
    assert lattice.neighbours.shape == (dims + 1, plain.vertices + 1, 2)
    np.testing.assert_allclose(lattice.weight.sum(axis=1), 1, atol=1e-5)
    kernel = crf_numba.Kernel(lattice, np.full(len(points), 0.5, np.float32), np.float32(3))
    sums = np.ones(values.shape, np.float32)
    crf_numba.add_filtered(kernel, values.numpy(), sums)
    np.testing.assert_allclose(sums - 1, 0.75 * plain.filter(values), rtol=1e-3)


def test_one_label_is_all_there_is() -> None:
    found = mean_field(some_photo(), some_scores()[:1], KERNELS["clip-es"], backend="numba")
    assert (found == 1).all()


def test_what_cannot_be_numbered_is_refused() -> None:
    with pytest.raises(ValueError, match="deviations"):
        crf_numba.build_lattice(np.array([[0.0] * 5, [1e7] * 5], np.float32))


def test_the_fastest_of_those_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"numba", "pydensecrf"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name in there or None)
    cpu = torch.device("cpu")
    for expected in ("numba", "pydensecrf", "torch"):
        assert fastest_backend(cpu) == expected
        there.discard(expected)
    assert fastest_backend(torch.device("cuda")) == "torch"


@pytest.mark.parametrize("confidence", [0.0, 0.55])
def test_what_leads_everywhere_stays(confidence: float) -> None:
    """Where a label leads at all pixels the CRF is not needed: it gives the same labels."""
    scores = 0.4 * some_scores()
    scores[1] += 0.6
    found = decided(scores, confidence)
    assert found is not None
    refined = mean_field(some_photo(), scores, KERNELS["clip-es"])
    classes = np.array([0, 7, 12])
    for least in {0.0, confidence}:
        assert (labels_at(found, classes, None, least)
                == labels_at(refined, classes, None, least)).all()
    assert (refined[1] >= found[1] - 1e-6).all()


def test_what_does_not_lead_everywhere_is_refined() -> None:
    scores = 0.4 * some_scores()
    scores[1] += 0.6
    assert decided(scores, 0.99) is None, "some pixels would be told apart from sure ones"
    scores[:2, 3, 5] = 0.5
    assert decided(scores) is None, "a tie goes to the first, and neighbours may break it"
    assert decided(some_scores()) is None


@pytest.mark.parametrize("dims", [2, 5])
def test_lattice_is_about_a_gaussian(dims: int) -> None:
    """Ratios of filtered values to the sum of weights: how the CRF uses it, up to its own error."""
    generator = torch.Generator().manual_seed(dims)
    points = 2 * torch.rand(200, dims, generator=generator)
    values = torch.rand(200, 3, generator=generator) + (points[:, :1] > 1)
    kernel = (-0.5 * torch.cdist(points.double(), points.double()) ** 2).exp().float()
    exact = kernel @ values / kernel.sum(dim=1, keepdim=True)
    lattice = Lattice(points)
    found = lattice.filter(values) / lattice.filter(torch.ones(200, 1))
    assert (found - exact).abs().mean() < 0.05
    assert (found - exact).abs().mean() < 0.3 * (exact - values.mean(0)).abs().mean()


def test_lattice_parts_what_is_far_apart() -> None:
    """Two clusters ten deviations apart: nothing of one arrives at the other."""
    generator = torch.Generator().manual_seed(0)
    points = torch.cat([0.1 * torch.randn(20, 3, generator=generator),
                        0.1 * torch.randn(20, 3, generator=generator) + 10])
    values = torch.cat([torch.ones(20, 1), torch.zeros(20, 1)])
    found = Lattice(points).filter(values)
    assert float(found[20:].abs().max()) == 0
    # Within a cluster the kernel is nearly 1: the sum is nearly the number of points.
    assert float(found[:20].mean()) == pytest.approx(20, rel=0.25)


def test_filter_is_linear() -> None:
    generator = torch.Generator().manual_seed(1)
    lattice = Lattice(3 * torch.rand(60, 2, generator=generator))
    matrix = lattice.filter(torch.eye(60))
    values = torch.rand(60, 4, generator=generator)
    torch.testing.assert_close(lattice.filter(values), matrix @ values, atol=1e-5, rtol=1e-4)


def test_lattice_refuses_what_it_cannot_number() -> None:
    with pytest.raises(ValueError, match="deviations"):
        Lattice(torch.tensor([[0.0] * 5, [1e7] * 5]))


def test_marginals_sum_to_one_and_need_no_normalised_scores() -> None:
    found = mean_field(some_photo(), some_scores() * 0.5, KERNELS["weclip"])
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-5)


def test_wrapping_is_that_of_bytes() -> None:
    grey = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    found = wrap_image(grey)
    assert found[0, [0, 50, 104, 105, 255]].tolist() == [
        [152, 140, 134], [202, 190, 184], [0, 244, 238], [0, 245, 239], [150, 138, 132]]
    photo = some_photo()
    np.testing.assert_array_equal(wrap_image(photo), clip_es.wrap(photo))
    assert found.flags["OWNDATA"]


def test_wrapping_parts_what_lies_on_both_sides_of_the_mean() -> None:
    """Two greys that differ by 6 are one thing to the CRF, and two when one of them wraps."""
    photo = np.full((24, 32, 3), 120, np.uint8)
    photo[:, 16:] = 126
    scores = np.full((2, 24, 32), 0.5, np.float32)
    scores[1, :, :16], scores[0, :, :16] = 0.9, 0.1
    scores[1, :, 16:], scores[0, :, 16:] = 0.45, 0.55
    settings = CrfKernels(1, 0, 67, 30, 4)
    plain, wrapped = (mean_field(seen, scores, settings).argmax(axis=0)
                      for seen in (photo, wrap_image(photo)))
    assert plain[:, 16:].mean() == 1
    assert wrapped[:, 16:].mean() == 0


GOOD = {"smooth_sxy": 1, "smooth_weight": 3, "bilateral_sxy": 67.5, "bilateral_srgb": 3,
        "bilateral_weight": 0}


def test_settings_of_json_are_kernels() -> None:
    assert CrfKernels.from_json(asdict(KERNELS["weclip"])) == KERNELS["weclip"]
    found = CrfKernels.from_json(GOOD)
    assert found == CrfKernels(1, 3, 67.5, 3, 0)
    assert type(found.smooth_sxy) is int, "a header must not change with a decimal point"


@pytest.mark.parametrize(("values", "told"), [
    ({"smooth_sxy": "3"}, "smooth_sxy is '3': expected a number above 0"),
    ({"smooth_sxy": 0}, "smooth_sxy is 0: expected a number above 0"),
    ({"bilateral_srgb": -3.5}, "bilateral_srgb is -3.5: expected a number above 0"),
    ({"bilateral_weight": -1}, "bilateral_weight is -1: expected a number of 0 or more"),
    ({"bilateral_weight": float("nan")}, "bilateral_weight is nan"),
    ({"smooth_weight": float("inf")}, "smooth_weight is inf"),
    ({"smooth_weight": True}, "smooth_weight is True"),
    ({"smooth_weight": None}, "smooth_weight is None"),
    ({"bilateral_sxy": [1]}, "bilateral_sxy is [1]"),
    ({"iterations": 2.5}, "iterations is 2.5: expected a whole number of 0 or more"),
    ({"sxy": 3}, "sxy is not a setting of a CRF: smooth_sxy, smooth_weight"),
])
def test_settings_of_json_are_checked(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(told)}"):
        CrfKernels.from_json(GOOD | values)


def test_settings_of_json_are_complete() -> None:
    for name in GOOD:
        with pytest.raises(ValueError, match=f"{name} is missing"):
            CrfKernels.from_json({key: value for key, value in GOOD.items() if key != name})
    with pytest.raises(ValueError, match="an object"):
        CrfKernels.from_json([1, 3, 67, 3, 4])


def test_zero_weights_leave_the_scores() -> None:
    scores = some_scores()
    found = mean_field(some_photo(), scores, CrfKernels(1, 0, 67, 3, 0))
    np.testing.assert_allclose(found, scores / scores.sum(axis=0), atol=1e-4)


@pytest.mark.parametrize("backend", ["torch", "pydensecrf"])
def test_a_single_label_is_sure(backend: str) -> None:
    if backend == "pydensecrf":
        pytest.importorskip("pydensecrf")
    found = mean_field(some_photo(), np.full((1, 40, 48), 0.3, np.float32), KERNELS["clip-es"],
                       backend=backend)
    assert found.shape == (1, 40, 48)
    assert (found == 1).all()


def test_sizes_do_not_share_a_kernel() -> None:
    """The smoothness kernel is kept between photos, by size."""
    first = mean_field(some_photo(), some_scores(), KERNELS["clip-es"])
    mean_field(some_photo()[:24, :32], some_scores()[:, :24, :32], KERNELS["clip-es"])
    again = mean_field(some_photo(), some_scores(), KERNELS["clip-es"])
    assert (first == again).all()


def test_with_background() -> None:
    cams = torch.tensor([[[0.2, 0.9]], [[0.5, 0.1]]])
    torch.testing.assert_close(with_background(cams)[0], torch.tensor([[0.5, 0.1]]))
    torch.testing.assert_close(with_background(cams, 2.0)[0], torch.tensor([[0.25, 0.01]]))
    assert torch.equal(with_background(cams)[1:], cams)
    assert torch.equal(with_background(torch.zeros(0, 2, 3)), torch.ones(1, 2, 3))


def test_labels_at() -> None:
    marginals = np.array([[[0.96, 0.2, 0.5]], [[0.04, 0.8, 0.4]], [[0.0, 0.0, 0.1]]], np.float32)
    classes = np.array([0, 7, 12])
    assert labels_at(marginals, classes).tolist() == [[0, 7, 0]]
    assert labels_at(marginals, classes, None, 0.7).tolist() == [[0, 7, 255]]
    assert labels_at(marginals, classes, None, 0.95).tolist() == [[0, 255, 255]]


def test_scores_of_labels() -> None:
    scores, classes = scores_of_labels(np.array([[0, 5], [255, 9]], np.uint8))
    assert classes.tolist() == [0, 5, 9]
    np.testing.assert_allclose(scores[:, 0, 0], [0.7, 0.15, 0.15], rtol=1e-6)
    np.testing.assert_allclose(scores[:, 1, 0], [0.7, 0.15, 0.15], rtol=1e-6)
    np.testing.assert_allclose(scores[:, 1, 1], [0.15, 0.15, 0.7], rtol=1e-6)
    np.testing.assert_allclose(scores.sum(0), 1, rtol=1e-6)
    alone, classes = scores_of_labels(np.full((2, 2), 4, np.uint8))
    assert (classes.tolist(), tuple(alone.shape)) == ([4], (1, 2, 2))


def test_photos_together_are_photos_alone() -> None:
    """Several photos in one lattice do not see each other, nor labels that others have."""
    photos = [some_photo(seed=seed) for seed in range(3)]
    scores = [some_scores(seed=seed)[:labels] for seed, labels in enumerate((3, 2, 1))]
    together = mean_fields(photos, scores, KERNELS["clip-es"])
    for photo, field, found in zip(photos, scores, together, strict=True):
        alone = mean_field(photo, field, KERNELS["clip-es"])
        assert found.shape == alone.shape
        assert np.abs(found - alone).max() < 1e-4
    again = mean_fields(photos, scores, KERNELS["clip-es"])
    assert all((first == second).all() for first, second in zip(together, again, strict=True))


def test_sets_of_points_do_not_meet() -> None:
    points = torch.rand(60, 3, generator=torch.Generator().manual_seed(0))
    values = torch.rand(120, 2, generator=torch.Generator().manual_seed(1))
    both = Lattice(points.repeat(2, 1), 2).filter(values)
    apart = torch.cat([Lattice(points).filter(part) for part in values.split(60)])
    torch.testing.assert_close(both, apart)


def test_rescaled_filter() -> None:
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(2))
    values = torch.rand(50, 2, generator=torch.Generator().manual_seed(3))
    before, after = torch.rand(2, 50, generator=torch.Generator().manual_seed(4))
    wanted = after[:, None] * Lattice(points).filter(before[:, None] * values)
    lattice = Lattice(points)
    lattice.rescale(before, after)
    torch.testing.assert_close(lattice.filter(values), wanted)
