"""Refining inside the colour regions that a map is sure of (SSR's SGC), for those that do so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vpltool.methods.inputs import PhotoMaps
from vpltool.methods.refiners._boxes import BoxSettings
from vpltool.settings import NoEffect, setting

if TYPE_CHECKING:
    from torch import Tensor

_NO_REGIONS = NoEffect({"mask": ("none", "box")}, "there are no superpixels")
_NO_BOXES = NoEffect({"mask": ("none", "superpixel")}, "there are no boxes")


@dataclass(frozen=True, kw_only=True)
class RegionSettings(BoxSettings):
    """Superpixels, and which of their regions a map stays in; beside boxes."""

    mask: str = setting(
        "superpixel", "Area that each class is kept in; superpixel: regions of one colour; box: "
                      "the boxes of its map; both; or none: anywhere.",
        choices=("superpixel", "box", "both", "none"), source="SSR, eq. 7")
    threshold: float = setting(
        0.4, "Threshold of the boxes, as a share of the maximum; CLIP-ES: 0.4 for VOC, 0.7 for "
             "COCO.",
        low=0, high=1, flag="--lambda", source="CLIP-ES, section 4.1", no_effect=[_NO_BOXES])
    box: str = setting(
        "inclusive", "How far boxes reach; inclusive: up to the photo's border; exclusive: not "
                     "into its last row and column of patches, as in CLIP-ES's code.",
        choices=("inclusive", "exclusive"), record="changed", no_effect=[_NO_BOXES])
    superpixels: int = setting(
        250, "Approximate number of superpixels; SSR does not say; usual: 200 to 300.", low=1,
        no_effect=[_NO_REGIONS])
    compactness: float = setting(
        10.0, "SLIC's compactness; SSR does not say; usual: 10.",
        low=0.01, source="scikit-image", brief=False, no_effect=[_NO_REGIONS])
    rounds: int = setting(
        5, "Iterations of SLIC; SSR does not say; SLIC's authors: 10, in twice the time.", low=1,
        brief=False, no_effect=[_NO_REGIONS])
    colours: int = setting(
        8, "Regions: clusters of the superpixels' mean colours; SSR does not say; usual: 8 to 10.",
        low=1, no_effect=[_NO_REGIONS])
    space: str = setting("lab", "Colour space of the clusters: lab, as in SLIC, or rgb.",
                         choices=("lab", "rgb"), brief=False, no_effect=[_NO_REGIONS])
    confident: float = setting(
        0.4, "Activation that counts as confident, as a share of the map's maximum; SSR does not "
             "say; the default is that of the boxes.", low=0, high=1, no_effect=[_NO_REGIONS])
    share: float = setting(
        0.05, "Share of the confident activation above which a region is a target; SSR does not "
              "say; usual: 0.05 to 0.1 of the map's, 0.4 of the region's.", low=0, high=1,
        no_effect=[_NO_REGIONS])
    total: str = setting(
        "map", "What the share refers to: map, the activation of the whole map; region, that of "
               "the region itself.", choices=("map", "region"), brief=False,
        no_effect=[_NO_REGIONS])
    coverage: float = setting(
        0.5, "Coverage by targets above which a patch is in the mask.", low=0,
        high=1, brief=False, no_effect=[_NO_REGIONS])
    detail: int = setting(
        4, "Pixels per side of a patch for SLIC; 16, as ViT-B/16 sees it, is slower.",
        low=1, high=64, brief=False, no_effect=[_NO_REGIONS])


def check_regions(settings: RegionSettings) -> None:
    """Check, before the first photo, that superpixels can be made if they are asked for.

    Raises:
        VplError: scikit-image is not installed.
    """
    from vpltool.core.superpixels import check_superpixels

    if settings.mask in ("superpixel", "both"):
        check_superpixels()


def refine_in_regions(photo: PhotoMaps, shares: Mapping[str, float], settings: RegionSettings
                      ) -> Tensor:
    """Spread the maps of a photo along one attention or more, inside the mask (K, h, w), float32.

    Args:
        photo: with its maps, attention and RGB.
        shares: name of each attention's tensor to its share in the affinity.
        settings: of the mask and the result.
    """
    from vpltool.core.affinity import refine_masked

    if not len(photo.cams):
        return photo.cams.float()
    return refine_masked(photo.cams, [photo.tensors[name] for name in shares],
                         list(shares.values()), _mask(photo, settings),
                         normalise=settings.min_max)


def _mask(photo: PhotoMaps, settings: RegionSettings) -> Tensor | None:
    from vpltool.core import superpixels
    from vpltool.core.affinity import box_mask

    cams, masks = photo.cams.float(), []
    if settings.mask in ("box", "both"):
        masks.append(box_mask(cams, settings.threshold, exclusive=settings.box == "exclusive"))
    if settings.mask in ("superpixel", "both"):
        assert photo.photo is not None
        height, width = cams.shape[1:]
        regions = superpixels.colour_regions(
            photo.photo, (height, width), superpixels.SuperpixelSettings(
                settings.superpixels, settings.compactness, settings.rounds, settings.colours,
                settings.space, settings.detail))
        masks.append(superpixels.target_mask(
            cams, regions, confident=settings.confident, share=settings.share,
            total=settings.total, coverage=settings.coverage))
    if not masks:
        return None
    return masks[0] if len(masks) == 1 else masks[0] & masks[1]
