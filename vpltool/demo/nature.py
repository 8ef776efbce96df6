"""Cats, cows, ducks and sheep, facing right, and potted plants.

A unit is about an animal's height, or that of the foliage.
"""

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
    one_of,
    pick,
    points,
    rotated,
    stroke,
    vary,
)


def _leg(drawing: Drawing, x: float, top: float, width: float, colour: Colour, foot: Colour,
         lean: float) -> None:
    """Draw a leg from `top` down to the ground, with a darker hoof or paw."""
    leg = drawing.add(stroke(((x, top), (x + lean * .4, top / 2), (x + lean, width * .3)),
                             (width * 1.5, width * .85, width * .75)), colour, 0.6, 0.5, "fur",
                      0.08)
    leg.mark(box(x + lean - width, -width, x + lean + width, width * .55), foot)


def _eye(part: Part, at: tuple[float, float], size: float, iris: Colour = (40, 28, 22)) -> None:
    x, y = at
    part.mark(ellipse(x, y, size * 1.15), (24, 18, 16))
    part.mark(ellipse(x, y, size), iris)
    part.mark(ellipse(x, y, size * .5, size * .85), (10, 8, 10))
    part.mark(ellipse(x + size * .3, y + size * .35, size * .28), (255, 255, 255))


_COATS: tuple[tuple[str, Colour, Colour | None], ...] = (
    ("brown", (134, 82, 48), None), ("brown", (186, 138, 92), None),
    ("black and white", (50, 46, 48), (236, 232, 226)),
    ("black and white", (234, 228, 218), (58, 52, 52)),
    ("brown and white", (232, 226, 216), (120, 70, 42)),
    ("brown and white", (150, 72, 44), (236, 228, 216)))
"""A cow's colour in words, the colour of its coat, and that of its patches."""


def cow(rng: Rng) -> Drawing:
    """Draw a cow, grazing or with its head up, of one colour or with patches."""
    word, base, patch = one_of(rng, _COATS)
    coat = vary(rng, base)
    cow = Drawing(word)
    pink, hoof = vary(rng, (216, 160, 148)), (52, 44, 42)
    low, back = rng.uniform(.44, .5), rng.uniform(1.28, 1.38)
    grazing = rng.random() < 0.35
    far = darker(coat, 0.35)
    _leg(cow, -.72, .75, .17, far, hoof, rng.uniform(-.1, .1))
    _leg(cow, .62, .75, .16, far, hoof, rng.uniform(-.1, .1))
    cow.add(stroke(((-.98, 1.2), (-1.12, .95), (-1.1, .55)), (.09, .06, .05)), coat, 0.4)
    cow.add(ellipse(-1.1, .48, .07, .14), darker(patch or coat, .45), 0.4, texture="fur", grain=.2)
    cow.add(curve((-.66, .62), (-.62, .36), (-.42, .31), (-.26, .54)), pink, 0.7)
    body = cow.add(curve((-1.02, 1.1), (-.9, back - .03), (-.2, back - .07), (.55, back),
                         (.92, back - .08), (1.06, .95), (.85, .62), (.3, low), (-.4, low + .02),
                         (-.92, .68)), coat, 0.85, 0.45, "fur", 0.07)
    _leg(cow, -.86, .85, .19, coat, hoof, rng.uniform(-.12, .1))
    _leg(cow, .76, .8, .18, coat, hoof, rng.uniform(-.1, .12))
    head_x, head_y, angle = 1.42, .32, -78.0
    if not grazing:
        head_x, head_y, angle = 1.28, rng.uniform(1.32, 1.45), rng.uniform(-42, -22)
    cow.add(stroke(((.78, 1.0), ((.78 + head_x) / 2 + .04, (1.05 + head_y) / 2),
                    (head_x - .05, head_y + .05)), (.56, .44, .32)), coat, 0.7, 0.5, "fur", .07)
    if patch is not None:
        for _ in range(int(rng.integers(4, 8))):
            spot = bumpy(rng, ellipse(rng.uniform(-.95, .95), rng.uniform(.55, 1.35),
                                      rng.uniform(.1, .28), rng.uniform(.1, .26)), 5, .08)
            body.mark(spot, patch)
    head_coat = patch if patch is not None and rng.random() < .4 else coat
    horn = (226, 214, 188)
    face = rotated(curve((-.2, .17), (.05, .2), (.32, .12), (.46, .06), (.5, -.08), (.36, -.17),
                         (.05, -.19), (-.2, -.15)), angle)
    ear = rotated(curve((-.12, .1), (-.34, .26), (-.42, .16), (-.2, .0)), angle) + (head_x, head_y)
    if patch is None or rng.random() < .7:
        for lift in (.0, .09):
            bend = rotated(points((-.1 + lift, .15), (-.1 + lift, .32), (.02 + lift, .42)), angle)
            cow.add(stroke(bend + (head_x, head_y), (.08, .06, .02)), horn, 0.6)
    head = cow.add(face + (head_x, head_y), head_coat, 0.75, 0.5, "fur", 0.06)
    head.mark(rotated(ellipse(.44, -.06, .17, .2), angle) + (head_x, head_y), pink)
    (x, y), eye = (rotated(points((.45, .0), (.02, .09)), angle) + (head_x, head_y)).tolist()
    head.mark(ellipse(x, y, .028), (96, 56, 54))
    _eye(head, (eye[0], eye[1]), .042)
    if rng.random() < .4:
        head.mark(rotated(curve((-.2, .2), (.3, .15), (.3, .08), (-.2, .1)), angle)
                  + (head_x, head_y), (240, 234, 226))
    cow.add(ear, darker(head_coat, .15), 0.6, texture="fur", grain=.08)
    return cow


