"""Cars, buses, trains and tractors from the side, facing right, in metres; paint, glass, wheels."""

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
    bumpy,
    choose,
    curve,
    darker,
    ellipse,
    lighter,
    mix,
    one_of,
    pick,
    points,
    rotated,
    stroke,
    vary,
)

PAINTS: Palette = {"red": (190, 40, 36), "blue": (44, 84, 168), "green": (50, 120, 68),
                   "yellow": (232, 186, 48), "white": (232, 232, 226), "orange": (222, 116, 36),
                   "grey": (132, 138, 146), "black": (48, 50, 56)}
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
    tyre = drawing.add(ellipse(x, radius, radius), TYRE, volume=0.35, roundness=0.3, grain=0.06)
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


_CARS: dict[str, tuple[tuple[tuple[float, float], ...], tuple[float, float, float, float],
                       float, tuple[float, ...]]] = {
    "hatchback": (((-1.85, .45), (-1.9, .85), (-1.72, 1.02), (-1.42, 1.42), (-.9, 1.53),
                   (.1, 1.5), (.85, 1.02), (1.6, .9), (1.88, .72), (1.9, .4)),
                  (-1.6, -1.3, .05, .76), 1.0, (-.35,)),
    "saloon": (((-2.2, .45), (-2.22, .85), (-2.1, .98), (-1.4, 1.02), (-.75, 1.42), (-.2, 1.48),
                (.35, 1.42), (1.05, 1.0), (1.95, .9), (2.2, .72), (2.22, .4)),
               (-1.3, -.72, .34, .98), 1.0, (-.15,)),
    "estate": (((-2.15, .45), (-2.2, .9), (-2.1, 1.05), (-1.9, 1.48), (-1.3, 1.54), (.2, 1.5),
                (1.0, 1.03), (1.9, .92), (2.18, .72), (2.2, .4)),
               (-2.0, -1.78, .2, .92), 1.02, (-1.0, -.1)),
    "van": (((-2.1, .45), (-2.12, 1.0), (-2.08, 1.85), (-1.9, 2.0), (.8, 1.98), (1.15, 1.85),
             (1.6, 1.15), (2.1, 1.0), (2.22, .75), (2.22, .4)),
            (-1.9, -1.85, .98, 1.48), 1.15, (-.75, .35)),
    "beetle": (((-1.95, .5), (-1.98, .72), (-1.7, 1.0), (-1.2, 1.32), (-.6, 1.5), (0, 1.52),
                (.45, 1.42), (.85, 1.0), (1.4, .95), (1.8, .75), (1.92, .45)),
               (-1.15, -.75, .36, .72), 1.0, (-.2,)),
}
"""For each style: its outline above the sills, its glass (base and roof line, rear to front), the
height of the base of the glass, and the pillars."""


def car(rng: Rng) -> Drawing:
    """Draw a car of one of several styles."""
    outline, (base, rear, front, screen), belt, pillars = _CARS[one_of(rng, list(_CARS))]
    name, paint = choose(rng, PAINTS)
    car = Drawing(name)
    lift, radius = rng.uniform(0, 0.08), rng.uniform(0.31, 0.37)
    axles = outline[0][0] * 0.64, outline[-1][0] * 0.64
    car.add(box(outline[0][0] + .15, .2, outline[-1][0] - .15, .6, .1), (34, 34, 38), 0.1)
    body = car.add(curve(*((x, y + lift) for x, y in outline), (outline[-1][0] - .15, .27),
                         (0, .24), (outline[0][0] + .15, .27)), paint, 0.75, 0.42, grain=0.03)
    ends = outline[0][0], outline[-1][0]
    body.mark(box(ends[0] - .1, 0, ends[1] + .1, .4), darker(paint, 0.35))
    body.mark(box(ends[0] - .1, belt - .13 + lift, ends[1] + .1, belt - .07 + lift),
              lighter(paint, 0.5), 0.6)
    for axle in axles:
        body.mark(ellipse(axle, radius, radius * 1.22), (22, 22, 25))
    roof = max(y for _, y in outline) - .13 + lift
    belt += lift
    body.mark(points((base - .1, belt - .03), (rear - .03, roof + .05), (front + .03, roof + .05),
                     (screen + .1, belt - .03)), darker(paint, 0.55))
    pane(body, points((base, belt), (rear, roof), (front, roof), (screen, belt)))
    for pillar in pillars:
        body.mark(box(pillar - .05, belt - .02, pillar + .05, roof + .06), darker(paint, 0.4))
        for line in (pillar, pillar + .95):
            body.mark(box(line - .012, .38, line + .012, belt), darker(paint, 0.5), 0.8)
        body.mark(box(pillar + .1, belt - .2, pillar + .32, belt - .14, .03), lighter(paint, .6))
    lamp(body, ends[1] - .12, .72 + lift, .12, (255, 244, 200))
    body.mark(box(ends[0] - .1, .68 + lift, ends[0] + .12, .86 + lift, .04), (206, 30, 30))
    trim = STEEL if rng.random() < 0.5 else darker(paint, 0.6)
    for left, right in ((ends[0] - .04, ends[0] + .35), (ends[1] - .38, ends[1] + .05)):
        car.add(box(left, .36, right, .52, .07), trim, 0.5)
    spokes = int(rng.choice((0, 5, 6, 8)))
    for axle in axles:
        wheel(car, axle, radius, vary(rng, STEEL), rng.uniform(0.58, 0.7), spokes)
    return car


