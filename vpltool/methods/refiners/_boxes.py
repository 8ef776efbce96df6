"""Settings of refiners that keep a map in the boxes of what it shows (CLIP-ES)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vpltool.settings import NoEffect, Settings, setting

_UNMASKED = NoEffect({"mask": ("none",)}, "there are no boxes")


def mask(default: str, source: str = "") -> Any:
    """Whether a map stays in boxes."""
    return setting(default, "Area that each class is kept in; box: the boxes of its map; none: "
                            "anywhere.",
                   choices=("box", "none"), source=source)


def threshold(default: float, source: str) -> Any:
    """Where boxes begin."""
    return setting(
        default, "Threshold of the boxes, as a share of the maximum; CLIP-ES: 0.4 for VOC, 0.7 for "
                 "COCO.",
        low=0, high=1, flag="--lambda", source=source,
        no_effect=[NoEffect({"mask": ("none",)}, "it is where boxes begin")])


@dataclass(frozen=True, kw_only=True)
class BoxSettings(Settings):
    """Boxes, and the scale of the result."""

    mask: str = mask("box")
    threshold: float = threshold(0.4, "CLIP-ES, section 4.1")
    box: str = setting(
        "inclusive", "How far boxes reach; inclusive: up to the photo's border; exclusive: not "
                     "into its last row and column of patches, as in CLIP-ES's code.",
        choices=("inclusive", "exclusive"), record="changed", no_effect=[_UNMASKED])
    min_max: bool = setting(
        True, "Stretch each map to [0, 1] as CLIP-ES does, or keep its scale.", off="--keep-scale")
