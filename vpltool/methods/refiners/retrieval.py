"""Softmax of each patch over the photo's regions and similar ones elsewhere (after CorrCLIPv2).

A region is the CAM-weighted mean of a photo's patches, one for each tag and one for the rest. For
each, the 20 most similar regions of the same class in other photos are averaged; the background's
come from photos that share a tag. A patch's score is half its cosine to the region, half that to
the support. `seed-prototypes --method bank --pixels regions` makes the bank.

CorrCLIPv2 has no tags: it retrieves for the regions of a mask network, and scores regions by the
text. Here the tags say what a region is. So its own embedding replaces the text, and patches are
scored instead of regions.
"""

from __future__ import annotations

from dataclasses import dataclass

from vpltool import settings
from vpltool.core import classes, seeds
from vpltool.lazy import F, Tensor, torch
from vpltool.methods.inputs import PhotoMaps
from vpltool.settings import setting

READS = ("patches", "prototypes", "photo_of")


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of the retrieval."""

    neighbours: int = setting(20, "Number of similar regions that are averaged.", low=1,
                              metavar="K", source="CorrCLIPv2, official code")
    support: float = setting(0.5, "Weight of the similar regions; the rest is the photo's own "
                                  "region.", low=0, high=1, source="CorrCLIPv2, official code")
    tau: float = setting(0.025, "Temperature of the softmax.", low=1e-6,
                         source="CorrCLIPv2, official code: scale 40")


def refine(photo: PhotoMaps, settings: Settings) -> Tensor:
    """Return the probability of each class of each patch (K, h, w), float32.

    The remainder to 1 is the rest of the photo. The region of an empty map has probability 0.
    """
    assert photo.prototypes is not None and photo.class_index is not None
    patches = photo.tensors["patches"].float()
    regions, region_class = seeds.region_features(patches, photo.cams, photo.classes)
    own = photo.row_photos.index(photo.id) if photo.id in photo.row_photos else -1
    support = supports(regions, region_class, photo.prototypes, photo.class_index,
                       photo.of_rows["photo_of"], own, count=settings.neighbours)
    share = settings.support
    logits = (1 - share) * (regions @ patches.T) + share * (support @ patches.T)
    logits[~regions.any(dim=-1)] = float("-inf")
    return (logits / settings.tau).softmax(dim=0)[:-1].view(photo.cams.shape)


def supports(regions: Tensor, region_class: Tensor, bank: Tensor, class_index: Tensor,
             photo_of: Tensor, own: int, *, count: int) -> Tensor:
    """Return the L2-normed mean (R, dim), float32, of the `count` rows most similar to each region.

    Regions (R, dim) and rows (rows, dim) are L2-normed. Rows are of the region's class and of other
    photos than number `own` (`photo_of` is below 0 for none), the background's of photos that share
    a tag with this one. A region without such rows is its own support.
    """
    tags = region_class[region_class != classes.BACKGROUND]
    allowed_rows = seeds.rows_of_others(class_index, photo_of, tags, own)
    alike = photo_of[allowed_rows & (class_index != classes.BACKGROUND)]
    allowed_rows &= (class_index != classes.BACKGROUND) | torch.isin(photo_of, alike)
    found = regions.float().clone()
    for number, index in enumerate(region_class.tolist()):
        allowed = (allowed_rows & (class_index == index)).nonzero()[:, 0]
        if len(allowed):
            _, rows = seeds.nearest_rows(regions[number][None], bank, allowed, count)
            found[number] = F.normalize(bank[rows[0]].float().mean(dim=0), dim=0)
    return found
