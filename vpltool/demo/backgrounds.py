"""Backgrounds, each with its own light, texture and depth, and where objects stand on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from vpltool.demo.canvas import (
    FINER,
    TILE,
    Colour,
    Plane,
    Rng,
    crop,
    darker,
    lighter,
    mix,
    tile,
    vary,
)


@dataclass(frozen=True)
class Mood:
    """A time of day: sky colours at the top and at the horizon, colour of the light, clouds."""

    above: Colour
    low: Colour
    tint: Colour
    clouds: float
    words: tuple[str, ...]


MOODS = {
    "day": Mood((70, 130, 205), (178, 212, 236), (1.0, 1.0, 0.98), 0.5, ("on a sunny day",)),
    "clear": Mood((50, 112, 200), (160, 205, 240), (1.03, 1.01, 0.96), 0.12,
                  ("under a blue sky", "on a clear day")),
    "overcast": Mood((150, 160, 172), (205, 210, 214), (0.9, 0.93, 0.97), 0.9,
                     ("on a cloudy day", "under a grey sky")),
    "evening": Mood((92, 108, 165), (250, 186, 120), (1.06, 0.9, 0.74), 0.55,
                    ("in the evening", "at sunset")),
    "morning": Mood((140, 172, 212), (250, 222, 196), (1.02, 0.97, 0.9), 0.35,
                    ("in the morning", "at sunrise")),
    "dusk": Mood((48, 58, 104), (176, 140, 160), (0.66, 0.68, 0.86), 0.4, ("at dusk",)),
    "mist": Mood((190, 198, 204), (222, 224, 222), (0.95, 0.97, 0.98), 0.7,
                 ("in the mist", "on a misty day")),
}
_MOOD_SHARES = (0.26, 0.2, 0.16, 0.13, 0.12, 0.07, 0.06)


@dataclass(frozen=True)
class Backdrop:
    """A painted background.

    photo (H, W, 3) in 0..255; row of the horizon; rows between which objects stand on the ground;
    rows of the wheels of vehicles that belong here; name of the mood, or "" in a room; rows
    between which objects float on the water.
    """

    photo: Plane
    horizon: int
    ground: tuple[int, int]
    tracks: tuple[float, ...] = ()
    mood: str = ""
    water: tuple[int, int] | None = None


def pick(rng: Rng, colours: tuple[Colour, ...], amount: float = 8) -> Colour:
    """Choose one of the colours, and vary it a little."""
    return vary(rng, colours[int(rng.integers(len(colours)))], amount)


def _mood(rng: Rng) -> str:
    return str(rng.choice(list(MOODS), p=_MOOD_SHARES))


def _blend(first: Plane | Colour, second: Plane | Colour, share: Plane) -> Plane:
    low, high = np.asarray(first, np.float32), np.asarray(second, np.float32)
    return low + (high - low) * share[..., None]


def _steps(values: Plane, low: float, high: float) -> Plane:
    at = np.clip((values - low) / (high - low), 0, 1)
    return np.asarray(at * at * (3 - 2 * at), np.float32)


# The sky, and objects on the horizon

def _sky(rng: Rng, height: int, width: int, mood: Mood) -> Plane:
    """Draw a sky (height, width, 3) that reaches its horizon colour in the last row."""
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None] ** rng.uniform(0.7, 1.4)
    slant = np.linspace(-1, 1, width, dtype=np.float32)[None] * rng.uniform(-0.15, 0.15)
    sky = _blend(vary(rng, mood.above), vary(rng, mood.low), np.clip(down + slant, 0, 1))
    amount = float(np.clip(mood.clouds + rng.normal(0, 0.15), 0, 1))
    # Clouds are wider than tall, and flatter towards the horizon.
    zoom = rng.uniform(0.7, 1.5) * width / 320
    tall = crop("cloud", (width, int(height * rng.uniform(1.4, 2.2)) + 2), zoom, rng)
    noise = np.asarray(Image.fromarray(np.ascontiguousarray(tall)).resize((width, height)))
    cover = _steps(noise, 1.4 - 2.2 * amount, 2.3 - 2.0 * amount)
    shade = np.clip(np.roll(noise, -max(2, height // 40), 0) - noise, -0.5, 0.5)
    white = np.clip(np.asarray(lighter(mood.low, 0.65), np.float32)
                    * (0.98 - 0.16 * shade[..., None]
                       - 0.08 * np.clip(noise, 0, 2)[..., None] * amount), 0, 255)
    sky = _blend(sky, white, cover * rng.uniform(0.65, 0.95))
    if amount < 0.75 and rng.random() < 0.3:
        _add_sun(rng, sky, mood)
    return sky


def _add_sun(rng: Rng, sky: Plane, mood: Mood) -> None:
    height, width = sky.shape[:2]
    row, column = rng.uniform(0.1, 0.8) * height, rng.uniform(0.05, 0.95) * width
    rows, columns = np.ogrid[:height, :width]
    away = np.hypot(rows - row, columns - column) / width
    glow = np.exp(-away * 9) * 0.6 + _steps(-away.astype(np.float32), -0.035, -0.025)
    sky += (np.asarray((255, 246, 214), np.float32) - sky) * np.clip(glow, 0, 1)[..., None]


def _ridge(rng: Rng, width: int, rough: float, texture: str = "cloud") -> Plane:
    """Return heights (width,) of a skyline with a mean of about 0."""
    line = tile(texture)[rng.integers(TILE)]
    at = (np.arange(width) * rough * 320 / width + rng.integers(TILE)).astype(int) & (TILE - 1)
    return np.asarray(line[at], np.float32)


def _raise(photo: Plane, tops: Plane, low: int, colour: Plane | Colour) -> None:
    """Fill the columns from the rows `tops` (width,) to `low` with a colour, with a soft edge."""
    first = max(0, int(tops.min()) - 1)
    if first >= low:
        return
    rows = np.arange(first, low, dtype=np.float32)[:, None]
    share = np.clip(rows - tops[None], 0, 1)
    part = photo[first:low]
    fill = colour[first:low] if isinstance(colour, np.ndarray) else colour
    photo[first:low] = _blend(part, fill, share)


def _hills(rng: Rng, photo: Plane, horizon: int, mood: Mood, snowy: bool = False) -> None:
    height, width = photo.shape[:2]
    for layer in range(int(rng.integers(0, 3)), 0, -1):
        tall = height * rng.uniform(0.03, 0.09) * layer
        smooth = np.convolve(np.pad(_ridge(rng, width, 0.3), 12, mode="edge"),
                             np.full(25, 1 / 25, np.float32), "valid").astype(np.float32)
        colour = (196, 206, 220) if snowy else pick(rng, ((92, 118, 92), (104, 122, 110),
                                                          (88, 104, 118)))
        far = mix(colour, mood.low, 0.28 + 0.2 * layer)
        shades = np.asarray(far, np.float32) * (
            1 + 0.05 * crop("mottle", (width, height), 1, rng)[..., None])
        _raise(photo, horizon - tall * (0.7 + 0.45 * smooth), horizon, shades)


def _trees(rng: Rng, photo: Plane, horizon: int, mood: Mood, chance: float = 0.6) -> None:
    if rng.random() > chance:
        return
    height, width = photo.shape[:2]
    tall = height * rng.uniform(0.03, 0.1)
    green = pick(rng, ((52, 80, 42), (66, 92, 48), (84, 92, 46), (48, 72, 54), (110, 92, 46)))
    crowns = 0.4 * _ridge(rng, width, 1.0, "mottle") + 0.25 * _ridge(rng, width, 1.2, "gravel")
    groves = np.clip(0.75 + 0.6 * _ridge(rng, width, 0.4), 0.05, 1.5)
    texture = 1 + 0.2 * crop("gravel", (width, height), 1.3, rng) + 0.12 * crop(
        "mottle", (width, height), 1, rng)
    colour = np.asarray(mix(green, mood.low, rng.uniform(0.05, 0.3)), np.float32)
    _raise(photo, horizon - tall * groves * (1 + crowns), horizon, colour * texture[..., None])


def _houses(rng: Rng, photo: Plane, horizon: int, mood: Mood) -> None:
    """Draw a row of house fronts with windows, in the haze behind a road."""
    height, width = photo.shape[:2]
    sheet = Image.fromarray(photo.clip(0, 255).astype(np.uint8)).resize(
        (width * 2, height * 2), Image.Resampling.NEAREST)
    brush = ImageDraw.Draw(sheet)
    unit = height * 2 / 240
    left = -rng.uniform(0, 30) * unit
    while left < sheet.width:
        wide, tall = rng.uniform(22, 60) * unit, rng.uniform(22, 62) * unit
        wall = mix(pick(rng, ((178, 150, 128), (196, 186, 170), (150, 110, 92), (140, 148, 158),
                              (206, 178, 140)), 12), mood.low, 0.25)
        low = horizon * 2
        brush.rectangle((left, low - tall, left + wide, low), fill=_ints(wall))
        if rng.random() < 0.5:
            brush.polygon(((left - unit, low - tall), (left + wide / 2, low - tall - wide * 0.3),
                           (left + wide + unit, low - tall)),
                          fill=_ints(mix((128, 74, 58), mood.low, 0.3)))
        glass = mix(darker(wall, 0.55), mood.above, 0.2)
        step = rng.uniform(8, 12) * unit
        for row in np.arange(low - tall + step * 0.5, low - step * 0.8, step * 1.1):
            for column in np.arange(left + step * 0.4, left + wide - step * 0.6, step):
                brush.rectangle((column, row, column + step * 0.5, row + step * 0.6),
                                fill=_ints(glass))
        left += wide + (rng.uniform(4, 30) * unit if rng.random() < 0.3 else 0)
    photo[:horizon] = np.asarray(sheet.reduce(2), np.float32)[:horizon]


def _ints(colour: Colour) -> tuple[int, int, int]:
    return int(colour[0]), int(colour[1]), int(colour[2])


# Ground in perspective

@dataclass(frozen=True)
class _Ground:
    """The ground in perspective: distance (rows, 1) and sideways position (rows, width).

    `near` goes from 0 at the horizon to 1 in the photo's last row.
    """

    distance: Plane
    sideways: Plane
    near: Plane

    def noise(self, texture: str, scale: float, rng: Rng, deep: float = 1) -> Plane:
        """Return a texture on the ground, which fades out where it would be too fine to see."""
        top, left = rng.integers(0, TILE, 2)
        rows = (self.distance * scale * deep + top).astype(np.int32) & (TILE - 1)
        columns = (self.sideways * scale + left).astype(np.int32) & (TILE - 1)
        fade = np.clip(self.near * 3, 0.12, 1)
        return np.asarray(tile(texture)[rows, columns] * fade, np.float32)


def _plane(rng: Rng, rows: int, width: int) -> _Ground:
    near: Plane = np.arange(1, rows + 1, dtype=np.float32)[:, None] / np.float32(rows)
    # A long lens: the nearest rows are less than five times as large as the farthest.
    eye: Plane = near * np.float32(0.85) + np.float32(0.15)
    middle = np.float32(width * rng.uniform(0.3, 0.7))
    sideways: Plane = (np.arange(width, dtype=np.float32)[None] - middle) / eye
    return _Ground(np.float32(rows * 0.9) / eye, sideways * np.float32(320 / width), near)


def _soil(rng: Rng, plane: _Ground, first: Colour, second: Colour, texture: str,
          grain: float, scale: float = 1) -> Plane:
    """Return ground colours (rows, width, 3): patches of two colours under a fine texture."""
    patches = _steps(plane.noise("mottle", 0.7 * scale, rng), -1.2, 1.2)
    fine = plane.noise(texture, 1.3 * scale, rng)
    return _blend(first, second, patches) * (1 + grain * fine)[..., None]


def _haze(ground: Plane, plane: _Ground, mood: Mood, amount: float) -> None:
    far = np.exp(-plane.near * 7) * amount
    ground += (np.asarray(mood.low, np.float32) - ground) * np.broadcast_to(
        far, ground.shape[:2])[..., None]


def _outdoors(rng: Rng, height: int, width: int, low: float = 0.3,
              high: float = 0.55) -> tuple[Plane, int, Mood, str]:
    name = _mood(rng)
    horizon = int(height * rng.uniform(low, high))
    photo = np.zeros((height, width, 3), np.float32)
    photo[:horizon + 1] = _sky(rng, horizon + 1, width, MOODS[name])
    return photo, horizon, MOODS[name], name


def _finish(photo: Plane, horizon: int, mood: Mood) -> None:
    """Tint the ground with the colour of the mood's light; the sky has it already."""
    photo[horizon:] *= np.asarray(mood.tint, np.float32)


