"""Boats, aeroplanes and hot-air balloons, facing right, in units of about a metre."""

from __future__ import annotations

import numpy as np

from vpltool.demo.canvas import (
    Colour,
    Drawing,
    Part,
    Points,
    Rng,
    box,
    choose,
    curve,
    darker,
    ellipse,
    lighter,
    mix,
    one_of,
    points,
    stroke,
    vary,
)
from vpltool.demo.vehicles import GLASS, PAINTS, STEEL, TYRE, another, pane, windows


def boat(rng: Rng) -> Drawing:
    """Draw a sailing, motor, rowing or fishing boat; its waterline is at y = 0."""
    name, paint = choose(rng, PAINTS, "red", "blue", "green", "white", "yellow", "black", "orange")
    boat = Drawing(name, waterline=0)
    second = another(rng, name, "white", "red", "blue", "yellow")
    draw = one_of(rng, (_sailing_boat, _sailing_boat, _motor_boat, _rowing_boat, _fishing_boat))
    return draw(rng, boat, paint, second)


def _hull(boat: Drawing, long: float, tall: float, paint: Colour, second: Colour,
          sheer: float = 0.3) -> Part:
    """Draw a hull with its stem to the right and its keel a little below the water."""
    half = long / 2
    hull = boat.add(curve((-half, tall * .95), (-half * .5, tall * .86), (half * .3, tall * .95),
                          (half * .85, tall * (1 + sheer * .6)), (half * 1.04, tall * (1 + sheer)),
                          (half * .86, tall * .35), (half * .68, -.12), (0, -.16),
                          (-half * .8, -.12), (-half * .97, tall * .4)), paint, 0.7, 0.4,
                    grain=0.05)
    hull.mark(box(-long, -1, long, tall * .16), darker(second, 0.15))
    rail = curve((-half * 1.1, tall * 1.1), (-half * .5, tall * .94), (half * .3, tall * 1.03),
                 (half * .85, tall * (1.1 + sheer * .6)), (half * 1.2, tall * (1.2 + sheer)),
                 (half * 1.2, tall * (1 + sheer)), (half * .85, tall * (.92 + sheer * .6)),
                 (half * .3, tall * .84), (-half * .5, tall * .74), (-half * 1.1, tall * .85))
    hull.mark(rail, second)
    return hull


def _sailing_boat(rng: Rng, boat: Drawing, paint: Colour, second: Colour) -> Drawing:
    tall, mast = rng.uniform(.4, .55), rng.uniform(3.2, 4.2)
    sail = vary(rng, ((240, 236, 224), (250, 246, 240), (214, 100, 60),
                      second)[int(rng.choice(4, p=(.4, .3, .15, .15)))])
    boat.add(box(-.05, tall * .6, .05, mast + .15), (150, 116, 80), 0.6)
    belly = rng.uniform(.12, .3)
    main = boat.add(curve((-.1, tall + .35), (-.1, mast * .6), (-.08, mast), (-.7, mast * .55),
                          (-1.4 + belly * .2, tall + .45), (-.8, tall + .3), steps=5), sail, 0.5,
                    0.5, grain=0.03)
    for y in np.arange(tall + .9, mast, .6):
        main.mark(points((-2, y), (0, y + .12), (0, y + .15), (-2, y + .03)), darker(sail, 0.2))
    if rng.random() < 0.4:
        main.mark(box(-2, mast * .45, 0, mast * .62), second)
    jib = boat.add(curve((.1, tall + .3), (.08, mast * .5), (.1, mast * .9),
                         (.75 + belly, mast * .4), (1.55, tall + .3), (.8, tall + .22)), sail
                   if rng.random() < .6 else second, 0.5, 0.5, grain=0.03)
    jib.mark(points((0, mast * .5), (2, mast * .42), (2, mast * .45), (0, mast * .53)),
             darker(jib.colour, 0.2))
    boat.add(box(-.9, tall * .7, .6, tall + .2, .1), lighter(paint, .6), 0.5)
    _hull(boat, rng.uniform(3.4, 4.0), tall, paint, second, .25)
    return boat


