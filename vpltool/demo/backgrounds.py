"""Backgrounds, each with its own light, texture and depth, and where objects stand on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    one_of,
    pick,
    tile,
    vary,
    whole,
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


def _mood(rng: Rng) -> str:
    return str(rng.choice(list(MOODS), p=_MOOD_SHARES))


def _blend(first: Plane | Colour, second: Plane | Colour, share: Plane) -> Plane:
    low, high = np.asarray(first, np.float32), np.asarray(second, np.float32)
    return low + (high - low) * share[..., None]


def _steps(values: Plane, low: float, high: float) -> Plane:
    at = np.clip((values - low) / (high - low), 0, 1)
    return np.asarray(at * at * (3 - 2 * at), np.float32)


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
    fill = colour[first:low] if isinstance(colour, np.ndarray) else colour
    photo[first:low] = _blend(photo[first:low], fill, share)


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
        # The sun with its glow.
        row, column = rng.uniform(0.1, 0.8) * height, rng.uniform(0.05, 0.95) * width
        rows, columns = np.ogrid[:height, :width]
        away = np.hypot(rows - row, columns - column) / width
        glow = np.exp(-away * 9) * 0.6 + _steps(-away.astype(np.float32), -0.035, -0.025)
        sky += (np.asarray((255, 246, 214), np.float32) - sky) * np.clip(glow, 0, 1)[..., None]
    return sky


class _Ground:
    """The ground in perspective: distance (rows, 1) and sideways position (rows, width).

    `near` goes from 0 at the horizon to 1 in the photo's last row.
    """

    def __init__(self, rng: Rng, rows: int, width: int) -> None:
        self.rng = rng
        self.near: Plane = np.arange(1, rows + 1, dtype=np.float32)[:, None] / np.float32(rows)
        # A long lens: the nearest rows are less than five times as large as the farthest.
        eye: Plane = self.near * np.float32(0.85) + np.float32(0.15)
        middle = np.float32(width * rng.uniform(0.3, 0.7))
        sideways: Plane = (np.arange(width, dtype=np.float32)[None] - middle) / eye
        self.distance: Plane = np.float32(rows * 0.9) / eye
        self.sideways: Plane = sideways * np.float32(320 / width)

    def noise(self, texture: str, scale: float, deep: float = 1) -> Plane:
        """Return a texture on the ground, which fades out where it would be too fine to see."""
        top, left = self.rng.integers(0, TILE, 2)
        rows = (self.distance * scale * deep + top).astype(np.int32) & (TILE - 1)
        columns = (self.sideways * scale + left).astype(np.int32) & (TILE - 1)
        fade = np.clip(self.near * 3, 0.12, 1)
        return np.asarray(tile(texture)[rows, columns] * fade, np.float32)

    def soil(self, first: Colour, second: Colour, texture: str, grain: float, scale: float = 1
             ) -> Plane:
        """Return colours (rows, width, 3): patches of two colours under a fine texture."""
        patches = _steps(self.noise("mottle", 0.7 * scale), -1.2, 1.2)
        fine = self.noise(texture, 1.3 * scale)
        return _blend(first, second, patches) * (1 + grain * fine)[..., None]


class _Land:
    """A photo outdoors in the making: sky down to a horizon, and what is drawn before it.

    `span` holds the least and the largest height of the sky; None: the sky is all.
    """

    def __init__(self, rng: Rng, height: int, width: int,
                 span: tuple[float, float] | None = (0.3, 0.55)) -> None:
        self.rng, self.height, self.width = rng, height, width
        self.name = _mood(rng)
        self.mood = MOODS[self.name]
        self.horizon = int(height * rng.uniform(*span)) if span else height
        self.photo = np.zeros((height, width, 3), np.float32)
        rows = min(self.horizon + 1, height)
        self.photo[:rows] = _sky(rng, rows, width, self.mood)

    def ground(self) -> _Ground:
        """Return the ground from the horizon on."""
        return _Ground(self.rng, self.height - self.horizon, self.width)

    def cover(self, colours: Plane, ground: _Ground, haze: float) -> None:
        """Paint the ground, with haze where it is far."""
        far = np.exp(-ground.near * 7) * haze
        colours += (np.asarray(self.mood.low, np.float32) - colours) * np.broadcast_to(
            far, colours.shape[:2])[..., None]
        self.photo[self.horizon:] = colours

    def finished(self, top: float | None = None, tracks: tuple[float, ...] = (),
                 water: tuple[int, int] | None = None) -> Backdrop:
        """Tint the ground with the colour of the light, as the sky is; objects stand from `top`."""
        self.photo[self.horizon:] *= np.asarray(self.mood.tint, np.float32)
        first = self.horizon + self.height // 10 if top is None else int(top)
        return Backdrop(self.photo, self.horizon, (first, self.height), tracks, self.name, water)

    @contextmanager
    def sheet(self, top: int = 0, finer: int = 2) -> Iterator[tuple[ImageDraw.ImageDraw, int, int]]:
        """Lay what is drawn over the rows from `top` on; it is drawn so many times finer.

        Yields:
            the brush, and width and height of the sheet.
        """
        sheet = Image.new("RGBA", (self.width * finer, (self.height - top) * finer))
        yield ImageDraw.Draw(sheet), sheet.width, sheet.height
        over: Plane = np.asarray(sheet.reduce(finer), np.float32)
        share = over[..., 3:] / np.float32(255)
        # Reducing weights colours by their coverage, so edges do not mix with the empty black.
        self.photo[top:] += (over[..., :3] - self.photo[top:]) * share

    def hills(self, snowy: bool = False) -> None:
        """Draw up to two rows of hills on the horizon."""
        for layer in range(int(self.rng.integers(0, 3)), 0, -1):
            tall = self.height * self.rng.uniform(0.03, 0.09) * layer
            ridge = np.pad(_ridge(self.rng, self.width, 0.3), 12, mode="edge")
            smooth = np.convolve(ridge, np.full(25, 1 / 25, np.float32), "valid")
            colour: Colour = (196, 206, 220) if snowy else pick(
                self.rng, ((92, 118, 92), (104, 122, 110), (88, 104, 118)))
            far = mix(colour, self.mood.low, 0.28 + 0.2 * layer)
            shades = np.asarray(far, np.float32) * (
                1 + 0.05 * crop("mottle", (self.width, self.height), 1, self.rng)[..., None])
            tops = self.horizon - tall * (0.7 + 0.45 * smooth.astype(np.float32))
            _raise(self.photo, tops, self.horizon, shades)

    def trees(self, chance: float = 0.6) -> None:
        """Draw a line of trees on the horizon, in some photos."""
        rng, size = self.rng, (self.width, self.height)
        if rng.random() > chance:
            return
        tall = self.height * rng.uniform(0.03, 0.1)
        green = pick(rng, ((52, 80, 42), (66, 92, 48), (84, 92, 46), (48, 72, 54), (110, 92, 46)))
        crowns = (0.4 * _ridge(rng, self.width, 1.0, "mottle")
                  + 0.25 * _ridge(rng, self.width, 1.2, "gravel"))
        groves = np.clip(0.75 + 0.6 * _ridge(rng, self.width, 0.4), 0.05, 1.5)
        texture = 1 + 0.2 * crop("gravel", size, 1.3, rng) + 0.12 * crop("mottle", size, 1, rng)
        colour = np.asarray(mix(green, self.mood.low, rng.uniform(0.05, 0.3)), np.float32)
        _raise(self.photo, self.horizon - tall * groves * (1 + crowns), self.horizon,
               colour * texture[..., None])

    def firs(self) -> None:
        """Draw snowy firs on the horizon."""
        rng = self.rng
        with self.sheet() as (brush, width, _):
            green = mix((52, 74, 66), self.mood.low, rng.uniform(0.05, 0.35))
            for _ in range(int(rng.integers(0, 40))):
                middle, tall = rng.uniform(0, width), self.height * rng.uniform(0.08, 0.28)
                colour = vary(rng, green, 8)
                for level in range(4):
                    low = self.horizon * 2 - tall * level * 0.22
                    wide = tall * (0.24 - level * 0.045)
                    high = low - tall * 0.38
                    brush.polygon(((middle - wide, low), (middle + wide, low), (middle, high)),
                                  fill=whole(colour))
                    brush.polygon(((middle - wide * 0.5, low - tall * 0.12), (middle, high),
                                   (middle + wide * 0.2, low - tall * 0.16)), fill=(222, 230, 238))

    def houses(self) -> None:
        """Draw a row of house fronts with windows, in the haze behind a road."""
        rng, low = self.rng, self.horizon * 2
        sheet = Image.fromarray(self.photo.clip(0, 255).astype(np.uint8)).resize(
            (self.width * 2, self.height * 2), Image.Resampling.NEAREST)
        brush = ImageDraw.Draw(sheet)
        unit = self.height * 2 / 240
        left = -rng.uniform(0, 30) * unit
        while left < sheet.width:
            wide, tall = rng.uniform(22, 60) * unit, rng.uniform(22, 62) * unit
            wall = mix(pick(rng, ((178, 150, 128), (196, 186, 170), (150, 110, 92),
                                  (140, 148, 158), (206, 178, 140)), 12), self.mood.low, 0.25)
            brush.rectangle((left, low - tall, left + wide, low), fill=whole(wall))
            if rng.random() < 0.5:
                brush.polygon(((left - unit, low - tall),
                               (left + wide / 2, low - tall - wide * 0.3),
                               (left + wide + unit, low - tall)),
                              fill=whole(mix((128, 74, 58), self.mood.low, 0.3)))
            glass = mix(darker(wall, 0.55), self.mood.above, 0.2)
            step = rng.uniform(8, 12) * unit
            for row in np.arange(low - tall + step * 0.5, low - step * 0.8, step * 1.1):
                for column in np.arange(left + step * 0.4, left + wide - step * 0.6, step):
                    brush.rectangle((column, row, column + step * 0.5, row + step * 0.6),
                                    fill=whole(glass))
            left += wide + (rng.uniform(4, 30) * unit if rng.random() < 0.3 else 0)
        self.photo[:self.horizon] = np.asarray(sheet.reduce(2), np.float32)[:self.horizon]

    def fence(self, chance: float) -> None:
        """Draw a wooden fence along the horizon, in some photos."""
        rng = self.rng
        if rng.random() > chance:
            return
        tall = self.height * rng.uniform(0.08, 0.13)
        step = self.width * rng.uniform(0.14, 0.24)
        wood = pick(rng, ((110, 92, 74), (140, 130, 118), (92, 76, 60)))
        base = self.horizon * 2 + tall * 0.3
        with self.sheet() as (brush, width, _):
            for share in (0.45, 0.85):
                brush.line((0, base - tall * share, width, base - tall * share),
                           fill=whole(lighter(wood, 0.2)), width=max(1, int(tall * 0.1)))
            for left in np.arange(rng.uniform(0, step), width, step):
                brush.rectangle((left, base - tall, left + tall * 0.13, base + tall * 0.2),
                                fill=whole(wood))

    def speckle(self, top: int, count: int, colours: tuple[Colour, ...], size: float,
                flat: float = 0.6) -> None:
        """Scatter small blobs (stones, flowers, clods) below a row; nearer ones are larger."""
        rng = self.rng
        with self.sheet(top) as (brush, width, height):
            for _ in range(count):
                near = rng.uniform(0.05, 1)
                row, column = near * height, rng.uniform(0, width)
                radius = size * width / 640 * (0.25 + near) * rng.uniform(0.5, 1.5)
                colour = pick(rng, colours)
                brush.ellipse((column - radius, row - radius * flat, column + radius,
                               row + radius * flat), fill=whole(darker(colour, 0.4)))
                brush.ellipse((column - radius * 0.9, row - radius * flat, column + radius * 0.8,
                               row + radius * flat * 0.6), fill=whole(colour))

    def tufts(self, green: Colour, count: int) -> None:
        """Draw tufts of grass on the ground; nearer ones are larger."""
        rng = self.rng
        with self.sheet(self.horizon) as (brush, width, height):
            unit = width / 640
            for near, column in zip(np.sort(rng.uniform(0.06, 1.1, count)),
                                    rng.uniform(0, width, count), strict=True):
                row, colour = near * height, vary(rng, darker(green, 0.22), 14)
                for lean in rng.normal(0, 5, 5) * unit * near:
                    tall = rng.uniform(4, 11) * unit * (0.3 + near)
                    brush.line((column + lean * 0.4, row, column + lean * 1.6, row - tall),
                               fill=whole(colour), width=max(1, round(1.4 * unit * (0.4 + near))))

    def track(self, near: float, deep: float, rust: Colour) -> None:
        """Draw two rails over sleepers: the nearer in the row `near`, the other `deep` above."""
        rng = self.rng
        near, deep, far = near * FINER, deep * FINER, (near - deep) * FINER
        wood = pick(rng, ((92, 74, 60), (84, 78, 72), (150, 144, 136), (108, 86, 68)))
        step = deep * rng.uniform(0.62, 0.85)
        with self.sheet(finer=FINER) as (brush, width, _):
            middle = width * rng.uniform(0.3, 0.7)
            for number in range(-int(middle / step) - 6, int((width - middle) / step) + 6):
                # Sleepers fan out from a far point: more so the farther they are to the side.
                low, high = middle + number * step, middle + number * step * 0.86
                half, board = step * 0.24, vary(rng, wood, 10)
                top, bottom = far - deep * 0.22, near + deep * 0.3
                brush.polygon(((high - half * 0.8, top), (high + half * 0.8, top),
                               (low + half, bottom), (low - half, bottom)), fill=whole(board))
                brush.polygon(((low - half, bottom), (low + half, bottom),
                               (low + half, bottom + deep * .09),
                               (low - half, bottom + deep * 0.09)), fill=whole(darker(board, 0.5)))
            for row, thick in ((far, deep * 0.1), (near, deep * 0.15)):
                brush.rectangle((0, row, width, row + thick), fill=whole(rust))
                brush.rectangle((0, row + thick, width, row + thick * 1.5),
                                fill=whole(darker(rust, 0.55)))
                brush.rectangle((0, row - thick * 0.3, width, row + thick * 0.2),
                                fill=(206, 206, 210))

    def masts(self, row: int) -> None:
        """Draw the posts and the wire of an electric line, in some photos."""
        rng, unit = self.rng, self.height * 2 / 240
        if rng.random() > 0.5:
            return
        top = row * 2 - rng.uniform(60, 100) * unit
        with self.sheet() as (brush, width, _):
            for share in (0.06, 0.16):
                high = top + share * 120 * unit
                brush.line((0, high, width, high), fill=(70, 70, 76), width=max(1, int(unit * 0.6)))
            for left in np.arange(rng.uniform(10, 120), 400, rng.uniform(110, 190)) * unit:
                brush.rectangle((left, top - 6 * unit, left + 3.5 * unit, row * 2 + 4 * unit),
                                fill=(104, 106, 108))
                brush.line((left, top - 3 * unit, left + 16 * unit, top + 5 * unit),
                           fill=(96, 98, 102), width=max(1, int(unit * 1.2)))

    def waves(self, ground: _Ground) -> Plane:
        """Return the colours of water (rows, width, 3) in perspective."""
        deep = mix(pick(self.rng, ((40, 92, 120), (46, 108, 126), (64, 104, 112), (34, 76, 116),
                                   (70, 120, 130))), self.mood.above, 0.25)
        swell = 0.6 * ground.noise("wave", 0.8, 1.6) + 0.5 * ground.noise("wave", 1.7, 1.6)
        water = _blend(mix(deep, self.mood.low, 0.6), deep,
                       np.broadcast_to(np.sqrt(ground.near), swell.shape))
        glitter = _steps(swell, 0.7, 2.0)
        water *= (1 + 0.13 * swell)[..., None]
        return _blend(water, lighter(self.mood.low, 0.3), glitter * self.rng.uniform(0.3, 0.7))


# The backgrounds

def _field(rng: Rng, height: int, width: int, bank: bool) -> Backdrop:
    land = _Land(rng, height, width)
    land.hills()
    land.trees()
    ground = land.ground()
    brown = pick(rng, ((112, 80, 54), (130, 96, 66), (92, 66, 48), (140, 104, 80)))
    soil = ground.soil(brown, mix(brown, (166, 128, 88), 0.4), "gravel", 0.14)
    slant = rng.uniform(-1.2, 1.2)
    along = ground.sideways + slant * ground.distance * 0.5 + 3 * ground.noise("mottle", 0.8)
    waves = np.sin(along * rng.uniform(0.28, 0.42))
    soil *= (1 + 0.2 * waves * np.clip(ground.near * 2.5, 0.15, 1))[..., None]
    if rng.random() < 0.3:
        sprouts = _steps(waves, 0.55, 0.95) * np.clip(ground.noise("gravel", 1) + 0.7, 0, 1)
        soil = _blend(soil, (104, 136, 58), sprouts * 0.8)
    land.cover(soil, ground, 0.4)
    land.speckle(land.horizon, int(rng.integers(10, 40)), (lighter(brown, 0.15), brown), 2.2)
    land.fence(0.12)
    return land.finished()


def _grass(rng: Rng, height: int, width: int, bank: bool) -> Backdrop:
    land = _Land(rng, height, width)
    land.hills()
    land.trees()
    ground = land.ground()
    green = pick(rng, ((96, 140, 58), (112, 152, 66), (126, 146, 70), (82, 126, 62),
                       (140, 150, 82)))
    meadow = ground.soil(green, mix(green, (164, 168, 92), 0.45), "blade", 0.15)
    meadow *= (1 + 0.07 * ground.noise("mottle", 1.5))[..., None]
    land.cover(meadow, ground, 0.35)
    land.fence(0.25)
    land.tufts(green, int(rng.integers(40, 160)))
    if rng.random() < 0.4:
        flowers = one_of(rng, (
            ((250, 250, 245), (250, 215, 70)), ((226, 150, 190), (245, 245, 250)),
            ((214, 64, 50), (90, 110, 200))))
        land.speckle(land.horizon, int(rng.integers(20, 90)), flowers, 1.2, 0.9)
    return land.finished()


def _railway(rng: Rng, height: int, width: int, bank: bool) -> Backdrop:
    land = _Land(rng, height, width, (0.34, 0.58))
    land.hills()
    land.trees(0.8)
    ground, rows = land.ground(), height - land.horizon
    stone = pick(rng, ((140, 132, 124), (122, 118, 116), (150, 138, 122), (128, 112, 98)))
    gravel = ground.soil(stone, mix(stone, (96, 84, 76), 0.35), "gravel", 0.24, 1.2)
    verge = int(rows * rng.uniform(0.12, 0.4))
    weeds = pick(rng, ((110, 132, 66), (130, 132, 80), (98, 112, 62)))
    green = ground.soil(weeds, darker(weeds, 0.25), "blade", 0.16)
    edge = np.arange(rows, dtype=np.float32)[:, None] + 3 * ground.noise("mottle", 1.2)
    land.cover(_blend(green, gravel, np.clip((edge - verge) / 3, 0, 1)), ground, 0.3)
    nearest = height * rng.uniform(0.84, 0.97)
    deep = rows * rng.uniform(0.13, 0.2)
    second = nearest - deep * rng.uniform(2.2, 2.8)
    rust = pick(rng, ((112, 84, 70), (128, 104, 90), (96, 82, 76)))
    tracks: tuple[float, ...] = (nearest,)
    if second - deep > land.horizon + verge and rng.random() < 0.55:
        land.track(second, deep * 0.6, rust)
        tracks = (nearest, second)
    land.track(nearest, deep, rust)
    land.masts(land.horizon + verge)
    return land.finished(land.horizon + verge, tracks)


def _road(rng: Rng, height: int, width: int, bank: bool) -> Backdrop:
    land = _Land(rng, height, width, (0.36, 0.56))
    town = rng.random() < 0.45
    if town:
        land.houses()
    else:
        land.hills()
        land.trees(0.8)
    ground, horizon, rows = land.ground(), land.horizon, height - land.horizon
    green = pick(rng, ((104, 138, 66), (122, 138, 78), (136, 130, 92)))
    verge = (ground.soil((168, 162, 154), (150, 146, 142), "gravel", 0.06) if town else
             ground.soil(green, darker(green, 0.2), "blade", 0.15))
    grey = pick(rng, ((98, 98, 102), (84, 86, 90), (116, 112, 108), (74, 74, 80)))
    asphalt = ground.soil(grey, lighter(grey, 0.12), "gravel", 0.1)
    slope = np.linspace(-1, 1, width, dtype=np.float32)[None] * rng.normal(0, 0.015) * rows
    down = np.arange(rows, dtype=np.float32)[:, None] + slope
    kerb = rows * rng.uniform(0.12, 0.3)
    road = _blend(verge, asphalt, np.clip(down - kerb, 0, 1))
    line = (rng.uniform(0.72, 0.97)) * rows
    _stripe(road, down, kerb, rows * 0.045, (184, 180, 174) if town else (214, 212, 204))
    dashes = (np.sin(ground.sideways[:1] * rng.uniform(0.03, 0.06) + rng.uniform(0, 6)) > -0.2)
    _stripe(road, down, line, rows * 0.04, (228, 224, 212),
            dashes.astype(np.float32) if rng.random() < 0.7 else None)
    land.cover(road, ground, 0.25)
    if not town:
        land.fence(0.2)
    lanes = (horizon + line - rows * rng.uniform(0.02, 0.12),
             horizon + (kerb + (line - kerb) * rng.uniform(0.25, 0.6)),
             min(height - 2.0, horizon + line + rows * rng.uniform(0.05, 0.2)))
    return land.finished(horizon + kerb, lanes)


def _stripe(road: Plane, down: Plane, row: float, thick: float, colour: Colour,
            dashes: Plane | None = None) -> None:
    share = np.clip(down - row, 0, 1) * np.clip(row + thick - down, 0, 1) * 0.85
    if dashes is not None:
        share = share * dashes
    road += (np.asarray(colour, np.float32) - road) * share[..., None]


def _room(rng: Rng, height: int, width: int, bank: bool) -> Backdrop:
    floor = int(height * rng.uniform(0.52, 0.74))
    paint = pick(rng, ((214, 200, 176), (178, 196, 200), (206, 172, 150), (186, 200, 168),
                       (222, 214, 206), (150, 168, 188), (226, 198, 140), (190, 160, 176)))
    wall = np.empty((height, width, 3), np.float32)
    wall[:] = paint
    columns = np.arange(width, dtype=np.float32)[None]
    draw_wall = one_of(rng, (_plain_wall, _striped_wall, _tiled_wall, _panelled_wall))
    draw_wall(rng, wall, columns, paint)
    wall *= (1 + 0.02 * crop("mottle", (width, height), 2, rng)
             + 0.015 * crop("gravel", (width, height), 1, rng))[..., None]
    if rng.random() < 0.55:
        _window_or_picture(rng, wall, floor)
    plane = _Ground(rng, height - floor, width)
    wall[floor:] = one_of(rng, (_planks, _tiles, _carpet))(rng, plane)
    board = lighter(paint, 0.5) if rng.random() < 0.7 else darker(paint, 0.35)
    high = max(2, int(height * rng.uniform(0.02, 0.045)))
    wall[floor - high:floor] = board
    wall[floor - high] *= 0.85
    shadow = np.exp(-np.arange(height - floor, dtype=np.float32) / (height * 0.02)) * 0.35
    wall[floor:] *= (1 - shadow)[:, None, None]
    rows, spot = np.linspace(0, 1, height, dtype=np.float32)[:, None], rng.uniform(0, 1)
    away = np.hypot(rows - rng.uniform(0.1, 0.6), columns / width - spot)
    warm = np.asarray(one_of(rng, ((1.05, 1.0, 0.9), (1, 1, 1), (0.96, 1, 1.05))))
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


def _planks(rng: Rng, plane: _Ground) -> Plane:
    wood = pick(rng, ((160, 112, 70), (186, 140, 92), (120, 82, 56), (196, 164, 124)))
    wide = rng.uniform(16, 30)
    board = np.floor((plane.sideways + rng.uniform(0, 99)) / wide)
    shade = tile("gravel")[(board.astype(np.int32) * 37) & 511, 5]
    grain = plane.noise("wood", 1.2, 0.5)
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
    lum = np.where(joint, 0.8, 1) + 0.03 * plane.noise("mottle", 1.4)
    return np.asarray(floor * lum[..., None], np.float32)


def _carpet(rng: Rng, plane: _Ground) -> Plane:
    wool = pick(rng, ((150, 80, 70), (96, 110, 132), (140, 134, 120), (110, 126, 96),
                      (176, 150, 120)))
    return plane.soil(wool, lighter(wool, 0.1), "gravel", 0.09, 1.3)


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
    land = _Land(rng, height, width)
    ground = land.ground()
    pale = pick(rng, ((218, 190, 146), (206, 176, 128), (226, 206, 170), (198, 160, 112)))
    sand = ground.soil(pale, mix(pale, (176, 138, 98), 0.4), "gravel", 0.06)
    ripples = np.sin(ground.distance * rng.uniform(0.5, 0.8) + 1.6 * ground.noise("cloud", 1.1)
                     + ground.sideways * rng.uniform(-0.08, 0.08))
    sand *= (1 + 0.06 * ripples * np.clip(ground.near * 2, 0.1, 1))[..., None]
    land.cover(sand, ground, 0.3)
    shore = land.horizon
    if rng.random() < 0.5:
        sea = int((height - shore) * rng.uniform(0.1, 0.25))
        shore += sea
        surface = land.waves(land.ground())[:sea]
        foam = np.arange(sea, dtype=np.float32)[:, None] + 2.5 * _ridge(rng, width, 0.6)[None]
        land.photo[shore - sea:shore] = _blend(surface, (236, 240, 238),
                                               _steps(foam, sea - 4, sea - 1))
        land.photo[shore:shore + 3] *= 0.86
    else:
        land.hills()
    land.speckle(shore + 4, int(rng.integers(3, 25)),
                 ((150, 140, 128), (226, 216, 200), (120, 108, 96)), 2.0)
    return land.finished(shore + height // 10)


def _full_sky(rng: Rng, height: int, width: int, bank: bool) -> Backdrop:
    land = _Land(rng, height, width, None)
    if rng.random() < 0.35:
        land.horizon = int(height * rng.uniform(0.86, 0.97))
        land.hills()
        green = mix(pick(rng, ((98, 124, 74), (120, 128, 84), (110, 112, 96))), land.mood.low, 0.2)
        land.photo[land.horizon:] = land.ground().soil(green, darker(green, 0.2), "gravel", 0.12)
        land.trees()
    return land.finished(land.horizon)


def _snow(rng: Rng, height: int, width: int, bank: bool) -> Backdrop:
    land = _Land(rng, height, width)
    land.hills(snowy=True)
    land.firs()
    ground = land.ground()
    white = pick(rng, ((236, 240, 246), (228, 236, 246), (240, 240, 240)), 3)
    snow = ground.soil(white, (196, 210, 230), "gravel", 0.02, 0.8)
    snow *= (1 - 0.05 * _steps(ground.noise("cloud", 0.8), 0, 1.2))[..., None]
    land.cover(snow, ground, 0.4)
    land.fence(0.25)
    backdrop = land.finished()
    if rng.random() < 0.3:
        flakes = crop("gravel", (width, height), 1.2, rng) > 2.4
        land.photo[flakes] += (250 - land.photo[flakes]) * 0.8
    return backdrop


def _water(rng: Rng, height: int, width: int, bank: bool) -> Backdrop:
    land = _Land(rng, height, width, (0.26, 0.5))
    horizon = land.horizon
    if rng.random() < 0.7:
        land.hills()
        land.trees(0.5)
    land.photo[horizon:] = land.waves(land.ground())
    top, swim = horizon + height // 10, (horizon + height // 10, height)
    if bank:
        # Objects that cannot float stand on the near shore.
        shore = int(height * rng.uniform(0.6, 0.72))
        ground = land.ground()
        earth = pick(rng, ((112, 138, 70), (202, 176, 132), (150, 144, 132)))
        shallow = ground.soil(earth, darker(earth, 0.2), "blade", 0.12)
        edge = (np.arange(horizon, height, dtype=np.float32)[:, None] - shore
                + height * 0.012 * _ridge(rng, width, 0.5)[None])
        foam = _blend(land.photo[horizon:], (226, 232, 228), _steps(edge, -6, -1) * 0.6)
        land.photo[horizon:] = _blend(foam, shallow, np.clip(edge, 0, 1))
        top, swim = shore + height // 12, (swim[0], shore)
    return land.finished(top, water=swim)


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