def _speckle(rng: Rng, photo: Plane, top: int, count: int, colours: tuple[Colour, ...],
             size: float, flat: float = 0.6) -> None:
    """Scatter small blobs (stones, flowers, clods) below a row; nearer ones are larger."""
    height, width = photo.shape[:2]
    sheet = Image.new("RGBA", (width * 2, (height - top) * 2))
    brush = ImageDraw.Draw(sheet)
    for _ in range(count):
        near = rng.uniform(0.05, 1)
        row, column = near * sheet.height, rng.uniform(0, sheet.width)
        radius = size * sheet.width / 640 * (0.25 + near) * rng.uniform(0.5, 1.5)
        colour = pick(rng, colours)
        brush.ellipse((column - radius, row - radius * flat, column + radius,
                       row + radius * flat), fill=_ints(darker(colour, 0.4)))
        brush.ellipse((column - radius * 0.9, row - radius * flat, column + radius * 0.8,
                       row + radius * flat * 0.6), fill=_ints(colour))
    _lay(photo, sheet.reduce(2), top)


def _lay(photo: Plane, sheet: Image.Image, top: int) -> None:
    """Blend an RGBA image over the rows of a photo from `top` on."""
    over: Plane = np.asarray(sheet, np.float32)
    share = over[..., 3:] / np.float32(255)
    # Reducing weights colours by their coverage, so edges do not mix with the empty black image.
    photo[top:] += (over[..., :3] - photo[top:]) * share