def _motor_boat(rng: Rng, boat: Drawing, paint: Colour, second: Colour) -> Drawing:
    tall, long = rng.uniform(.6, .8), rng.uniform(4.4, 5.4)
    white = vary(rng, (238, 236, 230), 6)
    back, front = -long * .28, long * .22
    top = tall + rng.uniform(.75, .95)
    cabin = boat.add(points((back, tall * .7), (back + .1, top), (front - .55, top),
                            (front + .1, tall + .2), (front + .5, tall * .8)), white, 0.5, .4)
    pane(cabin, points((front - .75, tall + .25), (front - .05, tall + .25),
                       (front - .55, top - .1), (front - .75, top - .1)))
    windows(cabin, back + .25, front - .8, tall + .25, top - .12, 3, .2)
    boat.add(box(back - .1, top - .03, front - .4, top + .12, .05), second, 0.4)
    if rng.random() < .5:
        boat.add(points((back + .5, top + .1), (back + .6, top + .6), (front - 1.1, top + .6),
                        (front - .8, top + .1)), white, 0.5)
    hull = _hull(boat, long, tall, paint, second, .4)
    for x in np.arange(-.2, long * .3, .5):
        hull.mark(ellipse(x, tall * .55, .1), STEEL)
        hull.mark(ellipse(x, tall * .55, .07), GLASS)
    return boat


def _rowing_boat(rng: Rng, boat: Drawing, paint: Colour, second: Colour) -> Drawing:
    tall, long = rng.uniform(.55, .7), rng.uniform(3.0, 3.6)
    wood = vary(rng, (150, 108, 68))
    inside = boat.add(curve((-long * .5, tall * .98), (0, tall * 1.12), (long * .52, tall * 1.32),
                            (long * .3, tall * .8), (-long * .3, tall * .75)), darker(wood, 0.35),
                      0.2)
    for x in (-.7, .1, .8):
        inside.mark(box(x, 0, x + .3, tall * 1.4), wood)
    hull = _hull(boat, long, tall, paint if rng.random() < .6 else wood, second, .3)
    for share in (.35, .6):
        hull.mark(box(-long, tall * share, long, tall * share + .03), darker(hull.colour, 0.35))
    boat.add(stroke(((.5, tall * 1.5), (-.25, tall * .85), (-1.1, .02)), (.07, .07, .07)),
             lighter(wood, .25), 0.4)
    boat.add(stroke(((-1.0, .14), (-1.4, -.1)), (.15, .22)), lighter(wood, .25), 0.4)
    return boat


def _fishing_boat(rng: Rng, boat: Drawing, paint: Colour, second: Colour) -> Drawing:
    tall, long = rng.uniform(.75, .95), rng.uniform(4.2, 5.0)
    white, back = vary(rng, (234, 228, 214), 8), -long * .32
    top = tall + rng.uniform(1.1, 1.4)
    boat.add(stroke(((long * .16, tall * .8), (long * .16, top + 1.1)), (.12, .08)), (130, 100, 74),
             0.6)
    boat.add(stroke(((long * .16, tall + .4), (long * .42, top + .6)), (.08, .06)), (130, 100, 74),
             0.6)
    house = boat.add(box(back, tall * .7, back + 1.5, top, .08), white, 0.5, .35)
    windows(house, back + .1, back + 1.45, top - .65, top - .15, 2, .25, GLASS, second)
    house.mark(box(back + .2, tall, back + .6, top - .75), second)
    boat.add(box(back - .15, top - .05, back + 1.7, top + .14, .05), second, 0.5)
    boat.add(box(back + .3, top + .1, back + .7, top + .6, .05), darker(second, .3), 0.7)
    for x in (long * .02, long * .1):
        boat.add(box(x - .25, tall * .8, x + .3, tall + .42, .05), vary(rng, (176, 130, 78)), 0.4)
    hull = _hull(boat, long, tall, paint, second, .5)
    for x in np.arange(-long * .3, long * .3, .8):
        hull.mark(ellipse(x, tall * .52, .17), (36, 36, 40))
        hull.mark(ellipse(x, tall * .52, .09), darker(paint, 0.2))
    return boat


def aeroplane(rng: Rng) -> Drawing:
    """Draw an airliner or a small aeroplane with a propeller."""
    name, paint = choose(rng, PAINTS, "white", "white", "red", "blue", "yellow", "grey", "orange")
    plane = Drawing(name)
    second = another(rng, name, "red", "blue", "green", "orange", "yellow")
    return (_airliner if rng.random() < 0.6 else _propeller_plane)(rng, plane, paint, second)


