"""rasterio, its messages, and the header that a GeoTIFF of vpltool holds."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from vpltool.errors import VplError, first_line
from vpltool.formats.header import METADATA_KEY, Header
from vpltool.formats.whereabouts import short_path
from vpltool.lazy import rasterio

_CACHE = "256"
"""Megabytes of blocks that GDAL keeps."""


def check_rasterio() -> None:
    """Check that rasterio is installed.

    Raises:
        VplError: it is not installed.
    """
    # GDAL would keep a twentieth of the machine's memory.
    os.environ.setdefault("GDAL_CACHEMAX", _CACHE)
    if importlib.util.find_spec("rasterio") is None:
        raise VplError("a GeoTIFF is read by rasterio, which is not installed",
                       "pip install 'vpltool[geo]'")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what GDAL says of a damaged file into one message.

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


def scene_header(path: Path) -> Header | None:
    """Read the header of a GeoTIFF; None if vpltool did not make it.

    Raises:
        VplError: it is damaged, or rasterio is not installed.
    """
    check_rasterio()
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(path) as file:
            text = file.tags().get(METADATA_KEY, "")
    return Header.from_json(text, path) if text else None
