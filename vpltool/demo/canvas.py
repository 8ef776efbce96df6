"""Drawing primitives: shapes as polygons, shaded parts painted with soft edges, noise tiles.

An object is first a list of parts in its own coordinates, so that its extent is known before
anything is painted. It is then painted directly at its position in the photo, without resampling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Plane = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]
Colour = tuple[float, float, float]
Palette = Mapping[str, Colour]
Rng = np.random.Generator
Item = TypeVar("Item")

FINER = 3
"""Outlines are drawn this many times finer than the photo, then averaged."""
TILE = 512
"""Side of a noise tile in pixels; a power of two, so that coordinates wrap around with a mask."""


# Colours

def mix(first: Colour, second: Colour, share: float) -> Colour:
    """Blend two colours: `share` of the second, the rest of the first."""
    return (first[0] + (second[0] - first[0]) * share, first[1] + (second[1] - first[1]) * share,
            first[2] + (second[2] - first[2]) * share)


def darker(colour: Colour, share: float = 0.3) -> Colour:
    """Move a colour towards black."""
    return mix(colour, (12, 10, 18), share)


def lighter(colour: Colour, share: float = 0.3) -> Colour:
    """Move a colour towards white."""
    return mix(colour, (255, 252, 244), share)


def vary(rng: Rng, colour: Colour, amount: float = 12) -> Colour:
    """Shift a colour a little in brightness, and less in hue."""
    shift = rng.normal(0, amount) + rng.normal(0, amount * 0.4, 3)
    red, green, blue = np.clip(np.asarray(colour) + shift, 0, 255).tolist()
    return red, green, blue


def one_of(rng: Rng, items: Sequence[Item]) -> Item:
    """Choose one of the items at random."""
    return items[int(rng.integers(len(items)))]


def pick(rng: Rng, colours: Sequence[Colour], amount: float = 8) -> Colour:
    """Choose one of the colours, and vary it a little."""
    return vary(rng, one_of(rng, colours), amount)


def choose(rng: Rng, palette: Palette, *names: str) -> tuple[str, Colour]:
    """Choose the name of a colour, from all or from the given ones, and a shade of it."""
    name = one_of(rng, names or list(palette))
    return name, vary(rng, palette[name], 10)


# Shapes: arrays of corners (N, 2), x to the right, y up

def points(*corners: tuple[float, float]) -> Points:
    """Return corners as an array (N, 2)."""
    return np.array(corners, dtype=np.float64)


def box(left: float, low: float, right: float, high: float, radius: float = 0) -> Points:
    """Return a rectangle, with rounded corners if a radius is given."""
    if radius <= 0:
        return points((left, low), (right, low), (right, high), (left, high))
    radius = min(radius, (right - left) / 2, (high - low) / 2)
    turn = np.linspace(0, np.pi / 2, 6)
    arc = np.stack([np.cos(turn), np.sin(turn)], axis=1) * radius
    centres = ((right - radius, high - radius), (left + radius, high - radius),
               (left + radius, low + radius), (right - radius, low + radius))
    return np.concatenate([rotated(arc, 90.0 * corner) + centre
                           for corner, centre in enumerate(centres)])


def ellipse(x: float, y: float, width: float, height: float | None = None,
            angle: float = 0) -> Points:
    """Return a rotated ellipse of half axes `width` and `height` (a circle without `height`)."""
    turn = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    round_ = np.stack([width * np.cos(turn), (height or width) * np.sin(turn)], axis=1)
    return rotated(round_, angle) + (x, y)


def rotated(shape: Points, angle: float) -> Points:
    """Rotate a shape around the origin, in degrees counter-clockwise."""
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return np.asarray(shape @ np.array([[cos, sin], [-sin, cos]]))


def curve(*corners: tuple[float, float], steps: int = 6) -> Points:
    """Return a smooth closed outline through the corners (a Catmull-Rom spline)."""
    at = np.array(corners, dtype=np.float64)
    return _spline(np.roll(at, 1, 0), at, np.roll(at, -1, 0), np.roll(at, -2, 0), steps)


def _spline(before: Points, start: Points, end: Points, after: Points, steps: int) -> Points:
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    before, start, end, after = (each[:, None] for each in (before, start, end, after))
    at = 0.5 * (2 * start + (end - before) * t
                + (2 * before - 5 * start + 4 * end - after) * t**2
                + (3 * start - before - 3 * end + after) * t**3)
    return np.asarray(at.reshape(-1, 2))


def stroke(path: Sequence[tuple[float, float]] | Points, widths: Sequence[float]) -> Points:
    """Return the outline of a band along a path, with a width at each point and round ends."""
    line = np.array(path, dtype=np.float64)
    wide = np.array(widths, dtype=np.float64)
    if len(line) > 2:
        full = np.concatenate([line, wide[:, None]], axis=1)
        ends = np.concatenate([full[:1], full, full[-1:]])
        pieces = [_spline(ends[:-3, part], ends[1:-2, part], ends[2:-1, part], ends[3:, part], 6)
                  for part in (slice(0, 2), slice(1, 3))]
        line = np.concatenate([pieces[0], line[-1:]])
        wide = np.concatenate([pieces[1][:, 1], wide[-1:]])
    along = np.gradient(line, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-9
    side = np.stack([-along[:, 1], along[:, 0]], axis=1) * wide[:, None] / 2
    turn = np.linspace(0, np.pi, 7)[1:-1, None]
    tip = line[-1] + side[-1] * np.cos(turn) + along[-1] * np.sin(turn) * wide[-1] / 2
    root = line[0] - side[0] * np.cos(turn) - along[0] * np.sin(turn) * wide[0] / 2
    return np.concatenate([line + side, tip, (line - side)[::-1], root])


def bumpy(rng: Rng, shape: Points, bumps: int, size: float) -> Points:
    """Add round bumps of a size to an outline, like wool or foliage."""
    closed = np.concatenate([shape, shape[:1]])
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])
    at = np.linspace(0, length[-1], bumps * 6, endpoint=False)
    line = np.stack([np.interp(at, length, closed[:, axis]) for axis in (0, 1)], axis=1)
    outward = line - line.mean(0)
    outward /= np.linalg.norm(outward, axis=1, keepdims=True) + 1e-9
    phase = np.linspace(0, bumps * np.pi, bumps * 6, endpoint=False)
    height = np.abs(np.sin(phase)) * np.repeat(rng.uniform(0.6, 1.3, bumps), 6) * size
    return np.asarray(line + outward * height[:, None])


# Parts and drawings

@dataclass
class Part:
    """A shape of one material, shaded as if it were round, with marks on it.

    `volume` is the strength of the shading (0 is flat), `roundness` how far it reaches inwards
    from the outline, `texture` the name of a noise tile, `grain` its strength, `soft` a blur of the
    outline in the object's units.
    """

    shape: Points
    colour: Colour
    volume: float
    roundness: float
    texture: str
    grain: float
    soft: float
    opacity: float
    marks: list[tuple[Points, Colour, float]] = field(default_factory=list)

    def mark(self, shape: Points, colour: Colour, opacity: float = 1) -> Part:
        """Put a flat shape on the part, clipped to the part's outline."""
        self.marks.append((shape, colour, opacity))
        return self


