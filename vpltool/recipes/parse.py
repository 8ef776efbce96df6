"""Reading a recipe: its values, its blocks, and the lines that they come to.

    # The first line is the title.
    photos = ?            # a value that must be given, and what it is
    seeds = 0 1 2         # a value with a default
    vpltool prepare folder $photos [--pretrained $pretrained]
    if new                # lines up to `end` run where the value is not empty
    vpltool predict $new
    end
    if held not 0         # as above, and where it is not this word
    vpltool eval --split val
    end
    unless tags           # lines up to `end` run where it is empty
    vpltool tag
    end
    each seed in $seeds   # lines up to `end` run for each word; the rounds do not need each other
    vpltool seed-prototypes --seed $seed
    end
    say Text that is shown as a heading.

Words in square brackets are left out where a value in them is empty; brackets inside quotes are
none. `$work` is the workspace folder. A line that ends in a backslash goes on in the next.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vpltool.errors import VplError, near_name
from vpltool.shell import program

_NAME = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_VALUE = re.compile(r"(\w+)\s*=\s*([^#]*?)\s*(?:#\s*(.*))?$")
_QUOTED = r"""'[^']*'|"[^"]*\""""
_PARTS = re.compile(rf"""\[(?:{_QUOTED}|[^\[\]'"])*\](?=\s|$)|(?!\[)(?:{_QUOTED}|[^\s'"])+""")
"""A group in brackets, or a word, of which parts may be quoted."""

_EACH = re.compile(r"each (\w+) in (.+)$")

_FOLDER = Path(__file__).parent


def recipe_files() -> dict[str, Path]:
    """Return the recipes that come with vpltool: name to file."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.recipe"))}


def find_recipe(choice: str) -> Path:
    """Return the file of a recipe given by name or path.

    Raises:
        VplError: there is none.
    """
    known = recipe_files()
    path = known.get(choice, Path(choice))
    if not path.is_file():
        raise VplError(f"{choice}: neither a recipe nor a file", near_name(choice, known))
    return path


@dataclass(frozen=True)
class Value:
    """A value that a recipe can be given: its name, default (None: required) and meaning."""

    name: str
    default: str | None
    about: str


@dataclass(frozen=True)
class Line:
    """A line of a recipe: its number, and its text as it is in the file."""

    number: int
    text: str


@dataclass(frozen=True)
class Block:
    """Lines under a condition (`if NAME`, `unless NAME`), or for each word (`each NAME in …`).

    `line` opens it. `words` are those of `each`, or WORD of `if NAME not WORD`.
    """

    line: Line
    name: str
    words: str
    body: tuple[Line | Block, ...]


@dataclass(frozen=True)
class Recipe:
    """A recipe that was read."""

    path: Path
    title: str
    values: tuple[Value, ...]
    body: tuple[Line | Block, ...]

    @property
    def name(self) -> str:
        """Argument of `vpltool run`: the name of a bundled recipe, else the file."""
        return self.path.stem if self.path.parent == _FOLDER else str(self.path)

    def hint(self, name: str, otherwise: str) -> str:
        """Return a hint with the meaning of a value; `otherwise` if the recipe gives none."""
        about = next((value.about for value in self.values if value.name == name), "")
        return f"{name} is: {about}" if about else otherwise

    def missing(self, given: Mapping[str, str]) -> list[Value]:
        """Return the values that must be given and are not."""
        return [value for value in self.values
                if value.default is None and not given.get(value.name)]

    def filled(self, given: Mapping[str, str], work: Path) -> dict[str, str]:
        """Return name to value with the defaults, and the workspace folder as `work`.

        Raises:
            VplError: a name is unknown, or a required value is missing.
        """
        known = {value.name: value for value in self.values}
        for name in given:
            if name not in known:
                raise VplError(f"{self.path.stem} has no parameter `{name}`",
                               near_name(name, known))
        if missing := self.missing(given):
            unset = {value.name: "…" for value in missing}
            words = unset | dict(given) | unset
            usage = [shlex.quote(f"{name}={value}") if value != "…" else f"{name}=…"
                     for name, value in words.items() if value]
            line = shlex.join([*program(work), "run", self.name])
            raise VplError(f"{self.path.stem} needs {missing[0].name}=… ({missing[0].about})",
                           " ".join([line, *usage]))
        return {"work": str(work)} | {
            value.name: given.get(value.name, value.default or "") for value in self.values}


@dataclass(frozen=True)
class Step:
    """A command of a recipe, with its values filled in: words after `vpltool`, or a heading."""

    line: int
    words: tuple[str, ...]
    heading: str = ""


@dataclass(frozen=True)
class Rounds:
    """Steps that do not need each other: a sequence for each word of an `each`."""

    name: str
    words: tuple[str, ...]
    rounds: tuple[tuple[Step | Rounds, ...], ...]


def commands_of(steps: Iterable[Step | Rounds]) -> Iterator[Step]:
    """Yield the commands of steps, those of rounds too, without headings."""
    for step in steps:
        if isinstance(step, Rounds):
            yield from commands_of(itertools.chain(*step.rounds))
        elif not step.heading:
            yield step


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        VplError: a line is not one; file and line are named.
    """
    try:
        rows = list(_rows(path.read_text("utf-8-sig")))
    except UnicodeDecodeError as error:
        raise VplError(f"{path} is not UTF-8 ({error})", "save it as UTF-8") from error
    title = rows[0].text.lstrip("# ").rstrip(".") if rows else ""
    values, kept = [], []
    for row in rows:
        match = _VALUE.match(row.text)
        if not row.text or row.text.startswith("#"):
            continue
        if match and not row.text.startswith("vpltool"):
            default = match[2].strip()
            values.append(Value(match[1], None if default == "?" else default, match[3] or ""))
        else:
            kept.append(row)
    try:
        body, rest = _blocks(kept, path)
    except RecursionError:
        raise VplError(f"{path}: blocks are nested too deeply", "nest fewer blocks") from None
    if rest:
        raise VplError(f"{path}:{rest[0].number}: `end` without a block", "delete the line")
    return Recipe(path, title, tuple(values), body)


