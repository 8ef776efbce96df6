"""Potted plants; a unit is about the height of the foliage."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vpltool.demo.canvas import (
    Colour,
    Drawing,
    Palette,
    Part,
    Rng,
    box,
    bumpy,
    choose,
    darker,
    ellipse,
    lighter,
    points,
    stroke,
    vary,
)

_POTS: Palette = {"terracotta": (186, 98, 62), "white": (228, 226, 218), "blue": (64, 100, 156),
                  "grey": (128, 130, 132), "yellow": (222, 176, 66), "green": (88, 130, 104)}


def plant(rng: Rng) -> Drawing:
    """Draw a potted plant: broad or long leaves, a bush that may flower, or a cactus."""
    plant = Drawing("green")
    green = vary(rng, ((58, 118, 52), (84, 142, 62), (48, 104, 70), (112, 150, 74))[
        int(rng.integers(4))], 10)
    wide, tall = rng.uniform(.3, .42), rng.uniform(.5, .66)
    _FOLIAGE[int(rng.integers(len(_FOLIAGE)))](rng, plant, green, tall, wide)
    _pot(rng, plant, wide, tall)
    return plant


def _pot(rng: Rng, plant: Drawing, wide: float, tall: float) -> None:
    name, clay = choose(rng, _POTS, "terracotta", "terracotta", *list(_POTS)[1:])
    foot = wide * rng.uniform(.62, .85)
    pot = plant.add(Part(points((-wide, tall), (wide, tall), (foot, .03), (foot - .04, 0),
                                (-foot + .04, 0), (-foot, .03)), clay, 1.0, .5, grain=.06))
    pattern = rng.random()
    if pattern < .3:
        pot.mark(box(-1, tall * .35, 1, tall * .55), lighter(clay, .6))
    elif pattern < .5:
        for x in np.arange(-wide, wide, .14):
            pot.mark(points((x, tall * .25), (x + .07, tall * .5), (x + .14, tall * .25),
                            (x + .07, tall * .4)), lighter(clay, .55))
    rim = plant.add(Part(box(-wide * 1.1, tall - .13, wide * 1.1, tall + .02, .03),
                         lighter(clay, .06), .8, .5, grain=.06))
    rim.mark(box(-1, tall - .14, 1, tall - .11), darker(clay, .35))


def _blade(rng: Rng, plant: Drawing, root: tuple[float, float], angle: float, long: float,
           wide: float, green: Colour, droop: float = 0.0) -> None:
    """Draw a leaf with a midrib, from its root outwards at an angle to the vertical."""
    lean = np.sin(np.radians(angle))
    up = np.cos(np.radians(angle))
    middle = (root[0] + lean * long * .55, root[1] + up * long * .58)
    tip = (root[0] + lean * long * (1 + droop * .2), root[1] + up * long - droop * long * abs(lean))
    path = (root, middle, tip)
    colour = vary(rng, green, 11)
    leaf = plant.add(Part(stroke(path, (wide * .35, wide, wide * .1)), colour, .6, .5, "leaf", .06))
    leaf.mark(stroke(path, (.03, .02, .01)), lighter(colour, .35), .8)


def _broad_leaves(rng: Rng, plant: Drawing, green: Colour, tall: float, wide: float) -> None:
    top = tall + rng.uniform(.7, 1.1)
    plant.add(Part(stroke(((0, tall - .1), (rng.uniform(-.06, .06), (tall + top) / 2), (0, top)),
                          (.08, .07, .05)), (104, 92, 54), .6))
    heights = np.linspace(tall + .02, top, int(rng.integers(9, 15)))
    for number, y in enumerate(heights):
        share = (y - tall) / (top - tall)
        angle = (1 if number % 2 else -1) * (78 - 55 * share) + rng.normal(0, 9)
        _blade(rng, plant, (0, float(y)), angle, rng.uniform(.5, .75), rng.uniform(.24, .34), green,
               .25)


def _long_leaves(rng: Rng, plant: Drawing, green: Colour, tall: float, wide: float) -> None:
    upright = rng.random() < .5
    count = int(rng.integers(11, 17))
    for angle in rng.permutation(np.linspace(-1, 1, count)) * (34 if upright else 68):
        long = rng.uniform(.95, 1.4)
        _blade(rng, plant, (float(angle) / 68 * wide * .7, tall - .05), float(angle), long,
               rng.uniform(.13, .19), green, 0 if upright else .65)


def _bush(rng: Rng, plant: Drawing, green: Colour, tall: float, wide: float) -> None:
    """Draw round foliage of many small leaves, usually with flowers."""
    high, reach = rng.uniform(.42, .58), rng.uniform(.55, .75)
    centre = tall + high * .75
    plant.add(Part(bumpy(rng, ellipse(0, centre, reach, high), 16, .07), darker(green, .3), .7, .5,
                   "leaf", .25))
    bloom: Colour | None = ((226, 66, 92), (250, 214, 70), (240, 236, 240), (196, 92, 186),
                            (240, 126, 60))[int(rng.integers(5))] if rng.random() < .7 else None
    spots = rng.uniform(-1, 1, (48, 2))
    for number, (x, y) in enumerate(spots[(spots**2).sum(1) < 1.0]):
        at = x * reach, centre + y * high
        if bloom is not None and number % 3 == 0:
            size = rng.uniform(.07, .1)
            flower = plant.add(Part(bumpy(rng, ellipse(*at, size * .7), 5, size * .5),
                                    vary(rng, bloom, 10), .5, .5))
            flower.mark(ellipse(*at, size * .3), (240, 200, 80))
        else:
            _blade(rng, plant, at, x * 80 + rng.normal(0, 25), .26, .15, green)


def _cactus(rng: Rng, plant: Drawing, green: Colour, tall: float, wide: float) -> None:
    top, thick = tall + rng.uniform(.8, 1.15), wide * rng.uniform(.85, 1.1)
    for side in (-1, 1):
        if rng.random() < .8:
            low = tall + rng.uniform(.2, .45)
            out = side * (thick * .5 + .26)
            plant.add(Part(stroke(((side * .1, low), (out * .8, low + .02), (out, low + .16),
                                   (out, low + rng.uniform(.3, .5))), (.2, .2, .22, .2)),
                           vary(rng, green, 6), .9, .5, "leaf", .05))
    trunk = plant.add(Part(box(-thick / 2, tall - .1, thick / 2, top, thick / 2), green, 1.0, .5,
                           "leaf", .05))
    for share in (-.6, -.25, .1, .45, .75):
        x = thick / 2 * share
        trunk.mark(box(x - .012, 0, x + .012, 3), darker(green, .4), .8)
        for y in np.arange(tall, top, .12):
            trunk.mark(ellipse(x, y, .016), (244, 240, 210))
    if rng.random() < .5:
        plant.add(Part(bumpy(rng, ellipse(0, top + .03, .08), 6, .05), (230, 90, 130), .5))


_FOLIAGE: tuple[Callable[[Rng, Drawing, Colour, float, float], None], ...] = (
    _broad_leaves, _long_leaves, _bush, _cactus, _broad_leaves, _bush)
