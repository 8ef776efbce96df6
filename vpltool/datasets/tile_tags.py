"""Located tags of large photos (rectangles, centres, polygons, rasters), and the tags of tiles.

A CSV has the columns `x,y,width,height,labels` (pixels of a photo: tags of a tile), `x,y,labels`
(centres in pixels), `lon,lat,labels` (WGS 84) or `easting,northing,labels` (the scene's own
system); `id` names the photo, and may be missing if coordinates determine it. A GeoPackage or
GeoJSON has polygons and a column of classes. A TIFF of class numbers is a `TagRaster`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vpltool import console
from vpltool.datasets.csv_files import CsvFile
from vpltool.datasets.ground import Bounds, Ground, Points, bounds_of, clipped
from vpltool.datasets.tags import LabelColumn, check_splits
from vpltool.errors import VplError, near_name
from vpltool.formats.geojson import read_geojson
from vpltool.formats.geopackage import polygon_area, read_geopackage
from vpltool.formats.kinds import IGNORE, RESERVED
from vpltool.formats.rasters import SUFFIXES, Scene, open_raster, reading
from vpltool.lazy import np, npt, rasterio
from vpltool.names import slashed

_GEOJSON = ".geojson"
_POLYGONS = (".gpkg", _GEOJSON)

_PLACES = {("x", "y", "width", "height"): "pixels", ("x", "y"): "pixels",
           ("lon", "lat"): "EPSG:4326", ("longitude", "latitude"): "EPSG:4326",
           ("easting", "northing"): ""}
"""Columns with the location of a row, and the system of their coordinates; see `Region`."""

_CLASS_COLUMNS = ("class", "label", "labels", "category", "type", "name")
"""Columns of polygons that may hold the class, in order of preference."""

SHARE, _INSIDE = 0.01, 0.5
"""Minimum share of a tile that a region covers, or share of a region inside the tile."""

_NOWHERE = [[(math.inf, math.inf)]]
"""The place, in pixels, of what lies far from a scene."""


@dataclass(frozen=True)
class Box:
    """A tile of a photo, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def bounds(self) -> Bounds:
        """Left, top, right and bottom."""
        return self.left, self.top, self.left + self.width, self.top + self.height


@dataclass(frozen=True)
class Region:
    """A located tag."""

    where: str  # file and line or row, for messages
    labels: tuple[str, ...]
    rings: Sequence[Points]  # (x, y) of the outline and its holes; a single point is a centre
    photo: str = ""  # id of the photo; empty: any photo in which it lies
    split: str = ""  # its split; empty: that of the photo
    tells_of_tile: bool = False  # whether tiles without such regions have unknown tags, not none
    row: bool = False  # whether it is a row of a CSV; polygons often cover more than the photos
    # coordinate system: `pixels` of the photo, EPSG:N, well-known text; empty: the scene's own
    system: str = "pixels"
    whole: float = 1.0  # area of the region in terms of its rings', which may be a part of it


def has_locations(path: Path) -> bool:
    """Return whether a file has locations, not only tags of photos."""
    return path.suffix.lower() in (*_POLYGONS, *SUFFIXES) or _table_of(path) is not None


def _table_of(path: Path) -> tuple[CsvFile, tuple[str, ...]] | None:
    """Open a CSV of locations; return it with the columns of the location."""
    for place in _PLACES:
        with contextlib.suppress(VplError):
            return CsvFile(path, (*place, "labels")), place
    return None


def read_regions(path: Path, column: str, layer: str) -> list[Region]:
    """Read a CSV of locations, or polygons with their classes in `column`.

    By default, that is the first of class, label, labels, category, type or name. `layer` is that
    of a GeoPackage; empty: all.

    Raises:
        VplError: the file cannot be read, or a row has no valid location.
    """
    if path.suffix.lower() in _POLYGONS:
        return list(_of_polygons(path, column, layer))
    found = _table_of(path)
    assert found is not None, "`has_locations` was asked first"
    table, place = found
    column_of_labels, known_splits = LabelColumn(table), dict[str, str]()

    def take(line: int, entry: Mapping[str, str]) -> Region:
        try:
            numbers = [float(entry[name]) for name in place]
            if not all(map(math.isfinite, numbers)):
                raise ValueError
        except ValueError:
            raise VplError(
                f"{path}:{line}: {','.join(entry[name] for name in place)} are not the numbers "
                f"{','.join(place)}", "pixels from the left and the top, or coordinates") from None
        split = entry.get("split", "")
        check_splits(f"{path}:{line}", [split] if split else [], known_splits)
        left, top, *size = numbers
        ring = [(left, top)]
        if size:
            right, bottom = left + size[0], top + size[1]
            ring += [(right, top), (right, bottom), (left, bottom)]
        return Region(f"{path}:{line}", column_of_labels.labels_of(entry["labels"]), [ring],
                      entry["id"], split, bool(size), row=True, system=_PLACES[place])

    return list(table.read(take, column_of_labels.too_many))


