"""Write predictions as plain indexed PNGs, with classes.txt and a palette for paint programs.

A pixel's value is the line of its class in classes.txt, counted from 0, the background; 255 is
unlabelled. palette.gpl is what GIMP and Krita read. An earlier export of the same name is replaced.

Example: vpltool export masks --split val
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from vpltool import options, settings
from vpltool.formats.archives import write_tree
from vpltool.formats.corrections import import_call
from vpltool.formats.labels import legend, png_bytes
from vpltool.methods.exports._folders import corrections_setting
from vpltool.methods.inputs import Predictions

SUFFIX = ""


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of plain masks."""

    split: str = options.split("val")
    corrections: bool = corrections_setting()


def export(predictions: Predictions, path: Path, settings: Settings) -> list[Path]:
    """Write the folder."""
    write_tree(path, itertools.chain(
        legend(predictions.name, ("background", *predictions.workspace.classes)),
        ((f"{photo.id}.png", png_bytes(labels)) for photo, labels in predictions.each())), "masks",
        rescue=import_call(predictions.workspace, path))
    return [path]
