"""Scatter pictures by matplotlib: panels of points coloured by class, with one legend."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from vpltool.errors import VplError
from vpltool.lazy import Tensor, matplotlib, np, npt, torch

Points: TypeAlias = "npt.NDArray[np.float64]"
Colour = tuple[float, float, float]

_MOST_NAMES = 24
"""With more classes than this, the names next to the marks would overlap."""

_LEGEND_ROWS = 30

MARKERS = {"dot": "o", "ring": "o", "star": "*", "square": "s", "diamond": "D", "triangle": "^"}
"""Shapes of marks, and matplotlib's names for them; a dot is small and pale, a ring empty."""

_AREA = {"ring": 80, "star": 260, "square": 110, "diamond": 100, "triangle": 130}
"""Of marks, in square points."""

_SHAPE_OF_SPACE = {"text": "star", "vision": "square", "text shifted": "diamond"}


@dataclass(frozen=True)
class Marks:
    """Points of one kind, drawn with one shape."""

    label: str  # for the legend
    shape: str  # a key of `MARKERS`
    points: Points  # coordinates in the plane (N, 2)
    classes: list[int]  # class index of each point (N,), which gives its colour
    named: bool = False  # whether class names are written next to points, unless too many


@dataclass(frozen=True)
class Panel:
    """One square of a picture."""

    title: str  # in large letters above the square
    note: str  # in small letters below the title
    marks: list[Marks]  # from the lowest layer to the highest
    links: list[tuple[Points, Points, int]] = field(default_factory=list)  # start, end, class
    axes: tuple[str, str] = ("", "")  # names; empty if they have no meaning


def shapes_of_spaces(spaces: Sequence[str]) -> list[str]:
    """Choose a shape for each set of prototypes, by its space.

    A second set of the same space gets a shape that is still unused, or a triangle.
    """
    unused = [shape for shape in ("triangle", "diamond", "square", "star")
              if shape not in {_SHAPE_OF_SPACE.get(space) for space in spaces}]
    shapes: list[str] = []
    for space in spaces:
        shape = _SHAPE_OF_SPACE.get(space, "")
        if not shape or shape in shapes:
            shape = unused.pop(0) if unused else "triangle"
        shapes.append(shape)
    return shapes


