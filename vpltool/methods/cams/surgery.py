"""CLIP Surgery's similarity: class scores minus their mean over all classes (as used by ExCEL).

Each class is weighted by the photo's own vector, and the mean over all classes and background words
is subtracted (Li et al., CLIP Surgery, 2023; ExCEL, CVPR 2025). All rows of the prototypes take
part; if a class has several, the best row of each patch counts. ExCEL combines it with
`extract --patches calibrated` and `text-prototypes --attributes`.

The official code divides each channel by its norm over the photo's tokens, whereas a cosine divides
each token by its own norm. `normalise` offers both; stored patches are always divided by their own
norm. The code stretches a map over patches and class token; here it is stretched over the patches.
"""

from __future__ import annotations

from dataclasses import dataclass

from vpltool import settings
from vpltool.core.grids import min_max
from vpltool.lazy import Tensor, no_grad, torch
from vpltool.methods.inputs import CamBatch
from vpltool.settings import setting

READS = ("tokens", "patches", "head")


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of the similarity."""

    scale: float = setting(2.0, "Factor of the photo's class scores before their softmax.", low=0,
                           source="CLIP Surgery, official code")
    normalise: str = setting(
        "patch", "Normalisation of the patches; patch: cosines; channel: each channel is also "
                 "divided by its norm over the photo, as in the official code.",
        choices=("patch", "channel"))
    pool: str = setting(
        "class", "The photo's vector: class (the class token, or the model's own pooling), or mean "
                 "(of the patches, for a CLIP that pools by the mean).", choices=("class", "mean"),
        source="CLIP Surgery, official code")


@no_grad
def make_cams(batch: CamBatch, settings: Settings) -> list[Tensor]:
    """Make a map in [0, 1] of each class of each photo (K_i, h, w), float32.

    It is the score of the class's best row, stretched; a class without rows has zeros.
    """
    head = batch.head
    assert head is not None
    output = head.block(batch.tensors["tokens"])
    photo = head.class_embedding(output) if settings.pool == "class" else head.pooled(output)
    patches, photo = batch.tensors["patches"].float(), photo.float()
    if settings.normalise == "channel":
        norm = torch.cat([photo[:, None], patches], dim=1).norm(dim=1).clamp_min(1e-12)
        patches, photo = patches / norm[:, None], photo / norm
    scores = surgery_scores(patches, photo, batch.prototypes.to(patches), scale=settings.scale)
    maps = []
    for own, classes in zip(scores, batch.present, strict=True):
        best = own.new_zeros(len(classes), len(own))
        for number, index in enumerate(classes.tolist()):
            rows = own[:, batch.class_index == index]
            if rows.shape[1]:
                best[number] = rows.amax(dim=-1)
        maps.append(min_max(best.view(-1, *batch.grid)))
    return maps


def surgery_scores(patches: Tensor, photo: Tensor, prototypes: Tensor, *, scale: float
                   ) -> Tensor:
    """Return the score of each row at each patch (B, n, rows), less the mean over the rows.

    With w = softmax(scale · photo·t) / its mean, channel c of patch x has the value x_c t_c w for
    row t, and the mean of all rows is what they share. Summed over the channels, that is x·t w less
    its mean over the rows: the channels need not be formed. Patches are (B, n, dim), photos (B,
    dim), rows of classes and background (rows, dim).
    """
    weights = (scale * photo @ prototypes.T).softmax(dim=-1) * len(prototypes)
    scores = (patches @ prototypes.T) * weights[:, None]
    return scores - scores.mean(dim=-1, keepdim=True)