_FLEECES: Palette = {"white": (232, 226, 212), "grey": (168, 162, 156), "brown": (120, 92, 74),
                     "black": (64, 58, 58)}


def sheep(rng: Rng) -> Drawing:
    """Draw a sheep with curly wool, grazing or with its head up."""
    name, wool = choose(rng, _FLEECES, "white", "white", "white", "grey", "brown", "black")
    sheep = Drawing(name)
    dark = name in ("brown", "black")
    face = vary(rng, (50, 44, 44) if dark or rng.random() < .5 else (226, 206, 188), 6)
    hoof = (44, 38, 38)
    for x in (-.42, .36):
        _leg(sheep, x, .5, .12, darker(face, .25), hoof, rng.uniform(-.06, .06))
    body_shape = bumpy(rng, curve((-.78, .72), (-.62, 1.02), (-.1, 1.1), (.45, 1.06), (.72, .82),
                                  (.62, .46), (.1, .34), (-.5, .38)), int(rng.integers(17, 24)),
                       .055)
    for x in (-.54, .48):
        _leg(sheep, x, .5, .13, face, hoof, rng.uniform(-.06, .06))
    body = sheep.add(body_shape, wool, 0.8, 0.45, "wool", 0.1)
    for _ in range(26):
        x, y = rng.uniform(-.6, .6), rng.uniform(.42, 1.0)
        curl = stroke(((x - .06, y), (x, y + .05), (x + .06, y)), (.018, .024, .018))
        body.mark(curl, darker(wool, .35), 0.45)
    sheep.add(bumpy(rng, ellipse(-.8, .8, .09, .12), 6, .03), wool, 0.6, texture="wool", grain=.1)
    grazing = rng.random() < .3
    x, y = (.92, .36) if grazing else (.82, rng.uniform(.95, 1.06))
    angle = -68 if grazing else rng.uniform(-50, -28)
    sheep.add(bumpy(rng, stroke(((.5, .8), (x - .04, y)), (.5, .34)), 10, .04), wool, 0.7, .5,
              "wool", 0.1)
    turn = (x, y)
    sheep.add(rotated(curve((-.08, .1), (-.26, .2), (-.32, .1), (-.12, .0)), angle) + turn,
              darker(face, .2), 0.5)
    head = sheep.add(rotated(curve((-.16, .12), (.05, .14), (.26, .08), (.34, -.02), (.26, -.11),
                                   (.0, -.13), (-.16, -.1)), angle) + turn, face, 0.75, 0.5, "fur",
                     0.06)
    eye, (x, y) = (rotated(points((.06, .06), (.3, .01)), angle) + turn).tolist()
    _eye(head, (eye[0], eye[1]), .032, (196, 160, 70) if sum(face) < 300 else (50, 36, 28))
    head.mark(ellipse(x, y, .022), (30, 22, 22))
    sheep.add(bumpy(rng, rotated(ellipse(-.1, .11, .13, .09), angle) + turn, 7, .03), wool, 0.6,
              texture="wool", grain=.1)
    return sheep


