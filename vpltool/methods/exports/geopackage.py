"""Polygons of a predicted GeoTIFF, as a GeoPackage.

Each region of one class is a row of the table `regions`, with `class` and `label`, in the scene's
coordinate system; the background and nodata have none. QGIS, ArcGIS and GDAL open the file.

Example: vpltool export geopackage --what scenes/segmenter/map.tif
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vpltool import console, settings
from vpltool.errors import counted
from vpltool.formats import geopackage, rasters
from vpltool.lazy import rasterio
from vpltool.methods.inputs import PredictedScene
from vpltool.settings import setting

EXPORTS = "scene"
SUFFIX = ".gpkg"


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of a GeoPackage."""

    min_area: int = setting(16, "Minimum size of a region in pixels; smaller ones are left out. "
                                "0: keep all.", low=0, metavar="PIXELS")


def check(settings: Settings) -> None:
    """Check that rasterio is installed."""
    rasters.check_rasterio()


def export(scene: PredictedScene, path: Path, settings: Settings) -> list[Path]:
    """Write the polygons."""
    with rasters.reading(scene.path), rasterio.open(scene.path) as file:
        wkt = file.crs.to_wkt() if file.crs else ""
        epsg = file.crs.to_epsg() if file.crs else None
        ignored = int(file.nodata) if file.nodata is not None else -1
        count = geopackage.write_geopackage(
            path, _regions(scene, file, ignored, settings.min_area), wkt, epsg)
    console.note(f"{path}: {counted(count, 'region', 'regions')}")
    if not wkt:
        console.warn(f"{scene.path} has no coordinate reference system; {path.name} has none "
                     "either")
    return [path]


def _regions(scene: PredictedScene, file: object, ignored: int, least: int
             ) -> Iterator[tuple[geopackage.Polygon, str, int]]:
    names = ("background", *scene.classes)
    # A band is read by windows; an array would be the whole scene.
    band = rasterio.band(file, 1)
    transform = file.transform  # type: ignore[attr-defined]
    for shape, value in rasterio.features.shapes(band, transform=transform):
        label = int(value)
        if label in (0, ignored) or label >= len(names):
            continue
        polygon = [[(float(x), float(y)) for x, y in ring] for ring in shape["coordinates"]]
        if _pixels(polygon, transform.determinant) >= least:
            yield polygon, names[label], label


def _pixels(polygon: geopackage.Polygon, of_one: float) -> int:
    """Return how many pixels a polygon has, given the area of one.

    Its corners are moved to the origin first: products of large coordinates would cancel.
    """
    left, top = polygon[0][0]
    moved = [[(x - left, y - top) for x, y in ring] for ring in polygon]
    return round(geopackage.polygon_area(moved) / abs(of_one))
