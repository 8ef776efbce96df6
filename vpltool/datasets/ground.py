"""Coordinates of polygons and points as pixels of a scene."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from vpltool.errors import VplError, first_line
from vpltool.formats.geopackage import polygon_area
from vpltool.formats.rasters import Scene
from vpltool.lazy import rasterio
from vpltool.names import short_path

Points = Sequence[tuple[float, float]]
Bounds = tuple[float, float, float, float]
"""Lowest x and y, highest x and y."""

_STEPS = 16
"""Parts of an edge as long as a scene, and of the sides of the grid that stands for a scene."""

_MARGIN = 0.1
"""Part of a scene's extent around it, in which the scene may lie between the grid's points."""

_EVERYWHERE = (-math.inf, -math.inf, math.inf, math.inf)


class Ground:
    """A scene's pixels, for coordinates of a `system`; empty: the scene's own.

    `where` names tags with such coordinates, for messages. Far from a scene, its projection may be
    undefined, or fold. So only what is near the scene is converted.

    Raises:
        VplError: the system is unknown, or cannot be converted to the scene's.
    """

    def __init__(self, scene: Scene, system: str, where: str) -> None:
        self.scene, self.where = scene, where
        self.own = scene.file.crs
        self.system = _system_of(system, where) if system else self.own
        self.near = [] if self.system == self.own else self._near()

    def pieces(self, rings: Sequence[Points]) -> Iterator[tuple[list[Points], float]]:
        """Yield the parts of a polygon near the scene in pixels, and its area in terms of theirs.

        A single point is one ring.
        """
        if not self.near:
            yield [self._to_pixels(ring) for ring in rings], 1.0
        for bounds in self.near:
            cut = [clipped(ring, bounds) for ring in rings]
            if cut[0]:
                cut = [ring for ring in cut if ring]
                whole = 1.0 if cut == rings else polygon_area(rings) / (polygon_area(cut) or 1)
                step = max(bounds[2] - bounds[0], bounds[3] - bounds[1]) / _STEPS
                yield [self._to_pixels(_divided(ring, step)) for ring in cut], whole

    def _to_pixels(self, ring: Points) -> Points:
        if self.near:
            xs, ys = self._converted(self.system, self.own, *zip(*ring, strict=True))
            ring = list(zip(xs, ys, strict=True))
        return _applied(~self.scene.file.transform, ring)

    def _converted(self, old: rasterio.crs.CRS, new: rasterio.crs.CRS, xs: Sequence[float],
                   ys: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
        try:
            return rasterio.warp.transform(old, new, xs, ys)
        except Exception as error:  # GDAL's errors have no public class.
            raise VplError(
                f"{self.where} cannot be converted to the coordinates of "
                f"{short_path(self.scene.path)} ({first_line(error)})",
                "give its coordinate reference system: ogr2ogr -a_srs EPSG:N NEW.gpkg OLD.gpkg; or "
                "cut it to the scenes: ogr2ogr -spat XMIN YMIN XMAX YMAX NEW.gpkg OLD.gpkg"
                ) from error

    def _near(self) -> list[Bounds]:
        """Return where the scene lies in the system of the tags, with a margin.

        There are two places if it crosses the 180th meridian.
        """
        height, width = self.scene.size
        steps = [step / _STEPS for step in range(_STEPS + 1)]
        grid = _applied(self.scene.file.transform, (
            (width * across, height * down) for across in steps for down in steps))
        try:
            xs, ys = self._converted(self.own, self.system, *zip(*grid, strict=True))
        except VplError:
            # The scene extends beyond what the system covers.
            return [_EVERYWHERE]
        if not all(map(math.isfinite, (*xs, *ys))):
            return [_EVERYWHERE]
        shifts: Sequence[int] = (0,)
        if self.system.is_geographic and max(xs) - min(xs) > 180:
            east = [x % 360 for x in xs]
            if max(east) - min(east) < 180:
                xs, shifts = east, (0, -360)
        low_x, high_x = _widened(xs)
        low_y, high_y = _widened(ys)
        if self.system.is_geographic:
            low_y, high_y = max(low_y, -90), min(high_y, 90)
        return [(low_x + shift, low_y, high_x + shift, high_y) for shift in shifts]


def _system_of(system: str, where: str) -> rasterio.crs.CRS:
    try:
        return rasterio.crs.CRS.from_user_input(system)
    except rasterio.errors.CRSError as error:
        raise VplError(f"{where}: its coordinate reference system is unknown "
                       f"({first_line(error)})",
                       "give another: ogr2ogr -t_srs EPSG:4326 NEW.gpkg OLD.gpkg") from error


def _applied(transform: rasterio.Affine, points: Iterable[tuple[float, float]]) -> Points:
    # Affine's `*` is deprecated in favour of `@`, which older versions lack.
    apply = getattr(transform, "__matmul__", transform.__mul__)
    return [apply(point) for point in points]


def _widened(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = _MARGIN * (high - low)
    return low - margin, high + margin


def _divided(ring: Points, step: float) -> Points:
    """Divide edges into parts no longer than `step`, since they are bent in another projection."""
    found = []
    for one, other in zip(ring, [*ring[1:], *ring[:1]], strict=True):
        parts = max(1, math.ceil(math.dist(one, other) / step))
        found += [(one[0] + (other[0] - one[0]) * part / parts,
                   one[1] + (other[1] - one[1]) * part / parts) for part in range(parts)]
    return found


def bounds_of(ring: Points) -> Bounds:
    """Return the smallest rectangle around points."""
    xs, ys = zip(*ring, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def clipped(ring: Points, bounds: Bounds) -> Points:
    """Clip a ring at the four sides of a rectangle (Sutherland and Hodgman)."""
    low_x, low_y, high_x, high_y = bounds_of(ring)
    if low_x > bounds[2] or high_x < bounds[0] or low_y > bounds[3] or high_y < bounds[1]:
        return []
    if low_x >= bounds[0] and low_y >= bounds[1] and high_x <= bounds[2] and high_y <= bounds[3]:
        return ring
    for axis, limit, sign in ((0, bounds[0], 1), (0, bounds[2], -1),
                              (1, bounds[1], 1), (1, bounds[3], -1)):
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