def bus(rng: Rng) -> Drawing:
    """Draw a bus with one or two decks."""
    name, paint = choose(rng, PAINTS, "red", "blue", "green", "yellow", "white", "orange")
    bus = Drawing(name)
    long, decks = rng.uniform(7.5, 11), 2 if rng.random() < 0.3 else 1
    tall, half = (4.3 if decks == 2 else rng.uniform(2.9, 3.2)), long / 2
    second = another(rng, name, "white", "yellow", "blue", "red")
    bus.add(box(-half + .2, .3, half - .2, .8), (30, 30, 34), 0.1)
    body = bus.add(box(-half, .38, half, tall, .34), paint, 0.5, 0.16, grain=0.03)
    body.mark(box(-half, 0, half, .75), darker(second if rng.random() < .4 else paint, 0.35))
    stripe = rng.uniform(.85, 1.15)
    body.mark(box(-half, stripe, half, stripe + rng.uniform(.12, .35)), second)
    body.mark(box(-half, tall - .28, half, tall + .1), lighter(paint, 0.3))
    count = int(long / rng.uniform(1.1, 1.5))
    frame = darker(paint, 0.6)
    for deck in range(decks):
        low = 1.55 + deck * 1.5
        body.mark(box(-half + .2, low - .08, half - .05, low + .98), frame, 0.9)
        windows(body, -half + .25, half - (.1 if deck else 1.5), low, low + .9, count, 0.12)
    pane(body, box(half - .42, 1.25, half + .2, 2.5, .1))
    door = half - 1.42
    body.mark(box(door - .03, .5, door + .93, 2.55), frame)
    windows(body, door, door + .9, .6, 2.45, 2, 0.12, lighter(GLASS, 0.1))
    if rng.random() < 0.6 and decks == 1:
        middle = -half + long * .42
        body.mark(box(middle - .03, .5, middle + .93, 2.55), frame)
        windows(body, middle, middle + .9, .6, 2.45, 2, 0.12, lighter(GLASS, 0.1))
    body.mark(box(half - 1.2, tall - .42, half - .1, tall - .12, .05), (28, 28, 30))
    body.mark(box(half - 1.1, tall - .36, half - .3, tall - .19), (250, 176, 50))
    lamp(body, half - .12, .86, .15, (255, 244, 205))
    body.mark(box(-half, .8, -half + .14, 1.15), (206, 34, 30))
    radius = .52
    for axle in (-half + long * .2, half - long * .24):
        body.mark(ellipse(axle, radius, radius * 1.2), (22, 22, 25))
        wheel(bus, axle, radius, vary(rng, STEEL), .55, int(rng.choice((0, 8))))
    bus.add(box(half - .02, 1.9, half + .2, 2.35, .08), (40, 40, 44), 0.4)
    return bus


def _bogie(train: Drawing, left: float, right: float, radius: float = .42) -> None:
    train.add(box(left - radius * .4, radius * .8, right + radius * .4, radius * 1.9, .1),
              (50, 48, 50), 0.3, grain=0.1)
    for axle in (left + radius * .6, right - radius * .6):
        wheel(train, axle, radius, (128, 120, 116), .72)


def _chassis(train: Drawing, left: float, long: float, near: float, far: float) -> None:
    """Draw a coupler and two bogies, from `near` to `far` from each end."""
    train.add(box(left - .5, .9, left + .2, 1.15), (36, 35, 38), 0.1)
    _bogie(train, left + near, left + far)
    _bogie(train, left + long - far, left + long - near)