def _airliner(rng: Rng, plane: Drawing, paint: Colour, second: Colour) -> Drawing:
    thick, long = rng.uniform(.42, .55), 4.0
    wing = mix(paint, (150, 156, 164), 0.5)
    plane.add(points((.5, .1), (-.5, 1.35), (-.95, 1.4), (-.5, .1)), darker(wing, 0.15), 0.3)
    fin = plane.add(curve((-2.5, .2), (-3.5, 1.35), (-3.95, 1.38), (-3.65, .15), steps=4), second,
                    0.5)
    fin.mark(points((-4, .7), (-2, .7), (-2, .95), (-4, .95)), lighter(second, .7), 0.8)
    body = plane.add(curve((-long, .3), (-2.5, thick * .85), (2.6, thick * .85), (3.4, thick * .55),
                           (3.95, -.08), (3.2, -thick * .8), (-1.8, -thick * .85),
                           (-3, -thick * .3)), paint, 1.0, 0.5, grain=0.02)
    body.mark(points((-5, -.55), (4, -.55), (4, -.2), (-2.4, -.2), (-4, .2)), second
              if rng.random() < .4 else mix(paint, STEEL, 0.6))
    body.mark(box(-4, -.13, 4, -.04), second)
    for x in np.arange(-2.6, 2.8, .26):
        body.mark(ellipse(x, .16, .065, .09), (52, 66, 86))
    pane(body, points((3.0, .14), (3.6, .1), (3.4, .34), (3.05, .38)), (44, 58, 74))
    for x in (-2.95, 2.86):
        body.mark(box(x - .1, -.2, x + .1, .3, .05), darker(paint, .25))
    tail = plane.add(points((-2.9, .15), (-3.7, -.45), (-4.15, -.45), (-3.75, .2)), wing, 0.4)
    tail.mark(points((-4.3, -.5), (-3.6, -.5), (-3.7, -.35), (-4.3, -.35)), second, 0.8)
    for x, y in ((.35, -.62),) if rng.random() < .5 else ((.5, -.6), (-.45, -1.0)):
        engine = plane.add(box(x - .45, y - .24, x + .55, y + .22, .2), second if rng.random() < .3
                           else lighter(wing, .2), 0.9, 0.5)
        engine.mark(box(x + .38, y - .3, x + .6, y + .3), (52, 54, 60))
    near = plane.add(points((1.0, -.2), (.6, -.02), (-.75, -.12), (-1.95, -1.55), (-1.6, -1.62)),
                     wing, 0.45, 0.4, grain=0.03)
    near.mark(points((-.9, -.2), (-.6, -.2), (-1.7, -1.6), (-2.0, -1.6)), darker(wing, 0.2))
    near.mark(points((-2.2, -1.7), (-1.4, -1.7), (-1.5, -1.38), (-2.2, -1.38)), second)
    return plane


def _propeller_plane(rng: Rng, plane: Drawing, paint: Colour, second: Colour) -> Drawing:
    wheels = rng.random() < 0.75
    high = rng.random() < 0.5
    wing = mix(paint, second, 0.75) if rng.random() < 0.5 else lighter(paint, .15)
    if not high:
        plane.add(points((.9, .0), (.2, 1.05), (-.35, 1.1), (-.3, 0)), darker(wing, .2), 0.3)
    plane.add(curve((-1.9, .15), (-2.55, 1.05), (-2.95, 1.0), (-2.75, .1), steps=4), second, 0.5)
    body = plane.add(curve((-2.8, .18), (-1.2, .42), (-.7, .82), (.2, .86), (.75, .42), (1.7, .3),
                           (1.85, 0), (1.65, -.35), (.4, -.5), (-1.2, -.3)), paint, 0.9, 0.45,
                     grain=0.03)
    body.mark(points((-3, .02), (2, -.12), (2, .04), (-3, .16)), second)
    body.mark(box(1.5, -.6, 2, .5), darker(paint, .35))
    pane(body, points((-.05, .4), (.6, .42), (.22, .76), (-.05, .76)))
    pane(body, points((-.85, .4), (-.15, .4), (-.15, .76), (-.62, .74)))
    plane.add(points((-2.1, .1), (-2.75, -.3), (-3.15, -.28), (-2.8, .18)), wing, 0.4)
    if wheels:
        for x in (.65, .1):
            plane.add(stroke(((x, -.35), (x + .1, -.8)), (.1, .08)), darker(paint, .4), 0.4)
            wheel = plane.add(ellipse(x + .12, -.88, .2), TYRE, 0.4)
            wheel.mark(ellipse(x + .12, -.88, .09), STEEL)
    if high:
        plane.add(stroke(((.1, -.25), (-.5, .55)), (.08, .08)), darker(paint, .3), 0.4)
    base = .86 if high else -.2
    tips = points((.85, base), (.55, base + .14), (-.5, base + .12), (-1.5, base - .42),
                  (-.9, base - .5)) if high else points(
        (.85, base + .08), (-.35, base + .1), (-1.15, base - .95), (-.65, base - 1.0))
    near = plane.add(tips, wing, 0.5, .4)
    near.mark(points((-1.6, base - 1.1), (-.3, base - 1.1), (-.3, base - .66 + .3 * high),
                     (-1.6, base - .66 + .3 * high)), second)
    plane.add(ellipse(1.95, -.02, .07, .85, rng.uniform(-8, 8)), (60, 58, 60), 0.2, opacity=0.75)
    plane.add(ellipse(1.92, -.02, .2, .17), second, 0.8)
    return plane