def _fence(rng: Rng, photo: Plane, row: int, chance: float) -> None:
    if rng.random() > chance:
        return
    height, width = photo.shape[:2]
    sheet = Image.new("RGBA", (width * 2, height * 2))
    brush = ImageDraw.Draw(sheet)
    tall, step = height * rng.uniform(0.08, 0.13), width * rng.uniform(0.14, 0.24)
    wood = pick(rng, ((110, 92, 74), (140, 130, 118), (92, 76, 60)))
    base = row * 2 + tall * 0.3
    for share in (0.45, 0.85):
        brush.line((0, base - tall * share, width * 2, base - tall * share),
                   fill=_ints(lighter(wood, 0.2)), width=max(1, int(tall * 0.1)))
    for left in np.arange(rng.uniform(0, step), width * 2, step):
        brush.rectangle((left, base - tall, left + tall * 0.13, base + tall * 0.2),
                        fill=_ints(wood))
    _lay(photo, sheet.reduce(2), 0)


# The backgrounds

def _field(rng: Rng, height: int, width: int, bank: bool) -> Backdrop:
    photo, horizon, mood, name = _outdoors(rng, height, width)
    _hills(rng, photo, horizon, mood)
    _trees(rng, photo, horizon, mood)
    plane = _plane(rng, height - horizon, width)
    brown = pick(rng, ((112, 80, 54), (130, 96, 66), (92, 66, 48), (140, 104, 80)))
    soil = _soil(rng, plane, brown, mix(brown, (166, 128, 88), 0.4), "gravel", 0.14)
    slant = rng.uniform(-1.2, 1.2)
    along = plane.sideways + slant * plane.distance * 0.5 + 3 * plane.noise("mottle", 0.8, rng)
    waves = np.sin(along * rng.uniform(0.28, 0.42))
    soil *= (1 + 0.2 * waves * np.clip(plane.near * 2.5, 0.15, 1))[..., None]
    if rng.random() < 0.3:
        sprouts = _steps(waves, 0.55, 0.95) * np.clip(plane.noise("gravel", 1, rng) + 0.7, 0, 1)
        soil = _blend(soil, (104, 136, 58), sprouts * 0.8)
    _haze(soil, plane, mood, 0.4)
    photo[horizon:] = soil
    _speckle(rng, photo, horizon, int(rng.integers(10, 40)), (lighter(brown, 0.15), brown), 2.2)
    _fence(rng, photo, horizon, 0.12)
    _finish(photo, horizon, mood)
    return Backdrop(photo, horizon, (horizon + height // 10, height), mood=name)


def _grass(rng: Rng, height: int, width: int, bank: bool) -> Backdrop:
    photo, horizon, mood, name = _outdoors(rng, height, width)
    _hills(rng, photo, horizon, mood)
    _trees(rng, photo, horizon, mood)
    plane = _plane(rng, height - horizon, width)
    green = pick(rng, ((96, 140, 58), (112, 152, 66), (126, 146, 70), (82, 126, 62),
                       (140, 150, 82)))
    meadow = _soil(rng, plane, green, mix(green, (164, 168, 92), 0.45), "blade", 0.15)
    meadow *= (1 + 0.07 * plane.noise("mottle", 1.5, rng))[..., None]
    _haze(meadow, plane, mood, 0.35)
    photo[horizon:] = meadow
    _fence(rng, photo, horizon, 0.25)
    _tufts(rng, photo, horizon, green, int(rng.integers(40, 160)))
    if rng.random() < 0.4:
        flower: tuple[Colour, ...] = (((250, 250, 245), (250, 215, 70)),
                                      ((226, 150, 190), (245, 245, 250)),
                                      ((214, 64, 50), (90, 110, 200)))[int(rng.integers(3))]
        _speckle(rng, photo, horizon, int(rng.integers(20, 90)), flower, 1.2, 0.9)
    _finish(photo, horizon, mood)
    return Backdrop(photo, horizon, (horizon + height // 10, height), mood=name)


def _tufts(rng: Rng, photo: Plane, top: int, green: Colour, count: int) -> None:
    height, width = photo.shape[:2]
    sheet = Image.new("RGBA", (width * 2, (height - top) * 2))
    brush = ImageDraw.Draw(sheet)
    unit = sheet.width / 640
    for near, column in zip(np.sort(rng.uniform(0.06, 1.1, count)),
                            rng.uniform(0, sheet.width, count), strict=True):
        row, colour = near * sheet.height, vary(rng, darker(green, 0.22), 14)
        for lean in rng.normal(0, 5, 5) * unit * near:
            tall = rng.uniform(4, 11) * unit * (0.3 + near)
            brush.line((column + lean * 0.4, row, column + lean * 1.6, row - tall),
                       fill=_ints(colour), width=max(1, round(1.4 * unit * (0.4 + near))))
    _lay(photo, sheet.reduce(2), top)


def _railway(rng: Rng, height: int, width: int, bank: bool) -> Backdrop:
    photo, horizon, mood, name = _outdoors(rng, height, width, 0.34, 0.58)
    _hills(rng, photo, horizon, mood)
    _trees(rng, photo, horizon, mood, 0.8)
    plane = _plane(rng, height - horizon, width)
    stone = pick(rng, ((140, 132, 124), (122, 118, 116), (150, 138, 122), (128, 112, 98)))
    gravel = _soil(rng, plane, stone, mix(stone, (96, 84, 76), 0.35), "gravel", 0.24, 1.2)
    verge = int((height - horizon) * rng.uniform(0.12, 0.4))
    weeds = pick(rng, ((110, 132, 66), (130, 132, 80), (98, 112, 62)))
    green = _soil(rng, plane, weeds, darker(weeds, 0.25), "blade", 0.16)
    edge = np.arange(height - horizon, dtype=np.float32)[:, None] + 3 * plane.noise(
        "mottle", 1.2, rng)
    ground = _blend(green, gravel, np.clip((edge - verge) / 3, 0, 1))
    _haze(ground, plane, mood, 0.3)
    photo[horizon:] = ground
    nearest = height * rng.uniform(0.84, 0.97)
    deep = (height - horizon) * rng.uniform(0.13, 0.2)
    second = nearest - deep * rng.uniform(2.2, 2.8)
    rust = pick(rng, ((112, 84, 70), (128, 104, 90), (96, 82, 76)))
    tracks: tuple[float, ...] = (nearest,)
    if second - deep > horizon + verge and rng.random() < 0.55:
        _track(rng, photo, second, deep * 0.6, rust)
        tracks = (nearest, second)
    _track(rng, photo, nearest, deep, rust)
    _masts(rng, photo, horizon + verge)
    _finish(photo, horizon, mood)
    return Backdrop(photo, horizon, (horizon + verge, height), tracks, name)


def _track(rng: Rng, photo: Plane, near: float, deep: float, rust: Colour) -> None:
    """Draw two rails over sleepers: the nearer in the row `near`, the other `deep` rows above."""
    height, width = photo.shape[:2]
    sheet = Image.new("RGBA", (width * FINER, height * FINER))
    brush = ImageDraw.Draw(sheet)
    near, deep, far = near * FINER, deep * FINER, (near - deep) * FINER
    wood = pick(rng, ((92, 74, 60), (84, 78, 72), (150, 144, 136), (108, 86, 68)))
    step = deep * rng.uniform(0.62, 0.85)
    middle = sheet.width * rng.uniform(0.3, 0.7)
    for number in range(-int(middle / step) - 6, int((sheet.width - middle) / step) + 6):
        # Sleepers fan out from a far point: more so the farther they are to the side.
        low, high = middle + number * step, middle + number * step * 0.86
        half, board = step * 0.24, vary(rng, wood, 10)
        top, bottom = far - deep * 0.22, near + deep * 0.3
        brush.polygon(((high - half * 0.8, top), (high + half * 0.8, top), (low + half, bottom),
                       (low - half, bottom)), fill=_ints(board))
        brush.polygon(((low - half, bottom), (low + half, bottom),
                       (low + half, bottom + deep * .09),
                       (low - half, bottom + deep * 0.09)), fill=_ints(darker(board, 0.5)))
    for row, thick in ((far, deep * 0.1), (near, deep * 0.15)):
        brush.rectangle((0, row, sheet.width, row + thick), fill=_ints(rust))
        brush.rectangle((0, row + thick, sheet.width, row + thick * 1.5),
                        fill=_ints(darker(rust, 0.55)))
        brush.rectangle((0, row - thick * 0.3, sheet.width, row + thick * 0.2),
                        fill=(206, 206, 210))
    _lay(photo, sheet.reduce(FINER), 0)


def _masts(rng: Rng, photo: Plane, row: int) -> None:
    """Draw the posts and the wire of an electric line, in some photos."""
    if rng.random() > 0.5:
        return
    height, width = photo.shape[:2]
    sheet = Image.new("RGBA", (width * 2, height * 2))
    brush = ImageDraw.Draw(sheet)
    unit = height * 2 / 240
    top = row * 2 - rng.uniform(60, 100) * unit
    for share in (0.06, 0.16):
        high = top + share * 120 * unit
        brush.line((0, high, sheet.width, high), fill=(70, 70, 76), width=max(1, int(unit * 0.6)))
    for left in np.arange(rng.uniform(10, 120), 400, rng.uniform(110, 190)) * unit:
        brush.rectangle((left, top - 6 * unit, left + 3.5 * unit, row * 2 + 4 * unit),
                        fill=(104, 106, 108))
        brush.line((left, top - 3 * unit, left + 16 * unit, top + 5 * unit), fill=(96, 98, 102),
                   width=max(1, int(unit * 1.2)))
    _lay(photo, sheet.reduce(2), 0)


def _road(rng: Rng, height: int, width: int, bank: bool) -> Backdrop:
    photo, horizon, mood, name = _outdoors(rng, height, width, 0.36, 0.56)
    town = rng.random() < 0.45
    if town:
        _houses(rng, photo, horizon, mood)
    else:
        _hills(rng, photo, horizon, mood)
        _trees(rng, photo, horizon, mood, 0.8)
    plane = _plane(rng, height - horizon, width)
    rows = height - horizon
    green = pick(rng, ((104, 138, 66), (122, 138, 78), (136, 130, 92)))
    verge = (_soil(rng, plane, (168, 162, 154), (150, 146, 142), "gravel", 0.06) if town else
             _soil(rng, plane, green, darker(green, 0.2), "blade", 0.15))
    grey = pick(rng, ((98, 98, 102), (84, 86, 90), (116, 112, 108), (74, 74, 80)))
    asphalt = _soil(rng, plane, grey, lighter(grey, 0.12), "gravel", 0.1)
    slope = np.linspace(-1, 1, width, dtype=np.float32)[None] * rng.normal(0, 0.015) * rows
    down = np.arange(rows, dtype=np.float32)[:, None] + slope
    kerb = rows * rng.uniform(0.12, 0.3)
    ground = _blend(verge, asphalt, np.clip(down - kerb, 0, 1))
    line = (rng.uniform(0.72, 0.97)) * rows
    _stripe(ground, down, kerb, rows * 0.045, (184, 180, 174) if town else (214, 212, 204), 0.85)
    dashes = (np.sin(plane.sideways[:1] * rng.uniform(0.03, 0.06) + rng.uniform(0, 6)) > -0.2)
    _stripe(ground, down, line, rows * 0.04, (228, 224, 212), 0.85,
            dashes.astype(np.float32) if rng.random() < 0.7 else None)
    _haze(ground, plane, mood, 0.25)
    photo[horizon:] = ground
    if not town:
        _fence(rng, photo, horizon, 0.2)
    _finish(photo, horizon, mood)
    lanes = (horizon + line - rows * rng.uniform(0.02, 0.12),
             horizon + (kerb + (line - kerb) * rng.uniform(0.25, 0.6)),
             min(height - 2.0, horizon + line + rows * rng.uniform(0.05, 0.2)))
    return Backdrop(photo, horizon, (int(horizon + kerb), height), lanes, name)


def _stripe(ground: Plane, down: Plane, row: float, thick: float, colour: Colour,
            opacity: float, dashes: Plane | None = None) -> None:
    share = np.clip(down - row, 0, 1) * np.clip(row + thick - down, 0, 1) * opacity
    if dashes is not None:
        share = share * dashes
    ground += (np.asarray(colour, np.float32) - ground) * share[..., None]


def _room(rng: Rng, height: int, width: int, bank: bool) -> Backdrop:
    floor = int(height * rng.uniform(0.52, 0.74))
    paint = pick(rng, ((214, 200, 176), (178, 196, 200), (206, 172, 150), (186, 200, 168),
                       (222, 214, 206), (150, 168, 188), (226, 198, 140), (190, 160, 176)))
    wall = np.empty((height, width, 3), np.float32)
    wall[:] = paint
    columns = np.arange(width, dtype=np.float32)[None]
    _WALLS[int(rng.integers(len(_WALLS)))](rng, wall, columns, paint)
    wall *= (1 + 0.02 * crop("mottle", (width, height), 2, rng)
             + 0.015 * crop("gravel", (width, height), 1, rng))[..., None]
    if rng.random() < 0.55:
        _window_or_picture(rng, wall, floor)
    plane = _plane(rng, height - floor, width)
    wall[floor:] = _FLOORS[int(rng.integers(len(_FLOORS)))](rng, plane)
    board = lighter(paint, 0.5) if rng.random() < 0.7 else darker(paint, 0.35)
    high = max(2, int(height * rng.uniform(0.02, 0.045)))
    wall[floor - high:floor] = board
    wall[floor - high] *= 0.85
    shadow = np.exp(-np.arange(height - floor, dtype=np.float32) / (height * 0.02)) * 0.35
    wall[floor:] *= (1 - shadow)[:, None, None]
    rows, spot = np.linspace(0, 1, height, dtype=np.float32)[:, None], rng.uniform(0, 1)
    away = np.hypot(rows - rng.uniform(0.1, 0.6), columns / width - spot)
    warm = np.asarray(((1.05, 1.0, 0.9), (1, 1, 1), (0.96, 1, 1.05))[int(rng.integers(3))])
    wall *= ((1.14 - 0.4 * away)[..., None] * warm).astype(np.float32)
    return Backdrop(wall, floor, (floor + height // 14, height))


def _plain_wall(rng: Rng, wall: Plane, columns: Plane, paint: Colour) -> None:
    wall *= (1 + 0.02 * crop("cloud", (wall.shape[1], wall.shape[0]), 2, rng))[..., None]


def _striped_wall(rng: Rng, wall: Plane, columns: Plane, paint: Colour) -> None:
    period = rng.uniform(0.04, 0.1) * columns.size
    share = _steps(np.sin(columns * 2 * np.pi / period), -0.1, 0.1) * rng.uniform(0.3, 0.8)
    second = pick(rng, (lighter(paint, 0.4), darker(paint, 0.2), (235, 228, 214)))
    wall += (np.asarray(second, np.float32) - wall) * np.broadcast_to(
        share, wall.shape[:2])[..., None]


def _tiled_wall(rng: Rng, wall: Plane, columns: Plane, paint: Colour) -> None:
    side = rng.uniform(0.06, 0.11) * columns.size
    rows = np.arange(wall.shape[0], dtype=np.float32)[:, None]
    odd = (rows // side) % 2 * side / 2 * float(rng.random() < 0.5)
    joint = np.minimum((columns + odd) % side, rows % side) < max(1, side * 0.06)
    shade = tile("gravel")[(rows // side).astype(int) & 511,
                           ((columns + odd) // side).astype(int) & 511]
    wall *= (1 + 0.03 * shade)[..., None]
    wall[np.broadcast_to(joint, wall.shape[:2])] = lighter(paint, 0.55)


def _panelled_wall(rng: Rng, wall: Plane, columns: Plane, paint: Colour) -> None:
    row = int(wall.shape[0] * rng.uniform(0.34, 0.5))
    wall[row:] = lighter(paint, 0.55)
    wall[row - 2:row + 2] = lighter(paint, 0.7)
    joint = (columns % (columns.size * rng.uniform(0.03, 0.08))) < 1.2
    wall[row + 2:] *= np.where(joint, 0.86, 1).astype(np.float32)[..., None]


_WALLS: tuple[Callable[[Rng, Plane, Plane, Colour], None], ...] = (
    _plain_wall, _striped_wall, _tiled_wall, _panelled_wall)


def _planks(rng: Rng, plane: _Ground) -> Plane:
    wood = pick(rng, ((160, 112, 70), (186, 140, 92), (120, 82, 56), (196, 164, 124)))
    wide = rng.uniform(16, 30)
    board = np.floor((plane.sideways + rng.uniform(0, 99)) / wide)
    shade = tile("gravel")[(board.astype(np.int32) * 37) & 511, 5]
    grain = plane.noise("wood", 1.2, rng, 0.5)
    edge = np.abs((plane.sideways / wide) % 1 - 0.5) > 0.47
    lum = (1 + 0.08 * shade + 0.06 * grain) * np.where(edge, 0.78, 1)
    return np.asarray(np.asarray(wood, np.float32) * lum[..., None], np.float32)


def _tiles(rng: Rng, plane: _Ground) -> Plane:
    side = rng.uniform(26, 44)
    first = pick(rng, ((216, 210, 200), (170, 166, 160), (196, 150, 118)))
    second = pick(rng, (first, darker(first, 0.3), (90, 90, 96)), 4)
    across, deep = np.floor(plane.sideways / side), np.floor(plane.distance / side * 2)
    odd = ((across + deep) % 2).astype(np.float32)
    floor = _blend(first, second, odd)
    joint = (np.abs((plane.sideways / side) % 1 - 0.5) > 0.475) | (
        np.abs((plane.distance / side * 2) % 1 - 0.5) > 0.47)
    lum = np.where(joint, 0.8, 1) + 0.03 * plane.noise("mottle", 1.4, rng)
    return np.asarray(floor * lum[..., None], np.float32)


def _carpet(rng: Rng, plane: _Ground) -> Plane:
    wool = pick(rng, ((150, 80, 70), (96, 110, 132), (140, 134, 120), (110, 126, 96),
                      (176, 150, 120)))
    return _soil(rng, plane, wool, lighter(wool, 0.1), "gravel", 0.09, 1.3)


_FLOORS: tuple[Callable[[Rng, _Ground], Plane], ...] = (_planks, _tiles, _carpet)


def _window_or_picture(rng: Rng, wall: Plane, floor: int) -> None:
    """Draw a window or a framed picture on the wall."""
    height, width = wall.shape[:2]
    wide, tall = int(width * rng.uniform(0.14, 0.32)), int(floor * rng.uniform(0.3, 0.6))
    top, left = int(floor * rng.uniform(0.06, 0.25)), int(rng.uniform(0, width - wide))
    frame = pick(rng, ((240, 238, 230), (110, 76, 50), (60, 56, 54), (200, 168, 96)))
    edge = max(2, wide // 16)
    wall[top:top + tall, left:left + wide] = frame
    wall[top + tall:top + tall + edge, left:left + wide + edge // 2] *= 0.8
    inner = (slice(top + edge, top + tall - edge), slice(left + edge, left + wide - edge))
    mood = MOODS[_mood(rng)]
    view = _sky(rng, tall - 2 * edge, wide - 2 * edge, mood)
    _raise(view, (view.shape[0] * (0.75 + 0.1 * _ridge(rng, view.shape[1], 0.5))).astype(
        np.float32), view.shape[0], (96, 124, 76))
    wall[inner] = view
    if rng.random() < 0.5:
        wall[inner[0], left + wide // 2 - edge // 3:left + wide // 2 + edge // 3 + 1] = frame


def _sand(rng: Rng, height: int, width: int, bank: bool) -> Backdrop:
    photo, horizon, mood, name = _outdoors(rng, height, width)
    plane = _plane(rng, height - horizon, width)
    pale = pick(rng, ((218, 190, 146), (206, 176, 128), (226, 206, 170), (198, 160, 112)))
    sand = _soil(rng, plane, pale, mix(pale, (176, 138, 98), 0.4), "gravel", 0.06)
    ripples = np.sin(plane.distance * rng.uniform(0.5, 0.8) + 1.6 * plane.noise("cloud", 1.1, rng)
                     + plane.sideways * rng.uniform(-0.08, 0.08))
    sand *= (1 + 0.06 * ripples * np.clip(plane.near * 2, 0.1, 1))[..., None]
    _haze(sand, plane, mood, 0.3)
    photo[horizon:] = sand
    shore = horizon
    if rng.random() < 0.5:
        sea = int((height - horizon) * rng.uniform(0.1, 0.25))
        shore = horizon + sea
        surface = _waves(rng, height - horizon, width, mood)[:sea]
        foam = np.arange(sea, dtype=np.float32)[:, None] + 2.5 * _ridge(rng, width, 0.6)[None]
        photo[horizon:shore] = _blend(surface, (236, 240, 238), _steps(foam, sea - 4, sea - 1))
        photo[shore:shore + 3] *= 0.86
    else:
        _hills(rng, photo, horizon, mood)
    _speckle(rng, photo, shore + 4, int(rng.integers(3, 25)),
             ((150, 140, 128), (226, 216, 200), (120, 108, 96)), 2.0)
    _finish(photo, horizon, mood)
    return Backdrop(photo, horizon, (shore + height // 10, height), mood=name)


def _full_sky(rng: Rng, height: int, width: int, bank: bool) -> Backdrop:
    name = _mood(rng)
    mood = MOODS[name]
    photo = _sky(rng, height, width, mood)
    horizon = height
    if rng.random() < 0.35:
        horizon = int(height * rng.uniform(0.86, 0.97))
        _hills(rng, photo, horizon, mood)
        green = mix(pick(rng, ((98, 124, 74), (120, 128, 84), (110, 112, 96))), mood.low, 0.2)
        photo[horizon:] = _soil(rng, _plane(rng, height - horizon, width), green,
                                darker(green, 0.2), "gravel", 0.12)
        _trees(rng, photo, horizon, mood)
        _finish(photo, horizon, mood)
    return Backdrop(photo, horizon, (horizon, height), mood=name)


def _snow(rng: Rng, height: int, width: int, bank: bool) -> Backdrop:
    photo, horizon, mood, name = _outdoors(rng, height, width)
    _hills(rng, photo, horizon, mood, snowy=True)
    _firs(rng, photo, horizon, mood)
    plane = _plane(rng, height - horizon, width)
    white = pick(rng, ((236, 240, 246), (228, 236, 246), (240, 240, 240)), 3)
    snow = _soil(rng, plane, white, (196, 210, 230), "gravel", 0.02, 0.8)
    snow *= (1 - 0.05 * _steps(plane.noise("cloud", 0.8, rng), 0, 1.2))[..., None]
    _haze(snow, plane, mood, 0.4)
    photo[horizon:] = snow
    _fence(rng, photo, horizon, 0.25)
    _finish(photo, horizon, mood)
    if rng.random() < 0.3:
        flakes = crop("gravel", (width, height), 1.2, rng) > 2.4
        photo[flakes] += (250 - photo[flakes]) * 0.8
    return Backdrop(photo, horizon, (horizon + height // 10, height), mood=name)


def _firs(rng: Rng, photo: Plane, horizon: int, mood: Mood) -> None:
    height, width = photo.shape[:2]
    sheet = Image.new("RGBA", (width * 2, height * 2))
    brush = ImageDraw.Draw(sheet)
    green = mix((52, 74, 66), mood.low, rng.uniform(0.05, 0.35))
    for _ in range(int(rng.integers(0, 40))):
        middle, tall = rng.uniform(0, width * 2), height * rng.uniform(0.08, 0.28)
        colour = vary(rng, green, 8)
        for level in range(4):
            low = horizon * 2 - tall * level * 0.22
            wide = tall * (0.24 - level * 0.045)
            high = low - tall * 0.38
            brush.polygon(((middle - wide, low), (middle + wide, low), (middle, high)),
                          fill=_ints(colour))
            brush.polygon(((middle - wide * 0.5, low - tall * 0.12), (middle, high),
                           (middle + wide * 0.2, low - tall * 0.16)), fill=(222, 230, 238))
    _lay(photo, sheet.reduce(2), 0)


def _waves(rng: Rng, rows: int, width: int, mood: Mood) -> Plane:
    plane = _plane(rng, rows, width)
    deep = mix(pick(rng, ((40, 92, 120), (46, 108, 126), (64, 104, 112), (34, 76, 116),
                          (70, 120, 130))), mood.above, 0.25)
    swell = 0.6 * plane.noise("wave", 0.8, rng, 1.6) + 0.5 * plane.noise("wave", 1.7, rng, 1.6)
    water = _blend(mix(deep, mood.low, 0.6), deep, np.broadcast_to(
        np.sqrt(plane.near), swell.shape))
    glitter = _steps(swell, 0.7, 2.0)
    water *= (1 + 0.13 * swell)[..., None]
    return _blend(water, lighter(mood.low, 0.3), glitter * rng.uniform(0.3, 0.7))


def _water(rng: Rng, height: int, width: int, bank: bool) -> Backdrop:
    photo, horizon, mood, name = _outdoors(rng, height, width, 0.26, 0.5)
    if rng.random() < 0.7:
        _hills(rng, photo, horizon, mood)
        _trees(rng, photo, horizon, mood, 0.5)
    photo[horizon:] = _waves(rng, height - horizon, width, mood)
    ground = swim = (horizon + height // 10, height)
    if bank:
        # Objects that cannot float stand on the near shore.
        shore = int(height * rng.uniform(0.6, 0.72))
        plane = _plane(rng, height - horizon, width)
        earth = pick(rng, ((112, 138, 70), (202, 176, 132), (150, 144, 132)))
        land = _soil(rng, plane, earth, darker(earth, 0.2), "blade", 0.12)
        edge = (np.arange(horizon, height, dtype=np.float32)[:, None] - shore
                + height * 0.012 * _ridge(rng, width, 0.5)[None])
        photo[horizon:] = _blend(photo[horizon:], (226, 232, 228), _steps(edge, -6, -1) * 0.6)
        photo[horizon:] = _blend(photo[horizon:], land, np.clip(edge, 0, 1))
        ground, swim = (shore + height // 12, height), (swim[0], shore)
    _finish(photo, horizon, mood)
    return Backdrop(photo, horizon, ground, mood=name, water=swim)


BACKGROUNDS: dict[str, Callable[[Rng, int, int, bool], Backdrop]] = {
    "field": _field, "grass": _grass, "railway": _railway, "road": _road, "room": _room,
    "sand": _sand, "sky": _full_sky, "snow": _snow, "water": _water}
"""The drawing function of each background: (rng, height, width, bank) -> Backdrop.

`bank` asks for a near shore at the water, for objects that do not float.
"""


def blurred(plane: Plane, radius: float) -> Plane:
    """Blur coverage (H, W) in 0..1 by about `radius` pixels."""
    sheet = Image.fromarray((plane * 255).astype(np.uint8))
    soft: Plane = np.asarray(sheet.filter(ImageFilter.GaussianBlur(radius)), np.float32)
    return soft / np.float32(255)