@dataclass
class Drawing:
    """An object before it is painted: its parts from back to front, in its own units.

    The ground, or the surface of the water if there is a `waterline`, is at y = 0; `colour` is the
    word for it in captions.
    """

    colour: str
    waterline: float | None = None
    parts: list[Part] = field(default_factory=list)

    def add(self, shape: Points, colour: Colour, volume: float = 0.5, roundness: float = 0.5,
            texture: str = "paint", grain: float = 0.05, soft: float = 0, opacity: float = 1
            ) -> Part:
        """Add a part in front of the others; see `Part`."""
        part = Part(shape, colour, volume, roundness, texture, grain, soft, opacity)
        self.parts.append(part)
        return part


@dataclass(frozen=True)
class Pose:
    """How a drawing is placed: column and row of its origin, pixels per unit, mirrored, rotated."""

    column: float
    row: float
    scale: float
    mirrored: bool = False
    angle: float = 0

    def place(self, shape: Points) -> Points:
        """Convert an object's points (N, 2) to columns and rows of the photo."""
        turned = rotated(shape * (-1.0 if self.mirrored else 1.0, 1.0), self.angle)
        return np.asarray(turned * (self.scale, -self.scale) + (self.column, self.row))


@dataclass(frozen=True)
class Layer:
    """A painted object: colours (h, w, 3), coverage (h, w), and its corner in the photo."""

    colours: Plane
    cover: Plane
    top: int
    left: int

    @property
    def window(self) -> tuple[slice, slice]:
        """The rows and columns of the photo that the layer covers."""
        height, width = self.cover.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def paint(drawing: Drawing, pose: Pose, size: tuple[int, int], light: tuple[float, float],
          rng: Rng) -> Layer | None:
    """Paint a drawing at its position in a photo of (height, width); None if it is outside.

    `light` points towards the light, in columns and rows.
    """
    placed = [pose.place(part.shape) for part in drawing.parts]
    frame = _frame(np.concatenate(placed), (0, 0, size[1], size[0]), 2)
    if frame is None:
        return None
    left, top, right, low = frame
    colours = np.zeros((low - top, right - left, 3), np.float32)
    cover = np.zeros((low - top, right - left), np.float32)
    for part, shape in zip(drawing.parts, placed, strict=True):
        softness = part.soft * pose.scale
        window = _frame(shape, frame, 1 + int(2 * softness))
        if window is None:
            continue
        alpha, colour = _paint_part(part, shape, window, pose, light, rng)
        place = np.s_[window[1] - top:window[3] - top, window[0] - left:window[2] - left]
        colours[place] += (colour - colours[place]) * alpha[..., None]
        cover[place] += (1 - cover[place]) * alpha
    rows = np.linspace(-1, 1, low - top, dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, right - left, dtype=np.float32)[None]
    overall = np.asarray(1 + 0.09 * (columns * light[0] + rows * light[1]), np.float32)
    return Layer(colours * overall[..., None], cover, top, left)


