"""Settings: what is written once, and what derives from it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from vpltool.errors import VplError
from vpltool.settings import (
    NoEffect,
    Settings,
    changed,
    described,
    make,
    recorded,
    setting,
    warn_without_effect,
)


@dataclass(frozen=True, kw_only=True)
class Walk(Settings):
    """A dog's settings."""

    dog: str = setting(help="Its name.", positional=True)
    minutes: float = setting(30.0, "How long.", low=0, high=600, source="the vet")
    pace: str = setting("trot", "How fast.", choices=("trot", "run"), record="changed")
    leash: Path | None = setting(None, "Which leash.", record="never")
    stops: tuple[str, ...] = setting((), "Where to stop.", flag="--stop-at")
    rain: bool = setting(False, "Whether it rains.")
    umbrella: str = setting("black", "Which umbrella.", no_effect=[
        NoEffect({"rain": (False,)}, "it does not rain")])


def test_what_is_known_of_a_setting() -> None:
    entries = {entry.name: entry for entry in described(Walk)}
    assert list(entries) == ["dog", "minutes", "pace", "leash", "stops", "rain", "umbrella"]
    assert [entry.type for entry in entries.values()] == [str, float, str, Path, str, bool, str]
    assert [entry.many for entry in entries.values()] == [False] * 4 + [True] + [False] * 2
    assert entries["stops"].flag == "--stop-at"
    assert entries["rain"].off == "--no-rain"
    assert entries["minutes"].source == "the vet"


@pytest.mark.parametrize(("values", "message"), [
    ({}, "`dog` is missing"),
    ({"dog": "Rex", "minuts": 3}, "`minuts` is not a setting"),
    ({"dog": "Rex", "minutes": "3"}, "`minutes='3'`: expected a number"),
    ({"dog": "Rex", "minutes": True}, "`minutes=True`: expected a number"),
    ({"dog": "Rex", "minutes": 601}, "`minutes=601`: at least 0 and at most 600"),
    ({"dog": "Rex", "minutes": float("nan")}, "`minutes=nan`: at least 0"),
    ({"dog": "Rex", "pace": "fly"}, "`pace='fly'`: no such choice"),
    ({"dog": "Rex", "rain": 1}, "`rain=1`: expected true or false"),
    ({"dog": 3}, "`dog=3`: expected a string"),
    ({"dog": "Rex", "leash": 3}, "`leash=3`: expected a path"),
    ({"dog": None}, "`dog=None`: expected a string"),
    ({"dog": "Rex", "minutes": None}, "`minutes=None`: expected a number"),
    ({"dog": "Rex", "stops": None}, "`stops=None`: expected a string"),
    ({"dog": "Rex", "stops": 5}, "`stops=5`: expected a string"),
])
def test_a_wrong_value_is_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(VplError) as caught:
        make(Walk, values, values)
    assert caught.value.message.startswith(message)
    assert caught.value.hint


def test_none_is_a_value_where_the_type_says_so() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Stroll(Walk):
        limit: float | None = setting(3.0, "How far at most.")

    stroll = make(Stroll, {"dog": "Rex", "leash": None, "limit": None}, ())
    assert (stroll.leash, stroll.limit) == (None, None)


def test_paths_and_lists_are_converted() -> None:
    walk = make(Walk, {"dog": "Rex", "leash": "red", "stops": "tree"}, ())
    assert (walk.leash, walk.stops) == (Path("red"), ("tree",))
    assert make(Walk, {"dog": "Rex", "stops": ["tree", "pond"]}, ()).stops == ("tree", "pond")


def test_headers_hold_what_has_an_effect() -> None:
    plain = make(Walk, {"dog": "Rex", "leash": "red"}, ())
    assert recorded(plain) == {"dog": "Rex", "minutes": 30.0, "stop-at": (), "rain": False}
    wet = make(Walk, {"dog": "Rex", "rain": True, "pace": "run"}, ())
    assert recorded(wet) == {"dog": "Rex", "minutes": 30.0, "pace": "run", "stop-at": (),
                             "rain": True, "umbrella": "black"}
    assert "minutes" not in recorded(plain, skip={"minutes"})
    assert changed(wet) == {"dog": "Rex", "rain": True, "pace": "run"}


def test_what_was_given_and_has_no_effect_is_warned_about() -> None:
    given = make(Walk, {"dog": "Rex", "umbrella": "red"}, {"umbrella"})
    with pytest.warns(UserWarning, match="it does not rain") as caught:
        warn_without_effect(given)
    assert str(caught[0].message) == (
        "`umbrella='red'` has no effect with `rain=False`: it does not rain")
    with pytest.warns(UserWarning, match="^`minutes=3` has no effect: it is late$"):
        warn_without_effect(make(Walk, {"dog": "Rex", "minutes": 3}, {"minutes"}),
                            without={"minutes": "it is late"})


@pytest.mark.parametrize("values", [{"dog": "Rex", "umbrella": "red"},
                                    {"dog": "Rex", "umbrella": "red", "rain": True}])
def test_defaults_and_presets_are_not_warned_about(values: dict[str, object]) -> None:
    check: Callable[[], None] = lambda: warn_without_effect(  # noqa: E731
        make(Walk, values, values if "rain" in values else ()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check()
