"""GeoJSON: polygons with properties (RFC 7946)."""

from __future__ import annotations

from pathlib import Path

from vpltool.errors import VplError
from vpltool.formats.geopackage import Feature, Layer, Polygon, finite
from vpltool.json_text import JsonObject, parse_json
from vpltool.names import short_path

_WGS84 = "EPSG:4326"
"""The coordinate system, unless a member `crs` of the earlier standard names another."""


def read_geojson(path: Path) -> Layer:
    """Read the polygons of a FeatureCollection; points and lines are skipped.

    Raises:
        VplError: the file is missing or damaged, or holds no polygon.
    """
    try:
        content = parse_json(path.read_bytes())
        named = (content.get("crs") or {}).get("properties") or {}
        features = [Feature(polygons, dict(entry.get("properties") or {}))
                    for entry in content["features"]
                    if (polygons := _polygons(entry.get("geometry") or {}))]
        layer = Layer(path.stem, str(named.get("name", _WGS84)), features)
    except FileNotFoundError:
        raise VplError(f"{short_path(path)} does not exist", "give a FILE.geojson") from None
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise VplError(f"{short_path(path)} cannot be read as GeoJSON ({error!r})",
                       "write it again: ogr2ogr NEW.gpkg OLD.geojson") from error
    if not features:
        raise VplError(f"{short_path(path)} holds no polygon", "polygons are needed")
    return layer


def _polygons(shape: JsonObject) -> list[Polygon]:
    kind, found = shape.get("type"), shape.get("coordinates")
    if kind not in ("Polygon", "MultiPolygon") or not found:
        return []
    polygons = [[finite((float(x), float(y)) for x, y, *_ in ring) for ring in polygon if ring]
                for polygon in ([found] if kind == "Polygon" else found)]
    return [polygon for polygon in polygons if polygon]
