"""Located tags of large photos (rectangles, centres, polygons, rasters), and the tags of tiles.

A CSV has the columns `x,y,width,height,labels` (pixels of a photo: tags of a tile), `x,y,labels`
(centres in pixels), `lon,lat,labels` (WGS 84) or `easting,northing,labels` (the scene's own
system); `id` names the photo, and may be missing if coordinates determine it. A GeoPackage has
polygons and a column of classes. A TIFF of class numbers is a `TagRaster`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vpltool.datasets.csv_files import CsvFile
from vpltool.datasets.tags import LabelColumn, check_splits
from vpltool.errors import VplError, near_name
from vpltool.formats.geopackage import polygon_area, read_geopackage, ring_area
from vpltool.formats.kinds import IGNORE, RESERVED
from vpltool.formats.rasters import SUFFIXES, Scene, open_raster, reading
from vpltool.lazy import np, rasterio

Points = Sequence[tuple[float, float]]

GEOPACKAGE = ".gpkg"

_PLACES = {("x", "y", "width", "height"): "pixels", ("x", "y"): "pixels",
           ("lon", "lat"): "EPSG:4326", ("easting", "northing"): ""}
"""Columns with the location of a row, and the system of their coordinates; see `Region`."""

_CLASS_COLUMNS = ("class", "label", "labels", "category", "type", "name")
"""Columns of a GeoPackage that may hold the class, in order of preference."""

SHARE, _INSIDE = 0.01, 0.5
"""Minimum share of a tile that a region covers, or share of a region inside the tile."""


@dataclass(frozen=True)
class Box:
    """A tile of a photo, in pixels."""

    top: int
    left: int
    height: int
    width: int


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


def tells_places(path: Path) -> bool:
    """Return whether a file has locations, not only tags of photos."""
    return path.suffix.lower() in (GEOPACKAGE, *SUFFIXES) or _table_of(path) is not None


def _table_of(path: Path) -> tuple[CsvFile, tuple[str, ...]] | None:
    """Open a CSV of locations; return it with the columns of the location."""
    for place in _PLACES:
        with contextlib.suppress(VplError):
            return CsvFile(path, (*place, "labels")), place
    return None


def read_regions(path: Path, column: str) -> list[Region]:
    """Read a CSV of locations, or a GeoPackage with its classes in `column`.

    By default, that is the first of class, label, labels, category, type or name.

    Raises:
        VplError: the file cannot be read, or a row has no valid location.
    """
    if path.suffix.lower() == GEOPACKAGE:
        return list(_of_geopackage(path, column))
    found = _table_of(path)
    assert found is not None, "`tells_places` was asked first"
    table, place = found
    column_of_labels, known_splits = LabelColumn(table), dict[str, str]()

    def take(line: int, entry: Mapping[str, str]) -> Region:
        try:
            numbers = [float(entry[name]) for name in place]
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

    return list(table.read(take, "separate labels by ;"))


def _of_geopackage(path: Path, column: str) -> Iterator[Region]:
    for layer in read_geopackage(path):
        names = list(layer.features[0].values)
        chosen = column or next((name for name in _CLASS_COLUMNS if name in names), "")
        if chosen not in names:
            raise VplError(f"{path}: the layer {layer.name} has no column {chosen or 'of classes'}"
                           f"; it has {', '.join(names)}", near_name(chosen, names) if chosen
                           else "`column='NAME'` says which holds the classes")
        for number, feature in enumerate(layer.features, 1):
            value = feature.values[chosen]
            if value in (None, ""):
                continue
            for polygon in feature.polygons:
                yield Region(f"{path}: {layer.name} {number}", (str(value).strip(),),
                             [list(ring) for ring in polygon], system=layer.system)


def placed(regions: Sequence[Region], scene: Scene | None, path: Path, key: str) -> list[Region]:
    """Convert the regions of the photo with the id `key` to its pixels; a GeoTIFF has a scene.

    Raises:
        VplError: regions have coordinates, but the photo has no georeference.
    """
    found = []
    for region in regions:
        if region.photo and region.photo not in (key, path.name):
            continue
        if region.system != "pixels":
            if scene is None or (region.system and not scene.placed):
                raise VplError(f"{path} does not say where it lies, and {region.where} is in "
                               f"coordinates of {region.system or 'a scene'}",
                               "give places in pixels: x,y,labels, or a GeoTIFF with its "
                               "coordinate reference system")
            region = replace(region, system="pixels", rings=[
                _to_pixels(ring, region.system, scene) for ring in region.rings])
        found.append(region)
    return found


def _to_pixels(ring: Points, system: str, scene: Scene) -> Points:
    xs, ys = zip(*ring, strict=True)
    if system and rasterio.crs.CRS.from_user_input(system) != scene.file.crs:
        xs, ys = rasterio.warp.transform(
            rasterio.crs.CRS.from_user_input(system), scene.file.crs, xs, ys)
    inverse: Any = ~scene.file.transform
    apply = getattr(inverse, "__matmul__", inverse.__mul__)
    return [apply(point) for point in zip(xs, ys, strict=True)]


@dataclass(frozen=True)
class Tagged:
    """Tags of a tile, its split, if it has its own, and the origins of the tags."""

    labels: tuple[str, ...]
    split: str = ""
    origins: tuple[str, ...] = ()


def tags_of_tiles(tiles: Sequence[Box], regions: Sequence[Region], *, unknown: bool = False
                  ) -> list[Tagged | None]:
    """Return the tags of the regions that each tile shows.

    A tile shows a region that covers 1 % of the tile or lies in it by half, and a centre in it. A
    tile without regions has no tags, or `unknown` ones (None).
    """
    bounds = [_bounds(region.rings[0]) for region in regions]
    found: list[Tagged | None] = []
    for tile in tiles:
        right, bottom = tile.left + tile.width, tile.top + tile.height
        shown = [region for region, (low_x, low_y, high_x, high_y)
                 in zip(regions, bounds, strict=True)
                 if low_x < right and high_x >= tile.left and low_y < bottom
                 and high_y >= tile.top and _shows(tile, region)]
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
    return [region for region in regions if _clipped_area(region.rings, whole) == 0
            and not (len(region.rings[0]) == 1 and _holds(whole, region.rings[0][0]))]


def _shows(tile: Box, region: Region) -> bool:
    if len(region.rings[0]) == 1:
        return _holds(tile, region.rings[0][0])
    inside = _clipped_area(region.rings, tile)
    return inside > 0 and (inside >= SHARE * tile.height * tile.width
                           or inside >= _INSIDE * polygon_area(region.rings))


def _holds(tile: Box, point: tuple[float, float]) -> bool:
    return (tile.left <= point[0] < tile.left + tile.width
            and tile.top <= point[1] < tile.top + tile.height)


def _bounds(ring: Points) -> tuple[float, float, float, float]:
    xs, ys = zip(*ring, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _clipped_area(rings: Sequence[Points], tile: Box) -> float:
    parts = [abs(ring_area(cut)) if len(cut := _clipped(ring, tile)) > 2 else 0.0 for ring in rings]
    return parts[0] - sum(parts[1:])


def _clipped(ring: Points, tile: Box) -> Points:
    """Clip a ring at the four sides of a tile (Sutherland and Hodgman)."""
    for axis, limit, sign in ((0, tile.left, 1), (0, tile.left + tile.width, -1),
                              (1, tile.top, 1), (1, tile.top + tile.height, -1)):
        cut = []
        for one, other in zip(ring, [*ring[1:], *ring[:1]], strict=True):
            first, second = (sign * (point[axis] - limit) >= 0 for point in (one, other))
            if first:
                cut.append(one)
            if first != second:
                share = (limit - one[axis]) / (other[axis] - one[axis])
                cut.append((one[0] + share * (other[0] - one[0]),
                            one[1] + share * (other[1] - one[1])))
        ring = cut
    return ring


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
        """Return the classes that cover 1 % of each tile of a photo of `size` (height, width).

        Raises:
            VplError: the location of the photo in the raster is unknown, or a number has no name.
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
