"""Parts that vehicles share: paint, glass, wheels, lamps."""

from __future__ import annotations

import numpy as np

from vpltool.demo.canvas import (
    Colour,
    Drawing,
    Palette,
    Part,
    Points,
    Rng,
    box,
    choose,
    darker,
    ellipse,
    lighter,
    points,
    rotated,
)

PAINTS: Palette = {
    "red": (190, 40, 36), "blue": (44, 84, 168), "green": (50, 120, 68), "yellow": (232, 186, 48),
    "white": (232, 232, 226), "orange": (222, 116, 36), "grey": (132, 138, 146),
    "black": (48, 50, 56)}
GLASS: Colour = (74, 98, 116)
TYRE: Colour = (40, 39, 42)
STEEL: Colour = (168, 172, 178)
SHINE: Colour = (236, 246, 252)


def another(rng: Rng, than: str, *names: str) -> Colour:
    """Choose a paint whose name is not `than`."""
    return choose(rng, PAINTS, *(each for each in names or PAINTS if each != than))[1]


def wheel(drawing: Drawing, x: float, radius: float, hub: Colour = STEEL, rim: float = 0.62,
           spokes: int = 0) -> None:
    """Draw a wheel with a tyre on the ground at x; `rim` is the hub's share of its radius."""
    tyre = drawing.add(Part(ellipse(x, radius, radius), TYRE, volume=0.35, roundness=0.3,
                            grain=0.06))
    tyre.mark(ellipse(x, radius, radius * (rim + 0.06)), darker(TYRE, 0.5))
    tyre.mark(ellipse(x, radius, radius * rim), hub)
    tyre.mark(ellipse(x, radius, radius * rim * 0.86), darker(hub, 0.22))
    for angle in np.arange(spokes) * 360 / max(1, spokes):
        spoke = rotated(box(-0.09, 0, 0.09, 0.84 * rim, 0.04), float(angle)) * radius
        tyre.mark(spoke + (x, radius), lighter(hub, 0.1))
    tyre.mark(ellipse(x, radius, radius * 0.2), lighter(hub, 0.25))
    tyre.mark(ellipse(x, radius, radius * 0.09), darker(hub, 0.5))


def pane(part: Part, pane: Points, glass: Colour = GLASS, frame: Colour | None = None) -> None:
    """Draw a window: dark glass with a reflection of the sky above and a slanted gleam."""
    middle = pane.mean(0)
    if frame is not None:
        low, high = pane.min(0), pane.max(0)
        edge = 1 + 0.22 * float(np.min(high - low)) / (high - low)
        part.mark((pane - middle) * edge + middle, frame)
    part.mark(pane, glass)
    low, high = pane.min(0), pane.max(0)
    upper = np.clip(pane, (-np.inf, float(low[1] + (high[1] - low[1]) * 0.55)), np.inf)
    part.mark(upper, lighter(glass, 0.25), 0.7)
    (left, bottom), (right, top) = low.tolist(), high.tolist()
    wide = min(right - left, (top - bottom) * 1.2)
    gleam = points((left + wide * 0.15, bottom), (left + wide * 0.4, bottom),
                   (left + wide * 0.75, top), (left + wide * 0.5, top))
    part.mark(np.clip(gleam, low, high), SHINE, 0.3)


def windows(part: Part, left: float, right: float, low: float, high: float, count: int,
             gap: float = 0.2, glass: Colour = GLASS, frame: Colour | None = None) -> None:
    """Draw a row of windows between two ends."""
    step = (right - left) / count
    for start in left + step * np.arange(count):
        pane(part, box(start + step * gap / 2, low, start + step * (1 - gap / 2), high,
                        (high - low) * 0.16), glass, frame)


def lamp(part: Part, x: float, y: float, size: float, colour: Colour) -> None:
    """Draw a round lamp on a vehicle."""
    part.mark(ellipse(x, y, size, size * 1.1), darker(colour, 0.45))
    part.mark(ellipse(x, y, size * 0.8, size * 0.9), colour)
    part.mark(ellipse(x - size * 0.2, y + size * 0.25, size * 0.3), (255, 255, 250))
