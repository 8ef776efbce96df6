"""Cosine to the context prototypes that fit the photo, shifted towards it (CPAL, CVPR 2024).

The photo's instance prototype is the mean of the patches that its CAM marks. It chooses the context
prototypes of its class that are most similar (soft positive neighbours), and they are moved towards
it (feature distribution alignment). The map is the weighted mean cosine to them, min-max
normalised: CPAL's prototype-aware CAM. CPAL trains a network with it as its own supervision;
nothing is trained here. `seed-prototypes --method context` makes the prototypes.

No code is public, and the text leaves open what a mask is, how many neighbours there are, their
temperature, and how far the prototypes are moved: settings, all chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

from vpltool import settings
from vpltool.core.grids import min_max
from vpltool.lazy import F, Tensor, no_grad, torch
from vpltool.methods.inputs import PhotoMaps
from vpltool.settings import setting

READS = ("patches", "prototypes")


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of the prototype-aware maps."""

    instance: float = setting(0.5, "Threshold of the instance, as a share of a CAM's maximum.",
                              low=0, high=1, source="vpltool")
    neighbours: int = setting(4, "Number of context prototypes per instance; 0: all.", low=0,
                              metavar="K", source="vpltool")
    tau: float = setting(0.05, "Temperature of their weights.", low=1e-6, source="vpltool")
    shift: float = setting(0.5, "How far the prototypes move to the instance; 1: their mean lies "
                                "on it.", low=0, high=1, source="vpltool")


@no_grad
def refine(photo: PhotoMaps, settings: Settings) -> Tensor:
    """Make the prototype-aware map of each class (K, h, w), in [0, 1], float32."""
    assert photo.prototypes is not None and photo.class_index is not None
    cams, patches = photo.cams.float(), photo.tensors["patches"].float()
    maps = cams.flatten(1)
    marked = (maps >= settings.instance * maps.amax(dim=-1, keepdim=True)).float()
    instances = F.normalize(marked @ patches, dim=-1)
    found = torch.zeros_like(cams)
    for number, index in enumerate(photo.classes.tolist()):
        rows, instance = photo.prototypes[photo.class_index == index], instances[number]
        near, which = (rows @ instance).topk(min(settings.neighbours or len(rows), len(rows)))
        rows, weights = rows[which], (near / settings.tau).softmax(dim=0)
        # Along the way from their mean to the instance.
        moved = F.normalize(rows + settings.shift * (instance - weights @ rows), dim=-1)
        found[number] = (patches @ moved.T @ weights).view(cams.shape[1:])
    return min_max(found) if len(found) else found