def _carriage(train: Drawing, left: float, paint: Colour, second: Colour, rng: Rng) -> float:
    long = 8.0
    _chassis(train, left, long, .7, 2.4)
    body = train.add(box(left, .85, left + long, 3.7, .3), paint, 0.5, 0.15, grain=0.03)
    body.mark(box(left, 3.3, left + long, 3.9), (110, 112, 116))
    body.mark(box(left, 1.2, left + long, 1.55), second)
    windows(body, left + 1.2, left + long - 1.2, 2.05, 2.95, 5, .3, GLASS, darker(paint, .4))
    for door in (left + .3, left + long - 1.0):
        body.mark(box(door, 1.0, door + .7, 3.1, .08), darker(paint, 0.25))
        pane(body, box(door + .14, 2.05, door + .56, 2.95, .05))
    return left + long + .4


def _wagon(train: Drawing, left: float, paint: Colour, second: Colour, rng: Rng) -> float:
    """Draw a goods wagon: a van, an open wagon with a load, or a tank."""
    long, kind = 6.0, int(rng.integers(3))
    colour = pick(rng, ((132, 74, 54), (110, 116, 122), (168, 112, 60), (84, 104, 92)), 12)
    _chassis(train, left, long, .4, 1.9)
    train.add(box(left, .85, left + long, 1.15), (54, 52, 54), 0.2)
    if kind == 2:
        tank = train.add(box(left + .1, 1.1, left + long - .1, 3.2, 1), colour, 1.0, 0.45)
        for x in (left + 1.6, left + long - 1.6):
            tank.mark(box(x - .05, 1, x + .05, 3.3), darker(colour))
        train.add(box(left + long / 2 - .4, 3.1, left + long / 2 + .4, 3.4, .1), colour)
        return left + long + .4
    high = 3.5 if kind == 0 else 2.3
    if kind == 1:
        train.add(bumpy(rng, curve((left + .2, 1.6), (left + 1.6, 2.9), (left + 3, 2.5),
                                   (left + 4.4, 3.0), (left + 5.8, 1.6)), 18, .12),
                  vary(rng, (84, 74, 66)), 0.5, texture="gravel", grain=0.25)
    body = train.add(box(left, 1.05, left + long, high, .06), colour, 0.35, 0.15, grain=0.08)
    for x in np.arange(left + .5, left + long - .1, .55):
        body.mark(box(x - .05, .9, x + .05, high + .1), darker(colour, 0.35))
    if kind == 0:
        body.mark(box(left, high - .25, left + long, high + .1), (96, 96, 100))
        body.mark(box(left + 2.1, 1.2, left + 3.9, high - .4), darker(colour, 0.18))
        body.mark(box(left + 2.95, 1.2, left + 3.05, high - .4), darker(colour, 0.5))
    return left + long + .4


def _steam_engine(train: Drawing, left: float, paint: Colour, second: Colour, rng: Rng) -> None:
    black = vary(rng, (46, 46, 50), 5)
    train.add(box(left, .9, left + 8.3, 1.4, .05), darker(black, 0.2), 0.3)
    train.add(points((left + 8.2, 1.3), (left + 8.2, .35), (left + 9.1, .3), (left + 8.5, 1.3)),
              vary(rng, (150, 40, 34)), 0.4)
    boiler = train.add(box(left + 2.2, 1.5, left + 7.9, 3.2, .12), paint, 1.0, 0.5, grain=0.04)
    for x in np.arange(left + 3, left + 7, 1.1):
        boiler.mark(box(x - .06, 1.3, x + .06, 3.4), mix(paint, (214, 176, 84), 0.7))
    smokebox = train.add(box(left + 6.9, 1.42, left + 8.3, 3.3, .25), black, 0.9, 0.5)
    smokebox.mark(box(left + 6.9, 1.3, left + 7.0, 3.4), (190, 160, 80))
    train.add(curve((left + 7.2, 3.1), (left + 7.3, 3.9), (left + 7.05, 4.4), (left + 7.95, 4.4),
                    (left + 7.7, 3.9), (left + 7.8, 3.1)), black, 0.9)
    for x, wide in ((5.6, .42), (4.1, .35)):
        train.add(curve((left + x - wide, 3.1), (left + x - wide * .8, 3.7), (left + x, 3.9),
                        (left + x + wide * .8, 3.7), (left + x + wide, 3.1)), (206, 168, 78)
                  if x > 5 else paint, 0.9)
    cab = train.add(box(left + .1, 1.3, left + 2.5, 4.0, .1), paint, 0.45, 0.25, grain=.03)
    cab.mark(box(left + .25, 1.5, left + 2.35, 2.3), second, 0.8)
    windows(cab, left + .35, left + 2.3, 2.6, 3.5, 2, .25, GLASS, (206, 176, 92))
    train.add(box(left - .2, 3.9, left + 2.8, 4.2, .12), black, 0.5)
    train.add(ellipse(left + 8.3, 2.4, .18, .26), (255, 240, 190), 0.5)
    big = rng.uniform(.72, .85)
    for number in range(3):
        wheel(train, left + 1.4 + number * 2 * big * 1.06, big, vary(rng, (168, 44, 38), 6), .8, 8)
    wheel(train, left + 6.6, .42, (150, 44, 38), .75)
    wheel(train, left + 7.6, .42, (150, 44, 38), .75)
    train.add(box(left + 1.3, big - .08, left + 6.3, big + .1, .08), STEEL, 0.5)
    train.add(box(left + 5.9, .7, left + 7.2, 1.45, .15), darker(paint, 0.3), 0.6)


