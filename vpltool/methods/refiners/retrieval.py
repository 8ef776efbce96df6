"""Softmax of each patch over the photo's regions and similar ones elsewhere (after CorrCLIPv2).

A region is the CAM-weighted mean of a photo's patches, one for each tag and one for the rest. For
each, the 20 most similar regions of the same class in other photos are averaged; the background's
come from photos that share a tag. A patch's score is half its cosine to the region, half that to
the support. `seed-prototypes --method bank --pixels regions` makes the bank.

CorrCLIPv2 knows no tags: it retrieves for the regions of a mask network, and scores regions by the
text. Here the tags say what a region is: its own embedding takes the text's place, and patches are
scored, not regions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vpltool import settings
from vpltool.methods.inputs import PhotoMaps
from vpltool.settings import setting

if TYPE_CHECKING:
    from torch import Tensor

READS = ("patches", "prototypes", "photo_of")


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of the retrieval."""

    neighbours: int = setting(20, "Number of similar regions that are averaged.", low=1,
                              metavar="K",
                              source="CorrCLIPv2, official code")
    support: float = setting(0.5, "Weight of the similar regions; the rest is the photo's own "
                                  "region.",
                             low=0, high=1, source="CorrCLIPv2, official code")
    tau: float = setting(0.025, "Temperature of the softmax.", low=1e-6,
                         source="CorrCLIPv2, official code: scale 40")


def refine(photo: PhotoMaps, settings: Settings) -> Tensor:
    """Make the probability of each class of each patch (K, h, w), float32."""
    from vpltool.core.neighbours import supported_cam, supports
    from vpltool.core.seeds import region_features

    assert photo.prototypes is not None and photo.class_index is not None
    patches = photo.tensors["patches"].float()
    regions, region_class = region_features(patches, photo.cams, photo.classes)
    own = photo.row_photos.index(photo.id) if photo.id in photo.row_photos else -1
    support = supports(regions, region_class, photo.prototypes, photo.class_index,
                       photo.of_rows["photo_of"], own, count=settings.neighbours)
    maps = supported_cam(patches, regions, support, share=settings.support, tau=settings.tau)
    return maps[:-1].view(photo.cams.shape)
