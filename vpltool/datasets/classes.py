"""Class files: names in index order, and what the pixel values of true masks mean."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from vpltool import console
from vpltool.datasets.prompts import read_lines
from vpltool.errors import VplError
from vpltool.formats import IGNORE
from vpltool.formats.kinds import MOST_CLASSES, numbered
from vpltool.names import spelled

_NO_CLASS = {"background": 0, "_background_": 0, "ignore": IGNORE}
"""Names in a class file that are not classes, and the labels that they mean."""


@dataclass(frozen=True)
class ClassFile:
    """Class names in index order, the first is class 1, and what true masks' values mean.

    That is pixel value to label (0: background, 255: not scored); empty if they are the labels.
    """

    names: tuple[str, ...]
    values: dict[int, int]


def read_classes(path: Path) -> ClassFile:
    """Read a class file: names in index order, or lines `VALUE NAME`.

    VALUE is the value of the class's pixels in the true masks. The names `background` and `ignore`
    are not classes: their pixels are background, or not scored. Without values, one of them may be
    the first line, and says what 0 means.

    Raises:
        VplError: the file is missing or names no class, only some lines have a value, a name or
            value is listed twice, or there are more than 65,534 classes.
    """
    hint = "`classes='FILE'` takes a text file with a line NAME, or VALUE NAME, for each class"
    lines = read_lines(path, hint)
    pairs = [re.fullmatch(r"(\d{1,9})[\s,:]+(\S.*)", line) for line in lines]
    if all(pairs):
        read = [(int(pair[1]), pair[2].strip()) for pair in pairs if pair]
        once = [str(value) for value, _ in read]
    elif any(pairs):
        plain = next(line for line, pair in zip(lines, pairs, strict=True) if not pair)
        valued = next(line for line, pair in zip(lines, pairs, strict=True) if pair)
        raise VplError(f"{path}: `{valued}` has a value, `{plain}` has none",
                       f"put a value before each name, such as `1 {lines[0]}`, or before none")
    else:
        read = list(enumerate(lines, 0 if lines[0].lower() in _NO_CLASS else 1))
        once = lines
    twice = [entry for entry, count in Counter(once).items() if count > 1]
    if twice:
        raise VplError(f"{path}: `{min(twice)}` is listed twice", hint)
    names = tuple(dict.fromkeys(name for _, name in read if name.lower() not in _NO_CLASS))
    if not names:
        raise VplError(f"{path} names no class, only {' and '.join(name for _, name in read)}",
                       hint)
    if len(names) > MOST_CLASSES:
        raise VplError(f"{path} has {len(names)} classes; {MOST_CLASSES} at most are possible",
                       hint)
    if max(read)[0] > MOST_CLASSES + 1:
        raise VplError(f"{path}: `{max(read)[0]} {max(read)[1]}`: a pixel's value is at most "
                       f"{MOST_CLASSES + 1}", hint)
    if odd := [name for name in names if ";" in name]:
        raise VplError(f"{path}: `{odd[0]}` has a semicolon, which separates tags",
                       "write another name")
    looks: dict[str, list[str]] = defaultdict(list)
    for name in names:
        looks[unicodedata.normalize("NFKC", name).casefold()].append(name)
    if alike := [pair for group in looks.values() for pair in combinations(group, 2)]:
        shown = "; ".join(" and ".join(f"`{spelled(name)}`" for name in pair) for pair in alike[:5])
        console.warn(f"{path}: names that look like one class are two: {shown}")
    names = numbered(names)
    label = dict(zip(names, range(1, len(names) + 1), strict=True))
    values = {value: label[name] if name in label else _NO_CLASS[name.lower()]
              for value, name in read}
    return ClassFile(names, {} if all(value == values[value] for value in values) else values)
