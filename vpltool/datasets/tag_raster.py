"""Tags of tiles from a raster of class numbers, such as a map of land cover."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vpltool.datasets.tile_tags import SHARE, Box, Tagged
from vpltool.errors import VplError
from vpltool.formats.kinds import IGNORE, RESERVED
from vpltool.formats.rasters import Scene, check_rasterio, reading
from vpltool.lazy import np, rasterio


class TagRaster:
    """A raster whose values are lines of the class file, counted from 1.

    0, 255 and its nodata value are no class.

    Args:
        path: the file, of one band.
        classes: names of the classes.

    Raises:
        VplError: it cannot be read, has several bands or fractions, or the classes have no names.
    """

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        check_rasterio()
        self.path = path
        self.names = [name for name in classes if name != RESERVED]
        if not self.names:
            raise VplError(f"{path} holds numbers of classes, and nothing says which they are",
                           "`classes='FILE'` has a class per line; number 1 is the first")
        with reading(path), warnings.catch_warnings():
            # A raster without coordinates is laid on a photo of its size.
            warnings.simplefilter("ignore")
            self.file = rasterio.open(path)
        if self.file.count != 1 or np.dtype(self.file.dtypes[0]).kind not in "ui":
            raise VplError(f"{path} has {self.file.count} of {self.file.dtypes[0]}; tags are one "
                           "band of whole numbers", "give a raster of class numbers")

    def tags_of(self, tiles: Sequence[Box], scene: Scene | None, photo: Path,
                size: tuple[int, int]) -> list[Tagged]:
        """Give each tile the classes that cover a hundredth of it.

        Args:
            tiles: of one photo.
            scene: the photo, if it is a GeoTIFF.
            photo: its path.
            size: its (height, width).

        Raises:
            VplError: it is not known where the photo lies in the raster; or a number has no name.
        """
        found = []
        with reading(self.path):
            band = self._beneath(scene, photo, size)
            for tile in tiles:
                values, counts = np.unique(band.read(
                    1, window=((tile.top, tile.top + tile.height),
                               (tile.left, tile.left + tile.width))), return_counts=True)
                found.append(Tagged(tuple(
                    self._name(value) for value, count in zip(
                        values.tolist(), counts.tolist(), strict=True)
                    if value not in (0, IGNORE, self.file.nodata)
                    and count >= SHARE * tile.height * tile.width)))
        return found

    def _name(self, value: int) -> str:
        if not 0 < value <= len(self.names):
            raise VplError(f"{self.path}: {value} is none of {len(self.names)} classes",
                           f"values are lines of the class file, 1 to {len(self.names)}; 0 is none")
        return self.names[value - 1]

    def _beneath(self, scene: Scene | None, photo: Path, size: tuple[int, int]) -> Any:
        """The raster on the pixels of a photo, read by windows."""
        file = self.file
        placed = scene is not None and scene.placed and file.crs is not None
        if scene is not None and placed and (
                file.crs, file.transform, file.shape) != (
                scene.file.crs, scene.file.transform, size):
            # The nearest value: numbers of classes have no mean.
            return rasterio.vrt.WarpedVRT(file, crs=scene.file.crs, transform=scene.file.transform,
                                         height=size[0], width=size[1])
        if file.shape != size:
            raise VplError(f"{photo} and {self.path} have different sizes, and do not both say "
                           "where they lie", "give a raster of the same size, or GeoTIFFs with "
                           "their coordinate reference systems")
        return file
