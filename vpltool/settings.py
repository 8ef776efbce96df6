"""What a stage declares: its data flow, and name, type, default, help and source of its settings.

The settings of a stage or a method are a frozen dataclass whose fields are made by `setting`. The
command line, presets, headers, documentation and the Python API are derived from it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, ParamSpec, TypeAlias, TypeVar

from vpltool import console
from vpltool.errors import VplError, near_name
from vpltool.names import leads_out

RUNNING = "Running"
"""Heading in `--help` of settings that change how a command runs, not its result."""

VALUE_NAMES = {str: "TEXT", int: "N", float: "X", Path: "PATH"}
"""Default metavar by type."""

_KEY = "vpltool"

_Arguments = ParamSpec("_Arguments")

Values: TypeAlias = dict[str, Any]
"""Name of a setting to its value."""


@dataclass(frozen=True)
class NoEffect:
    """Values of other settings, by name, that together leave a setting without effect; and why."""

    where: Mapping[str, Collection[object]]
    why: str


@dataclass(frozen=True)
class SettingSpec:
    """A setting. `setting` declares it; `described` adds name and type, and fills `flag` and `off`.

    Args:
        default: its default; a setting without one is required.
        help: one or two sentences for `--help` and the documentation.
        source: source of the default: `VPL, section 4.1`.
        low: lowest accepted number.
        high: highest accepted number.
        choices: the accepted words.
        metavar: placeholder of the value in `--help`.
        flag: its option on the command line; default: from the name.
        off: the option that turns a true-or-false setting off; default: `--no-NAME`; `-`: none.
        short: a one-letter option, such as `-o`.
        panel: heading in `--help`.
        record: whether headers contain it: `always`; `changed`, if it is not the default (so that
            a setting added later does not invalidate earlier work); or `never`.
        by_hand: whether only a command or a program may give it: what is replaced, where results
            go, which programs are started. Headers, presets and earlier calls may not.
        inside: whether it becomes the name of a file in the workspace, and may not lead out.
        positional: whether it is an argument on the command line, not an option.
        brief: whether `--help` shows it, not only `--help-all`.
        no_effect: conditions under which it has no effect.
        aliases: further options with the same meaning.
        reads: the input that it names, which `engine.opening` opens: `features`, `second`,
            `prototypes` (their default may be those of tags; `text`: never; `words`: nor may they
            be aligned), `cams` (`what`: predictions, too), `decoder` or `proposals`.
        name: its name in Python, presets and documentation.
        recorded_name: its name in headers.
        type: `str`, `int`, `float`, `bool` or `Path`; of a list, that of its items.
        many: whether it is a list.
        optional: whether it may be None, by its type.
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
    name: str = ""
    recorded_name: str = ""
    type: type = str
    many: bool = False
    optional: bool = False

    @property
    def option(self) -> str:
        """Its option as help shows it: `--flag`, or `--flip/--no-flip`."""
        return f"{self.flag}/{self.off}" if self.type is bool and self.off != "-" else self.flag

    def check(self, value: Any) -> None:
        """Check a value's type, range and choice.

        Raises:
            VplError: it is not accepted; the setting and the value are named.
        """
        if value is self.default or (value is None and self.optional):
            return
        for item in value if self.many and isinstance(value, (list, tuple)) else (value,):
            self._check_one(item)

    def _check_one(self, value: object) -> None:
        shown = f"`{self.name}={value!r}`"
        wanted = _TAKEN.get(self.type, self.type)
        if not isinstance(value, wanted) or isinstance(value, bool) != (self.type is bool):
            # To Python, a bool is an int.
            raise VplError(f"{shown}: expected {_TYPE_NAMES[self.type]}", self.help)
        if self.choices and value not in self.choices:
            raise VplError(f"{shown}: no such choice", near_name(str(value), self.choices))
        if self.by_hand and self.type is Path and str(value) == "-":
            raise VplError(f"`{self.name}='-'`: results are files; standard output is not "
                           "supported", "name a file or a folder")
        if self.inside and value and leads_out(value):
            raise VplError(f"{shown}: a name that leads out of its folder", self.help)
        low, high = self.low, self.high
        if self.type in (int, float) and not (
                (low is None or value >= low) and (high is None or value <= high)):
            bounds = [f"at least {low:g}"] if low is not None else []
            bounds += [f"at most {high:g}"] if high is not None else []
            raise VplError(f"{shown}: {' and '.join(bounds)}", self.help)


