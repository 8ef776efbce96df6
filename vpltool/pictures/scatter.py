"""Scatter pictures: panels of points coloured by class, with a legend, drawn with Pillow only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Points = npt.NDArray[np.float64]
Colour = tuple[int, int, int]

_SHARPNESS = 3
"""Pages are drawn this many times larger and scaled down, since Pillow draws jagged edges."""

_SIDE, _MARGIN, _HEAD, _FOOT = 900, 54, 108, 58
_TITLE, _TEXT, _SMALL, _LINE = 32, 23, 18, 34

_MOST_NAMES = 24
"""With more classes than this, the names next to the marks would overlap."""

_INK, _PALE, _FRAME = (38, 42, 48), (108, 114, 122), (205, 209, 214)

_RADIUS = {"disc": 10.0, "ring": 9.0, "star": 17.0, "square": 11.0, "diamond": 14.5,
           "triangle": 14.5}
_DOTS = (3.5, 10.0)
"""Smallest and largest radius of dots. The more dots a panel has, the smaller they are."""

_CORNERS = {
    "star": [(math.pi * step / 5, 1.0 if step % 2 == 0 else 0.45) for step in range(10)],
    "square": [(math.pi * (step + 0.5) / 2, 1.15) for step in range(4)],
    "diamond": [(math.pi * step / 2, 1.0) for step in range(4)],
    "triangle": [(2 * math.pi * step / 3, 1.0) for step in range(3)],
}
"""Corners of the shapes that are not circles: angle from the top, share of the radius."""

_SHAPE_OF_SPACE = {"text": "star", "vision": "square", "text shifted": "diamond"}


@dataclass(frozen=True)
class Marks:
    """Points of one kind, drawn with one shape.

    Args:
        label: what the points are, for the legend.
        shape: `dot`, `disc`, `ring`, `star`, `square`, `diamond` or `triangle`.
        points: coordinates in the plane (N, 2).
        classes: class index of each point (N,), which gives its colour.
        named: write the name of its class next to each point, unless there are too many classes.
    """

    label: str
    shape: str
    points: Points
    classes: list[int]
    named: bool = False


@dataclass(frozen=True)
class Panel:
    """One square of a picture.

    Args:
        title: text in large letters above the square.
        note: text in small letters below the title.
        marks: the points to draw, from the lowest layer to the highest.
        links: start, end and class index of each line; the class gives its colour.
        axes: names of the horizontal and the vertical axis; empty if they have no meaning.
    """

    title: str
    note: str
    marks: list[Marks]
    links: list[tuple[Points, Points, int]] = field(default_factory=list)
    axes: tuple[str, str] = ("", "")


def shapes_of_spaces(spaces: Sequence[str]) -> list[str]:
    """Choose a shape for each set of prototypes, by its space.

    Text gets a star, vision a square, shifted text a diamond. A second set of the same space gets
    a shape that is still unused, or a triangle when all are used.
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
    """Find the plane in which vectors vary most, by a weighted PCA.

    Args:
        vectors: (N, dim).
        weights: positive weight of each vector (N,).

    Returns:
        The mean (dim,); the two axes (2, dim); and the share of the variance along each (2,). The
        largest entry of an axis is positive, so that the picture is the same each time.
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
    otherwise a dozen prototypes would not count among thousands of regions.

    Args:
        title: see `Panel`.
        note: see `Panel`.
        regions: L2-normalised region features (R, dim).
        region_class: class index of each region (R,).
        prototypes: for each set its name, its space, L2-normalised rows (rows, dim) and the class
            index of each row (rows,). Rows of classes without regions are left out.
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
    """Choose colours that differ clearly on white: even hues of OKLCH, light and dark in turn."""
    return [_oklch((0.72, 0.52)[index % 2] if count > 6 else 0.62, 0.15, 25 + 360 * index / count)
            for index in range(count)]


def _oklch(lightness: float, chroma: float, hue: float) -> Colour:
    """Convert OKLCH (hue in degrees) to sRGB, clipped to its range. Björn Ottosson, 2020."""
    a, b = chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue))
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
              -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
              -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short)
    channels = [12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055
                for value in (min(max(value, 0.0), 1.0) for value in linear)]
    red, green, blue = (round(255 * value) for value in channels)
    return red, green, blue


def draw_panels(panels: Sequence[Panel], names: Mapping[int, str]) -> Image.Image:
    """Draw panels side by side, with one legend for all of them on the right.

    Args:
        panels: one or more.
        names: class index to name, in the order of the legend.
    """
    colours = dict(zip(names, class_colours(len(names)), strict=True))
    sheet = _Sheet(len(panels) * (_SIDE + _MARGIN) + _MARGIN, panels, names)
    for column, panel in enumerate(panels):
        _draw_panel(sheet, panel, _MARGIN + column * (_SIDE + _MARGIN), names, colours)
    _draw_legend(sheet, panels, names, colours)
    return sheet.finished()


class _Sheet:
    """A page whose coordinates are final pixels, stored several times larger until finished."""

    def __init__(self, legend_left: int, panels: Sequence[Panel], names: Mapping[int, str]) -> None:
        self._fonts = {size: ImageFont.load_default(size * _SHARPNESS)
                       for size in (_TITLE, _TEXT, _SMALL)}
        self.legend_left = legend_left
        height = _HEAD + _SIDE + _FOOT
        self.rows = (height - _HEAD) // _LINE
        labels = [*names.values(), *(marks.label for panel in panels for marks in panel.marks)]
        self.column = 52 + max(self.width_of(label) for label in labels)
        entries = len(names) + 1 + len({marks.label for panel in panels for marks in panel.marks})
        columns = math.ceil(entries / self.rows)
        size = (legend_left + columns * self.column + _MARGIN // 2, height)
        self._page = Image.new("RGB", (size[0] * _SHARPNESS, size[1] * _SHARPNESS), "white")
        # In this mode, a colour with an opacity as its fourth value is blended with the picture.
        self._draw: Any = ImageDraw.Draw(self._page, "RGBA")

    def width_of(self, text: str, size: int = _TEXT) -> int:
        return math.ceil(self._fonts[size].getlength(text) / _SHARPNESS)

    def text(self, left: float, top: float, text: str, size: int = _TEXT,
             colour: Colour = _INK) -> None:
        self._draw.text((left * _SHARPNESS, top * _SHARPNESS), text, fill=colour,
                        font=self._fonts[size])

    def name_beside(self, point: Points, text: str, right: float) -> None:
        """Write a name to the right of a mark, or to its left if it would end beyond `right`."""
        reach = 20 + self.width_of(text, _SMALL)
        left = point[0] + 20 if point[0] + reach < right else point[0] - reach
        self._draw.text((left * _SHARPNESS, (point[1] - 10) * _SHARPNESS), text, fill=_INK,
                        font=self._fonts[_SMALL], stroke_width=3 * _SHARPNESS,
                        stroke_fill=(255, 255, 255, 190))

    def vertical_text(self, left: float, bottom: float, text: str) -> None:
        font = self._fonts[_TEXT]
        image = Image.new("L", (math.ceil(font.getlength(text)), 2 * _TEXT * _SHARPNESS), 0)
        ImageDraw.Draw(image).text((0, 0), text, fill=255, font=font)
        turned = image.rotate(90, expand=True)
        self._page.paste(_PALE, (round(left * _SHARPNESS),
                                 round(bottom * _SHARPNESS) - turned.height), turned)

    def box(self, left: float, top: float, side: float) -> None:
        self._draw.rectangle(
            [left * _SHARPNESS, top * _SHARPNESS, (left + side) * _SHARPNESS,
             (top + side) * _SHARPNESS], outline=_FRAME, width=2 * _SHARPNESS)

    def line(self, start: Points, end: Points, colour: Colour) -> None:
        self._draw.line([*(start * _SHARPNESS), *(end * _SHARPNESS)], fill=(*colour, 150),
                        width=2 * _SHARPNESS)

    def dot(self, point: Points, colour: Colour, radius: float) -> None:
        x, y, radius = *(point * _SHARPNESS), radius * _SHARPNESS
        self._draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=(*colour, 140))

    def mark(self, shape: str, point: Points, colour: Colour) -> None:
        (x, y), radius = point * _SHARPNESS, _RADIUS[shape] * _SHARPNESS
        if shape == "disc":
            self._draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)
        elif shape == "ring":
            for extra, fill in ((1.5 * _SHARPNESS, (255, 255, 255)), (0, colour),
                                (-4 * _SHARPNESS, (255, 255, 255))):
                reach = radius + extra
                self._draw.ellipse([x - reach, y - reach, x + reach, y + reach], fill=fill)
        else:
            # A dark rim within a white one makes a mark visible among points of its colour.
            for reach, fill in ((radius + 5 * _SHARPNESS, (255, 255, 255)),
                                (radius + 2.5 * _SHARPNESS, _INK), (radius, colour)):
                self._draw.polygon([(x + reach * part * math.sin(angle),
                                     y - reach * part * math.cos(angle))
                                    for angle, part in _CORNERS[shape]], fill=fill)

    def finished(self) -> Image.Image:
        return self._page.resize((self._page.width // _SHARPNESS,
                                  self._page.height // _SHARPNESS), Image.Resampling.BOX)


def _draw_panel(sheet: _Sheet, panel: Panel, left: int, names: Mapping[int, str],
                colours: Mapping[int, Colour]) -> None:
    sheet.text(left, 18, panel.title, _TITLE)
    size = _TEXT if sheet.width_of(panel.note) <= _SIDE else _SMALL
    sheet.text(left, 62, panel.note, size, _PALE)
    sheet.box(left, _HEAD, _SIDE)
    points = np.concatenate([marks.points for marks in panel.marks])
    low, high = points.min(axis=0), points.max(axis=0)
    # Both axes have the same scale, so that distances in the picture are those in the plane.
    scale = 0.92 * _SIDE / max(float((high - low).max()), 1e-9)

    def on_page(point: Points) -> Points:
        x, y = (point - (low + high) / 2) * scale
        return np.array([left + _SIDE / 2 + x, _HEAD + _SIDE / 2 - y])

    named = [pair for marks in panel.marks if marks.named and len(names) <= _MOST_NAMES
             for pair in zip(marks.points, marks.classes, strict=True)]
    for layer, marks in enumerate(panel.marks):
        if layer == 1:
            for start, end, label in panel.links:
                sheet.line(on_page(start), on_page(end), colours[label])
            # Names come before the marks, which they must not cover.
            for point, label in named:
                sheet.name_beside(on_page(point), names[label], left + _SIDE)
        radius = float(np.clip(120 / math.sqrt(max(len(marks.points), 1)), *_DOTS))
        for point, label in zip(marks.points, marks.classes, strict=True):
            if marks.shape == "dot":
                sheet.dot(on_page(point), colours[label], radius)
            else:
                sheet.mark(marks.shape, on_page(point), colours[label])
    horizontal, vertical = panel.axes
    sheet.text(left, _HEAD + _SIDE + 10, horizontal, colour=_PALE)
    if vertical:
        sheet.vertical_text(left - 36, _HEAD + _SIDE, vertical)


def _draw_legend(sheet: _Sheet, panels: Sequence[Panel], names: Mapping[int, str],
                 colours: Mapping[int, Colour]) -> None:
    shapes = {marks.label: marks.shape for panel in panels for marks in panel.marks}
    entries = [(shape, label, _PALE) for label, shape in shapes.items()]
    entries += [("", "", _PALE)]
    entries += [("disc", name, colours[index]) for index, name in names.items()]
    for number, (shape, label, colour) in enumerate(entries):
        column, row = divmod(number, sheet.rows)
        left = sheet.legend_left + column * sheet.column
        middle = _HEAD + row * _LINE + _LINE / 2
        centre = np.array([left + 18, middle])
        if shape == "dot":
            sheet.dot(centre, colour, 7)
        elif shape:
            sheet.mark(shape, centre, colour)
        sheet.text(left + 44, middle - 14, label)
