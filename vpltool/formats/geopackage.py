"""GeoPackages: polygons with attributes in SQLite (OGC 12-128r15).

A geometry is a GeoPackage header followed by well-known binary (OGC 06-103r4).
"""

from __future__ import annotations

import contextlib
import math
import re
import sqlite3
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from vpltool.errors import VplError, near_name
from vpltool.formats.atomic import atomic_path
from vpltool.names import short_path

Ring = Sequence[tuple[float, float]]
Polygon = Sequence[Ring]
"""Closed rings of (x, y): the exterior, then holes."""

_APPLICATION, _VERSION = 0x47504B47, 10300
_POLYGON, _MULTI = 3, 6

_UNDEFINED = re.compile(r'(\w+\[")?undefined', re.IGNORECASE)
"""Definition of an unknown coordinate system, by the standard or by GDAL."""

_TABLES = """
CREATE TABLE gpkg_spatial_ref_sys (srs_name TEXT NOT NULL, srs_id INTEGER NOT NULL PRIMARY KEY,
 organization TEXT NOT NULL, organization_coordsys_id INTEGER NOT NULL, definition TEXT NOT NULL,
 description TEXT);
CREATE TABLE gpkg_contents (table_name TEXT NOT NULL PRIMARY KEY, data_type TEXT NOT NULL,
 identifier TEXT UNIQUE, description TEXT DEFAULT '', last_change DATETIME NOT NULL DEFAULT
 (strftime('%Y-%m-%dT%H:%M:%fZ','now')), min_x DOUBLE, min_y DOUBLE, max_x DOUBLE, max_y DOUBLE,
 srs_id INTEGER REFERENCES gpkg_spatial_ref_sys(srs_id));
CREATE TABLE gpkg_geometry_columns (table_name TEXT NOT NULL, column_name TEXT NOT NULL,
 geometry_type_name TEXT NOT NULL, srs_id INTEGER NOT NULL, z TINYINT NOT NULL, m TINYINT NOT NULL,
 CONSTRAINT pk_geom_cols PRIMARY KEY (table_name, column_name));
CREATE TABLE regions (fid INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, geom BLOB,
 class TEXT NOT NULL, label INTEGER NOT NULL);
"""


@dataclass(frozen=True)
class Feature:
    """A table row: its polygons and other columns."""

    polygons: Sequence[Polygon]
    values: Mapping[str, object]


@dataclass(frozen=True)
class Layer:
    """A table of polygons; `system` is its CRS as well-known text or EPSG:N, empty if unknown."""

    name: str
    system: str
    features: Sequence[Feature]


def finite(ring: Iterable[tuple[float, float]]) -> Ring:
    """Return the points of a ring; a ValueError if a coordinate is infinite or no number."""
    points = list(ring)
    if not all(map(math.isfinite, chain(*points))):
        raise ValueError("a coordinate is not a number")
    return points


def ring_area(ring: Ring) -> float:
    """Return the signed area of a ring, closed or not, by the shoelace formula."""
    return sum(one[0] * other[1] - other[0] * one[1]
               for one, other in zip(ring, [*ring[1:], ring[0]], strict=True)) / 2


def polygon_area(polygon: Polygon) -> float:
    """Return the area of a polygon without its holes."""
    areas = [abs(ring_area(ring)) for ring in polygon]
    return areas[0] - sum(areas[1:])


def write_geopackage(path: Path, regions: Iterable[tuple[Polygon, str, int]], wkt: str,
                     epsg: int | None) -> int:
    """Write polygons with class name and label as the layer `regions`; return their number.

    The coordinate system is given as well-known text, maybe empty, and its EPSG number, if any.
    """
    # -1 stands for an undefined Cartesian system.
    number = (epsg or 100_000) if wkt else -1
    with atomic_path(path) as temporary, contextlib.closing(sqlite3.connect(temporary)) as base:
        base.executescript(f"PRAGMA application_id = {_APPLICATION};"
                           f"PRAGMA user_version = {_VERSION};" + _TABLES)
        known = [("Undefined Cartesian", -1, "NONE", -1, "undefined"),
                 ("Undefined geographic", 0, "NONE", 0, "undefined"),
                 ("WGS 84 geodetic", 4326, "EPSG", 4326, 'GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID'
                  '["WGS 84",6378137,298.257223563]],PRIMEM["Greenwich",0],UNIT["degree",'
                  '0.0174532925199433],AUTHORITY["EPSG","4326"]]')]
        if wkt and number != 4326:
            known.append((f"EPSG:{epsg}" if epsg else "of the scene", number,
                          "EPSG" if epsg else "vpltool", number, wkt))
        base.executemany("INSERT INTO gpkg_spatial_ref_sys (srs_name, srs_id, organization, "
                         "organization_coordsys_id, definition) VALUES (?, ?, ?, ?, ?)", known)
        count, box = 0, [float("inf"), float("inf"), -float("inf"), -float("inf")]
        for polygon, name, label in regions:
            base.execute("INSERT INTO regions (geom, class, label) VALUES (?, ?, ?)",
                         (_blob(polygon, number), name, label))
            xs, ys = zip(*polygon[0], strict=True)
            box = [min(box[0], *xs), min(box[1], *ys), max(box[2], *xs), max(box[3], *ys)]
            count += 1
        base.execute("INSERT INTO gpkg_contents (table_name, data_type, identifier, min_x, min_y, "
                     "max_x, max_y, srs_id) VALUES ('regions', 'features', 'regions', ?, ?, ?, ?, "
                     "?)", (*(box if count else (None,) * 4), number))
        base.execute("INSERT INTO gpkg_geometry_columns VALUES ('regions', 'geom', 'POLYGON', ?, "
                     "0, 0)", (number,))
        base.commit()
    return count