def _as_field(kind: Callable[_Arguments, SettingSpec]) -> Callable[_Arguments, Any]:
    def make_field(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Any:
        declared = kind(*args, **kwargs)
        return field(default=declared.default, metadata={_KEY: declared})

    return make_field


setting = _as_field(SettingSpec)
"""Make a field from the arguments of `SettingSpec`: `split: str = setting("train", "Split.")`."""

_TAKEN: dict[type, Any] = {float: (int, float), Path: (str, Path)}

_TYPE_NAMES = {str: "a string", int: "a whole number", float: "a number", bool: "true or false",
               Path: "a path"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base class of the settings of a stage or a method.

    Settings of a base class with `shared=True` are listed after a stage's own.

    Args:
        given: names of the settings that were given explicitly.
        of_method: settings of the method, if the stage has methods.
    """

    shared: ClassVar[bool] = False
    given: frozenset[str] = field(default=frozenset(), compare=False, repr=False)
    of_method: Settings | None = field(default=None, repr=False)

    def __init_subclass__(cls, *, shared: bool = False) -> None:
        cls.shared = shared

    def __post_init__(self) -> None:
        for entry in described(type(self)):
            entry.check(getattr(self, entry.name))

    def is_given(self, name: str) -> bool:
        """Return whether a setting was given explicitly or by a preset."""
        default = next(entry.default for entry in described(type(self)) if entry.name == name)
        return name in self.given or getattr(self, name) != default


@dataclass(frozen=True)
class Stage:
    """A stage of the pipeline: its settings, and its data flow.

    The file of a stage holds a `STAGE`, and a function `run(workspace, settings)` whose docstring
    is the help of its command. A function `show(result, values) -> str`, if there is one, spells
    the result for people (`values`: setting to value); otherwise it is a path, or several.

    Args:
        order: position in the pipeline; commands are listed in this order.
        panel: heading under which `--help` shows the command.
        reads: kinds of file that it reads.
        writes: kinds of file that it writes.
        settings: its settings.
        methods: kind of method that its setting `method` chooses from; empty: none.
        subcommands: whether methods are subcommands (`prepare voc`), not values of `--method`.
        begins: whether it can run where there is no workspace yet; its `run` is given the path.
        together: whether processes that torchrun starts do it together (`parallel.ranks`): only
            the first of them writes files and speaks. Others share the photos, see `shard`.
        moved: option that has become another call, to that call, see `VplError`.
    """

    order: int
    panel: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    settings: type[Settings]
    methods: str = ""
    subcommands: bool = False
    begins: bool = False
    together: bool = False
    moved: Mapping[str, str] = field(default_factory=dict)


def described(kind: type[Settings]) -> tuple[SettingSpec, ...]:
    """List the settings of a dataclass in order; those of shared blocks come last."""
    return _described(kind)  # type: ignore[arg-type]


@functools.cache
def _described(kind: Any) -> tuple[SettingSpec, ...]:
    hints = typing.get_type_hints(kind)
    blocks = [part for part in kind.__mro__ if vars(part).get("shared")]
    own = [part for part in reversed(kind.__mro__) if part not in blocks]
    order = list(dict.fromkeys(name for part in (*own, *blocks)
                               for name in inspect.get_annotations(part)))
    found = []
    for entry in sorted(dataclasses.fields(kind), key=lambda entry: order.index(entry.name)):
        if _KEY in entry.metadata:
            base, many, optional = _base_type(hints[entry.name])
            declared: SettingSpec = entry.metadata[_KEY]
            flag = declared.flag or "--" + entry.name.replace("_", "-")
            found.append(replace(
                declared, flag=flag, off=declared.off or "--no-" + flag[2:], name=entry.name,
                recorded_name=declared.flag[2:] or entry.name, type=base, many=many,
                optional=optional))
    return tuple(found)


def _base_type(hint: Any) -> tuple[type, bool, bool]:
    """Reduce `Path | None` to Path, and `tuple[str, ...]` to str.

    Returns:
        the type, whether it is a list, and whether it may be None.
    """
    optional = typing.get_origin(hint) in (typing.Union, types.UnionType)
    if optional:
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) in (tuple, list):
        return typing.get_args(hint)[0], True, optional
    return hint, False, optional


def names_of(kind: type[Settings]) -> tuple[str, ...]:
    """Return the names of the settings of a dataclass, in order."""
    return tuple(entry.name for entry in described(kind))


def renamed(values: Mapping[str, object], entries: Iterable[SettingSpec]) -> dict[str, object]:
    """Return values under the present names of their settings; old headers have aliases."""
    entries = list(entries)
    present = {alias[2:].replace("-", "_"): entry.name for entry in entries
               for alias in entry.aliases}
    present |= {entry.name: entry.name for entry in entries}
    return {present.get(name, name): value for name, value in values.items()}


S = TypeVar("S", bound=Settings)


def without_effect(settings: Settings) -> dict[str, NoEffect]:
    """Return the settings without effect beside the others: name to the first reason."""
    known = values_of(settings)
    return {entry.name: reason for entry, _ in _entries(settings)
            for reason in reversed(entry.no_effect)
            if all(name in known and known[name] in held for name, held in reason.where.items())}


def _entries(settings: Settings) -> Iterator[tuple[SettingSpec, object]]:
    """Yield each setting with its value, the method's included."""
    for entry in described(type(settings)):
        yield entry, getattr(settings, entry.name)
    if settings.of_method:
        yield from _entries(settings.of_method)


def warn_without_effect(settings: Settings, without: Mapping[str, str] | None = None) -> None:
    """Warn about each setting that was given explicitly and has no effect.

    `without` has further settings without effect: name to reason.
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
    """Return name to value of all settings, the method's included."""
    return {entry.name: value for entry, value in _entries(settings)}


def recorded(settings: Settings, skip: Collection[str] = ()) -> Values:
    """Return the `options` of a header: the settings that determine the result.

    Settings without effect are left out; `skip` has further ones.
    """
    skipped = {*without_effect(settings), *skip}
    return {entry.recorded_name: str(value) if isinstance(value, Path) else value
            for entry, value in _entries(settings)
            if entry.name not in skipped and (entry.record == "always" or (
                entry.record == "changed" and value != entry.default))}


def changed(settings: Settings) -> Values:
    """Return name to value of the settings that are not at their defaults, as JSON can hold them.

    Settings of how the work runs are left out, since they do not change the result.
    """
    found = {}
    for entry, value in _entries(settings):
        running = entry.record == "never" and entry.panel == RUNNING
        if value != entry.default and not running and not entry.by_hand:
            items = value if isinstance(value, (list, tuple)) else [value]
            plain = [str(item) if isinstance(item, Path) else item for item in items]
            found[entry.name] = plain if items is value else plain[0]
    return found


def make(kind: type[S], values: Mapping[str, object], given: Iterable[str],
         of_method: Settings | None = None) -> S:
    """Make settings from values; paths may be strings, and lists any sequence.

    An empty path means none, in place of the value of an earlier call.

    Raises:
        VplError: a value is not accepted, a setting is missing, or a name is unknown.
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


def _converted(entry: SettingSpec, value: Any) -> object:
    if entry.type is Path and value == "":
        # Path("") would be the current folder.
        if entry.default is not None:
            raise VplError(f"`{entry.name}=''`: expected a path", entry.help)
        return None

    def convert(item: Any) -> object:
        if type(item).__module__ == "numpy" and hasattr(item, "item") and not item.shape:
            # np.float32(0.5), as np.linspace and pandas give it.
            item = item.item()
        if entry.type is Path:
            return Path(item) if isinstance(item, str) else item
        return str(item) if entry.type is str and isinstance(item, Path) else item

    if entry.many and isinstance(value, (str, Path)):
        return (convert(value),)
    if entry.many and isinstance(value, Iterable):
        return tuple(convert(item) for item in value)
    return convert(value)
