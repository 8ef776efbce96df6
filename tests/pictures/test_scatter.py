"""Scatter pictures: the plane, the shapes, the colours, and that marks are where points are."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from vpltool.pictures.scatter import (
    MARKERS,
    Marks,
    Panel,
    class_colours,
    draw_panels,
    gap_panel,
    principal_plane,
    shapes_of_spaces,
)


def test_the_plane_is_that_of_the_weighted_covariance() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(60, 7, generator=generator) * torch.tensor([1, 5, 1, 1, 3, 1, 1.0])
    weights = torch.rand(60, generator=generator) + 0.1
    mean, axes, share = principal_plane(vectors, weights)
    points, amounts = vectors.double().numpy(), weights.double().numpy()
    middle = np.average(points, axis=0, weights=amounts)
    spread = np.cov(points.T, aweights=amounts, ddof=0)
    values, columns = np.linalg.eigh(spread)
    np.testing.assert_allclose(mean.numpy(), middle, atol=1e-5)
    np.testing.assert_allclose(share.numpy(), values[::-1][:2] / values.sum(), atol=1e-5)
    for axis, column in zip(axes.numpy(), columns.T[::-1], strict=False):
        assert abs(axis @ column) == pytest.approx(1, abs=1e-5)
        assert axis[np.abs(axis).argmax()] > 0
    turned = principal_plane(-vectors, weights)[1]
    torch.testing.assert_close(turned, axes)


def test_a_single_point_has_a_plane() -> None:
    _, axes, share = principal_plane(torch.ones(1, 5), torch.ones(1))
    assert axes.shape == (2, 5)
    assert share.tolist() == [0, 0]


@pytest.mark.parametrize(("spaces", "shapes"), [
    (["text", "vision"], ["star", "square"]),
    (["vision", "text"], ["square", "star"]),
    (["text", "text shifted", "vision"], ["star", "diamond", "square"]),
    (["vision", "vision", "text"], ["square", "triangle", "star"]),
    (["vision"] * 5, ["square", "triangle", "diamond", "star", "triangle"]),
])
def test_shapes(spaces: list[str], shapes: list[str]) -> None:
    assert shapes_of_spaces(spaces) == shapes


@pytest.mark.parametrize("count", [1, 3, 12, 20])
def test_colours_are_told_apart(count: int) -> None:
    colours = class_colours(count)
    assert len(set(colours)) == count
    for first, second in itertools.combinations(colours, 2):
        assert sum(abs(a - b) for a, b in zip(first, second, strict=True)) > 30 / 255
    assert all(min(colour) < 200 / 255 for colour in colours), "none fades into the white"


def test_gap_panel_projects_regions_means_and_prototypes_onto_one_plane() -> None:
    generator = torch.Generator().manual_seed(1)
    regions = F.normalize(torch.randn(30, 6, generator=generator), dim=-1)
    labels = torch.arange(30) % 3 + 1
    text, index = F.normalize(torch.randn(5, 6, generator=generator), dim=-1), torch.arange(5)
    panel = gap_panel("t", "n", regions, labels, [("text", "text", text, index)])
    dots, rings, stars = panel.marks
    assert (dots.shape, rings.shape, stars.shape) == ("dot", "ring", "star")
    assert stars.classes == [1, 2, 3], "background rows and classes without regions are skipped"
    for row, wanted in enumerate(rings.classes):
        mine = dots.points[[number for number, own in enumerate(dots.classes) if own == wanted]]
        np.testing.assert_allclose(rings.points[row], mine.mean(axis=0), atol=1e-6)
    for start, end, wanted in panel.links:
        np.testing.assert_array_equal(start, stars.points[stars.classes.index(wanted)])
        np.testing.assert_array_equal(end, rings.points[rings.classes.index(wanted)])
    # Distances in the plane are at most those in the space.
    for first, second in itertools.combinations(range(30), 2):
        flat = np.linalg.norm(dots.points[first] - dots.points[second])
        assert flat <= float((regions[first] - regions[second]).norm()) + 1e-6


@pytest.mark.parametrize("shape", MARKERS)
def test_marks_are_drawn_where_the_points_are(shape: str, tmp_path: Path) -> None:
    corners = np.array([[0.0, 0.0], [1.0, 1.0]])
    panel = Panel("title", "note", [Marks("points", shape, corners, [1, 2])])
    page = drawn([panel], {1: "first", 2: "second"}, tmp_path / "page.png")
    first, second = ([round(255 * channel) for channel in colour] for colour in class_colours(2))
    # Without title and legend; dots let the white through.
    pixels = np.asarray(page).astype(int)[60:950, :1030]
    places = []
    for colour in (first, second):
        share = 0.55 if shape == "dot" else 1
        seen = share * np.array(colour) + (1 - share) * 255
        places.append(np.argwhere(np.abs(pixels - seen).sum(axis=-1) < 6))
    (low, left), (high, right) = (place.mean(axis=0) for place in places)
    assert low > 600
    assert left < 200
    assert high < 200
    assert right > 600


def test_many_classes_and_panels_fit_on_the_page(tmp_path: Path) -> None:
    names = {index: f"class number {index}" for index in range(1, 82)}
    points = np.random.default_rng(0).normal(size=(81, 2))
    marks = Marks("points", "star", points, list(names), named=True)
    one, two = (drawn([Panel("t", "n", [marks])] * count, names, tmp_path / f"{count}.png")
                for count in (1, 2))
    assert two.width - one.width == 900
    assert two.height == one.height
    drawn([Panel("t", "n", [marks])], names, tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "1.png").read_bytes()


def test_names_do_not_cover_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig",
                        lambda figure, *_, **__: figures.append(figure))
    names = {index: f"class number {index}" for index in range(1, 7)}
    points = np.array([[0, 0], [0, 0.01], [0.01, 0], [1, 1], [1, 1.01], [5, 5]])
    draw_panels([Panel("t", "n", [Marks("points", "star", points, list(names), named=True)])],
                names, tmp_path / "page.png")
    _, *texts = figures[0].axes[0].texts
    assert [text.get_text() for text in texts] == list(names.values())
    boxes = [text.get_window_extent() for text in texts]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def drawn(panels: list[Panel], names: dict[int, str], path: Path) -> Image.Image:
    draw_panels(panels, names, path)
    with Image.open(path) as page:
        return page.convert("RGB")