def _diesel_engine(train: Drawing, left: float, paint: Colour, second: Colour, rng: Rng) -> None:
    long = 8.6
    _bogie(train, left + .7, left + 2.9, .48)
    _bogie(train, left + long - 2.9, left + long - .7, .48)
    train.add(box(left + 3.2, .5, left + 5.4, 1.1, .15), (56, 56, 60), 0.5)
    body = train.add(curve((left, .9), (left, 3.5), (left + .3, 3.95), (left + long - 1.3, 3.95),
                           (left + long - .75, 3.6), (left + long - .35, 2.4), (left + long, 2.1),
                           (left + long + .05, .9)), paint, 0.55, 0.2, grain=0.03)
    body.mark(box(left - .2, 3.55, left + long, 4.2), (104, 106, 110))
    body.mark(box(left - .2, 1.3, left + long + .2, 1.75), second)
    body.mark(points((left + long - 1.3, 2.0), (left + long + .2, 1.3), (left + long + .2, .6),
                     (left + long - 1.9, .6), (left + long - 1.9, 1.3)), second)
    pane(body, points((left + long - 1.0, 2.45), (left + long - .3, 2.45), (left + long - .62, 3.4),
                      (left + long - 1.0, 3.4)))
    windows(body, left + long - 2.2, left + long - 1.2, 2.45, 3.3, 1)
    for x in np.arange(left + 1, left + long - 3, 1.05):
        body.mark(box(x, 2.3, x + .75, 3.2, .05), darker(paint, 0.3))
        for y in np.arange(2.4, 3.15, .2):
            body.mark(box(x, y, x + .75, y + .07), darker(paint, 0.6))
    lamp(body, left + long - .22, 1.95, .16, (255, 244, 200))
    train.add(box(left + long - .1, .75, left + long + .35, 1.05, .1), (60, 58, 60), 0.5)


def _railcar(train: Drawing, left: float, paint: Colour, second: Colour, rng: Rng) -> None:
    """Draw the streamlined head of an express train."""
    long = 9.5
    _bogie(train, left + .7, left + 2.4)
    _bogie(train, left + long - 4.2, left + long - 2.5)
    nose = rng.uniform(1.0, 1.5)
    body = train.add(curve((left, .7), (left, 3.4), (left + .2, 3.7), (left + long - 3, 3.7),
                           (left + long - 1.9, 3.35), (left + long - .5, nose + .7),
                           (left + long, nose), (left + long - .3, .62), (left + long - 2, .55)),
                     paint, 0.65, 0.25, grain=0.02)
    body.mark(box(left - .2, 3.35, left + long - 2.2, 3.9), darker(paint, 0.35))
    body.mark(box(left - .2, .4, left + long + .2, .95), darker(second, 0.2))
    body.mark(box(left - .2, 1.35, left + long + .2, 1.65), second)
    body.mark(box(left - .2, 1.95, left + long - 3.3, 3.0), (42, 46, 54), 0.85)
    windows(body, left + .3, left + long - 4.2, 2.05, 2.9, 5, .16)
    body.mark(box(left + long - 4.1, 1.0, left + long - 3.4, 3.1, .1), second)
    pane(body, points((left + long - 2.6, 2.35), (left + long - 1.15, 2.2),
                      (left + long - 1.9, 3.1), (left + long - 2.5, 3.25)), (40, 50, 62))
    lamp(body, left + long - .7, nose + .12, .18, (255, 248, 220))


