"""Regions of one colour from superpixels, and masks of those that a map is sure of (SSR's SGC).

Superpixels are scikit-image's SLIC, an optional dependency: `pip install 'vpltool[superpixels]'`.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from vpltool.errors import VplError

KMEANS_ROUNDS = 50
"""Rounds of Lloyd's at most; colours of a photo settle in ten or twenty."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SuperpixelSettings:
    """How a photo is cut into regions of one colour.

    Args:
        superpixels: about how many SLIC makes.
        compactness: weight of the distance against the colour's.
        rounds: of SLIC.
        colours: clusters of the superpixels' mean colours: regions.
        space: of these colours, `lab` or `rgb`.
        detail: side of a patch in pixels when SLIC sees it.
    """

    superpixels: int = 250
    compactness: float = 10.0
    rounds: int = 5
    colours: int = 8
    space: str = "lab"
    detail: int = 4


def check_superpixels() -> None:
    """Check that superpixels can be made.

    Raises:
        VplError: scikit-image is not installed.
    """
    if importlib.util.find_spec("skimage") is None:
        raise VplError("superpixels need scikit-image, which is not installed",
                       "pip install 'vpltool[superpixels]', or `mask='box'`")


def colour_regions(photo: npt.NDArray[np.uint8], grid: tuple[int, int], how: SuperpixelSettings
                   ) -> Tensor:
    """Cut a photo into regions of one colour, connected or not (SSR, eq. 8).

    Args:
        photo: RGB (H, W, 3).
        grid: (h, w), in patches; the photo is scaled to `how.detail` pixels a patch.
        how: number, compactness, colours.

    Returns:
        share of each patch that each region covers (regions, h, w) float32; sums to 1 over regions.
    """
    from skimage.color import rgb2lab
    from skimage.segmentation import slic

    height, width = (side * how.detail for side in grid)
    scaled = np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BOX))
    labels = slic(scaled, how.superpixels, how.compactness, how.rounds, start_label=0,
                  channel_axis=-1)
    flat = labels.ravel()
    size = np.maximum(np.bincount(flat), 1)
    means = np.stack([np.bincount(flat, weights=channel) / size
                      for channel in scaled.reshape(-1, 3).T], axis=1) / 255
    owner = cluster(rgb2lab(means) if how.space == "lab" else means, how.colours)
    return _patch_shares(torch.from_numpy(owner[labels]), grid)


def cluster(points: Floats, count: int) -> npt.NDArray[np.int64]:
    """Group points (N, dim) by k-means into at most `count` clusters: (N,).

    It begins with the point nearest to the mean, then always the one farthest from those before,
    so that the same points give the same clusters.
    """
    def distances(centres: Floats) -> Floats:
        # Without |point|², which is the same for all centres.
        return (centres**2).sum(1) - 2 * points @ centres.T

    first = int(((points - points.mean(0)) ** 2).sum(1).argmin())
    centres = points[[first]]
    nearest = ((points - centres) ** 2).sum(1)
    while len(centres) < count and nearest.max() > 0:
        centres = np.concatenate([centres, points[[int(nearest.argmax())]]])
        nearest = np.minimum(nearest, ((points - centres[-1]) ** 2).sum(1))
    owner = np.full(len(points), -1)
    for _ in range(KMEANS_ROUNDS):
        found = distances(centres).argmin(1)
        if (found == owner).all():
            break
        owner = found
        members = owner == np.arange(len(centres))[:, None]
        size = members.sum(1)[:, None]
        # An empty cluster keeps its centre.
        centres = np.where(size > 0, members @ points / np.maximum(size, 1), centres)
    return owner


def _patch_shares(labels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Count labels (h·detail, w·detail) in each patch, as shares (labels, h, w)."""
    height, width = grid
    detail = labels.shape[0] // height
    cells = labels.view(height, detail, width, detail).permute(0, 2, 1, 3).flatten(2)
    regions = int(labels.max()) + 1
    counts = torch.zeros(height, width, regions).scatter_add_(
        2, cells, torch.ones(cells.shape))
    return counts.permute(2, 0, 1) / detail**2


def target_mask(cams: Tensor, regions: Tensor, *, confident: float = 0.4, share: float = 0.05,
                total: str = "map", coverage: float = 0.5) -> Tensor:
    """Return the patches of the regions that each map is sure of (SSR, eq. 7).

    A region is a target where the activation in it that is sure, divided by the total, exceeds
    `share`; the region of a map's most sure activation is one always.

    Args:
        cams: maps in [0, 1] (maps, h, w).
        regions: share of each patch that each region covers (regions, h, w).
        confident: activation above this share of its map's maximum is sure.
        share: of the activation, from which on a region is a target.
        total: activation that the share is of: `map`, the whole map's; `region`, the region's own.
        coverage: share of a patch that targets must exceed.

    Returns:
        bool (maps, h, w).
    """
    maps, cover = cams.float().flatten(1), regions.to(cams.device).flatten(1)
    sure = maps * (maps > confident * maps.amax(dim=1, keepdim=True))
    inside = sure @ cover.T
    whole = maps @ cover.T if total == "region" else maps.sum(dim=1, keepdim=True)
    targets = inside > share * whole
    targets |= (inside == inside.amax(dim=1, keepdim=True)) & (inside > 0)
    return (targets.float() @ cover > coverage).view_as(cams)