def _of_polygons(path: Path, column: str, layer: str) -> Iterator[Region]:
    layers = ([read_geojson(path)] if path.suffix.lower() == _GEOJSON
              else read_geopackage(path, layer))
    several = [found.name for found in layers] if layers[1:] else []
    if several:
        console.note(f"{path}: the tags are those of the layers {', '.join(several)}; "
                     "`layer='NAME'` reads one of them")
    for found in layers:
        # Features of GeoJSON need not have the same properties.
        names = list(dict.fromkeys(name for feature in found.features for name in feature.values))
        chosen = column or next((name for name in _CLASS_COLUMNS if name in names), "")
        if chosen not in names:
            raise VplError(f"{path}: the layer {found.name} has no column "
                           f"{chosen or 'of classes'}; it has {', '.join(names)}",
                           near_name(chosen, names) if chosen
                           else f"`layer='NAME'` reads one of {', '.join(several)}" if several
                           else "`column='NAME'` says which holds the classes")
        if not found.system:
            console.warn(f"{path}: the layer {found.name} does not say in which system its "
                         "coordinates are; they are taken as the photos' own. If they are not: "
                         f"ogr2ogr -a_srs EPSG:N NEW.gpkg {path}")
        for number, feature in enumerate(found.features, 1):
            value = feature.values.get(chosen)
            if value in (None, ""):
                continue
            for polygon in feature.polygons:
                yield Region(f"{path}: {found.name} {number}", (str(value).strip(),),
                             [list(ring) for ring in polygon], system=found.system)


def placed(regions: Sequence[Region], scene: Scene | None, path: Path, key: str) -> list[Region]:
    """Convert the regions of the photo with the id `key` to its pixels; a GeoTIFF has a scene.

    Regions far from a scene are left out, unless they name the photo.

    Raises:
        VplError: regions have coordinates, but the photo has no georeference; or they cannot be
            converted.
    """
    found, grounds = list[Region](), dict[str, Ground]()
    for region in regions:
        if region.photo and slashed(region.photo, (key, path.name)) not in (key, path.name):
            continue
        if region.system == "pixels":
            found.append(region)
            continue
        if scene is None or (region.system and not scene.placed):
            raise VplError(f"{path} does not say where it lies, and {region.where} is in "
                           f"coordinates of {region.system or 'a scene'}",
                           "give places in pixels: x,y,labels, or a GeoTIFF with its "
                           "coordinate reference system")
        if region.system not in grounds:
            grounds[region.system] = Ground(scene, region.system, region.where)
        pieces = [replace(region, system="pixels", rings=rings, whole=whole)
                  for rings, whole in grounds[region.system].pieces(region.rings)]
        found += pieces or ([replace(region, system="pixels", rings=_NOWHERE)] if region.photo
                            else [])
    return found


@dataclass(frozen=True)
class Tagged:
    """Tags of a tile, its split, if it has its own, and the origins of the tags."""

    labels: tuple[str, ...]
    split: str = ""
    origins: tuple[str, ...] = ()


def tags_of_tiles(tiles: Sequence[Box], regions: Sequence[Region], scene: Scene | None = None,
                  *, unknown: bool = False) -> list[Tagged | None]:
    """Return the tags of the regions that each tile shows; pixels of nodata show nothing.

    A tile shows a region that covers 1 % of the tile or lies in it by half, and a centre in it. A
    tile without regions has no tags, or `unknown` ones (None).
    """
    bounds = [bounds_of(region.rings[0]) for region in regions]
    found: list[Tagged | None] = []
    for tile in tiles:
        left, top, right, bottom = tile.bounds
        near = [region for region, (low_x, low_y, high_x, high_y)
                in zip(regions, bounds, strict=True)
                if low_x < right and high_x >= left and low_y < bottom and high_y >= top]
        valid = _valid_pixels(scene, tile) if near else None
        shown = [region for region in near if _shows(tile, region, valid)]
        if not shown and unknown:
            found.append(None)
            continue
        labels = dict.fromkeys(label for region in shown for label in region.labels)
        splits = [region.split for region in shown if region.split]
        found.append(Tagged(tuple(labels), splits[0] if splits else "",
                            tuple(region.where for region in shown)))
    return found


def outside(regions: Sequence[Region], size: tuple[int, int]) -> list[Region]:
    """Return the regions that lie outside of a photo of (height, width)."""
    whole = Box(0, 0, *size)
    return [region for region in regions if _area(_cut(region.rings, whole)) == 0
            and not (len(region.rings[0]) == 1 and _holds(whole, region.rings[0][0]))]


def _valid_pixels(scene: Scene | None, tile: Box) -> npt.NDArray[np.bool_] | None:
    """Return the pixels (h, w) of a tile that are not nodata; None if all of them are valid."""
    if scene is None or all(rasterio.enums.MaskFlags.all_valid in flags
                            for flags in scene.file.mask_flag_enums):
        return None
    valid = scene.valid(tile.top, tile.left, tile.height, tile.width)
    return None if valid.all() else valid


