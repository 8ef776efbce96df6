"""The rows of the comparison: what each method's lines are, and what its paper reports."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from vpltool.command import parse_line
from vpltool.errors import VplError, near_name
from vpltool.json_text import JsonObject

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BUNDLED = Path(__file__).with_name("rows.toml")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method, or several together.

    Lines are those of the shell, without `vpltool`. `{work}`, `{learn}`, `{split}`, `{seed}` and
    `{second}` are filled in.

    Args:
        name: what the table calls it.
        source: paper and venue.
        published: the paper's numbers, in words; empty if it has none that compare.
        differs: how the paper's setting differs from this one.
        features: lines that make features that only this method reads; once a split.
        learn: lines that learn from the split {learn}; once a seed.
        maps: lines that make CAMs of {split}.
        cams: name of these CAMs.
        masks: instead of CAMs, the labels that the lines of `maps` make: `predictions/files` of
            another tool, as `propose --paint` imports them. They are scored as they are.
        refine: lines that refine them; none: the CAMs are the method's result.
        refined: name of the refined CAMs.
        seeded: whether anything in it is random.
        second: whether it reads a second encoder.
    """

    name: str
    source: str
    published: str = ""
    differs: str = ""
    features: Sequence[str] = ()
    learn: Sequence[str] = ()
    maps: Sequence[str] = ()
    cams: str = ""
    masks: str = ""
    refine: Sequence[str] = ()
    refined: str = ""
    seeded: bool = False
    second: bool = False

    @property
    def lines(self) -> tuple[str, ...]:
        """All lines, in order."""
        return (*self.features, *self.learn, *self.maps, *self.refine)


    @property
    def needs_words(self) -> bool:
        """Whether it names something of the text besides the first maps, or learns from it."""
        of_tags = self.of_tags()
        return any(re.search(r"\btext", line) or line.split()[0] in _OF_TEXT
                   for line in (*of_tags.lines, of_tags.cams, of_tags.refined) if line)

    def of_tags(self) -> Row:
        """The row with first maps from the prototypes of tags."""
        lines: JsonObject = {name: [_of_tags(line) for line in getattr(self, name)]
                                 for name in _LINES}
        return replace(self, **lines, cams=_of_tags(self.cams), refined=_of_tags(self.refined))


def _of_tags(line: str) -> str:
    return line.replace("text-salient", "tags-salient")


_LINES = ("features", "learn", "maps", "refine")

_OF_TEXT = ("learn-prototypes", "shift-gap", "align", "gap")
"""Commands that read text prototypes whatever their options say."""


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Args:
        begin: lines that all rows build on; those that name {split} are run once a split.
        second: lines that run the second encoder, named {encoder}, where there is one.
        rows: the methods.
    """

    begin: Sequence[str]
    second: Sequence[str]
    rows: Sequence[Row]

    def only(self, names: Sequence[str]) -> list[Row]:
        """The rows of some names; all, if none is given.

        Raises:
            VplError: a name is unknown.
        """
        known = {row.name: row for row in self.rows}
        for name in names:
            if name not in known:
                raise VplError(f"no method `{name}` is compared", near_name(name, known))
        return [row for row in self.rows if not names or row.name in names]

    def without_words(self) -> tuple[Comparison, list[str]]:
        """The comparison where prototypes come from tags; and the names of rows left out.

        A row needs words if it names something of the text, or learns from it.
        """
        kept = [row.of_tags() for row in self.rows if not row.needs_words]
        begin = [*(line for line in self.begin if not line.startswith("text-prototypes")),
                 "tag-prototypes --split {learn}"]
        return (Comparison(begin, self.second, kept),
                [row.name for row in self.rows if row.needs_words])


def read_comparison(path: Path = BUNDLED) -> Comparison:
    """Read what is compared from a TOML file, and check every line of it.

    A file without `begin` or `second` has the bundled ones.

    Raises:
        VplError: the file is not one, or a line is not a command.
    """
    try:
        found: Mapping[str, Any] = tomllib.loads(path.read_text("utf-8"))
        rows = [Row(**row) for row in found["row"]]
        if wrong := next((row for row in rows if bool(row.cams) == bool(row.masks)), None):
            raise ValueError(f"`{wrong.name}` needs `cams` or `masks`, and not both")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise VplError(f"{path}: not a list of methods ({error})",
                       "it holds `begin`, `second`, and a `[[row]]` with "
                       f"{', '.join(field.name for field in fields(Row))} a method") from error
    if path != BUNDLED and not {"begin", "second"} <= found.keys():
        bundled = read_comparison()
        found = {"begin": bundled.begin, "second": bundled.second, **found}
    begin, second = (tuple(found.get(name, ())) for name in ("begin", "second"))
    for name, lines in (("begin", begin), ("second", second),
                        *((row.name, row.lines) for row in rows)):
        for line in lines:
            try:
                parse_line(fill(line, {"work": "", "learn": "train", "split": "val", "seed": 0,
                                       "second": "", "encoder": "FILE"}))
            except VplError as error:
                raise VplError(f"{path}: {name}: {line}: {error.message}", error.hint) from error
            except (ValueError, LookupError, AttributeError) as error:
                raise VplError(f"{path}: {name}: {line}: not a line ({error})",
                               "in braces are names of values, such as {split}") from error
    return Comparison(begin, second, rows)


def fill(line: str, values: Mapping[str, object]) -> list[str]:
    """Fill a line in, and split it into words."""
    return [word.format(**values) for word in shlex.split(line)]
