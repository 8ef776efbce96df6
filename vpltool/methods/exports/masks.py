"""Write predictions as plain indexed PNGs, with classes.txt and a palette for paint programs.

A pixel's value is the line of its class in classes.txt, counted from 0, the background; 255 is not
said. palette.gpl is what GIMP and Krita read. An earlier export of the same name is replaced.

Example: vpltool export masks --split val
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vpltool import options, settings
from vpltool.formats import voc_palette
from vpltool.formats.archives import write_folder
from vpltool.methods.inputs import Predictions

READS = ()
SUFFIX = ""

_CLASSES, _PALETTE = "classes.txt", "palette.gpl"


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of plain masks."""

    split: str = options.split("val")


def export(predictions: Predictions, path: Path, settings: Settings) -> list[Path]:
    """Write the folder."""
    write_folder(path, _members(predictions), (_CLASSES, _PALETTE))
    return [path]


def _members(predictions: Predictions) -> Iterator[tuple[str, bytes]]:
    from vpltool.formats.labels import png_bytes

    names = ("background", *predictions.workspace.classes)
    yield _CLASSES, "".join(f"{name}\n" for name in names).encode()
    flat = voc_palette()
    colours = [" ".join(f"{value:3}" for value in flat[3 * index : 3 * index + 3])
               for index in range(len(names))]
    lines = [f"{colour}\t{name}" for colour, name in zip(colours, names, strict=True)]
    yield _PALETTE, "\n".join(["GIMP Palette", f"Name: {predictions.name}", "#", *lines, ""]
                              ).encode()
    for photo, labels in predictions.each():
        yield f"{photo.id}.png", png_bytes(labels)
