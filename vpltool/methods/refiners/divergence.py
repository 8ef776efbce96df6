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

import math
from dataclasses import dataclass

from vpltool.core import affinity, grids
from vpltool.core.classes import allowed_rows
from vpltool.lazy import Tensor, no_grad, torch
from vpltool.methods.inputs import PhotoMaps
from vpltool.methods.refiners import attention
from vpltool.settings import setting

READS = ("attention", "patches", "prototypes")


@dataclass(frozen=True, kw_only=True)
class Settings(attention.Settings):
    """Settings of the divergence affinity."""

    tau: float = setting(0.01, "Temperature of the affinity.", low=1e-6, source="vpltool")
    steps: int = setting(1, "Power of the affinity.", low=1, source="vpltool")
    tau_text: float = setting(0.1, "Temperature of the patches' distributions.", low=1e-6,
                              source="vpltool")
    classes: str = setting(
        "present", "Classes whose rows are compared, beside the background's: present in the "
                   "photo, or all.", choices=("present", "all"), source="CD-CLIP")
    stretch: str = setting("row", "How cosines are stretched to [0, 1]: each row, or all rows "
                                  "together.", choices=("row", "all"), source="vpltool")
    combine: str = setting(
        "product", "How the affinity and the attention are combined: product of the matrices, or "
                   "entries.", choices=("product", "entries"), source="vpltool")
    mask: str = attention.mask("none", source="CD-CLIP")


@no_grad
def refine(photo: PhotoMaps, settings: Settings) -> Tensor:
    """Spread the maps of a photo between patches with similar class scores (K, h, w), float32."""
    def spread_maps(maps: Tensor) -> Tensor:
        assert photo.prototypes is not None and photo.class_index is not None
        rows = photo.prototypes
        if settings.classes == "present":
            rows = rows[allowed_rows(photo.class_index, [photo.classes])[0]]
        likely = text_distributions(photo.tensors["patches"], rows, settings)
        return spread(maps, photo.tensors["attention"].float(), likely, settings)

    return attention.refined(photo, settings, spread_maps)


def text_distributions(patches: Tensor, rows: Tensor, settings: Settings) -> Tensor:
    """Return each patch's distribution over text rows (n, T): softmax of stretched cosines / τ.

    Patches (n, dim) and text rows (T, dim) are L2-normed.
    """
    cosine = patches.float() @ rows.float().T
    by_row = settings.stretch == "row"
    stretched = grids.min_max(cosine.T[:, None] if by_row else cosine.T).view(cosine.T.shape)
    return (stretched.T / settings.tau_text).softmax(dim=-1)


def divergence(distributions: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence (n, n) of each pair of distributions (n, T), in bits.

    It is H((p + q) / 2) − (H(p) + H(q)) / 2, with the entropy H: in [0, 1], symmetric, zero on the
    diagonal. The mixtures' entropy is added up entry by entry: time O(n² T), memory O(n²).
    """
    own = -torch.special.xlogy(distributions, distributions).sum(dim=-1)
    total = -(own[:, None] + own) / 2
    for column in distributions.T:
        mixture = (column[:, None] + column) / 2
        total -= torch.special.xlogy(mixture, mixture)
    return (total / math.log(2)).clamp(0, 1).fill_diagonal_(0)


def spread(maps: Tensor, attention: Tensor, distributions: Tensor, settings: Settings) -> Tensor:
    """Spread maps (n, K) along attention (n, n), weighed by the divergence of distributions (n, T).

    S = softmax((1 − JS) / τ), A = S·D, maps ← Aᵗ maps; D is the doubly stochastic attention of
    CAA (`affinity.sinkhorn_scaling`). The dot is the `product` of the matrices; or goes by
    `entries`, each row divided by its sum.
    """
    alike = ((1 - divergence(distributions)) / settings.tau).softmax(dim=-1)
    rows, columns = (scaling[0] for scaling in affinity.sinkhorn_scaling(attention[None]))
    if settings.combine == "entries":
        scaled = rows[:, None] * attention * columns
        alike *= (scaled + scaled.T) / 2
        alike /= alike.sum(dim=-1, keepdim=True).clamp_min(1e-12)
    for _ in range(settings.steps):
        if settings.combine == "product":
            maps = affinity.symmetric_product(attention, rows, columns, maps)
        maps = alike @ maps
    return maps