def _frame(shape: Points, within: tuple[int, int, int, int],
           margin: int) -> tuple[int, int, int, int] | None:
    low, high = np.floor(shape.min(0)) - margin, np.ceil(shape.max(0)) + margin
    left, top = max(int(low[0]), within[0]), max(int(low[1]), within[1])
    right, bottom = min(int(high[0]), within[2]), min(int(high[1]), within[3])
    return (left, top, right, bottom) if right > left and bottom > top else None


def _paint_part(part: Part, shape: Points, window: tuple[int, int, int, int], pose: Pose,
                light: tuple[float, float], rng: Rng) -> tuple[Plane, Plane]:
    left, top, right, low = window
    width, height = right - left, low - top
    fine = (width * FINER, height * FINER)
    mask = Image.new("L", fine)
    ImageDraw.Draw(mask).polygon(_flat(shape, left, top), fill=255)
    mask = mask.reduce(FINER)
    if part.soft:
        mask = mask.filter(ImageFilter.GaussianBlur(part.soft * pose.scale))
    alpha: Plane = np.asarray(mask, np.float32) * np.float32(part.opacity / 255)
    colour: Plane = np.empty((height, width, 3), np.float32)
    if part.marks:
        sheet = Image.new("RGB", fine, whole(part.colour))
        brush = ImageDraw.Draw(sheet, "RGBA")
        for outline, ink, opacity in part.marks:
            brush.polygon(_flat(pose.place(outline), left, top),
                          fill=(*whole(ink), int(opacity * 255)))
        colour[:] = np.asarray(sheet.reduce(FINER))
    else:
        colour[:] = part.colour
    if part.volume or part.grain:
        colour *= _shading(part, mask, pose, light, rng)[..., None]
    return alpha, colour


def _flat(shape: Points, left: int, top: int) -> list[float]:
    return ((shape - (left, top)) * FINER).ravel().tolist()


def whole(colour: Colour) -> tuple[int, int, int]:
    """Return a colour in whole numbers, as Pillow takes it."""
    return int(colour[0]), int(colour[1]), int(colour[2])