_FURS: dict[str, tuple[Colour, Colour]] = {
    "orange": ((214, 134, 62), (168, 88, 36)), "grey": ((140, 138, 136), (88, 86, 88)),
    "black": ((54, 51, 54), (38, 36, 40)), "white": ((236, 230, 222), (222, 206, 190)),
    "brown": ((146, 110, 78), (92, 66, 48))}


def cat(rng: Rng) -> Drawing:
    """Draw a cat that sits, walks or lies, with or without stripes and a white bib."""
    name = one_of(rng, list(_FURS))
    fur, stripe = (vary(rng, colour, 8) for colour in _FURS[name])
    cat = Drawing(name)
    bib = rng.random() < .5 and name != "white"
    striped = rng.random() < .7 and name not in ("white", "black")
    white = vary(rng, (240, 234, 226), 5)
    colours = fur, stripe if striped else None, white if bib else None
    pose = one_of(rng, (_sitting_cat, _standing_cat, _lying_cat))
    _cat_head(rng, cat, pose(rng, cat, *colours), *colours)
    return cat


def _tabby(part: Part, stripe: Colour | None, *bands: tuple[float, float, float, float]) -> None:
    """Draw curved stripes, each from (x, y) to (x, y)."""
    if stripe is None:
        return
    for x0, y0, x1, y1 in bands:
        part.mark(stroke(((x0, y0), ((x0 + x1) / 2 + .03, (y0 + y1) / 2), (x1, y1)),
                         (.06, .055, .02)), stripe, 0.75)


def _cat_tail(cat: Drawing, path: tuple[tuple[float, float], ...], fur: Colour,
              stripe: Colour | None) -> None:
    tail = cat.add(stroke(path, np.linspace(.15, .1, len(path)).tolist()), fur, 0.6, 0.5, "fur",
                   0.09, .006)
    for (x0, y0), (x1, y1) in zip(path[:-1], path[1:], strict=True) if stripe else ():
        tail.mark(ellipse((x0 + x1) / 2, (y0 + y1) / 2, .035, .1), stripe or fur, .7)


def _sitting_cat(rng: Rng, cat: Drawing, fur: Colour, stripe: Colour | None,
                 white: Colour | None) -> tuple[float, float, float]:
    side = 1 if rng.random() < .5 else -1
    _cat_tail(cat, ((-.2 * side, .1), (-.5 * side, .06), (-.68 * side, .2), (-.66 * side, .45)),
              fur, stripe)
    body = cat.add(curve((-.2, .95), (-.34, .6), (-.42, .25), (-.36, .02), (.0, -.01), (.36, .02),
                         (.42, .25), (.34, .6), (.2, .95)), fur, 0.75, 0.45, "fur", .1, .006)
    for y in (.35, .48, .61):
        _tabby(body, stripe, (-.45, y, -.2, y - .04), (.45, y, .2, y - .04))
    if white is not None:
        body.mark(curve((-.14, .95), (-.17, .7), (0, .45), (.17, .7), (.14, .95)), white, .9)
    for x in (-.27, .27):
        cat.add(ellipse(x, .1, .17, .11), fur, .6, texture="fur", grain=.08)
    for x in (-.11, .11):
        leg = cat.add(stroke(((x * 1.1, .55), (x, .3), (x, .07)), (.17, .15, .17)), fur, .6, .5,
                      "fur", .09)
        if white is not None:
            leg.mark(box(x - .2, -.1, x + .2, .15), white)
        leg.mark(box(x - .008, -.05, x + .008, .06), darker(fur, .4))
    return 0, 1.12, .3


def _standing_cat(rng: Rng, cat: Drawing, fur: Colour, stripe: Colour | None,
                  white: Colour | None) -> tuple[float, float, float]:
    far, foot = darker(fur, .3), white or lighter(fur, .1)
    lift = rng.uniform(.1, .5)
    _cat_tail(cat, ((-.72, .66), (-.98, .72 + lift * .3), (-1.12, .85 + lift),
                    (-1.02, 1.05 + lift)), fur, stripe)
    for x in (-.55, .5):
        _leg(cat, x, .5, .13, far, darker(foot, .2), rng.uniform(-.12, .12))
    body = cat.add(curve((-.8, .6), (-.65, .84), (-.1, .82), (.5, .88), (.78, .72), (.68, .46),
                         (.1, .4), (-.55, .4)), fur, .75, .45, "fur", .1, .006)
    _tabby(body, stripe, *((x, .9, x - .04, .52) for x in (-.6, -.42, -.24, -.06, .12, .3, .48)))
    if white is not None:
        body.mark(box(-.7, .3, .7, .46), white, .8)
    for x in (-.68, .64):
        _leg(cat, x, .55, .14, fur, foot, rng.uniform(-.12, .12))
    return .9, rng.uniform(.92, 1.02), .26


