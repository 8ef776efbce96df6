"""Settings: name, type, default, range, help and source of a value, each written once.

The settings of a stage or a method are a frozen dataclass whose fields are made by `setting`. The
command line, presets, headers, documentation and the Python API derive from it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, ParamSpec, TypeAlias, TypeVar

from vpltool import console
from vpltool.errors import VplError, near_name
from vpltool.names import leads_out

RUNNING = "Running"
"""Heading in `--help` of what changes how a command runs, not what comes out."""

VALUE_NAMES = {str: "TEXT", int: "N", float: "X", Path: "PATH"}
"""What stands for a value in `--help`, unless a setting says so."""

_KEY = "vpltool"

_Arguments = ParamSpec("_Arguments")

Values: TypeAlias = dict[str, Any]
"""Name of a setting to its value."""


@dataclass(frozen=True)
class NoEffect:
    """Values of other settings under which a setting has no effect.

    Args:
        where: name to values; all must hold.
        why: the reason, in a few words.
    """

    where: Mapping[str, Container[object]]
    why: str


@dataclass(frozen=True)
class About:
    """What is known about a setting besides its name and type.

    Args:
        default: its default; without one it must be given.
        help: one or two sentences for `--help` and the documentation.
        source: where the default comes from: `VPL, section 4.1`.
        low: least number that is taken.
        high: largest number that is taken.
        choices: the words that are taken.
        metavar: what stands for the value in `--help`.
        flag: its option on the command line; default: from the name.
        off: the option that turns a true-or-false setting off; default: `--no-NAME`; `-`: none.
        short: a one-letter option, such as `-o`.
        panel: heading in `--help`.
        record: whether headers carry it: `always`; `changed`, where it is not the default (so
            that a setting added later does not undo earlier work); or `never`.
        by_hand: whether only a command or a program gives it: what is replaced, where results go,
            which programs are started. No header, preset or earlier call does.
        inside: whether it becomes the name of a file in the workspace, and may not lead out.
        positional: an argument on the command line, not an option.
        brief: whether `--help` shows it; otherwise only `--help-all` does.
        no_effect: when it has none.
        aliases: further options that mean the same.
        reads: the input that it names, which `engine.given` opens: `features`, `second`,
            `prototypes` (`words`: in the space of the CLIP's words), `cams` (`what`: predictions,
            too), `decoder` or `proposals`.
    """

    default: object = field(default_factory=lambda: dataclasses.MISSING)
    help: str = ""
    _: KW_ONLY
    source: str = ""
    low: float | None = None
    high: float | None = None
    choices: Sequence[str] = ()
    metavar: str = ""
    flag: str = ""
    off: str = ""
    short: str = ""
    panel: str = ""
    record: str = "always"
    by_hand: bool = False
    inside: bool = False
    positional: bool = False
    brief: bool = True
    no_effect: Sequence[NoEffect] = ()
    aliases: Sequence[str] = ()
    reads: str = ""


def _as_field(kind: Callable[_Arguments, About]) -> Callable[_Arguments, Any]:
    def make_field(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Any:
        about = kind(*args, **kwargs)
        return field(default=about.default, metadata={_KEY: about})

    return make_field


setting = _as_field(About)
"""Make the field of a setting: `split: str = setting("train", "Split of the data set.")`."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of the settings of a stage or a method.

    A block that several stages inherit says `shared=True`: its settings are listed after a stage's
    own.

    Args:
        given: names of those that were given explicitly; the others are defaults.
        of_method: settings of the method, where a stage has methods.
    """

    shared: ClassVar[bool] = False
    given: frozenset[str] = field(default=frozenset(), compare=False, repr=False)
    of_method: Settings | None = field(default=None, repr=False)

    def __init_subclass__(cls, *, shared: bool = False) -> None:
        cls.shared = shared

    def __post_init__(self) -> None:
        for entry in described(type(self)):
            entry.check(getattr(self, entry.name))


@dataclass(frozen=True, kw_only=True)
class Described(About):
    """A setting with its name and type; its `flag` and `off` are spelled out.

    Args:
        name: of the field; what Python, presets and documentation call it.
        recorded_name: what headers call it.
        type: `str`, `int`, `float`, `bool` or `Path`; of a list, that of its items.
        many: whether it is a list.
    """

    name: str
    recorded_name: str
    type: type
    many: bool

    def check(self, value: Any) -> None:
        """Check a value's type, range and choice.

        Raises:
            VplError: it is not taken; the setting and the value are named.
        """
        if value is None or value is self.default:
            return
        for item in value if self.many else (value,):
            self._check_one(item)

    def _check_one(self, value: object) -> None:
        shown = f"`{self.name}={value!r}`"
        wanted = _TAKEN.get(self.type, self.type)
        if not isinstance(value, wanted) or isinstance(value, bool) != (self.type is bool):
            # A true-or-false value is a number to Python.
            raise VplError(f"{shown}: expected {_TYPE_NAMES[self.type]}", self.help)
        if self.choices and value not in self.choices:
            raise VplError(f"{shown}: no such choice", near_name(str(value), self.choices))
        if self.inside and value and leads_out(value):
            raise VplError(f"{shown}: a name that leads out of its folder", self.help)
        low, high = self.low, self.high
        if self.type in (int, float) and not (
                (low is None or value >= low) and (high is None or value <= high)):
            bounds = [f"at least {low:g}"] if low is not None else []
            bounds += [f"at most {high:g}"] if high is not None else []
            raise VplError(f"{shown}: {' and '.join(bounds)}", self.help)


_TAKEN: dict[type, Any] = {float: (int, float), Path: (str, Path)}

_TYPE_NAMES = {str: "a string", int: "a whole number", float: "a number", bool: "true or false",
               Path: "a path"}


def described(kind: type[Settings]) -> tuple[Described, ...]:
    """List the settings of a dataclass in order; those of shared blocks come last."""
    return _described(kind)  # type: ignore[arg-type]


@functools.cache
def _described(kind: Any) -> tuple[Described, ...]:
    hints = typing.get_type_hints(kind)
    blocks = [part for part in kind.__mro__ if vars(part).get("shared")]
    own = [part for part in reversed(kind.__mro__) if part not in blocks]
    order = list(dict.fromkeys(name for part in (*own, *blocks)
                               for name in inspect.get_annotations(part)))
    found = []
    for entry in sorted(dataclasses.fields(kind), key=lambda entry: order.index(entry.name)):
        if _KEY in entry.metadata:
            base, many = _base_type(hints[entry.name])
            about: About = entry.metadata[_KEY]
            flag = about.flag or "--" + entry.name.replace("_", "-")
            spelled = {"flag": flag, "off": about.off or "--no-" + flag[2:]}
            found.append(Described(**vars(about) | spelled, name=entry.name, type=base, many=many,
                                   recorded_name=about.flag[2:] or entry.name))
    return tuple(found)


def _base_type(hint: Any) -> tuple[type, bool]:
    """Reduce `Path | None` to Path, and `tuple[str, ...]` to str, which may be given many times."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) in (tuple, list):
        return typing.get_args(hint)[0], True
    return hint, False


