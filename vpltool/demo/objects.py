"""The table of objects: for each class, a function that draws a new variant each time.

All face right and stand on y = 0, in their own units; they are scaled when a scene is composed.
"""

from __future__ import annotations

from collections.abc import Callable

from vpltool.demo.animals import cat, cow, duck, sheep
from vpltool.demo.canvas import Drawing, Rng
from vpltool.demo.craft import aeroplane, balloon, boat
from vpltool.demo.plants import plant
from vpltool.demo.vehicles import bus, car, tractor, train

OBJECTS: dict[str, Callable[[Rng], Drawing]] = {
    "aeroplane": aeroplane, "balloon": balloon, "boat": boat, "bus": bus, "car": car,
    "cat": cat, "cow": cow, "duck": duck, "plant": plant, "sheep": sheep,
    "tractor": tractor, "train": train}
"""The drawing function of each class: rng -> Drawing."""