def _lying_cat(rng: Rng, cat: Drawing, fur: Colour, stripe: Colour | None,
               white: Colour | None) -> tuple[float, float, float]:
    body = cat.add(curve((-.9, .2), (-.78, .5), (-.3, .62), (.3, .56), (.72, .48), (.84, .2),
                         (.6, .02), (-.6, .0), (-.86, .05)), fur, .8, .45, "fur", .1, .006)
    _tabby(body, stripe, *((x, .66, x - .06, .28) for x in (-.6, -.42, -.24, -.06, .12, .3)))
    cat.add(ellipse(-.5, .26, .3, .25), fur, .6, .5, "fur", .09)
    _cat_tail(cat, ((-.82, .12), (-.7, .06), (-.3, .06), (.05, .08)), fur, stripe)
    for y in (.14, .07):
        paw = cat.add(stroke(((.5, y + .06), (.85, y + .01), (1.12, y)), (.17, .14, .15)), fur, .6,
                      .5, "fur", .08)
        if white is not None:
            paw.mark(box(1.0, -.2, 1.3, .4), white)
    return .8, rng.uniform(.6, .68), .27


def _cat_head(rng: Rng, cat: Drawing, place: tuple[float, float, float], fur: Colour,
              stripe: Colour | None, white: Colour | None) -> None:
    """Draw a cat's face from the front, slightly tilted, at (x, y, half its width)."""
    (x, y, size), tilt = place, rng.uniform(-10, 10)

    def at(shape: Points) -> Points:
        return rotated(shape, tilt) * size + (x, y)

    for side in (-1, 1):
        ear = cat.add(at(curve((side * .92, .3), (side * .95, 1.0), (side * .88, 1.22),
                               (side * .6, 1.0), (side * .2, .7))), fur, .6, .5, "fur", .08)
        ear.mark(at(points((side * .8, .4), (side * .84, 1.05), (side * .4, .7))), (206, 148, 140))
    head = cat.add(at(curve((-.95, .1), (-.8, .6), (-.35, .82), (.35, .82), (.8, .6), (.95, .1),
                            (.78, -.42), (.3, -.78), (-.3, -.78), (-.78, -.42))), fur, .75, .5,
                   "fur", .09, .005)
    if stripe is not None:
        for start in (-.3, 0, .3):
            head.mark(at(stroke(((start, .85), (start * .7, .42)), (.13, .05))), stripe, .8)
        for side, low in ((-1, -.05), (-1, -.28), (1, -.05), (1, -.28)):
            head.mark(at(stroke(((side * .98, low), (side * .6, low - .02)), (.1, .03))), stripe,
                      .7)
    muzzle = white or lighter(fur, .3)
    for side in (-1, 1):
        head.mark(at(ellipse(side * .2, -.38, .3, .25)), muzzle, .9)
    head.mark(at(ellipse(0, -.62, .22, .16)), muzzle, .9)
    iris = one_of(rng, ((150, 180, 70), (216, 172, 60), (110, 160, 190)))
    sleepy = rng.uniform(.7, 1.15)
    for side in (-1, 1):
        head.mark(at(ellipse(side * .4, .1, .25, .21 * sleepy, side * 12)), (26, 22, 22))
        head.mark(at(ellipse(side * .4, .1, .21, .17 * sleepy, side * 12)), iris)
        head.mark(at(ellipse(side * .4, .1, .075, .17 * sleepy)), (12, 10, 12))
        head.mark(at(ellipse(side * .4 + .07, .17, .055)), (255, 255, 255))
    head.mark(at(points((-.13, -.18), (.13, -.18), (0, -.34))), (200, 120, 116))
    for side in (-1, 1):
        head.mark(at(stroke(((0, -.32), (side * .05, -.44), (side * .2, -.48)), (.04, .04, .03))),
                  (80, 56, 52))
        for low in (-.3, -.42):
            cat.add(at(stroke(((side * .3, low), (side * 1.15, low + .12 * (low + .38))),
                              (.022, .012))), (244, 240, 234), 0, grain=0, opacity=.75)


