"""`docs/pipeline.svg`: labels keep clear of edges, arrows and each other, in a wide font too."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from xml.etree import ElementTree

from PIL import ImageFont

Box = tuple[float, float, float, float]
"""Left, top, right and bottom."""

SVG = Path(__file__).parents[2] / "docs/pipeline.svg"
FONT = ImageFont.load_default(100)
ROOT = ElementTree.parse(SVG).getroot()
SIZE, COMMAND_SIZE = 14.5, 11.5

WIDER = 1.25
"""How much wider than Pillow's font a reader's may be: DejaVu, a wide one, is at most 1.22."""


def found(tag: str) -> list[dict[str, str]]:
    return [{**part.attrib, "text": part.text or ""}
            for part in ROOT.iter(f"{{http://www.w3.org/2000/svg}}{tag}")]


def box_of(part: dict[str, str]) -> Box:
    """Return the extent of a rectangle, of a line, or of a centred text."""
    if "x1" in part:
        (left, right), (top, bottom) = (
            sorted(float(part[key]) for key in (f"{axis}1", f"{axis}2")) for axis in "xy")
        assert left == right or top == bottom, "lines are horizontal or vertical"
        return left, top, right, bottom
    left, top = float(part["x"]), float(part["y"])
    if "width" in part:
        return left, top, left + float(part["width"]), top + float(part["height"])
    size, width = SIZE, WIDER * FONT.getlength(part["text"]) / 100 * SIZE
    if part.get("class") == "command":
        # Each letter of a fixed-width font takes about 0.6 of its size.
        size, width = COMMAND_SIZE, 0.61 * COMMAND_SIZE * len(part["text"])
    half = width / 2
    return left - half, top - 0.8 * size, left + half, top + 0.25 * size


def apart(one: Box, other: Box, space: float) -> bool:
    return (one[0] - space >= other[2] or other[0] - space >= one[2]
            or one[1] - space >= other[3] or other[1] - space >= one[3])


def inside(one: Box, other: Box, space: float) -> bool:
    return (one[0] - space >= other[0] and one[1] - space >= other[1]
            and one[2] + space <= other[2] and one[3] + space <= other[3])


def test_labels_touch_neither_edges_nor_arrows_nor_each_other() -> None:
    texts = [(part["text"], box_of(part)) for part in found("text")]
    page, *boxes = (box_of(part) for part in found("rect"))
    lines = [box_of(part) for part in found("line")]
    assert min(len(texts), len(boxes), len(lines)) >= 9
    for name, text in texts:
        assert inside(text, page, 4), name
        assert all(inside(text, box, 2) or apart(text, box, 4) for box in boxes), name
        assert all(apart(text, line, 4) for line in lines), name
    for (name, one), (other, two) in itertools.combinations(texts, 2):
        assert apart(one, two, 1), f"{name}, {other}"


def test_arrows_run_between_boxes() -> None:
    _, *boxes = (box_of(part) for part in found("rect"))
    for part in found("line"):
        line = box_of(part)
        assert all(apart(line, box, -1) for box in boxes), part


def test_the_stylesheet_has_the_sizes_that_are_checked_here() -> None:
    style = next(part["text"] for part in found("style"))
    assert [float(size) for size in re.findall(r"font-size: ([\d.]+)px", style)] == [
        SIZE, COMMAND_SIZE]
    assert "text-anchor: middle" in style


def test_a_light_page_lies_below_everything() -> None:
    page = found("rect")[0]
    assert page["fill"] == "#fdfdfd"
    left, top, width, height = (float(number) for number in ROOT.attrib["viewBox"].split())
    assert inside(box_of(page), (left, top, left + width, top + height), 0)
    assert (float(page["width"]), float(page["height"])) == (width - 1, height - 1)
