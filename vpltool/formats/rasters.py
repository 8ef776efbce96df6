"""Scenes: GeoTIFFs of any size, read and written by windows with rasterio.

Rasterio is an optional dependency: `pip install 'vpltool[geo]'`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from vpltool import console
from vpltool.errors import VplError, first_line
from vpltool.formats.atomic import atomic_path, remove_leftovers
from vpltool.formats.header import METADATA_KEY, Header
from vpltool.formats.kinds import IGNORE
from vpltool.formats.labels import TIFF_SUFFIXES, voc_palette
from vpltool.lazy import Image, TiffImagePlugin, np, npt, rasterio
from vpltool.names import short_path

SUFFIXES = TIFF_SUFFIXES

_GEOTIFF = {33550, 33922, 34264, 34735}
"""TIFF tags with a georeference: pixel scale, tie points, transformation, keys."""

_MANY = 100_000_000
"""A TIFF with more pixels is read in windows, even without a georeference."""

_SAMPLE = 1024
"""Side of the reduced copy used for percentiles and validity."""

_BLOCK = 512
"""Block size of GeoTIFFs that are written."""

_PERCENTILES = (2.0, 98.0)
"""Default stretch of values other than bytes, as in GIS programs."""


def check_rasterio() -> None:
    """Check that rasterio is installed.

    Raises:
        VplError: it is not installed.
    """
    # In megabytes; GDAL's default block cache is a twentieth of the machine's memory.
    os.environ.setdefault("GDAL_CACHEMAX", "256")
    if importlib.util.find_spec("rasterio") is None:
        raise VplError("a GeoTIFF is read by rasterio, which is not installed",
                       "pip install 'vpltool[geo]'")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn GDAL's errors on a damaged file into one message.

    Raises:
        VplError: the file cannot be read.
    """
    try:
        yield
    except (rasterio.errors.RasterioError, OSError, ValueError) as error:
        reason = first_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)
        raise VplError(f"{short_path(path)} cannot be read as a GeoTIFF ({reason})",
                       "fetch or write it again; `gdalinfo -checksum FILE` reads all of it"
                       ) from error


def open_raster(path: Path) -> rasterio.DatasetReader:
    """Open a GeoTIFF for reading.

    Raises:
        VplError: it is damaged, or rasterio is not installed.
    """
    check_rasterio()
    with reading(path), warnings.catch_warnings():
        # Without coordinates, a mask is matched to a photo of the same size.
        warnings.simplefilter("ignore")
        return rasterio.open(path)


def scene_header(path: Path) -> Header | None:
    """Read the header of a GeoTIFF; None if vpltool did not make it.

    Raises:
        VplError: it is damaged, or rasterio is not installed.
    """
    with open_raster(path) as file, reading(path):
        text = file.tags().get(METADATA_KEY, "")
    return Header.from_json(text, path) if text else None


def is_scene(path: Path, *, unknown: bool = True) -> bool:
    """Return whether a TIFF must be read in windows: it is georeferenced, or large.

    TIFFs with numbers or bands that Pillow does not support are `unknown`.
    """
    if path.suffix.lower() not in SUFFIXES or not path.is_file():
        return False
    try:
        with Image.open(path, formats=("TIFF",)) as image:
            tags: Any = getattr(image, "tag_v2", {})
            return bool(_GEOTIFF & set(tags)) or image.width * image.height > _MANY
    except Exception:
        with path.open("rb") as file:
            return unknown and file.read(4) in TiffImagePlugin.PREFIXES


@dataclass(frozen=True)
class Scaling:
    """Which bands are shown as RGB, and which values become black and white."""

    bands: tuple[int, ...] = ()  # three band numbers, or one for grey, from 1; empty: 1,2,3, or 1
    # of the values for black and white; empty: bytes are unchanged, other types are stretched from
    # the 2nd to the 98th
    percentiles: tuple[float, ...] = ()

    @classmethod
    def parse(cls, bands: str, percentiles: str) -> Scaling:
        """Read the settings `bands` and `percentiles`.

        Raises:
            VplError: a list is malformed.
        """
        try:
            numbers = tuple(int(part) for part in bands.split(",")) if bands else ()
        except ValueError:
            numbers = (0,)
        if len(numbers) not in (0, 1, 3) or min(numbers, default=1) < 1:
            raise VplError(f"`bands={bands!r}` is not three numbers of bands, or one",
                           "for example `bands='4,3,2'`")
        try:
            limits = tuple(float(part) for part in percentiles.split(",")) if percentiles else ()
        except ValueError:
            limits = (1.0, 0.0)
        if limits and not (len(limits) == 2 and 0 <= limits[0] < limits[1] <= 100):
            raise VplError(f"`percentiles={percentiles!r}` is not two of 0 to 100",
                           "for example `percentiles='2,98'`")
        return cls(numbers, limits)