def _shading(part: Part, mask: Image.Image, pose: Pose, light: tuple[float, float],
             rng: Rng) -> Plane:
    """Return the brightness (h, w) of a part as if its mask were inflated and lit from one side."""
    shade = np.ones((mask.height, mask.width), np.float32)
    if part.grain:
        zoom = float(np.clip(pose.scale / 120, 0.5, 3))
        shade += part.grain * crop(part.texture, mask.size, zoom, rng)
    reach = part.roundness * min(mask.size)
    if not part.volume or reach < 2:
        return shade
    margin = int(reach)
    padded = Image.new("F", (mask.width + 2 * margin, mask.height + 2 * margin))
    padded.paste(mask.convert("F"), (margin, margin))
    for share, weight in ((1.0, 0.65), (0.4, 0.35)):
        step = max(2.0, reach * share)
        coarse = padded.resize((max(2, round(padded.width / step)),
                                max(2, round(padded.height / step))), Image.Resampling.BILINEAR)
        puffed = np.asarray(coarse.resize(padded.size, Image.Resampling.BICUBIC))
        across, down = (np.gradient(puffed * np.float32(step / 255), axis=axis) for axis in (1, 0))
        slope = -(across * light[0] + down * light[1])
        inner = slope[margin:-margin, margin:-margin]
        shade += (part.volume * weight) * np.clip(inner, -1.2, 1.2)
    return shade


# Noise

def fabric(cells: tuple[int, int], seed: int) -> Plane:
    """Return a seamless tile (TILE, TILE) of smooth noise with mean 0 and standard deviation 1.

    `cells` is the number of rows and columns of independent values.
    """
    grid = np.random.default_rng(seed).normal(size=cells).astype(np.float32)
    border = min(4, *cells)
    wrapped = np.pad(grid, border, mode="wrap")
    rows, columns = TILE // cells[0], TILE // cells[1]
    large = np.asarray(Image.fromarray(wrapped).resize(
        (wrapped.shape[1] * columns, wrapped.shape[0] * rows), Image.Resampling.BICUBIC))
    tile = large[border * rows:border * rows + TILE, border * columns:border * columns + TILE]
    return np.asarray((tile - tile.mean()) / tile.std(), np.float32)


_TEXTURES: dict[str, tuple[tuple[tuple[int, int], float], ...]] = {
    "paint": (((8, 8), 0.6), ((32, 32), 0.3), ((512, 512), 0.3)),
    "fur": (((16, 32), 0.5), ((256, 64), 0.6), ((512, 128), 0.5)),
    "wool": (((32, 32), 0.4), ((64, 64), 0.6), ((128, 128), 0.6)),
    "leaf": (((16, 16), 0.5), ((128, 32), 0.5), ((256, 256), 0.3)),
    "wood": (((64, 8), 0.7), ((256, 16), 0.5)),
    "cloud": (((4, 4), 0.6), ((8, 8), 0.5), ((16, 16), 0.35), ((32, 32), 0.22), ((64, 64), 0.12),
              ((128, 128), 0.07)),
    "mottle": (((16, 16), 0.5), ((32, 32), 0.4), ((64, 64), 0.35), ((128, 128), 0.3)),
    "gravel": (((128, 128), 0.7), ((256, 256), 0.5), ((512, 512), 0.4)),
    "wave": (((64, 16), 0.6), ((128, 32), 0.6), ((256, 64), 0.4)),
    "blade": (((32, 64), 0.4), ((64, 256), 0.6), ((128, 512), 0.5)),
}
"""Layers of each texture: rows and columns of its grid, and its weight."""


@cache
def tile(texture: str) -> Plane:
    """Return a texture's tile (TILE, TILE) with mean 0 and standard deviation 1; cached."""
    seed = sum(map(ord, texture))
    total = sum((weight * fabric(cells, seed + number)
                 for number, (cells, weight) in enumerate(_TEXTURES[texture])),
                np.zeros((TILE, TILE), np.float32))
    made = np.asarray(total / total.std(), np.float32)
    made.setflags(write=False)
    return made


def crop(texture: str, size: tuple[int, int], zoom: float, rng: Rng) -> Plane:
    """Return a random crop of a texture, `zoom` times as large: (height, width).

    `size` is (width, height), as in Pillow.
    """
    width, height = (min(TILE, int(side / zoom) + 2) for side in size)
    top, left = rng.integers(0, TILE, 2)
    turned = np.roll(tile(texture), (-int(top), -int(left)), (0, 1)) if (
        top + height > TILE or left + width > TILE) else tile(texture)[top:, left:]
    piece = turned[:height, :width]
    if abs(zoom - 1) < 0.1 and piece.shape == size[::-1]:
        return piece
    return np.asarray(Image.fromarray(np.ascontiguousarray(piece)).resize(
        size, Image.Resampling.BILINEAR))
