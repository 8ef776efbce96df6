"""Context prototypes: clusters of each class's regions over the data set (CPAL, CVPR 2024).

A region is the mean of a class's pixels in a photo, so a photo counts once, however large its
object is; `kmeans` clusters the pixels. `refine --method cpal` reads the result. CPAL keeps the
regions in a bank while it trains a network. Neither the size of its bank nor the number of clusters
is known; here the bank holds all regions, or as many as are drawn, and nothing is trained.

Example: `vpltool seed-prototypes --method context --pixels regions --out context.safetensors`
"""

from __future__ import annotations

from dataclasses import dataclass

from vpltool.core import gap, phase_one, prototypes
from vpltool.lazy import Tensor, torch
from vpltool.methods.estimators import means
from vpltool.settings import setting

READS = ("patches",)


@dataclass(frozen=True, kw_only=True)
class Settings(means.Settings):
    """Settings of the context prototypes."""

    per_class: int = setting(8, "Prototypes per class, at most one per region.", low=1, metavar="K",
                             source="vpltool")
    bank: int = setting(0, "Maximum number of regions per class, drawn at random; 0: all.", low=0,
                        metavar="N", source="vpltool")


def estimate(pool: phase_one.Pixels, text: Tensor, text_index: Tensor, settings: Settings, seed: int
             ) -> tuple[Tensor, Tensor]:
    """Replace each class's row by the centres of its regions; see `means.estimate`."""
    regions, region_class, _ = gap.photo_regions(pool.embeddings, pool.photo_of, pool.labels)
    return means.with_class_rows(pool, text, text_index, settings, seed, {
        owner: context_prototypes(regions[region_class == owner], settings, seed)
        for owner in means.seeded_classes(region_class)})


def context_prototypes(regions: Tensor, settings: Settings, seed: int) -> Tensor:
    """Return the centres (K, dim), L2-normed, of a class's regions, one a photo (R, dim)."""
    if 0 < settings.bank < len(regions):
        order = torch.randperm(len(regions), generator=torch.Generator().manual_seed(seed))
        regions = regions[order[: settings.bank].sort().values.to(regions.device)]
    return prototypes.spherical_kmeans(regions, settings.per_class, seed=seed)