def names_of(kind: type[Settings]) -> tuple[str, ...]:
    """Names of the settings of a dataclass, in order."""
    return tuple(entry.name for entry in described(kind))


def renamed(values: Mapping[str, object], entries: Iterable[Described]) -> dict[str, object]:
    """Values under the present names of their settings; headers of before have the aliases."""
    entries = list(entries)
    present = {alias[2:].replace("-", "_"): entry.name for entry in entries
               for alias in entry.aliases}
    present |= {entry.name: entry.name for entry in entries}
    return {present.get(name, name): value for name, value in values.items()}


S = TypeVar("S", bound=Settings)


def without_effect(settings: Settings) -> dict[str, NoEffect]:
    """Find the settings that have no effect beside the others: name to the first reason."""
    known = values_of(settings)
    found = {entry.name: reason for entry in described(type(settings))
             for reason in reversed(entry.no_effect)
             if all(name in known and known[name] in held for name, held in reason.where.items())}
    return found | (without_effect(settings.of_method) if settings.of_method else {})


def warn_without_effect(settings: Settings, without: Mapping[str, str] | None = None) -> None:
    """Warn about settings that were given explicitly and have no effect, a line each.

    Args:
        without: further ones, which the stage knows about: name to reason.
    """
    known = values_of(settings)
    given = settings.given | (settings.of_method.given if settings.of_method else frozenset())
    reasons = {name: (reason.why, [key for key in reason.where if key != name])
               for name, reason in without_effect(settings).items()}
    reasons |= {name: (why, []) for name, why in (without or {}).items()}
    for name, (why, others) in reasons.items():
        if name in given:
            beside = " ".join(f"`{key}={known[key]!r}`" for key in others)
            value = str(known[name]) if isinstance(known[name], Path) else known[name]
            console.warn(f"`{name}={value!r}` has no effect"
                         f"{f' with {beside}' if beside else ''}: {why}")


