"""Scenes for the demo: objects of twelve classes on their backgrounds, with exact labels.

Classes appear on their usual backgrounds most of the time, but not always. Weak supervision thus
meets the same problem as in photos: a railway suggests a train without being one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from vpltool.demo import backgrounds
from vpltool.demo.backgrounds import MOODS, Backdrop, blurred
from vpltool.demo.canvas import Drawing, Layer, Plane, Pose, Rng, crop, paint
from vpltool.demo.captions import Thing, captions
from vpltool.demo.craft import aeroplane, balloon, boat
from vpltool.demo.nature import cat, cow, duck, plant, sheep
from vpltool.demo.vehicles import bus, car, tractor, train

OBJECTS: dict[str, Callable[[Rng], Drawing]] = {
    "aeroplane": aeroplane, "balloon": balloon, "boat": boat, "bus": bus, "car": car,
    "cat": cat, "cow": cow, "duck": duck, "plant": plant, "sheep": sheep,
    "tractor": tractor, "train": train}
"""For each class a function that draws a new variant each time.

All face right and stand on y = 0, in their own units; they are scaled when a scene is composed.
"""

CLASSES: tuple[str, ...] = tuple(OBJECTS)
BACKGROUNDS: tuple[str, ...] = tuple(backgrounds.BACKGROUNDS)
HOME: dict[str, tuple[str, ...]] = {
    "aeroplane": ("sky",), "balloon": ("sky",), "boat": ("water",), "bus": ("road",),
    "car": ("road",), "cat": ("room",), "cow": ("grass",), "duck": ("water",), "plant": ("room",),
    "sheep": ("grass", "grass", "snow"), "tractor": ("field",), "train": ("railway",)}
"""The usual backgrounds of each class; one that is listed twice is drawn twice as often."""

_FLYING = frozenset({"aeroplane", "balloon"})
_ON_TRACK = {"railway": frozenset({"train"}), "road": frozenset({"car", "bus"})}
_AT_HOME = 0.8
_TOGETHER = 0.6
_COUNTS = (0.6, 0.3, 0.1)
"""Shares of scenes with one, two and three objects."""
_LEAST = 0.002
"""A class is a tag if it covers at least this share of the photo: 154 pixels of 240 x 320."""
_LEAST_SEEN = 0.4
"""Every object shows at least this share of itself."""
_TRIES = 6


@dataclass(frozen=True)
class Scene:
    """A drawn photo with everything that is known about it.

    image (H, W, 3); labels (H, W), 0 for the background and else the class's index in CLASSES
    plus 1; tags, the sorted names of the visible classes; the background's name; captions.
    """

    image: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    tags: tuple[str, ...]
    background: str
    captions: tuple[str, ...]


@dataclass(frozen=True)
class _Item:
    """An object of a scene: its drawing, position, size, and where it is cut off."""

    name: str
    drawing: Drawing
    pose: Pose
    frame: tuple[float, float, float, float]
    afloat: bool

    @property
    def flies(self) -> bool:
        return self.name in _FLYING


def draw_scene(seed: int, number: int, size: tuple[int, int] = (240, 320)) -> Scene:
    """Draw a scene of (height, width); the same arguments draw the same scene."""
    rng = np.random.default_rng([seed, number])
    names, background = _subject(rng)
    swims = background == "water" and not all(
        name in _FLYING or name in ("boat", "duck") for name in names)
    backdrop = backgrounds.BACKGROUNDS[background](rng, *size, swims)
    light = (float(rng.choice((-1, 1))) * rng.uniform(0.35, 0.75), -rng.uniform(0.55, 0.85))
    items, photo, labels = _compose(rng, names, background, backdrop, light, size)
    image = _develop(rng, photo)
    things = []
    for item in items:
        left, top, right, low = item.frame
        extent = max((right - left) / size[1], (low - top) / size[0])
        things.append(Thing(item.name, item.drawing.colour, extent, (left + right) / 2 / size[1],
                            item.flies, item.afloat))
    moments = MOODS[backdrop.mood].words if backdrop.mood else ()
    return Scene(image, labels, tuple(sorted({item.name for item in items})), background,
                 captions(rng, things, background, moments))


# What is in a scene

def _subject(rng: Rng) -> tuple[list[str], str]:
    """Choose the classes of the scene's objects, and a background."""
    first = str(rng.choice(CLASSES))
    home = HOME[first]
    if rng.random() < _AT_HOME:
        background = str(rng.choice(home))
    else:
        # No class is at home on sand; listed twice, it is not much rarer than other backgrounds.
        background = str(rng.choice([name for name in (*BACKGROUNDS, "sand")
                                     if name not in home and _suits(first, name)]))
    names = [first]
    neighbours = [name for name in CLASSES if background in HOME[name]]
    fitting = [name for name in CLASSES if _suits(name, background)]
    for _ in range(int(rng.choice(3, p=_COUNTS))):
        near = neighbours if neighbours and rng.random() < _TOGETHER else fitting
        names.append(str(rng.choice(near)))
    return names, background