def principal_plane(vectors: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the plane in which vectors (N, dim) vary most, by a PCA with positive weights (N,).

    Returns the mean (dim,), the two axes (2, dim), and the share of the variance along each (2,).
    The largest entry of an axis is positive, so that the picture is the same each time.
    """
    weights = weights / weights.sum()
    mean = weights @ vectors
    centred = (vectors - mean) * weights.sqrt()[:, None]
    # The SVD of the covariance, whose size does not depend on the number of vectors.
    _, variances, rows = torch.linalg.svd((centred.T @ centred).double())
    axes = rows[:2]
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    axes = (axes * torch.where(largest < 0, -1.0, 1.0)).float()
    return mean, axes, (variances[:2] / variances.sum().clamp_min(1e-30)).float()


def gap_panel(
    title: str, note: str, regions: Tensor, region_class: Tensor,
    prototypes: Sequence[tuple[str, str, Tensor, Tensor]],
) -> Panel:
    """Make the panel of the modality gap: regions, the centroid of each class, and prototypes.

    The plane has the two principal axes of regions and prototypes together. Every class has the
    same weight. Within a class, all regions together weigh as much as each set of prototypes;
    otherwise a dozen prototypes would not count among thousands of regions. Regions are L2-normed
    (R, dim), of classes (R,). Each set of prototypes has its name, space, L2-normed rows (rows,
    dim), and their classes (rows,); rows of classes without regions are left out.
    """
    classes = region_class.unique().tolist()
    sets = [(regions.float(), region_class)]
    for _, _, rows, index in prototypes:
        shown = torch.isin(index, region_class)
        sets.append((rows[shown], index[shown]))
    weights = torch.cat([1 / torch.bincount(index)[index] for _, index in sets])
    mean, axes, share = principal_plane(torch.cat([rows for rows, _ in sets]), weights)

    def project(rows: Tensor) -> Points:
        result: Points = ((rows - mean) @ axes.T).double().numpy()
        return result

    centroids = project(torch.stack([regions[region_class == index].mean(dim=0)
                                     for index in classes]))
    centroid_of = dict(zip(classes, centroids, strict=True))
    marks = [Marks("region of a photo", "dot", project(regions), region_class.tolist())]
    links = []
    shapes = shapes_of_spaces([space for _, space, _, _ in prototypes])
    for (name, _, _, _), shape, (rows, index) in zip(prototypes, shapes, sets[1:], strict=True):
        points = project(rows)
        marks.append(Marks(f"{name} prototype", shape, points, index.tolist(),
                           named=len(marks) == 1))
        links += [(point, centroid_of[label], label)
                  for point, label in zip(points, index.tolist(), strict=True)]
    marks.insert(1, Marks("mean of a class's regions", "ring", centroids, classes))
    return Panel(title, note, marks, links, (
        f"first principal axis ({100 * float(share[0]):.0f} % of the variance)",
        f"second ({100 * float(share[1]):.0f} %)"))


def class_colours(count: int) -> list[Colour]:
    """Choose colours that differ clearly on white: even hues, light and dark in turn."""
    values = (0.85, 0.55) if count > 6 else (0.75, 0.75)
    return [tuple(matplotlib.colors.hsv_to_rgb(
        (index / count, 0.85, values[index % 2])).tolist())
            for index in range(count)]


def check_matplotlib(picture: str) -> None:
    """Raise a VplError if matplotlib, which draws a picture, is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise VplError(f"{picture} needs matplotlib, which is not installed",
                       "pip install 'vpltool[figures]'")


def draw_panels(panels: Sequence[Panel], names: Mapping[int, str], path: Path) -> None:
    """Draw panels side by side into a PNG, with one legend for all of them on the right.

    `names` are those of class indices, in the order of the legend.
    """
    colours = dict(zip(names, class_colours(len(names)), strict=True))
    shapes = {marks.label: marks.shape for panel in panels for marks in panel.marks}
    entries = [matplotlib.lines.Line2D([], [], linestyle="", marker=MARKERS[shape], color="grey",
                                       label=label,
                      markerfacecolor="white" if shape == "ring" else "grey")
               for label, shape in shapes.items()]
    entries += [matplotlib.lines.Line2D([], [], linestyle="", marker="o", color=colours[index],
                                        label=name)
                for index, name in names.items()]
    columns = math.ceil(len(entries) / _LEGEND_ROWS)
    figure = matplotlib.figure.Figure(figsize=(9 * len(panels) + 2.5 * columns, 9.6), dpi=100,
                                      layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw_panel(axes, panel, names, colours)
    figure.legend(handles=entries, loc="outside right upper", ncols=columns, frameon=False)
    figure.draw_without_rendering()
    for axes in figure.axes:
        _part_names([text for text in axes.texts if isinstance(text, matplotlib.text.Annotation)])
    figure.savefig(path, format="png")


def _part_names(names: Sequence[matplotlib.text.Annotation]) -> None:
    """Move names up that would cover others, from the lowest to the highest."""
    placed: list[matplotlib.transforms.Bbox] = []
    for name in sorted(names, key=lambda name: float(name.get_window_extent().y0)):
        while any(name.get_window_extent().overlaps(box) for box in placed):
            name.xyann = (name.xyann[0], name.xyann[1] + 2)
        placed.append(name.get_window_extent())


def _draw_panel(axes: matplotlib.axes.Axes, panel: Panel, names: Mapping[int, str],
                colours: Mapping[int, Colour]) -> None:
    axes.set_title(f"{panel.title}\n", loc="left", fontsize=16)
    axes.text(0, 1.01, panel.note, transform=axes.transAxes, fontsize=10, color="grey")
    axes.set(xticks=[], yticks=[], xlabel=panel.axes[0], ylabel=panel.axes[1])
    # Both axes have the same scale, so that distances in the picture are those in the plane.
    axes.set_aspect("equal", adjustable="datalim")
    for start, end, label in panel.links:
        axes.plot(*zip(start, end, strict=True), color=colours[label], alpha=0.6, zorder=1.5)
    middle = float(np.concatenate([marks.points for marks in panel.marks])[:, 0].mean())
    for layer, marks in enumerate(panel.marks):
        own = [colours[index] for index in marks.classes]
        dots, rings = marks.shape == "dot", marks.shape == "ring"
        # Links lie on the first layer, marks of the others on the links.
        axes.scatter(
            marks.points[:, 0], marks.points[:, 1], marker=MARKERS[marks.shape], zorder=1 + layer,
            s=min(max(4000 / max(len(own), 1), 12), 100) if dots else _AREA[marks.shape],
            alpha=0.55 if dots else 1, facecolors="white" if rings else own,
            edgecolors="none" if dots else own if rings else "black", linewidths=3 if rings else 1)
        for (left, top), index in zip(marks.points, marks.classes, strict=True):
            if marks.named and len(names) <= _MOST_NAMES:
                side = -1 if left > middle else 1
                axes.annotate(names[index], (left, top), (11 * side, -4), fontsize=10, zorder=9,
                              textcoords="offset points", ha="left" if side > 0 else "right",
                              path_effects=[matplotlib.patheffects.withStroke(
                                  linewidth=3, foreground="white")])