class Scene:
    """A GeoTIFF for reading in windows; `with scene:` closes its file at the end.

    Raises:
        VplError: it cannot be read, lacks a band, or has no valid pixel.
    """

    def __init__(self, path: Path, scaling: Scaling = Scaling()) -> None:  # noqa: B008
        self.path, self.scaling = path, scaling
        # A process may open about a thousand files, and a folder may hold more scenes.
        with self:
            file = self.file
            self.size: tuple[int, int] = (file.height, file.width)
            # Must agree within a set of files.
            self.layout = f"{file.count} of {file.dtypes[0]}"
            # Whether the file has a coordinate reference system.
            self.placed = file.crs is not None
            self.bands = scaling.bands or ((1, 2, 3) if file.count >= 3 else (1,))
            if max(self.bands) > file.count:
                raise VplError(f"{short_path(path)} has {file.count} band{'s' * (file.count != 1)}"
                               f", and `bands={','.join(map(str, self.bands))!r}` asks for "
                               f"{max(self.bands)}", f"choose of 1 to {file.count}")
            self.reduced = self._reduced()

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *_: object) -> None:
        if file := vars(self).pop("file", None):
            file.close()

    @cached_property
    def file(self) -> rasterio.DatasetReader:
        """The file, which is opened when it is needed."""
        return open_raster(self.path)

    def warn_unplaced(self) -> None:
        """Warn if the file has no coordinate system, since results have none either."""
        if not self.placed:
            console.warn(f"{short_path(self.path)} has no coordinate reference system; what is "
                         "made of it has none either")

    def _reduced(self) -> npt.NDArray[np.bool_]:
        """Return the validity mask (not nodata) of a reduced copy."""
        shrunk = max(1.0, max(self.size) / _SAMPLE)
        shape = tuple(max(1, int(side / shrunk)) for side in self.size)
        with reading(self.path):
            valid: npt.NDArray[np.bool_] = self.file.dataset_mask(out_shape=shape) > 0
        if not valid.any():
            raise VplError(f"{short_path(self.path)} has no valid pixel: all is nodata"
                           + (f", {self.file.nodata:g}" if self.file.nodata is not None else ""),
                           "leave it out, or correct its nodata value")
        return valid

    def may_be_valid(self, top: int, left: int, height: int, width: int) -> bool:
        """Return whether a window may contain valid pixels, according to the reduced copy."""
        down, across = (length / side for length, side in zip(self.reduced.shape, self.size,
                                                              strict=True))
        return bool(self.reduced[int(top * down) : int((top + height) * down) + 1,
                                 int(left * across) : int((left + width) * across) + 1].any())

    @cached_property
    def limits(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Values of each band that map to 0 and 255."""
        if not self.scaling.percentiles and self.file.dtypes[0] == "uint8":
            return np.zeros(len(self.bands)), np.full(len(self.bands), 255.0)
        with reading(self.path):
            parts, valid_parts = zip(*self._sample(), strict=True)
        values, valid = np.concatenate(parts, axis=1), np.concatenate(valid_parts)
        limits = self.scaling.percentiles or _PERCENTILES
        known = [band[valid & np.isfinite(band)] for band in values.astype(np.float64)]
        found = np.array([np.percentile(band, limits) if band.size else (0.0, 1.0)
                          for band in known])
        return found[:, 0], np.maximum(found[:, 1], found[:, 0] + 1e-9)

    def _sample(self) -> Iterator[tuple[npt.NDArray[np.generic], npt.NDArray[np.bool_]]]:
        """Yield values (bands, h, w) and validity (h, w) at evenly spread pixels, from the top.

        Windows at full resolution are read: a reduced read takes overviews, whose means hide the
        extremes.
        """
        rows, columns = (((np.arange(count) + 0.5) * side / count).astype(int)
                         for count, side in zip(self.reduced.shape, self.size, strict=True))
        block = min(self.file.block_shapes[0][0], _BLOCK)
        for _, group in groupby(rows.tolist(), lambda row: row // block):
            own = list(group)
            window = (own[0], 0, own[-1] + 1 - own[0], self.size[1])
            values = self.file.read(self.bands, window=self._window(*window))
            at = np.ix_([row - own[0] for row in own], columns)
            yield values[:, at[0], at[1]], self.valid(*window)[at]

    def read(self, top: int, left: int, height: int, width: int) -> npt.NDArray[np.uint8]:
        """Read RGB (height, width, 3) uint8; pixels beyond the edge repeat the last ones.

        Raises:
            VplError: this part of the file is damaged.
        """
        window = self._window(top, left, height, width)
        with reading(self.path):
            rgb = self._shown(self.file.read(self.bands, window=window))
        beyond = ((0, height - rgb.shape[0]), (0, width - rgb.shape[1]), (0, 0))
        return np.pad(rgb, beyond, mode="edge")

    def read_scaled(self, size: tuple[int, int], top: int, left: int, height: int, width: int
                    ) -> npt.NDArray[np.uint8]:
        """Read a window like `read`, of the file scaled down to a size (height, width)."""
        down, across = (own / other for own, other in zip(self.size, size, strict=True))
        window = self._window(top * down, left * across, height * down, width * across)
        with reading(self.path):
            return self._shown(self.file.read(
                self.bands, window=window, out_shape=(len(self.bands), height, width),
                resampling=rasterio.enums.Resampling.cubic))

    def _shown(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
        """Convert values (bands, h, w) to RGB (h, w, 3)."""
        if values.dtype != np.uint8 or self.scaling.percentiles:
            low, high = (limit[:, None, None] for limit in self.limits)
            scaled = (np.nan_to_num(values.astype(np.float64)) - low) / (high - low)
            values = (scaled.clip(0, 1) * 255).round()
        rgb = np.moveaxis(values.astype(np.uint8, copy=False), 0, 2)
        return np.repeat(rgb, 3, axis=2) if rgb.shape[2] == 1 else rgb

    def valid(self, top: int, left: int, height: int, width: int) -> npt.NDArray[np.bool_]:
        """Return the validity mask (h, w) of a window, cropped at the edge; False is nodata."""
        with reading(self.path):
            return self.file.dataset_mask(window=self._window(top, left, height, width)) > 0

    def _window(self, top: float, left: float, height: float, width: float) -> object:
        return rasterio.windows.Window(
            left, top, min(width, self.size[1] - left), min(height, self.size[0] - top))


def check_alike(first: Scene, scene: Scene) -> None:
    """Check that a file of a set has the same bands as the first.

    Raises:
        VplError: they differ.
    """
    if scene.layout != first.layout:
        raise VplError(f"{short_path(scene.path)} has {scene.layout}, and "
                       f"{short_path(first.path)} has {first.layout} as bands",
                       "give files of one kind, or each set by itself")


def write_scene(path: Path, like: Scene, parts: Iterator[npt.NDArray[np.uint8]], header: Header,
                classes: Sequence[str]) -> None:
    """Write labels as a cloud-optimised GeoTIFF: tiled, compressed, with overviews.

    `parts` are strips of labels (h, W) from top to bottom. Coordinate system and transform are
    those of the scene; nodata is the ignored label. Header and class names, the first of which is
    label 1, go into the metadata.
    """
    # Those of a killed run are as large as the scene.
    remove_leftovers(path.parent)
    first = next(parts)
    height, width = like.size
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 1,
               "dtype": first.dtype.name, "nodata": IGNORE, "crs": like.file.crs,
               "transform": like.file.transform, "tiled": True, "blockxsize": _BLOCK,
               "blockysize": _BLOCK, "compress": "deflate", "BIGTIFF": "IF_SAFER"}
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = temporary.with_name(temporary.name + ".plain.tif")
        try:
            with rasterio.open(plain, "w", **profile) as file:
                top = 0
                for rows in chain([first], parts):
                    file.write(rows, 1, window=((top, top + len(rows)), (0, width)))
                    top += len(rows)
                if first.dtype == np.uint8:
                    colours = np.array(voc_palette()).reshape(-1, 3).tolist()
                    file.write_colormap(1, {index: (*colour, 255 * (index != IGNORE))
                                            for index, colour in enumerate(colours)})
                file.update_tags(**{METADATA_KEY: header.to_json()},
                                 **{f"CLASS_{index}": name
                                    for index, name in enumerate(("background", *classes))})
            rasterio.shutil.copy(plain, temporary, driver="COG", compress="DEFLATE",
                                 blocksize=_BLOCK, overview_resampling="MODE", BIGTIFF="IF_SAFER")
        finally:
            plain.unlink(missing_ok=True)
            temporary.with_name(temporary.name + ".aux.xml").unlink(missing_ok=True)


def remove_rows(folder: Path) -> None:
    """Delete the temporary strips of a scene that has been written."""
    shutil.rmtree(folder, ignore_errors=True)