def _suits(name: str, background: str) -> bool:
    return background != ("room" if name in _FLYING else "sky")


# Where it goes

def _compose(rng: Rng, names: Sequence[str], background: str, backdrop: Backdrop,
             light: tuple[float, float], size: tuple[int, int]
             ) -> tuple[list[_Item], Plane, npt.NDArray[np.uint8]]:
    """Place and paint objects until each is visible enough; leave out those that do not fit."""
    drawings = [(name, OBJECTS[name](rng)) for name in names]
    while True:
        for attempt in range(_TRIES):
            items = _arrange(rng, drawings, background, backdrop, size, 0.93**attempt)
            if len(items) < len(drawings):
                continue
            photo, labels, visible = _paint_all(rng, items, backdrop, light)
            counts = np.bincount(labels.ravel(), minlength=len(CLASSES) + 1)
            if min(visible) >= _LEAST_SEEN and all(
                    counts[CLASSES.index(item.name) + 1] >= _LEAST * labels.size for item in items):
                return items, photo, labels
        # A single object always fits in the end, since nothing is in front of it.
        drawings = drawings[:-1] if len(drawings) > 1 else [(names[0], OBJECTS[names[0]](rng))]


def _arrange(rng: Rng, drawings: Sequence[tuple[str, Drawing]], background: str,
             backdrop: Backdrop, size: tuple[int, int], shrink: float) -> list[_Item]:
    """Position the drawings so that they hide little of each other; from back to front."""
    items: list[_Item] = []
    for number, (name, drawing) in enumerate(drawings):
        for _ in range(8):
            share = shrink * (0.85 if number else 1) * (1 - 0.1 * (len(drawings) - 1))
            item = _placed(rng, name, drawing, background, backdrop, size, share)
            if not any(_collide(item, other) for other in items):
                items.append(item)
                break
    return sorted(items, key=lambda item: (not item.flies, item.pose.row))


def _collide(first: _Item, second: _Item) -> bool:
    """Tell whether one object would hide too much of the other, or both would collide."""
    frames = first.frame, second.frame
    wide = min(frame[2] for frame in frames) - max(frame[0] for frame in frames)
    tall = min(frame[3] for frame in frames) - max(frame[1] for frame in frames)
    smaller = min((right - left) * (low - top) for left, top, right, low in frames)
    common = max(0.0, wide) * max(0.0, tall) / smaller
    return common > (0.5 if first.pose.row != second.pose.row else 0)


def _placed(rng: Rng, name: str, drawing: Drawing, background: str, backdrop: Backdrop,
            size: tuple[int, int], shrink: float) -> _Item:
    height, width = size
    afloat = background == "water" and drawing.waterline is not None
    flies = name in _FLYING
    pose = Pose(0, 0, 1, bool(rng.random() < 0.5),
                float(rng.normal(0, 6 if flies else 2 if afloat else 0.6)))
    left, top, right, low = _frame(drawing, pose)
    share = (0.36 + 0.44 * rng.beta(1.6, 1.3)) * shrink
    if right - left > 3 * (low - top):
        # At a share that suits other objects, long trains would be slivers.
        share = min(0.55 + 0.58 * share, 0.96)
    scale = share * min(width / (right - left), height / (low - top))
    if flies:
        scale = min(scale, backdrop.horizon * 0.92 / (low - top))
        tall = scale * (low - top)
        high = rng.uniform(0.02 * height, max(0.03 * height, backdrop.horizon * 0.97 - tall))
        row = high - top * scale
    else:
        row = _foot(rng, name, background, backdrop, height, share, afloat)
        # No object is taller than the space above its feet.
        scale = min(scale, (row - 0.02 * height) / -top)
    wide = scale * (right - left)
    start = rng.uniform(0.02 * width, max(0.021 * width, 0.98 * width - wide))
    if rng.random() < 0.2:
        cut = rng.uniform(0.02, 0.15) * wide
        start = -cut if rng.random() < 0.5 else width - wide + cut
    pose = replace(pose, column=start - left * scale, row=row, scale=scale)
    return _Item(name, drawing, pose, _frame(drawing, pose), afloat)