def values_of(settings: Settings) -> Values:
    """Name to value of all settings, the method's included."""
    own = {entry.name: getattr(settings, entry.name) for entry in described(type(settings))}
    return own | (values_of(settings.of_method) if settings.of_method else {})


def recorded(settings: Settings, skip: Collection[str] = ()) -> Values:
    """What a header's `options` say: the settings that determine the result.

    Args:
        settings: of a stage, with its method's. Those that have no effect are left out.
        skip: further settings that have none.
    """
    skipped = {*without_effect(settings), *skip}
    options = {}
    for entry in described(type(settings)):
        value = getattr(settings, entry.name)
        record = entry.record
        if (record == "never" or entry.name in skipped
                or (record == "changed" and value == entry.default)):
            continue
        options[entry.recorded_name] = str(value) if isinstance(value, Path) else value
    return options | (recorded(settings.of_method, skip) if settings.of_method else {})


def changed(settings: Settings) -> Values:
    """Name to value of the settings that are not at their defaults, as JSON can hold them.

    Where and how fast the work was done is left out: it does not change the result.
    """
    found = {}
    for entry in described(type(settings)):
        value = getattr(settings, entry.name)
        running = entry.record == "never" and entry.panel == RUNNING
        if value != entry.default and not running and not entry.by_hand:
            found[entry.name] = ([str(item) if isinstance(item, Path) else item for item in value]
                                 if entry.many else str(value) if isinstance(value, Path)
                                 else value)
    return found | (changed(settings.of_method) if settings.of_method else {})


def make(kind: type[S], values: Mapping[str, object], given: Iterable[str],
         of_method: Settings | None = None) -> S:
    """Make settings from values; paths may be strings, lists any sequence.

    An empty path stands for none: it takes back what an earlier call has given.

    Raises:
        VplError: a value is not taken, a setting is missing, or a name is unknown.
    """
    known = {entry.name: entry for entry in described(kind)}
    for name in values:
        if name not in known:
            raise VplError(f"`{name}` is not a setting", near_name(name, known))
    for name, entry in known.items():
        if entry.default is dataclasses.MISSING and name not in values:
            raise VplError(f"`{name}` is missing", entry.help)
    return kind(**{name: _converted(known[name], value) for name, value in values.items()},
                given=frozenset(given), of_method=of_method)


def _converted(entry: Described, value: Any) -> object:
    if entry.type is Path and value == "":
        # Path("") would be the folder in which the command is typed.
        if entry.default is not None:
            raise VplError(f"`{entry.name}=''`: expected a path", entry.help)
        return None
    convert: Callable[[Any], Any] = (
        (lambda item: Path(item) if isinstance(item, str) else item) if entry.type is Path
        else (lambda item: str(item) if entry.type is str and isinstance(item, Path) else item))
    if entry.many and value is not None:
        return tuple(convert(item) for item in ([value] if isinstance(value, (str, Path))
                                                else value))
    return convert(value)