def _blob(polygon: Polygon, system: int) -> bytes:
    rings = b"".join(struct.pack("<I", len(ring)) + b"".join(
        struct.pack("<dd", *point) for point in ring) for ring in polygon)
    return (b"GP\0\x01" + struct.pack("<i", system)
            + struct.pack("<BII", 1, _POLYGON, len(polygon)) + rings)


def read_geopackage(path: Path, layer: str = "") -> list[Layer]:
    """Read the polygons of all layers of a GeoPackage, or of one; points and lines are skipped.

    Raises:
        VplError: the file is missing or damaged, has no such layer, or holds no polygon.
    """
    if not path.is_file():
        raise VplError(f"{short_path(path)} does not exist", "give a GeoPackage, FILE.gpkg")
    address = f"file:{path.resolve().as_posix().replace('?', '%3f').replace('#', '%23')}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(address, uri=True)) as base:
            tables = base.execute(
                "SELECT g.table_name, g.column_name, s.organization, s.organization_coordsys_id, "
                "s.definition FROM gpkg_geometry_columns g JOIN gpkg_spatial_ref_sys s "
                "ON s.srs_id = g.srs_id").fetchall()
            names = [row[0] for row in tables]
            if layer and layer not in names:
                raise VplError(f"{short_path(path)} has no layer {layer}", near_name(layer, names))
            layers = [_read_layer(base, *row) for row in tables if layer in ("", row[0])]
    except (sqlite3.Error, struct.error, ValueError, IndexError, RecursionError) as error:
        raise VplError(f"{short_path(path)} cannot be read as a GeoPackage ({error})",
                       "write it again, as QGIS does: Export, GeoPackage") from error
    found = [layer for layer in layers if layer.features]
    if not found:
        raise VplError(f"{short_path(path)} holds no polygon", "a layer of polygons is needed")
    return found


def _read_layer(base: sqlite3.Connection, table: str, column: str, organization: str, number: int,
                definition: str) -> Layer:
    quoted = '"' + table.replace('"', '""') + '"'
    rows = base.execute(f"SELECT * FROM {quoted}")
    names = [entry[0] for entry in rows.description]
    features = []
    for row in rows:
        values = dict(zip(names, row, strict=True))
        blob = values.pop(column, None)
        polygons = _polygons(blob) if isinstance(blob, bytes) else []
        if polygons:
            features.append(Feature(polygons, values))
    known = organization.upper() == "EPSG"
    return Layer(table, f"EPSG:{number}" if known else "" if _UNDEFINED.match(str(definition))
                 else definition, features)


def _polygons(blob: bytes) -> list[Polygon]:
    if blob[:2] != b"GP":
        raise ValueError("a geometry does not begin as those of GeoPackage do")
    envelope = (0, 32, 48, 48, 64)[blob[3] >> 1 & 7]
    return _well_known(blob, 8 + envelope)[0]


def _well_known(blob: bytes, at: int) -> tuple[list[Polygon], int]:
    """Parse well-known binary at an offset; return its polygons, if any, and the next offset."""
    order = "<" if blob[at] else ">"
    (code,) = struct.unpack_from(f"{order}I", blob, at + 1)
    kind, more = code % 1000, code // 1000
    if kind not in (_POLYGON, _MULTI):
        return [], at + 5
    # Codes of Z, M and ZM geometries are 1000, 2000 and 3000 higher.
    size = (2, 3, 3, 4)[more]
    (count,) = struct.unpack_from(f"{order}I", blob, at + 5)
    at += 9
    if count > len(blob):
        raise ValueError("a geometry is longer than its file")
    if kind == _MULTI:
        found: list[Polygon] = []
        for _ in range(count):
            part, at = _well_known(blob, at)
            found += part
        return found, at
    rings = []
    for _ in range(count):
        (points,) = struct.unpack_from(f"{order}I", blob, at)
        if points > len(blob):
            raise ValueError("a ring is longer than its file")
        flat = struct.unpack_from(f"{order}{points * size}d", blob, at + 4)
        rings.append(finite(zip(flat[::size], flat[1::size], strict=True)))
        at += 4 + 8 * size * points
    # Polygons and holes may be empty.
    return [[ring for ring in rings if ring]] if rings and rings[0] else [], at
