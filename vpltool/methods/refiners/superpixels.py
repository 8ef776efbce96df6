"""CLIP's attention, doubly stochastic, squared, in superpixels of the colours of each class.

It is SSR's Superpixel-Guided Correction (AAAI 2026) without the second encoder that `ssr` uses.
SLIC's superpixels are joined to regions of one colour; a class spreads from the regions that its
map is sure of. Needs scikit-image: pip install 'vpltool[superpixels]'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from vpltool.core.affinity import attention_walk, box_mask
from vpltool.errors import check_skimage
from vpltool.lazy import F, Image, Tensor, np, npt, skimage, torch
from vpltool.methods.inputs import PhotoMaps
from vpltool.methods.refiners import attention
from vpltool.settings import NoEffect, setting

READS = ("attention", "photo")

KMEANS_ROUNDS = 50
"""Rounds of Lloyd's at most; colours of a photo settle in ten or twenty."""

Floats: TypeAlias = "npt.NDArray[np.float64]"

_NO_REGIONS = NoEffect({"mask": ("none", "box")}, "there are no superpixels")
_NO_BOXES = NoEffect({"mask": ("none", "superpixel")}, "there are no boxes")


@dataclass(frozen=True, kw_only=True)
class Settings(attention.Settings):
    """Superpixels, and which of their regions a map stays in; beside boxes."""

    mask: str = setting(
        "superpixel", "Area that each class is kept in; superpixel: regions of one colour; box: "
                      "the boxes of its map; both; or none: anywhere.",
        choices=("superpixel", "box", "both", "none"), source="SSR, eq. 7")
    threshold: float = attention.threshold(
        0.4, source="CLIP-ES, section 4.1", no_effect=[_NO_BOXES])
    box: str = attention.box(no_effect=[_NO_BOXES])
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


def check(_features: Mapping[str, object], settings: Settings) -> None:
    """Check that scikit-image is installed if superpixels are used."""
    if settings.mask in ("superpixel", "both"):
        check_skimage("superpixels need", "`mask='box'`")


def refine(photo: PhotoMaps, settings: Settings) -> Tensor:
    """Spread the maps of a photo along its attention (K, h, w), float32."""
    return refine_in_regions(photo, {"attention": 1.0}, settings)


def refine_in_regions(photo: PhotoMaps, shares: Mapping[str, float], settings: Settings) -> Tensor:
    """Spread the maps of a photo along one attention or more, inside the mask (K, h, w), float32.

    `shares` are those of the attentions' tensors in the affinity. A map that the mask would empty
    is not masked.
    """
    cams = photo.cams.float()
    if not len(cams):
        return cams
    start, mask = cams.flatten(1), region_mask(photo, settings)
    if mask is not None:
        inside = start * mask.flatten(1)
        start = torch.where(inside.any(dim=1, keepdim=True), inside, start)
    walked = attention_walk([photo.tensors[name] for name in shares], list(shares.values()),
                            start.T)
    return attention.rescaled(walked.T.reshape(cams.shape), settings)


def region_mask(photo: PhotoMaps, settings: Settings) -> Tensor | None:
    """Return the patches that each map may spread from, bool (K, h, w); None: all."""
    cams, mask = photo.cams.float(), None
    if settings.mask in ("box", "both"):
        mask = box_mask(cams, settings.threshold, exclusive=settings.box == "exclusive")
    if settings.mask in ("superpixel", "both"):
        assert photo.photo is not None
        regions = colour_regions(photo.photo, (cams.shape[1], cams.shape[2]), settings)
        targets = target_mask(cams, regions, settings)
        mask = targets if mask is None else mask & targets
    return mask


def colour_regions(photo: npt.NDArray[np.uint8], grid: tuple[int, int], settings: Settings
                   ) -> Tensor:
    """Cut a photo, RGB (H, W, 3), into regions of one colour, connected or not (SSR, eq. 8).

    It is scaled to `detail` pixels a patch of the grid (h, w). Returns the regions' shares of each
    patch (regions, h, w) float32, which sum to 1.
    """
    height, width = (side * settings.detail for side in grid)
    scaled = np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BOX))
    labels = skimage.segmentation.slic(
        scaled, settings.superpixels, settings.compactness, settings.rounds, start_label=0,
        channel_axis=-1)
    flat = labels.ravel()
    size = np.maximum(np.bincount(flat), 1)
    means = np.stack([np.bincount(flat, weights=channel) / size
                      for channel in scaled.reshape(-1, 3).T], axis=1) / 255
    colours = skimage.color.rgb2lab(means) if settings.space == "lab" else means
    owner = torch.from_numpy(cluster(colours, settings.colours)[labels])
    cells = owner.view(grid[0], settings.detail, grid[1], settings.detail)
    return F.one_hot(cells).sum(dim=(1, 3)).permute(2, 0, 1) / settings.detail**2


def cluster(points: Floats, count: int) -> npt.NDArray[np.int64]:
    """Group points (N, dim) by k-means into at most `count` clusters: (N,).

    Centres are initialised deterministically: the point nearest to the mean, then always the one
    farthest from those before.
    """
    first = int(((points - points.mean(0)) ** 2).sum(1).argmin())
    centres = points[[first]]
    nearest = ((points - centres) ** 2).sum(1)
    while len(centres) < count and nearest.max() > 0:
        centres = np.concatenate([centres, points[[int(nearest.argmax())]]])
        nearest = np.minimum(nearest, ((points - centres[-1]) ** 2).sum(1))
    owner = np.full(len(points), -1)
    for _ in range(KMEANS_ROUNDS):
        # Distances without |point|², which is the same for all centres.
        found = ((centres**2).sum(1) - 2 * points @ centres.T).argmin(1)
        if (found == owner).all():
            break
        owner = found
        members = owner == np.arange(len(centres))[:, None]
        size = members.sum(1)[:, None]
        # An empty cluster keeps its centre.
        centres = np.where(size > 0, members @ points / np.maximum(size, 1), centres)
    return owner


def target_mask(cams: Tensor, regions: Tensor, settings: Settings) -> Tensor:
    """Return the patches (maps, h, w), bool, of the target regions of each map (SSR, eq. 7).

    A region is a target if its confident activation, divided by the total, exceeds `share`; the one
    with the most is always a target. Maps (maps, h, w) are in [0, 1]; regions are shares of each
    patch (regions, h, w).
    """
    maps, cover = cams.float().flatten(1), regions.to(cams.device).flatten(1)
    sure = maps * (maps > settings.confident * maps.amax(dim=1, keepdim=True))
    inside = sure @ cover.T
    whole = maps @ cover.T if settings.total == "region" else maps.sum(dim=1, keepdim=True)
    targets = inside > settings.share * whole
    targets |= (inside == inside.amax(dim=1, keepdim=True)) & (inside > 0)
    return (targets.float() @ cover > settings.coverage).view_as(cams)
