"""CLIP's doubly stochastic attention, squared, in boxes of each class (CLIP-ES, eq. 5 to 7).

Patches that attend to the object join it; a CAM stays inside the boxes of its class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from vpltool import settings
from vpltool.core.affinity import attention_walk, box_mask
from vpltool.core.grids import min_max
from vpltool.lazy import Tensor
from vpltool.methods.inputs import PhotoMaps
from vpltool.settings import NoEffect, setting

READS = ("attention",)

# Settings that refiners share, as in `options`.
mask = partial(
    setting, help="Area that each class is kept in; box: the boxes of its map; none: anywhere.",
    choices=("box", "none"))

threshold = partial(
    setting, help="Threshold of the boxes, as a share of the maximum; CLIP-ES: 0.4 for VOC, 0.7 "
    "for COCO.", low=0, high=1, flag="--lambda",
    no_effect=[NoEffect({"mask": ("none",)}, "there are no boxes to threshold")])

box = partial(
    setting, "inclusive", "How far boxes reach; inclusive: up to the photo's border; exclusive: "
    "not into its last row and column of patches, as in CLIP-ES's code.",
    choices=("inclusive", "exclusive"), record="changed",
    no_effect=[NoEffect({"mask": ("none",)}, "there are no boxes")])


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Boxes, and the scale of the result; other refiners inherit them."""

    mask: str = mask("box")
    threshold: float = threshold(0.4, source="CLIP-ES, section 4.1")
    box: str = box()
    min_max: bool = setting(
        True, "Stretch each map to [0, 1] as CLIP-ES does, or keep its scale.", off="--keep-scale")


def refine(photo: PhotoMaps, settings: Settings) -> Tensor:
    """Spread the maps of a photo along its attention (K, h, w), float32."""
    return spread_along(photo.tensors["attention"], photo, settings)


def rescaled(maps: Tensor, settings: Settings) -> Tensor:
    """Stretch maps (K, h, w) to [0, 1] each, or clamp them there."""
    return min_max(maps) if settings.min_max else maps.clamp(0, 1)


def refined(photo: PhotoMaps, settings: Settings, spread: Callable[[Tensor], Tensor]) -> Tensor:
    """Return a photo's maps (K, h, w), float32, after `spread` of maps (h·w, K) in their boxes."""
    cams = photo.cams.float()
    if not len(cams):
        return cams
    start = cams
    if settings.mask == "box":
        start = cams * box_mask(cams, settings.threshold, exclusive=settings.box == "exclusive")
    return rescaled(spread(start.flatten(1).T).T.view_as(cams), settings)


def spread_along(attention: Tensor, photo: PhotoMaps, settings: Settings) -> Tensor:
    """Spread a photo's maps along an attention (h·w, h·w): (K, h, w), float32 (CLIP-ES)."""
    return refined(photo, settings, lambda maps: attention_walk([attention], [1.0], maps))