_PLUMES: dict[str, tuple[Colour, Colour, Colour, Colour]] = {
    "brown": ((150, 112, 80), (138, 100, 70), (112, 80, 56), (206, 140, 60)),
    "green-headed": ((186, 180, 172), (34, 104, 74), (140, 126, 112), (220, 186, 60)),
    "yellow": ((244, 206, 74), (246, 212, 86), (232, 184, 52), (232, 124, 40)),
    "white": ((240, 238, 230), (244, 242, 236), (222, 220, 212), (238, 150, 44)),
    "black": ((62, 60, 66), (46, 54, 56), (44, 44, 50), (196, 170, 90))}
"""Body, head, wing and bill of each kind of duck."""


def duck(rng: Rng) -> Drawing:
    """Draw a duck of one of several kinds; its feet are below its waterline."""
    name = str(rng.choice(list(_PLUMES), p=(.2, .3, .15, .25, .1)))
    body_colour, head_colour, wing_colour, bill = (vary(rng, each, 7) for each in _PLUMES[name])
    duck = Drawing("brown" if name == "green-headed" else name, waterline=.3)
    orange = vary(rng, (226, 122, 40))
    for x in (-.12, .14):
        duck.add(stroke(((x, .4), (x, .06)), (.09, .07)), orange, .5)
        duck.add(points((x - .08, .0), (x + .24, .0), (x + .02, .12)), orange, .5)
    high, reach = rng.uniform(1.15, 1.35), rng.uniform(.58, .68)
    neck = duck.add(stroke(((.4, .55), (.62, .82), (reach, high)), (.5, .3, .3)), head_colour, .7,
                    .5, "fur", .05)
    if name == "green-headed":
        neck.mark(box(.2, .74, 1, .81), (244, 242, 236))
        neck.mark(box(.2, 0, 1, .74), (122, 80, 58))
    body = duck.add(curve((-1.08, .84), (-.82, .7), (-.3, .8), (.25, .76), (.66, .66), (.78, .5),
                          (.6, .28), (.15, .17), (-.4, .19), (-.8, .4)), body_colour, .85, .45,
                    "fur", .06)
    if name == "green-headed":
        body.mark(curve((.45, .8), (.85, .7), (.9, .4), (.55, .25), (.5, .5)), (122, 80, 58))
        body.mark(curve((-1.2, .95), (-.85, .75), (-.75, .45), (-1.2, .6)), (52, 50, 54))
    wing = duck.add(curve((.35, .66), (.1, .76), (-.4, .74), (-.92, .72), (-.6, .44), (-.1, .34),
                          (.28, .45)), wing_colour, .7, .5, "fur", .08)
    for x in np.arange(-.5, .15, .18):
        wing.mark(stroke(((x + .1, .74), (x, .56), (x - .22, .48)), (.02, .03, .02)),
                  darker(wing_colour, .35), .8)
    if name in ("green-headed", "brown"):
        wing.mark(curve((-.62, .6), (-.3, .52), (-.32, .6), (-.6, .68)), (52, 74, 150))
    duck.add(curve((reach + .17, high + .09), (reach + .32, high + .04), (reach + .53, high - .02),
                   (reach + .55, high - .08), (reach + .34, high - .1), (reach + .15, high - .1)),
             bill, .6).mark(stroke(((reach + .15, high - .03), (reach + .55, high - .06)),
                                   (.02, .02)), darker(bill, .45))
    head = duck.add(ellipse(reach, high + .02, .25, .22), head_colour, .8, .5, "fur", .04)
    _eye(head, (reach + .08, high + .07), .038)
    return duck


_POTS: Palette = {"terracotta": (186, 98, 62), "white": (228, 226, 218), "blue": (64, 100, 156),
                  "grey": (128, 130, 132), "yellow": (222, 176, 66), "green": (88, 130, 104)}


