"""The GeoTIFF of `demo --scene`: drawn scenes side by side, and where what is, roughly."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from vpltool import console
from vpltool.formats import Header, write_labels
from vpltool.formats.atomic import atomic_path
from vpltool.formats.geopackage import Polygon, write_geopackage
from vpltool.formats.geotiff import import_rasterio
from vpltool.lazy import np, npt

FOLDER = "scene"
_ROWS, _COLUMNS = 6, 6
_HEIGHT, _WIDTH = 240, 320
_FIRST = 100_000
"""Number of the first drawn scene: none of those of the workspace."""

_ORIGIN, _METRES, _EPSG = (500_000, 5_800_000), 0.5, 32633
"""Where the upper left corner lies in UTM zone 33 N, and the side of a pixel."""


def write_demo_scene(path: Path, seed: int, classes: Sequence[str]) -> Path:
    """Draw a GeoTIFF, rectangles around its objects as a GeoPackage, and its true mask.

    Args:
        path: of the workspace; what is made lies below scene/.
        seed: of the drawn scenes.
        classes: names, the first is label 1.

    Returns:
        the GeoTIFF; one that is there is kept.

    Raises:
        VplError: rasterio is not installed.
    """
    rasterio = import_rasterio()
    file = path / FOLDER / "photos/map.tif"
    if file.exists():
        console.note(f"{file} already exists")
        return file
    pixels, labels = _draw(seed)
    transform = rasterio.transform.from_origin(*_ORIGIN, _METRES, _METRES)
    write_labels(path / FOLDER / "truth/map.png", labels,
                 Header(kind="masks", command="demo", options={"seed": seed}))
    write_geopackage(path / FOLDER / "regions.gpkg", _rectangles(labels, transform, classes),
                     rasterio.crs.CRS.from_epsg(_EPSG).to_wkt(), _EPSG)
    # Last, since it marks the whole as done.
    with atomic_path(file) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(temporary, "w", driver="GTiff", count=3, height=len(pixels),
                           width=pixels.shape[1], dtype="uint8", crs=f"EPSG:{_EPSG}",
                           transform=transform, tiled=True, compress="deflate") as made:
            made.write(np.moveaxis(pixels, 2, 0))
    return file


def _draw(seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Draw scenes side by side: RGB (H, W, 3) and labels (H, W)."""
    from vpltool.demo.scenes import draw_scene

    pixels = np.zeros((_ROWS * _HEIGHT, _COLUMNS * _WIDTH, 3), np.uint8)
    labels = np.zeros(pixels.shape[:2], np.uint8)
    with console.progress("demo scene", _ROWS * _COLUMNS) as advance:
        for number in range(_ROWS * _COLUMNS):
            top, left = number // _COLUMNS * _HEIGHT, number % _COLUMNS * _WIDTH
            drawn = draw_scene(seed, _FIRST + number, (_HEIGHT, _WIDTH))
            pixels[top : top + _HEIGHT, left : left + _WIDTH] = drawn.image
            labels[top : top + _HEIGHT, left : left + _WIDTH] = drawn.labels
            advance()
    return pixels, labels


def _rectangles(labels: npt.NDArray[np.uint8], transform: object, classes: Sequence[str]
                ) -> Iterator[tuple[Polygon, str, int]]:
    """Rectangles around the objects, as a person draws them: no outline is given away."""
    from rasterio.features import shapes

    known = (labels > 0) & (labels <= len(classes))
    for shape, value in shapes(labels, mask=known, transform=transform, connectivity=8):
        xs, ys = zip(*shape["coordinates"][0], strict=True)
        if (max(xs) - min(xs)) * (max(ys) - min(ys)) < 64 * _METRES**2:
            continue
        left, bottom, right, top = min(xs), min(ys), max(xs), max(ys)
        yield ([[(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]],
               classes[int(value) - 1], int(value))
