"""Regions of the modality gap: pixels that CAMs mark, photo after photo."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vpltool import console
from vpltool.core import aligned_space
from vpltool.core.gap import photo_regions
from vpltool.core.grids import resample_maps
from vpltool.core.seeds import seed_labels
from vpltool.engine.features import SEEDING, find_cams
from vpltool.engine.photos import photos_with
from vpltool.engine.prototypes import read_patches
from vpltool.formats import InputFolder, Workspace
from vpltool.lazy import F, Tensor


@dataclass(frozen=True)
class Regions:
    """Features and CAMs of the same photos; make one with `open_regions`."""

    features: InputFolder
    maps: InputFolder
    ids: list[str]
    phi: float
    space: aligned_space.AlignedSpace | None = None

    def read(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each photo's region features (K, dim) and their classes (K,).

        A class's region in a photo is where its CAM is the strongest and reaches Φ; classes
        without such a patch have none. The mean of its patches is the feature.
        """

        with console.progress("read regions", len(self.ids)) as advance:
            for key in self.ids:
                patches = read_patches(self.features, key, self.space).float()
                cam = read_maps(self.maps, self.features, key, len(patches))
                labels = seed_labels(cam["cam"], cam["classes"], self.phi, phi_background=0)
                yield photo_regions(F.normalize(patches, dim=-1), labels.new_zeros(len(labels)),
                                    labels)
                advance()


def read_maps(maps: InputFolder, features: InputFolder, key: str, count: int
              ) -> dict[str, Tensor]:
    """Read a photo's maps (K, h, w) and their classes, on the grid of its features.

    Args:
        maps: CAMs; those of groups are on another grid.
        features: of the same photos.
        key: id of the photo.
        count: patches that the features have of it.
    """
    found = maps.read_tensors(key)
    if found["cam"].shape[1] * found["cam"].shape[2] != count:
        height, width = features.read_tensors(key, "grid")["grid"].tolist()
        found["cam"] = resample_maps(found["cam"], (height, width))
    return found


def open_regions(workspace: Workspace, features: InputFolder, cams: str, split: str, phi: float,
                 limit: int, space: aligned_space.AlignedSpace | None = None) -> Regions:
    """Find the CAMs that mark the regions, and the photos that have both.

    Args:
        workspace: gives the photos.
        features: features of the split, see `open_features`.
        cams: NAME or path; empty: the first of `SEEDING` that is there.
        split: of the photos.
        phi: Φ.
        limit: only the first photos; 0: all.
        space: what maps the patches into the space of prototypes; None: they are in it.

    Raises:
        VplError: there are no CAMs, or they are of other classes.
    """
    maps = find_cams(workspace, cams, split, SEEDING)
    return Regions(features, maps,
                   list(photos_with(workspace, split, limit, features, maps).ids), phi,
                   space)