def _shows(tile: Box, region: Region, valid: npt.NDArray[np.bool_] | None) -> bool:
    if len(region.rings[0]) == 1:
        (x, y), = region.rings[0]
        return _holds(tile, (x, y)) and (
            valid is None or bool(valid[int(y) - tile.top, int(x) - tile.left]))
    cut = _cut(region.rings, tile)
    inside, least = _area(cut), SHARE * tile.height * tile.width
    if valid is not None and inside > 0:
        inside *= _valid_share(cut, tile, valid)
        least = SHARE * np.count_nonzero(valid)
    return inside > 0 and (
        inside >= least or inside >= _INSIDE * region.whole * polygon_area(region.rings))


def _valid_share(rings: Sequence[Points], tile: Box, valid: npt.NDArray[np.bool_]) -> float:
    """Return the share of valid pixels under a polygon in a tile."""
    closed = [[(x - tile.left, y - tile.top) for x, y in (*ring, ring[0])] for ring in rings]
    shape = {"type": "Polygon", "coordinates": closed}
    # A polygon may lie between the centres of pixels.
    for touched in (False, True):
        under = rasterio.features.rasterize([shape], valid.shape, all_touched=touched) > 0
        if under.any():
            return float(valid[under].mean())
    return 0.0


def _holds(tile: Box, point: tuple[float, float]) -> bool:
    return (tile.left <= point[0] < tile.left + tile.width
            and tile.top <= point[1] < tile.top + tile.height)


def _cut(rings: Sequence[Points], tile: Box) -> list[Points]:
    """Clip a polygon at a tile; empty if nothing of its outline is left."""
    cut = [clipped(ring, tile.bounds) for ring in rings]
    return [ring for ring in cut if len(ring) > 2] if len(cut[0]) > 2 else []


def _area(rings: Sequence[Points]) -> float:
    return polygon_area(rings) if rings else 0.0


class TagRaster:
    """A raster with one band of class numbers from 1; 0, 255 and its nodata value are no class.

    Raises:
        VplError: it cannot be read, has several bands or fractions, or the classes have no names.
    """

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        self.path = path
        self.names = [name for name in classes if name != RESERVED]
        if not self.names:
            raise VplError(f"{path} holds numbers of classes, and nothing says which they are",
                           "`classes='FILE'` has a class per line; number 1 is the first")
        self.file = open_raster(path)
        if self.file.count != 1 or np.dtype(self.file.dtypes[0]).kind not in "ui":
            raise VplError(f"{path} has {self.file.count} of {self.file.dtypes[0]}; tags are one "
                           "band of whole numbers", "give a raster of class numbers")

    def tags_of(self, tiles: Sequence[Box], scene: Scene | None, photo: Path,
                size: tuple[int, int]) -> list[Tagged]:
        """Return the classes that cover 1 % of each tile of a photo, without its nodata.

        The photo's `size` is (height, width).

        Raises:
            VplError: the location of the photo in the raster is unknown, or a number has no name.
        """
        found = []
        with reading(self.path):
            band = self._beneath(scene, photo, size)
            for tile in tiles:
                numbers = band.read(1, window=((tile.top, tile.top + tile.height),
                                               (tile.left, tile.left + tile.width)))
                valid = _valid_pixels(scene, tile)
                numbers = numbers.ravel() if valid is None else numbers[valid]
                values, counts = np.unique(numbers, return_counts=True)
                found.append(Tagged(tuple(
                    self._name(value) for value, count in zip(
                        values.tolist(), counts.tolist(), strict=True)
                    if value not in (0, IGNORE, self.file.nodata)
                    and count >= SHARE * numbers.size)))
        return found

    def _name(self, value: int) -> str:
        if not 0 < value <= len(self.names):
            raise VplError(f"{self.path}: {value} is none of {len(self.names)} classes",
                           f"values are lines of the class file, 1 to {len(self.names)}; 0 is none")
        return self.names[value - 1]

    def _beneath(self, scene: Scene | None, photo: Path, size: tuple[int, int]) -> Any:
        """Return the raster on the pixel grid of a photo."""
        file = self.file
        placed = scene is not None and scene.placed and file.crs is not None
        if scene is not None and placed and (
                file.crs, file.transform, file.shape) != (
                scene.file.crs, scene.file.transform, size):
            # It resamples by the nearest value.
            return rasterio.vrt.WarpedVRT(file, crs=scene.file.crs, transform=scene.file.transform,
                                         height=size[0], width=size[1])
        if file.shape != size:
            raise VplError(f"{photo} and {self.path} have different sizes, and do not both say "
                           "where they lie", "give a raster of the same size, or GeoTIFFs with "
                           "their coordinate reference systems")
        return file