def train(rng: Rng) -> Drawing:
    """Draw an engine (steam, diesel or express) with up to three carriages or wagons."""
    name, paint = choose(rng, PAINTS, "red", "blue", "green", "yellow", "orange", "grey", "black",
                         "white")
    second = another(rng, name, "white", "yellow", "red", "blue")
    train = Drawing(name)
    engine = one_of(rng, (_steam_engine, _diesel_engine, _railcar))
    behind = int(rng.choice((0, 1, 2, 3), p=(0.36, 0.42, 0.17, 0.05)))
    coach = engine is _railcar or rng.random() < 0.55
    cars = paint if engine is _railcar or rng.random() < 0.6 else another(rng, name)
    left = 0.0
    for _ in range(behind):
        left = (_carriage if coach else _wagon)(train, left, cars, second, rng)
    if behind:
        train.add(box(left - .6, .9, left + .3, 1.15), (36, 35, 38), 0.1)
    engine(train, left, paint, second, rng)
    return train


def tractor(rng: Rng) -> Drawing:
    """Draw a tractor, usually with a cab."""
    name, paint = choose(rng, PAINTS, "red", "green", "blue", "yellow", "orange")
    hub = another(rng, name, "yellow", "white", "red", "grey")
    tractor = Drawing(name)
    large, small = rng.uniform(.82, .98), rng.uniform(.46, .62)
    nose = rng.uniform(1.9, 2.3)
    tractor.add(box(-.2, .45, nose - .1, .85, .08), (52, 52, 55), 0.4)
    hood = tractor.add(curve((.15, .8), (.15, 1.55), (.5, 1.68), (nose - .25, 1.52), (nose, 1.35),
                             (nose + .02, .8), steps=5), paint, 0.7, 0.4, grain=0.03)
    hood.mark(box(0, .75, nose + .1, .92), darker(paint, 0.4))
    hood.mark(box(.3, 1.28, nose - .5, 1.38), hub, 0.9)
    for x in np.arange(.7, nose - .5, .16):
        hood.mark(box(x, .98, x + .08, 1.2), darker(paint, 0.5))
    hood.mark(box(nose - .12, .9, nose + .1, 1.4), (44, 44, 48))
    lamp(hood, nose - .16, 1.32, .1, (255, 244, 200))
    tractor.add(box(.95, 1.5, 1.07, 2.3, .03), (60, 58, 58), 0.8)
    if rng.random() < 0.75:
        roof = rng.uniform(2.4, 2.65)
        cab = tractor.add(points((-.95, 1.1), (-.85, roof), (.2, roof), (.42, 1.1)),
                          darker(paint, 0.3), 0.3)
        pane(cab, points((-.82, 1.3), (-.75, roof - .05), (-.3, roof - .05), (-.3, 1.3)))
        pane(cab, points((-.2, 1.2), (-.2, roof - .05), (.14, roof - .05), (.32, 1.2)))
        tractor.add(box(-1.05, roof - .05, .35, roof + .16, .08), paint if rng.random() < .6
                    else PAINTS["white"], 0.6)
    else:
        tractor.add(stroke(((-.1, 1.1), (.2, 1.75)), (.06, .06)), (50, 50, 52), 0.4)
        tractor.add(ellipse(.2, 1.78, .07, .26, 25), (36, 36, 40), 0.4)
        tractor.add(curve((-.75, 1.2), (-.85, 1.85), (-.68, 1.88), (-.55, 1.35), (-.1, 1.3),
                          (-.1, 1.15)), (52, 48, 46), 0.6)
    _lugged_wheel(tractor, nose - small * .85, small, hub)
    tractor.add(curve((-1.35, large), (-1.25, large * 1.75), (-.6, large * 2.12),
                      (.1, large * 1.85), (.42, 1.0), (.1, 1.0), (-.5, 1.3), (-1, 1.2)), paint, 0.7,
                0.4)
    _lugged_wheel(tractor, -.5, large, hub)
    return tractor


def _lugged_wheel(drawing: Drawing, x: float, radius: float, hub: Colour) -> None:
    turn = np.linspace(0, 2 * np.pi, 88, endpoint=False)
    far = np.where(np.arange(88) % 4 < 2, radius, radius * .92)
    tyre = np.stack([np.cos(turn), np.sin(turn)], axis=1) * far[:, None] + (x, radius)
    drawing.add(tyre, darker(TYRE, 0.2), 0.3, 0.3)
    side = drawing.add(ellipse(x, radius, radius * .9), TYRE, 0.35, 0.3, grain=0.08)
    side.mark(ellipse(x, radius, radius * .58), darker(hub, 0.4))
    side.mark(ellipse(x, radius, radius * .52), hub)
    side.mark(ellipse(x, radius, radius * .38), darker(hub, 0.2))
    side.mark(ellipse(x, radius, radius * .17), lighter(hub, 0.2))
    for angle in np.arange(0, 360, 60):
        bolt = rotated(points((radius * .27, 0)), float(angle))[0]
        side.mark(ellipse(x + bolt[0], radius + bolt[1], radius * .04), darker(hub, 0.6))
