"""The page of a report: HTML that needs nothing but itself and its pictures; and its charts."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_TEMPLATES = Path(__file__).parent / "report"


def render_page(content: Mapping[str, object]) -> Iterator[str]:
    """Yield the page piece by piece: `report/page.html`, which names the `content` it shows.

    Script and style are inside, and the page's policy allows only these, by their hashes: content
    of names of classes or photos is never run, and nothing is fetched.
    """
    import jinja2

    script, style = ((_TEMPLATES / name).read_text("utf-8") for name in ("page.js", "page.css"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters["percent"] = percent
    return environment.get_template("page.html").generate(
        **content, script=script, style=style, script_hash=_hash(script), style_hash=_hash(style))


def percent(share: float | None) -> str:
    """Format a share as a number of percent; `-` for none."""
    return "-" if share is None else f"{100 * share:.1f}"


def data_uri(path: Path) -> str:
    """Format a picture, a JPEG or PNG, as a data URI."""
    kind = "jpeg" if path.suffix == ".jpg" else path.suffix[1:]
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _hash(text: str) -> str:
    """Return the hash of a script or style for a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


WIDTH, HEIGHT = 560, 260
"""Size of a chart in units of its view box."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 34

_TICKS = 5
"""Approximate number of marks on an axis."""

_MOST_POINTS = 400
"""Number of points above which only every n-th is drawn."""


@dataclass(frozen=True)
class Tick:
    """A mark of an axis."""

    at: float  # position in the view box
    text: str  # the number there


@dataclass(frozen=True)
class Line:
    """A line of a chart."""

    name: str
    points: str  # as SVG takes them
    first: str  # first value, for screen readers
    last: str  # last value


@dataclass(frozen=True)
class Chart:
    """A chart of one or more lines over the same axes."""

    title: str
    x_name: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    lines: Sequence[Line]
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM
    width: int = WIDTH
    height: int = HEIGHT

    @property
    def description(self) -> str:
        """Its content in words, for screen readers."""
        lines = "; ".join(f"{line.name} from {line.first} to {line.last}" for line in self.lines)
        return (f"{self.title}, {self.x_name} {self.x_ticks[0].text} to {self.x_ticks[-1].text}: "
                f"{lines}")


def line_chart(title: str, x_name: str, xs: Sequence[float],
               lines: Mapping[str, Sequence[float]]) -> Chart:
    """Lay out lines over common axes that reach from the smallest value to the largest.

    `xs` are ascending; each line has as many values. Those that are not finite are left out.
    """
    values = [value for line in lines.values() for value in line if math.isfinite(value)]
    x_marks = ticks(min(xs), max(xs))
    y_marks = ticks(min(values, default=0.0), max(values, default=1.0))
    x_of = _scale(x_marks, _LEFT, WIDTH - _RIGHT)
    y_of = _scale(y_marks, HEIGHT - _BOTTOM, _TOP)
    step = -(-len(xs) // _MOST_POINTS)
    drawn = []
    for name, line in lines.items():
        points = [(x, y) for x, y in zip(xs, line, strict=True) if math.isfinite(y)]
        kept = points[::step] + (points[-1:] if (len(points) - 1) % step else [])
        if kept:
            drawn.append(Line(name, " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in kept),
                              f"{kept[0][1]:.4g}", f"{kept[-1][1]:.4g}"))
    return Chart(title, x_name, [Tick(x_of(mark), f"{mark:g}") for mark in x_marks],
                 [Tick(y_of(mark), f"{mark:g}") for mark in y_marks], drawn)


def ticks(low: float, high: float) -> list[float]:
    """Return evenly spaced round numbers that enclose a range: steps of 1, 2 or 5 times 10ⁿ."""
    span = high - low or abs(high) or 1.0
    rough = span / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * number, 12) for number in range(first, max(last, first + 1) + 1)]


def _scale(marks: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    """Return the linear map that takes the first mark to `start` and the last to `end`."""
    factor = (end - start) / (marks[-1] - marks[0])
    return lambda value: factor * value + (start - factor * marks[0])
