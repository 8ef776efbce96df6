"""The modality gap: how far prototypes lie from the regions that they stand for.

Region features r are what photos show of a class: the L2-normed mean of its pixels, one a photo
and class. p(r) is the prototype of r's class that is nearest to it. Of the classes c,

    centroid = ‖ mean_c mean_{r of c} p(r)  −  mean_c mean_{r of c} r ‖₂
    cosine   = mean_c mean_{r of c} ( 1 − cos(p(r), r) )

The first is the distance of the two modalities' centroids of Liang et al., "Mind the gap" (NeurIPS
2022), every class with the same weight; the second says how far a single region is from its
prototype. VPL (AAAI 2025, tables 4 and 5) reports one number and no formula: it may be either.
No single prototype of a class comes below the spread of its regions, 1 − ‖mean_{r of c} r‖: that is
the cosine number of their own mean.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vpltool.core.classes import BACKGROUND

_CHUNK = 65536
"""Pixels at a time that are turned from half precision to float32."""


@dataclass(frozen=True)
class ClassGap:
    """The same of one class, and how many regions it has."""

    centroid: float
    cosine: float
    spread: float
    regions: int


@dataclass(frozen=True)
class Gap:
    """How far prototypes are from their regions; see the module.

    Args:
        centroid: distance of the centroids; NaN without regions.
        cosine: mean 1 − cos; NaN without regions.
        spread: of the regions around their classes' means; NaN without regions.
        per_class: class index to its gap; classes without regions are not in it.
    """

    centroid: float
    cosine: float
    spread: float
    per_class: dict[int, ClassGap]


def photo_regions(pixels: Tensor, photo_of: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Region features: the mean of each class's pixels in each photo.

    Args:
        pixels: L2-normed (N, dim).
        photo_of: number of the photo that each comes from (N,).
        labels: class of each (N,); background and unsure pixels are left out.

    Returns:
        L2-normed region features (R, dim), by photo, then by class; and their classes (R,).
    """
    kept = labels > BACKGROUND
    pairs, place = torch.stack([photo_of[kept], labels[kept]]).unique(dim=1, return_inverse=True)
    sums = pixels.new_zeros(pairs.shape[1], pixels.shape[1], dtype=torch.float32)
    for part, slot in zip(kept.nonzero()[:, 0].split(_CHUNK), place.split(_CHUNK), strict=True):
        sums.index_add_(0, slot, pixels[part].float())
    return F.normalize(sums, dim=-1), pairs[1]


def modality_gap(prototypes: Tensor, class_index: Tensor, regions: Tensor,
                 region_class: Tensor) -> Gap:
    """Measure the gap between prototypes and region features.

    Args:
        prototypes: L2-normed rows (rows, dim); several rows of a class: the nearest counts.
        class_index: class of each row (rows,).
        regions: region features (R, dim), any length.
        region_class: class of each (R,); prototypes must have a row of it.
    """
    regions = F.normalize(regions.float(), dim=-1)
    per_class, centres = {}, []
    for index in region_class.unique().tolist():
        mine, rows = regions[region_class == index], prototypes[class_index == index]
        cosines, nearest = (mine @ rows.T).max(dim=-1)
        pair = torch.stack([rows[nearest].mean(dim=0), mine.mean(dim=0)])
        per_class[index] = ClassGap(float((pair[0] - pair[1]).norm()),
                                    float((1 - cosines).mean()), 1 - float(pair[1].norm()),
                                    len(mine))
        centres.append(pair)
    if not centres:
        return Gap(float("nan"), float("nan"), float("nan"), {})
    ours, theirs = torch.stack(centres).mean(dim=0)
    shown = per_class.values()
    return Gap(float((ours - theirs).norm()), sum(item.cosine for item in shown) / len(shown),
               sum(item.spread for item in shown) / len(shown), per_class)


def feature_centroid(features: Iterable[tuple[Tensor, Tensor]], groups: int
                     ) -> tuple[Tensor, Tensor]:
    """Mean over the groups of their mean features, in one pass and constant memory.

    Args:
        features: parts of L2-normed features (N, dim) and the group of each (N,).
        groups: number of groups; 1 gives the plain mean.

    Returns:
        centroid (dim,) float32, and which groups have features (groups,) bool.

    Raises:
        ValueError: there is no feature at all.
    """
    sums: Tensor | None = None
    counts = torch.zeros(groups, dtype=torch.float64)
    for part, group in features:
        if sums is None:
            # In double precision: millions of pixels are added up.
            sums = torch.zeros(groups, part.shape[1], dtype=torch.float64)
        sums.index_add_(0, group.cpu(), part.double().cpu())
        counts += torch.bincount(group.cpu(), minlength=groups)
    seen = counts > 0
    if sums is None or not bool(seen.any()):
        raise ValueError("no features to take the centroid of")
    return (sums[seen] / counts[seen, None]).mean(dim=0).float(), seen


def shift_along_gap(prototypes: Tensor, gap: Tensor, share: float = 1.0) -> Tensor:
    """Move prototypes along the gap vector (Liang et al. 2022, section 5; VPL's "modify gap").

        z'_n = (z_n + λ Δ) / ‖z_n + λ Δ‖,   Δ = centroid of the images − centroid of the text

    Liang et al. move text and images towards each other by half of it each; the photos' features
    stay where they are here, so the text goes the whole way. With λ = 1 the centroids coincide
    before the rows are put back on the sphere.

    Args:
        prototypes: L2-normed rows (rows, dim); background rows are moved alike.
        gap: Δ (dim,).
        share: λ; 0 leaves the text as it is, below 0 widens the gap.

    Returns:
        L2-normed rows (rows, dim).
    """
    return F.normalize(prototypes + share * gap, dim=-1)
