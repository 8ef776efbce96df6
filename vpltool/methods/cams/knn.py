"""Classes of each patch's nearest patches in other photos (after Balažević et al., NeurIPS 2023).

Each patch is compared with the 30 most similar patches of the bank, with weights softmax(cos /
0.02); a class's map is its share among them. The hummingbird evaluation does so with true masks;
here the bank's classes are seeds (`seed-prototypes --method bank`). A photo uses the rows of its
tags and of the background, but never rows from itself. The product with the bank is computed in
parts, so memory does not grow with the bank. For a second round, make a bank from the result.
"""

from __future__ import annotations

from dataclasses import dataclass

from vpltool import settings
from vpltool.core.seeds import nearest_rows, rows_of_others
from vpltool.lazy import Tensor, torch
from vpltool.methods.inputs import CamBatch
from vpltool.settings import setting

READS = ("patches", "photo_of")


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of the neighbours."""

    neighbours: int = setting(30, "Nearest rows of the bank that a patch is compared with.", low=1,
                              metavar="K", source="hummingbird evaluation, official code")
    tau: float = setting(0.02, "Temperature of their weights.", low=1e-6,
                         source="hummingbird evaluation, official code")


def make_cams(batch: CamBatch, settings: Settings) -> list[Tensor]:
    """Make the share of each class among the neighbours of each patch (K_i, h, w), float32.

    The rest to 1 is the background. Maps are zeros if there is no row.
    """
    number_of = {key: number for number, key in enumerate(batch.row_photos)}
    maps = []
    for key, patches, tags in zip(batch.ids, batch.tensors["patches"], batch.present, strict=True):
        shares = patches.new_zeros(len(tags), len(patches), dtype=torch.float32)
        if len(tags):
            usable = rows_of_others(batch.class_index, batch.of_rows["photo_of"], tags,
                                    number_of.get(key, -1))
            cosines, rows = nearest_rows(patches, batch.prototypes, usable.nonzero()[:, 0],
                                         settings.neighbours)
            owners, weights = batch.class_index[rows], (cosines / settings.tau).softmax(dim=-1)
            shares = torch.stack([(weights * (owners == index)).sum(dim=-1)
                                  for index in tags.tolist()])
        maps.append(shares.view(len(tags), *batch.grid))
    return maps