def balloon(rng: Rng) -> Drawing:
    """Draw a hot-air balloon with stripes, bands or a zigzag, and its basket."""
    names = list(PAINTS)[:6]
    name, paint = choose(rng, PAINTS, *names)
    balloon = Drawing(name)
    others = [another(rng, name, *names) for _ in range(2)]
    colours = [paint, others[0], paint, others[1]] if rng.random() < .5 else [paint, others[0]]
    wide = rng.uniform(.92, 1.08)
    envelope = np.array([(.2, 0.75), (.3, .9), (.58, 1.3), (.86, 1.8), (1.0, 2.35), (.93, 2.85),
                         (.66, 3.25), (.3, 3.43), (0, 3.47)]) * (wide, 1)
    outline = np.concatenate([envelope, envelope[-2::-1] * (-1, 1)])
    smooth = curve(*((float(x), float(y)) for x, y in outline), steps=5)
    for side in (-1, 1):
        for top, low in ((.17, .15), (.05, .05)):
            balloon.add(stroke(((side * top, .8), (side * low * 1.1, .3)), (.025, .025)),
                        (70, 58, 48), 0)
    bag = balloon.add(smooth, paint, 1.0, 0.5, grain=0.02)
    one_of(rng, (_gores, _gores, _bands, _zigzag))(rng, bag, envelope, colours)
    _gores(rng, bag, envelope, None)
    mouth = balloon.add(points((-.2 * wide, .8), (.2 * wide, .8), (.13, .62), (-.13, .62)),
                        darker(others[0], .25), 0.4)
    mouth.mark(box(-.06, .6, .06, .7), (255, 190, 90))
    basket = balloon.add(box(-.2, 0, .2, .32, .05), vary(rng, (142, 98, 56)), 0.7, 0.4,
                         texture="wood", grain=0.12)
    for y in np.arange(.04, .3, .07):
        basket.mark(box(-.3, y, .3, y + .018), (92, 62, 36))
    basket.mark(box(-.3, .27, .3, .4), (92, 60, 36))
    return balloon


def _gores(rng: Rng, bag: Part, envelope: Points, colours: list[Colour] | None) -> None:
    """Draw a balloon's upright panels, narrower towards its sides; or only their seams."""
    count = 8 if colours is None else int(rng.choice((6, 8, 10)))
    angles = np.linspace(-np.pi / 2, np.pi / 2, count + 1)
    height = envelope[:, 1]
    for number, (first, last) in enumerate(zip(np.sin(angles[:-1]), np.sin(angles[1:]),
                                               strict=True)):
        left = np.stack([envelope[:, 0] * first * 1.02, height], axis=1)
        right = np.stack([envelope[:, 0] * last * 1.02, height], axis=1)
        if colours is None:
            seam = np.concatenate([left - (.008, 0), left[::-1] + (.008, 0)])
            bag.mark(seam, (30, 20, 20), 0.35)
        else:
            bag.mark(np.concatenate([left, right[::-1]]), colours[number % len(colours)])


def _bands(rng: Rng, bag: Part, envelope: Points, colours: list[Colour]) -> None:
    edges = np.linspace(.7, 3.5, int(rng.integers(4, 8)))
    for number, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        arc = ellipse(0, high + .12, 1.3, .14)[18:], ellipse(0, low + .12, 1.3, .14)[18:]
        bag.mark(np.concatenate([arc[0], arc[1][::-1]]), colours[number % len(colours)])


def _zigzag(rng: Rng, bag: Part, envelope: Points, colours: list[Colour]) -> None:
    x = np.linspace(-1.2, 1.2, 17)
    bend = .3 * (np.arange(17) % 2)
    for number, low in enumerate(np.linspace(1.1, 2.7, int(rng.integers(2, 5)))):
        edge = np.stack([x, low + bend], axis=1)
        bag.mark(np.concatenate([edge, edge[::-1] + (0, .32)]),
                 colours[1 + number % (len(colours) - 1)])
    bag.mark(box(-1.2, 3.2, 1.2, 3.6), colours[1])