def plant(rng: Rng) -> Drawing:
    """Draw a potted plant: broad or long leaves, a bush that may flower, or a cactus."""
    plant = Drawing("green")
    green = pick(rng, ((58, 118, 52), (84, 142, 62), (48, 104, 70), (112, 150, 74)), 10)
    wide, tall = rng.uniform(.3, .42), rng.uniform(.5, .66)
    draw_foliage = one_of(rng, (_broad_leaves, _long_leaves, _bush, _cactus, _broad_leaves, _bush))
    draw_foliage(rng, plant, green, tall, wide)
    _pot(rng, plant, wide, tall)
    return plant


def _pot(rng: Rng, plant: Drawing, wide: float, tall: float) -> None:
    name, clay = choose(rng, _POTS, "terracotta", "terracotta", *list(_POTS)[1:])
    foot = wide * rng.uniform(.62, .85)
    pot = plant.add(points((-wide, tall), (wide, tall), (foot, .03), (foot - .04, 0),
                           (-foot + .04, 0), (-foot, .03)), clay, 1.0, .5, grain=.06)
    pattern = rng.random()
    if pattern < .3:
        pot.mark(box(-1, tall * .35, 1, tall * .55), lighter(clay, .6))
    elif pattern < .5:
        for x in np.arange(-wide, wide, .14):
            pot.mark(points((x, tall * .25), (x + .07, tall * .5), (x + .14, tall * .25),
                            (x + .07, tall * .4)), lighter(clay, .55))
    rim = plant.add(box(-wide * 1.1, tall - .13, wide * 1.1, tall + .02, .03), lighter(clay, .06),
                    .8, .5, grain=.06)
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
    leaf = plant.add(stroke(path, (wide * .35, wide, wide * .1)), colour, .6, .5, "leaf", .06)
    leaf.mark(stroke(path, (.03, .02, .01)), lighter(colour, .35), .8)


def _broad_leaves(rng: Rng, plant: Drawing, green: Colour, tall: float, wide: float) -> None:
    top = tall + rng.uniform(.7, 1.1)
    plant.add(stroke(((0, tall - .1), (rng.uniform(-.06, .06), (tall + top) / 2), (0, top)),
                     (.08, .07, .05)), (104, 92, 54), .6)
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
    plant.add(bumpy(rng, ellipse(0, centre, reach, high), 16, .07), darker(green, .3), .7, .5,
              "leaf", .25)
    blooms = (226, 66, 92), (250, 214, 70), (240, 236, 240), (196, 92, 186), (240, 126, 60)
    bloom = one_of(rng, blooms) if rng.random() < .7 else None
    spots = rng.uniform(-1, 1, (48, 2))
    for number, (x, y) in enumerate(spots[(spots**2).sum(1) < 1.0]):
        at = x * reach, centre + y * high
        if bloom is not None and number % 3 == 0:
            size = rng.uniform(.07, .1)
            flower = plant.add(bumpy(rng, ellipse(*at, size * .7), 5, size * .5),
                               vary(rng, bloom, 10), .5, .5)
            flower.mark(ellipse(*at, size * .3), (240, 200, 80))
        else:
            _blade(rng, plant, at, x * 80 + rng.normal(0, 25), .26, .15, green)


def _cactus(rng: Rng, plant: Drawing, green: Colour, tall: float, wide: float) -> None:
    top, thick = tall + rng.uniform(.8, 1.15), wide * rng.uniform(.85, 1.1)
    for side in (-1, 1):
        if rng.random() < .8:
            low = tall + rng.uniform(.2, .45)
            out = side * (thick * .5 + .26)
            plant.add(stroke(((side * .1, low), (out * .8, low + .02), (out, low + .16),
                              (out, low + rng.uniform(.3, .5))), (.2, .2, .22, .2)),
                      vary(rng, green, 6), .9, .5, "leaf", .05)
    trunk = plant.add(box(-thick / 2, tall - .1, thick / 2, top, thick / 2), green, 1.0, .5, "leaf",
                      .05)
    for share in (-.6, -.25, .1, .45, .75):
        x = thick / 2 * share
        trunk.mark(box(x - .012, 0, x + .012, 3), darker(green, .4), .8)
        for y in np.arange(tall, top, .12):
            trunk.mark(ellipse(x, y, .016), (244, 240, 210))
    if rng.random() < .5:
        plant.add(bumpy(rng, ellipse(0, top + .03, .08), 6, .05), (230, 90, 130), .5)
