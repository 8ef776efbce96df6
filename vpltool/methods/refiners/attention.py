"""CLIP's doubly stochastic attention, squared, in boxes of each class (CLIP-ES, eq. 5 to 7).

Patches that attend to the object join it; a CAM stays inside the boxes of its class.
"""

from __future__ import annotations

from dataclasses import dataclass

from vpltool import settings
from vpltool.core.affinity import attention_walk, box_mask
from vpltool.core.grids import min_max
from vpltool.lazy import Tensor
from vpltool.methods.inputs import PhotoMaps
from vpltool.settings import NoEffect, setting

READS = ("attention",)

_UNMASKED = NoEffect({"mask": ("none",)}, "there are no boxes")
_NO_BEGIN = NoEffect({"mask": ("none",)}, "it is where boxes begin")


def mask(default: str, source: str = "") -> str:
    """Whether a map stays in boxes."""
    return setting(default, "Area that each class is kept in; box: the boxes of its map; none: "
                            "anywhere.", choices=("box", "none"), source=source)


def threshold(default: float, source: str, no_effect: NoEffect = _NO_BEGIN) -> float:
    """Where boxes begin."""
    return setting(
        default, "Threshold of the boxes, as a share of the maximum; CLIP-ES: 0.4 for VOC, 0.7 for "
                 "COCO.", low=0, high=1, flag="--lambda", source=source, no_effect=[no_effect])


def box(no_effect: NoEffect = _UNMASKED) -> str:
    """How far boxes reach."""
    return setting(
        "inclusive", "How far boxes reach; inclusive: up to the photo's border; exclusive: not "
                     "into its last row and column of patches, as in CLIP-ES's code.",
        choices=("inclusive", "exclusive"), record="changed", no_effect=[no_effect])


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Boxes, and the scale of the result; other refiners inherit them."""

    mask: str = mask("box")
    threshold: float = threshold(0.4, "CLIP-ES, section 4.1")
    box: str = box()
    min_max: bool = setting(
        True, "Stretch each map to [0, 1] as CLIP-ES does, or keep its scale.", off="--keep-scale")


def refine(photo: PhotoMaps, settings: Settings) -> Tensor:
    """Spread the maps of a photo along its attention (K, h, w), float32."""
    return spread_along(photo.tensors["attention"], photo, settings)


def in_boxes(cams: Tensor, settings: Settings) -> Tensor:
    """Keep maps (K, h, w) in their boxes, if this is asked for."""
    if settings.mask != "box":
        return cams
    return cams * box_mask(cams, settings.threshold, exclusive=settings.box == "exclusive")


def rescaled(maps: Tensor, settings: Settings) -> Tensor:
    """Stretch maps (K, h, w) to [0, 1] each, or cut them there, as is asked for."""
    return min_max(maps) if settings.min_max else maps.clamp(0, 1)


def spread_along(attention: Tensor, photo: PhotoMaps, settings: Settings) -> Tensor:
    """Spread a photo's maps, in their boxes, along an attention (h·w, h·w): (K, h, w), float32.

    CLIP-ES, eq. 5 to 7.
    """
    cams = photo.cams.float()
    if not len(cams):
        return cams
    start = in_boxes(cams, settings).flatten(1).T
    return rescaled(attention_walk([attention], [1.0], start).T.view_as(cams), settings)