def _rows(text: str) -> Iterator[Line]:
    """Yield the lines, rows that end in a backslash joined to the next, each with its first row."""
    first, parts = 1, list[str]()
    for number, row in enumerate([*text.split("\n"), ""], 1):
        first = first if parts else number
        parts.append(row.removesuffix("\\"))
        if not row.endswith("\\"):
            yield Line(first, " ".join(" ".join(parts).split()))
            parts = []


def _blocks(rows: Sequence[Line], path: Path) -> tuple[tuple[Line | Block, ...], Sequence[Line]]:
    """Parse lines up to an unmatched `end`; return them, and the rest with that `end`."""
    found: list[Line | Block] = []
    while rows:
        row, rows = rows[0], rows[1:]
        if row.text == "end":
            return tuple(found), (row, *rows)
        each = _EACH.match(row.text)
        if each or row.text.startswith(("if ", "unless ")):
            body, rows = _blocks(rows, path)
            if not rows:
                raise VplError(f"{path}:{row.number}: `{row.text}` is never closed",
                               "add a line: end")
            rows = rows[1:]
            name, _, words = ((each[1], "", each[2]) if each else
                              row.text.partition(" ")[2].strip().partition(" not "))
            found.append(Block(row, name, words, body))
        elif row.text.startswith(("vpltool ", "say ")):
            found.append(row)
        else:
            raise VplError(f"{path}:{row.number}: `{row.text[:60]}` is not a line of a recipe",
                           "lines begin with vpltool, say, if, unless, each or end, or are "
                           "NAME = VALUE")
    return tuple(found), ()


def steps_of(recipe: Recipe, given: Mapping[str, str], work: Path) -> list[Step | Rounds]:
    """Return the steps of a recipe in a workspace folder, with the values filled in.

    Raises:
        VplError: a value is missing or unknown.
    """
    return list(_steps(recipe.path, recipe.body, recipe.filled(given, work)))


def _steps(path: Path, body: Sequence[Line | Block], values: Mapping[str, str]
           ) -> Iterator[Step | Rounds]:
    for item in body:
        if isinstance(item, Line):
            kind, _, rest = item.text.partition(" ")
            if kind == "say":
                # A command in it is to be pasted.
                shown = ({name: value and shlex.quote(value) for name, value in values.items()}
                         if "vpltool " in rest else values)
                yield Step(item.number, (), _fill(rest, shown, path, item))
            else:
                command = tuple(_words(rest, values, path, item))
                if not command:
                    raise VplError(f"{path}:{item.number}: `{rest}` is empty here",
                                   "put the command outside of the brackets, or the line into a "
                                   "block `if NAME`")
                yield Step(item.number, command)
        elif item.line.text.startswith("each"):
            words = _fill(item.words, values, path, item.line).split()
            yield Rounds(item.name, tuple(words), tuple(
                tuple(_steps(path, item.body, {**values, item.name: word})) for word in words))
        elif (_fill(f"${item.name}", values, path, item.line)
              in ("", item.words)) == item.line.text.startswith("unless"):
            yield from _steps(path, item.body, values)


def _words(text: str, values: Mapping[str, str], path: Path, line: Line) -> Iterator[str]:
    """Split a line into words, without each `[…]` in which a value is empty."""
    if _PARTS.sub("", text).strip():
        raise _unreadable(text, path, line)
    for part in _PARTS.findall(text):
        if part.startswith("["):
            part = part[1:-1]
            names = [first or second for first, second in _NAME.findall(part)]
            if not all(_fill(f"${name}", values, path, line) for name in names):
                continue
        try:
            words = shlex.split(part)
        except ValueError as error:
            raise _unreadable(part, path, line) from error
        for word in words:
            yield _fill(word, values, path, line)


def _unreadable(text: str, path: Path, line: Line) -> VplError:
    return VplError(f"{path}:{line.number}: `{text[:60]}` cannot be read",
                    "close each bracket and quotation mark, end no line with a backslash, and put "
                    "a word that begins with a bracket into quotes")


def _fill(text: str, values: Mapping[str, str], path: Path, line: Line) -> str:
    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in values:
            raise VplError(f"{path}:{line.number}: no value is called `{name}`",
                           near_name(name, values))
        return values[name]

    return _NAME.sub(value, text)
