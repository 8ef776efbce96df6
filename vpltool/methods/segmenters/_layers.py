"""The setting of segmenters that says which layers of the frozen CLIP they read."""

from __future__ import annotations

from vpltool.settings import setting


def layers(source: str = "") -> str:
    """Blocks whose output is read."""
    return setting("", "CLIP blocks to read; 0 is the first; spread: four, evenly spaced; default: "
                       "those stored, or all but the last.", metavar="LIST", source=source)