def _foot(rng: Rng, name: str, background: str, backdrop: Backdrop, height: int, share: float,
          afloat: bool) -> float:
    """Return the row that an object stands or floats on: larger objects are lower."""
    if backdrop.tracks and name in _ON_TRACK[background]:
        return float(rng.choice(backdrop.tracks))
    top, low = backdrop.water if afloat and backdrop.water else backdrop.ground
    near = float(np.clip((share - 0.2) / 0.6 + rng.normal(0, 0.15), 0, 1))
    return top + (low - 0.03 * height - top) * (0.15 + 0.85 * near)


def _frame(drawing: Drawing, pose: Pose) -> tuple[float, float, float, float]:
    """Return left, top, right, low of a drawing in the photo."""
    shape = pose.place(np.concatenate([part.shape for part in drawing.parts]))
    left, top = shape.min(0).tolist()
    right, low = shape.max(0).tolist()
    return left, top, right, low


# Painting

def _paint_all(rng: Rng, items: Sequence[_Item], backdrop: Backdrop, light: tuple[float, float]
               ) -> tuple[Plane, npt.NDArray[np.uint8], list[float]]:
    """Paint the photo (H, W, 3) and labels (H, W); also return the visible share of each object."""
    photo = backdrop.photo.copy()
    height, width = photo.shape[:2]
    owner = np.full((height, width), -1, np.int16)
    whole = []
    tint = np.asarray(MOODS[backdrop.mood].tint if backdrop.mood else (1, 1, 1), np.float32)
    for number, item in enumerate(items):
        layer = paint(item.drawing, item.pose, (height, width), light, rng)
        if layer is None:
            whole.append(0)
            continue
        if item.afloat:
            rows = np.arange(layer.cover.shape[0], dtype=np.float32)[:, None]
            above = np.clip(_waterline(layer, item) - rows + 0.5, 0, 1)
            layer = replace(layer, colours=layer.colours * above[..., None],
                            cover=layer.cover * above)
            _reflect(rng, photo, layer, item, backdrop)
        elif not item.flies:
            _cast_shadow(photo, layer, item, light)
        window = photo[layer.window]
        window *= 1 - layer.cover[..., None]
        window += layer.colours * tint
        if item.afloat:
            _lap(rng, photo, layer, item)
        solid = layer.cover >= 0.5
        whole.append(int(solid.sum()))
        owner[layer.window][solid] = number
    visible = [float((owner == number).sum()) / max(1, pixels)
               for number, pixels in enumerate(whole)]
    values = np.array([CLASSES.index(item.name) + 1 for item in items] + [0], np.uint8)
    return photo, values[owner], visible


def _waterline(layer: Layer, item: _Item) -> float:
    """Return the row of the layer at which an object goes under water."""
    return item.pose.row - (item.drawing.waterline or 0) * item.pose.scale - layer.top


def _reflect(rng: Rng, photo: Plane, layer: Layer, item: _Item, backdrop: Backdrop) -> None:
    """Mirror a layer in the water below it, darker and distorted by waves."""
    line = round(_waterline(layer, item))
    start = layer.top + line
    shore = backdrop.water[1] if backdrop.water else photo.shape[0]
    rows = min(shore - start, int(line * 0.8))
    if rows <= 1 or line <= 0:
        return
    source = np.clip(line - 1 - (np.arange(rows) * 1.25).astype(int), 0, line - 1)
    width = layer.cover.shape[1]
    sway = np.sin(np.arange(rows) * rng.uniform(0.5, 0.9)) * np.linspace(0.3, 3, rows)
    columns = np.clip(np.arange(width)[None] + sway.round().astype(int)[:, None], 0, width - 1)
    fade = np.linspace(0.5, 0.05, rows, dtype=np.float32)[:, None]
    cover = layer.cover[source[:, None], columns] * fade
    colours = layer.colours[source[:, None], columns] * fade[..., None] * 0.75
    window = photo[start:start + rows, layer.left:layer.left + width]
    window *= 1 - cover[..., None]
    window += colours


