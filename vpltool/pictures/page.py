"""The page of a report: HTML that needs nothing but itself and its pictures."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

_TEMPLATES = Path(__file__).parent / "report"


def render_page(content: Mapping[str, object]) -> Iterator[str]:
    """Yield the page piece by piece, so that `photos` may come from a generator.

    Script and style are inside, and the page's policy allows these alone, by their hashes: what
    names of classes or photos may hold is never run, and nothing is fetched.

    Args:
        content: what `report/page.html` shows.
    """
    import jinja2

    script, style = ((_TEMPLATES / name).read_text("utf-8") for name in ("page.js", "page.css"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters["percent"] = percent
    return environment.get_template("page.html").generate(
        **content, script=script, style=style, script_hash=_hash(script), style_hash=_hash(style))


def percent(share: float | None, digits: int = 1) -> str:
    """Format a share as a number of percent; `-` for none."""
    return "-" if share is None else f"{100 * share:.{digits}f}"


def data_uri(path: Path) -> str:
    """Format a picture, a JPEG or PNG, as an address that holds it."""
    kind = "jpeg" if path.suffix == ".jpg" else path.suffix[1:]
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _hash(text: str) -> str:
    """Hash of a script or style, as a content security policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
