"""Cosine to the prototypes of a class minus that to its context's (LPCAM, CVPR 2023).

ReLU(mean cosine to the class's rows − mean cosine to its context's rows), divided by the maximum of
the map. `seed-prototypes --method lpcam` makes the prototypes. LPCAM adds maps of four scales and
mirrored photos; here the features are those of one.
"""

from __future__ import annotations

from vpltool.core.classes import BACKGROUND
from vpltool.lazy import Tensor, no_grad
from vpltool.methods.inputs import CamBatch
from vpltool.settings import Settings

READS = ("patches", "context_of")


@no_grad
def make_cams(batch: CamBatch, settings: Settings) -> list[Tensor]:
    """Make a map in [0, 1] of each class of each photo (K_i, h, w), float32.

    A class without context rows has nothing subtracted.
    """
    patches = batch.tensors["patches"]
    cosines = (patches @ batch.prototypes.to(patches).T).float()

    def mean_of(photo: int, rows: Tensor) -> Tensor:
        return cosines[photo][:, rows].mean(dim=-1) if bool(rows.any()) else cosines.new_zeros(())

    maps = []
    for photo, classes in enumerate(batch.present):
        own = cosines.new_zeros(len(classes), patches.shape[1])
        for number, index in enumerate(classes.tolist()):
            assert index != BACKGROUND
            own[number] = (mean_of(photo, batch.class_index == index)
                           - mean_of(photo, batch.of_rows["context_of"] == index)).relu()
        own /= own.amax(dim=-1, keepdim=True).clamp_min(1e-12)
        maps.append(own.view(-1, *batch.grid))
    return maps
