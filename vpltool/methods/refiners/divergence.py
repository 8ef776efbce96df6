"""CLIP's attention between patches with similar class scores (CD-CLIP, CVPR 2026).

Patches get a distribution over the photo's classes and the background rows, by their cosines, each
row's stretched to [0, 1]. With the Jensen-Shannon divergence JS of two patches, S = softmax((1 −
JS) / τ), A = S·D and maps ← Aᵗ maps.

There is no code, and what is known of the paper leaves much open: τ and t; the temperature of the
distributions; whether cosines are stretched row by row or together; whether the dot is a product of
matrices or goes entry by entry; and D, here the doubly stochastic attention of CAA. Each but the
last is a setting. The paper adds names of about five super-classes to the rows: background words
of the workspace take their place, and `classes` lets all others take part. It reports that boxes
hurt, so there are none by default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vpltool.methods.inputs import PhotoMaps
from vpltool.methods.refiners import _boxes
from vpltool.settings import setting

if TYPE_CHECKING:
    from torch import Tensor

READS = ("attention", "patches", "prototypes")


@dataclass(frozen=True, kw_only=True)
class Settings(_boxes.BoxSettings):
    """Settings of the divergence affinity."""

    tau: float = setting(0.01, "Temperature of the affinity.", low=1e-6, source="vpltool")
    steps: int = setting(1, "Power of the affinity.", low=1, source="vpltool")
    tau_text: float = setting(0.1, "Temperature of the patches' distributions.", low=1e-6,
                              source="vpltool")
    classes: str = setting(
        "present", "Classes whose rows are compared, beside the background's: present in the "
                   "photo, or all.",
        choices=("present", "all"), source="CD-CLIP")
    stretch: str = setting("row", "How cosines are stretched to [0, 1]: each row, or all rows "
                                  "together.",
                           choices=("row", "all"), source="vpltool")
    combine: str = setting(
        "product", "How the affinity and the attention are combined: product of the matrices, or "
                   "entries.", choices=("product", "entries"), source="vpltool")
    mask: str = _boxes.mask("none", "CD-CLIP")


def refine(photo: PhotoMaps, settings: Settings) -> Tensor:
    """Spread the maps of a photo between patches that classes explain alike (K, h, w), float32."""
    import torch

    from vpltool.core.affinity import box_mask
    from vpltool.core.classes import allowed_rows
    from vpltool.core.divergence import spread, text_distributions
    from vpltool.core.gradcam import min_max

    cams = photo.cams.float()
    if not len(cams):
        return cams
    assert photo.prototypes is not None and photo.class_index is not None
    rows = photo.prototypes
    if settings.classes == "present":
        rows = rows[allowed_rows(photo.class_index, [photo.classes])[0]]
    if settings.mask == "box":
        cams = cams * box_mask(cams, settings.threshold, exclusive=settings.box == "exclusive")
    with torch.no_grad():
        likely = text_distributions(photo.tensors["patches"], rows, tau=settings.tau_text,
                                    stretch=settings.stretch)
        spread_maps = spread(cams.flatten(1), photo.tensors["attention"].float(), likely,
                             tau=settings.tau, steps=settings.steps, combine=settings.combine)
    maps = spread_maps.view_as(cams)
    return min_max(maps) if settings.min_max else maps.clamp(0, 1)
