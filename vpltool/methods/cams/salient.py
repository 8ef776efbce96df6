"""Border saliency, divided among the photo's classes by the prototypes; meant for seeds.

Patches that do not look like the photo's border are salient (the border prior of Zhu et al., CVPR
2014); the prototypes say which class each of them shows.
"""

from __future__ import annotations

from dataclasses import dataclass

from vpltool import settings
from vpltool.core.affinity import border_saliency
from vpltool.core.classes import class_scores
from vpltool.lazy import Tensor
from vpltool.methods.inputs import CamBatch
from vpltool.settings import setting

READS = ("patches",)


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of the salient maps."""

    tau: float = setting(0.05, "Temperature of the class probabilities.", low=1e-6,
                         source="vpltool, chosen on the demo scenes of another seed")


def make_cams(batch: CamBatch, settings: Settings) -> list[Tensor]:
    """Make a map in [0, 1] of each class of each photo (K_i, h, w), float32.

    The most likely class of a patch gets the patch's saliency, any other the saliency times the
    ratio of their probabilities. Only classes that the photo shows take part, not the background
    rows. So `cam ≥ 0.9` selects the most salient tenth of the photo, each patch for its most likely
    class.
    """
    patches = batch.tensors["patches"]
    saliency = border_saliency(patches, batch.grid)
    maps = []
    for photo, classes in enumerate(batch.present):
        if not len(classes):
            maps.append(patches.new_zeros((0, *batch.grid)))
            continue
        logits = patches[photo] @ batch.prototypes.to(patches).T / settings.tau
        likely = class_scores(logits, batch.class_index, classes).softmax(dim=-1)
        share = likely / likely.amax(dim=-1, keepdim=True)
        maps.append((saliency[photo][:, None] * share).T.reshape(len(classes), *batch.grid))
    return maps
