"""Captions of a drawn scene: what is in it, in many English wordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vpltool.demo.canvas import Rng


@dataclass(frozen=True)
class Thing:
    """What a caption may say about one object; shares are of the photo's width or height."""

    name: str
    colour: str
    extent: float
    middle: float
    flies: bool
    floats: bool = False


_WHERE: dict[str, tuple[str, ...]] = {
    "field": ("in a field", "on a ploughed field", "on brown soil", "in the field"),
    "grass": ("in a meadow", "on the grass", "on a green meadow", "on grass"),
    "railway": ("on a railway", "on the tracks", "on the rails", "on a railway line"),
    "road": ("on the road", "on a road", "on a street", "on the asphalt"),
    "room": ("in a room", "on the floor of a room", "inside a house", "indoors"),
    "sand": ("on the beach", "on the sand", "on sand", "in the desert"),
    "sky": ("in the sky", "high in the sky", "in the air", "against the sky"),
    "snow": ("in the snow", "on snow", "in a snowy landscape", "in winter"),
    "water": ("on the water", "on a lake", "in the water", "on the sea")}
"""Phrases for objects that stand on a background (or fly in it, for the sky)."""

_OVER: dict[str, tuple[str, ...]] = {
    "field": ("over a field", "above the fields"), "grass": ("over a meadow", "above the grass"),
    "railway": ("over a railway", "above the tracks"), "road": ("over a road", "above a street"),
    "sand": ("over the beach", "above the sand"), "snow": ("over the snow", "in a winter sky"),
    "water": ("over the water", "above the sea")}
"""Phrases for objects that fly above a background."""

_SHORE = ("by the water", "on the shore", "at a lake", "by the sea")
"""Phrases for objects that stand by the water."""

_OPENINGS = ("a photo of", "a photo of", "a picture of", "an image of", "there is", "",
             "a scene with", "we see")
_SIDES = ("on the left", "in the middle", "on the right")
_NUMBERS = {1: "a", 2: "two", 3: "three"}


def captions(rng: Rng, things: Sequence[Thing], background: str, moments: Sequence[str],
             count: int = 6) -> tuple[str, ...]:
    """Return captions that each name all things; `moments` are phrases for the time of day."""
    return tuple("a photo of " + _listed(rng, [_noun(rng, group, plain=True)
                                               for group in _groups(things)])
                 if rng.random() < 0.25 else _full(rng, things, background, moments)
                 for _ in range(count))


def _full(rng: Rng, things: Sequence[Thing], background: str, moments: Sequence[str]) -> str:
    opening = str(rng.choice(_OPENINGS))
    groups = _groups(things)
    if opening == "there is" and len(groups[0]) > 1:
        opening = "there are"
    words = [opening, _listed(rng, [_noun(rng, group) for group in groups])]
    if len(things) == 1 and rng.random() < 0.2:
        middle = things[0].middle
        words.append(_SIDES[int(middle >= 0.4) + int(middle > 0.6)])
    if rng.random() < 0.6:
        words.append(str(rng.choice(_locations(things, background))))
    if moments and rng.random() < 0.25:
        words.append(str(rng.choice(moments)))
    return " ".join(filter(None, words))


def _locations(things: Sequence[Thing], background: str) -> tuple[str, ...]:
    if all(thing.flies for thing in things):
        return _OVER.get(background, _WHERE[background])
    if background == "water" and not all(thing.flies or thing.floats for thing in things):
        return _SHORE
    return _WHERE[background]


def _groups(things: Sequence[Thing]) -> list[list[Thing]]:
    """Group things by class; those that fly come first, so that the location comes last."""
    names = dict.fromkeys(thing.name for thing in sorted(things, key=lambda each: not each.flies))
    return [[thing for thing in things if thing.name == name] for name in names]


def _noun(rng: Rng, group: Sequence[Thing], plain: bool = False) -> str:
    name = plural(group[0].name) if len(group) > 1 else group[0].name
    if group[0].name == "plant" and rng.random() < 0.35:
        name = f"potted {name}"
    extra = [] if plain else _adjectives(rng, group)
    if len(group) == 1:
        phrase = " ".join([*extra, name])
        return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"
    number = [_NUMBERS[len(group)]] if rng.random() < 0.8 or name == "sheep" else []
    return " ".join([*number, *extra, name])


def _adjectives(rng: Rng, group: Sequence[Thing]) -> list[str]:
    found = []
    extent = max(thing.extent for thing in group)
    if rng.random() < 0.15:
        found += ["small"] if extent < 0.38 else ["large"] if extent > 0.6 else []
    colours = {thing.colour for thing in group}
    if len(colours) == 1 and rng.random() < 0.75:
        found += colours
    return found


def plural(name: str) -> str:
    """Return the plural of a class name."""
    return {"sheep": "sheep", "bus": "buses"}.get(name, f"{name}s")


def _listed(rng: Rng, nouns: Sequence[str]) -> str:
    joint = " and " if len(nouns) > 2 or rng.random() < 0.8 else " with "
    return joint.join([", ".join(nouns[:-1]), nouns[-1]]) if len(nouns) > 1 else nouns[0]