def _lap(rng: Rng, photo: Plane, layer: Layer, item: _Item) -> None:
    """Draw a line of light ripples where an object meets the water."""
    line = round(_waterline(layer, item))
    start = layer.top + line - 1
    deep = max(2, round(item.pose.scale * 0.05))
    if line < 3 or start + deep > photo.shape[0]:
        return
    wet = blurred(np.broadcast_to(layer.cover[max(0, line - 3)], (2 * deep, layer.cover.shape[1])),
                  deep)[:deep]
    foam = np.clip(crop("wave", (layer.cover.shape[1], deep), 1, rng) * 0.4 + 0.35, 0, 0.8) * wet
    window = photo[start:start + deep, layer.left:layer.left + layer.cover.shape[1]]
    window += (235 - window) * foam[..., None]


def _cast_shadow(photo: Plane, layer: Layer, item: _Item, light: tuple[float, float]) -> None:
    """Draw an object's shadow: its flattened shape, away from the light, and dark at its feet."""
    height, width = photo.shape[:2]
    left, top, right, low = item.frame
    tall, wide = low - top, right - left
    foot = item.pose.row
    flat = 0.22
    # A row of the photo shows the object's row at 1 / flat times its distance from the feet.
    slant = -light[0] * 1.3
    sheet = Image.new("L", (width, height))
    sheet.paste(Image.fromarray((layer.cover * 255).astype(np.uint8)), (layer.left, layer.top))
    bottom = int(min(height, foot + 0.08 * tall + 3))
    first = int(max(0, foot - tall * flat - 3))
    if bottom <= first:
        return
    turned = sheet.transform(
        (width, bottom - first), Image.Transform.AFFINE,
        (1, slant / flat, -slant / flat * (foot - first), 0, 1 / flat,
         foot - (foot - first) / flat), Image.Resampling.BILINEAR)
    soft = max(1.0, 0.018 * tall)
    cast = np.asarray(turned.filter(ImageFilter.GaussianBlur(soft)), np.float32) / 255
    rows = np.arange(first, bottom, dtype=np.float32)[:, None]
    columns = np.arange(width, dtype=np.float32)[None]
    middle, reach = (left + right) / 2, max(2.0, 0.045 * tall)
    contact = np.exp(-((rows - foot) / reach)**2 - np.abs((columns - middle) / (wide * 0.5))**6)
    photo[first:bottom] *= (1 - np.maximum(0.38 * cast, 0.5 * contact))[..., None]


def _develop(rng: Rng, photo: Plane) -> npt.NDArray[np.uint8]:
    """Apply the effects of a camera: exposure, contrast, vignetting, focus, noise."""
    height, width = photo.shape[:2]
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, width, dtype=np.float32)[None]
    exposure = rng.uniform(0.88, 1.1) * (
        1 - rng.uniform(0, 0.16) * (rows**2 + columns**2) / 2
        + rng.uniform(-0.07, 0.07) * columns + rng.uniform(-0.05, 0.05) * rows)
    exposed = 118 + (photo * exposure[..., None] - 118) * rng.uniform(0.88, 1.12)
    image = Image.fromarray(exposed.clip(0, 255).astype(np.uint8))
    focus = rng.uniform(-0.5, 0.8)
    image = image.filter(ImageFilter.GaussianBlur(focus) if focus > 0 else
                         ImageFilter.UnsharpMask(1, int(-focus * 100), 0))
    grain = rng.uniform(1, 4.5) * rng.standard_normal((height, width), np.float32)
    return np.asarray((np.asarray(image, np.float32) + grain[..., None]).clip(0, 255), np.uint8)
