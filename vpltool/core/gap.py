"""The modality gap: how far prototypes are from the image regions of their classes.

A region feature r is the L2-normed mean of a class's pixels in one photo. p(r) is the prototype of
r's class that is nearest to r. Over the classes c,

    centroid = ‖ mean_c mean_{r of c} p(r)  −  mean_c mean_{r of c} r ‖₂
    cosine   = mean_c mean_{r of c} ( 1 − cos(p(r), r) )

The first is the distance between the centroids of the two modalities of Liang et al., "Mind the
gap" (NeurIPS 2022), with the same weight for every class; the second is the distance of a single
region from its prototype. VPL (AAAI 2025, tables 4 and 5) reports one number without a formula,
which may be either. A single prototype of a class cannot have a smaller cosine gap than the mean of
its regions: their spread, 1 − ‖mean_{r of c} r‖.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vpltool.core.classes import BACKGROUND
from vpltool.lazy import F, Tensor, torch

_CHUNK = 65536
"""Number of pixels that are converted from half precision to float32 at a time."""


@dataclass(frozen=True)
class ClassGap:
    """The gap of one class, and how many regions it has."""

    centroid: float
    cosine: float
    spread: float
    regions: int


@dataclass(frozen=True)
class Gap:
    """The gap between prototypes and regions, see the module; NaN without regions."""

    centroid: float  # distance between the centroids
    cosine: float  # mean 1 − cos
    spread: float  # of the regions around the means of their classes
    per_class: dict[int, ClassGap]  # by class index, for classes with regions


def photo_regions(pixels: Tensor, photo_of: Tensor, labels: Tensor
                  ) -> tuple[Tensor, Tensor, Tensor]:
    """Return region features, the mean of each class's pixels in each photo.

    Pixels are L2-normed (N, dim), with the numbers of their photos (N,) and labels (N,); background
    and unsure ones are left out. Features are L2-normed (R, dim), sorted by photo, then class; with
    their classes (R,) and the numbers of their photos (R,).
    """
    kept = labels > BACKGROUND
    pairs, region = torch.stack([photo_of[kept], labels[kept]]).unique(dim=1, return_inverse=True)
    sums = pixels.new_zeros(pairs.shape[1], pixels.shape[1], dtype=torch.float32)
    for part, rows in zip(kept.nonzero()[:, 0].split(_CHUNK), region.split(_CHUNK), strict=True):
        sums.index_add_(0, rows, pixels[part].float())
    return F.normalize(sums, dim=-1), pairs[1], pairs[0]


def modality_gap(prototypes: Tensor, class_index: Tensor, regions: Tensor,
                 region_class: Tensor) -> Gap:
    """Measure the gap between prototypes and region features.

    Prototypes are L2-normed (rows, dim), of classes (rows,); of several rows of a class the nearest
    counts. Regions are (R, dim), of any norm, of classes (R,) that all have prototypes.
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
    """Return the mean of the groups' mean features (dim,) float32, and which have any (groups,).

    Takes parts in one pass with constant memory: L2-normed features (N, dim) and their groups (N,).
    With one group it is the plain mean. Raises a ValueError if there are no features.
    """
    sums: Tensor | None = None
    counts = torch.zeros(groups, dtype=torch.float64)
    for part, group in features:
        if sums is None:
            # In double precision, since millions of pixels are summed.
            sums = torch.zeros(groups, part.shape[1], dtype=torch.float64)
        sums.index_add_(0, group.cpu(), part.cpu().double())
        counts += torch.bincount(group.cpu(), minlength=groups)
    filled = counts > 0
    if sums is None or not bool(filled.any()):
        raise ValueError("no features to take the centroid of")
    return (sums[filled] / counts[filled, None]).mean(dim=0).float(), filled


def shift_along_gap(prototypes: Tensor, gap: Tensor, share: float) -> Tensor:
    """Move prototypes along the gap vector (Liang et al. 2022, section 5; VPL's "modify gap").

        z'_n = (z_n + λ Δ) / ‖z_n + λ Δ‖,   Δ = centroid of the images − centroid of the text

    Liang et al. move text and images towards each other by half of Δ each; here the photos'
    features stay fixed, and the text moves by all of it. With λ (`share`) = 1 the centroids
    coincide before the rows are normalised; 0 leaves the text unchanged, below 0 widens the gap.
    Rows are L2-normed (rows, dim), Δ is (dim,); background rows are moved too.
    """
    return F.normalize(prototypes + share * gap, dim=-1)
