"""`prepare folder --tile`: tiles as photos, their tags by place, and pages and frames."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run
from PIL import Image

from vpltool import file_hashes
from vpltool.datasets.tile_tags import Box, Region, TagRaster, placed, tags_of_tiles
from vpltool.errors import VplError
from vpltool.formats import open_workspace, read_labels
from vpltool.formats.geopackage import polygon_area, read_geopackage, write_geopackage
from vpltool.formats.rasters import Scene

SIDE = 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A photo of 4 × 3 tiles, and a small one."""
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("big.png", (100, 160)), ("small.png", (30, 40))):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(photos / name)
    return photos


def prepare(run: Run, folder: Path, tiny_clip: Path, *more: object) -> Any:
    return run("prepare", "folder", folder, "--pretrained", tiny_clip, "--tile", SIDE, *more,
               work=folder.parent / "work")


def tags(folder: Path) -> dict[str, tuple[str, ...]]:
    return {photo.id: photo.tags for photo in open_workspace(folder.parent / "work").photos()}


def write(folder: Path, text: str) -> Path:
    path = folder.parent / "tags.csv"
    path.write_text(text)
    return path


def test_tiles_have_the_tags_of_their_photo(run: Run, folder: Path, tiny_clip: Path) -> None:
    (folder.parent / "masks").mkdir()
    truth = np.random.default_rng(1).integers(0, 3, (100, 160), dtype=np.uint8)
    Image.fromarray(truth).save(folder.parent / "masks/big.png")
    table = write(folder, "id,labels,split\nbig,cat;dog,val\nsmall,cat,train\n")
    result = prepare(run, folder, tiny_clip, "--labels", table, "--masks", folder.parent / "masks")
    assert result.code == 0, result.err
    workspace = open_workspace(folder.parent / "work")
    photos = {photo.id: photo for photo in workspace.photos()}
    tops, lefts = (0, 30, 60), (0, 40, 80, 120)
    assert set(photos) == {"small", *(f"big/{top:05}-{left:05}" for top in tops for left in lefts)}
    with Image.open(folder / "big.png") as image:
        whole = np.asarray(image)
    for top in tops:
        for left in lefts:
            photo = photos[f"big/{top:05}-{left:05}"]
            assert photo.tags == ("cat", "dog") and photo.splits == ("val",)
            cut = (slice(top, top + SIDE), slice(left, left + SIDE))
            np.testing.assert_array_equal(np.asarray(Image.open(workspace.image_path(photo))),
                                          whole[cut])
            assert photo.mask
            mask = workspace.path / workspace.root / photo.mask
            np.testing.assert_array_equal(read_labels(mask), truth[cut])
    assert workspace.image_path(photos["small"]).resolve() == (folder / "small.png").resolve()
    before = {path: path.stat().st_mtime_ns for path in (workspace.path / "tiles").rglob("*.png")}
    assert prepare(run, folder, tiny_clip).code == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}, "nothing is cut twice"


def test_rectangles_are_tags_of_tiles(run: Run, folder: Path, tiny_clip: Path) -> None:
    """A tile that no row names is not known to be empty; one with an empty row is."""
    table = write(folder, "id,x,y,width,height,labels,split\nbig,0,0,40,40,cat,\n"
                          "big,40,0,40,40,,\nbig,80,30,40,40,cat;dog,val\n")
    result = prepare(run, folder, tiny_clip, "--labels", table)
    assert result.code == 0, result.err
    found = tags(folder)
    assert found["big/00000-00000"] == ("cat",) and found["big/00000-00040"] == ()
    assert found["big/00030-00080"] == ("cat", "dog")
    assert "have no tag in the CSV and are left out" in result.err
    assert not any(key.startswith("small") for key in found), "no row names it either"
    splits = {photo.id: photo.splits for photo in open_workspace(folder.parent / "work").photos()}
    assert splits["big/00030-00080"] == ("val",) and splits["big/00000-00000"] == ("train",)


def test_centres(run: Run, folder: Path, tiny_clip: Path) -> None:
    (folder / "small.png").unlink()
    table = write(folder, "x,y,labels\n10,35,cat\n125,90,dog\n")
    result = prepare(run, folder, tiny_clip, "--labels", table)
    assert result.code == 0, result.err
    shown = {key: labels for key, labels in tags(folder).items() if labels}
    assert shown == {"big/00000-00000": ("cat",), "big/00030-00000": ("cat",),
                     "big/00060-00120": ("dog",)}
    assert len(tags(folder)) == 12


@pytest.mark.parametrize("text", ["id,x,y,labels\nbig,9,9,cat\nbgi,9,9,dog\n",
                                  "x,y,labels\n9,9,cat\n999,9,dog\n"])
def test_rows_that_tag_no_tile(text: str, run: Run, folder: Path, tiny_clip: Path) -> None:
    result = prepare(run, folder, tiny_clip, "--labels", write(folder, text))
    assert result.code == 0, result.err
    (said,) = [line for line in result.lines("warning:") if "tags no tile" in line]
    assert "1 of 2 rows" in said and "tags.csv:3" in said


@pytest.mark.parametrize(("text", "said"), [
    ("id,x,y,labels\nbig,500,10,cat\n", "outside of big.png, 160×100 pixels"),
    ("id,x,y,width,height,labels\nbig,0,-90,40,40,cat\n", "outside of big.png"),
    ("id,x,y,labels\nbig,here,10,cat\n", "here,10 are not the numbers x,y"),
    ("lon,lat,labels\n13.4,52.5,cat\n", "does not say where it lies"),
    ("easting,nothing,labels\n3,4,cat\n", "lacks the column id; the first line is"),
    ("x,y,labels\n900,900,cat\n", "lie outside of the photos")])
def test_bad_places_are_one_line(text: str, said: str, run: Run, folder: Path, tiny_clip: Path
                                 ) -> None:
    result = prepare(run, folder, tiny_clip, "--labels", write(folder, text))
    (error,) = result.lines("error:")
    assert result.code == 1 and said in error, result.err
    assert not (folder.parent / "work/tiles").exists()


def test_places_without_tiles(run: Run, folder: Path, tiny_clip: Path) -> None:
    result = run("prepare", "folder", folder, "--pretrained", tiny_clip, "--labels",
                 write(folder, "id,x,y,labels\nbig,1,1,cat\n"), work=folder.parent / "work")
    assert result.code == 1 and "--tile 448" in result.lines("hint:")[0]


def test_polygons_of_a_district(run: Run, tmp_path: Path, tiny_clip: Path) -> None:
    """In another system than the scene's; nodata tiles are left out."""
    rasterio = pytest.importorskip("rasterio")
    from rasterio.warp import transform

    folder = tmp_path / "scenes"
    folder.mkdir()
    bands = np.random.default_rng(0).integers(1, 255, (3, 80, 120), dtype=np.uint8)
    bands[:, :, 80:] = 0
    with rasterio.open(folder / "map.tif", "w", driver="GTiff", count=3, height=80, width=120,
                       dtype="uint8", crs="EPSG:32633", nodata=0,
                       transform=rasterio.transform.from_origin(500_000, 5_800_000, 2, 2)) as file:
        file.write(bands)
    # Two regions: one in the tile at (0, 0), one across (40, 0) and (40, 40).
    pixels = [("forest", [(5, 5), (25, 5), (25, 25), (5, 25), (5, 5)]),
              ("water", [(20, 50), (60, 50), (60, 70), (20, 70), (20, 50)])]
    regions = []
    for number, (name, ring) in enumerate(pixels, 1):
        xs = [500_000 + 2 * x for x, _ in ring]
        ys = [5_800_000 - 2 * y for _, y in ring]
        longs, lats = transform("EPSG:32633", "EPSG:4326", xs, ys)
        regions.append(([list(zip(longs, lats, strict=True))], name, number))
    write_geopackage(tmp_path / "district.gpkg", regions, rasterio.crs.CRS.from_epsg(4326).to_wkt(),
                     4326)
    result = prepare(run, folder, tiny_clip, "--labels", tmp_path / "district.gpkg")
    assert result.code == 0, result.err
    assert tags(folder) == {"map/00000-00000": ("forest",), "map/00000-00040": (),
                            "map/00040-00000": ("water",), "map/00040-00040": ("water",)}
    no_column = prepare(run, folder, tiny_clip, "--labels", tmp_path / "district.gpkg",
                        "--column", "clas")
    assert no_column.code == 1 and "no column clas" in no_column.lines("error:")[0]
    damaged = tmp_path / "damaged.gpkg"
    damaged.write_bytes((tmp_path / "district.gpkg").read_bytes()[:3000])
    refused = prepare(run, folder, tiny_clip, "--labels", damaged)
    assert refused.code == 1 and "cannot be read as a GeoPackage" in refused.lines("error:")[0]


@pytest.fixture
def district(tmp_path: Path) -> Path:
    """A photo of four tiles with coordinates, and a layer that covers the first one."""
    (tmp_path / "scenes").mkdir()
    scene(tmp_path / "scenes/map.tif", "EPSG:32633", (500_000, 5_800_000))
    write_geopackage(tmp_path / "district.gpkg", [
        ([rectangle(500_000, 5_799_920, 500_080, 5_800_000)], "wood", 1)],
        "PROJCS[]", 32633)
    return tmp_path / "district.gpkg"


def change(path: Path, *lines: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as base:
        for line in lines:
            base.execute(line)
        base.commit()


FIRST = {"map/00000-00000": ("wood",), "map/00000-00040": (), "map/00040-00000": (),
         "map/00040-00040": ()}


def test_one_of_several_layers(run: Run, district: Path, tiny_clip: Path) -> None:
    scenes = district.parent / "scenes"
    change(district, "CREATE TABLE towns AS SELECT fid, geom, class AS town FROM regions",
           "INSERT INTO gpkg_geometry_columns VALUES ('towns', 'geom', 'POLYGON', 32633, 0, 0)")
    result = prepare(run, scenes, tiny_clip, "--labels", district)
    assert result.code == 1 and "--layer NAME" in result.lines("hint:")[0]
    result = prepare(run, scenes, tiny_clip, "--labels", district, "--layer", "region")
    assert result.code == 1 and "`regions`" in result.lines("hint:")[0]
    result = prepare(run, scenes, tiny_clip, "--labels", district, "--layer", "regions")
    assert result.code == 0 and tags(scenes) == FIRST, result.err
    change(district, "ALTER TABLE towns RENAME COLUMN town TO name")
    result = prepare(run, scenes, tiny_clip, "--labels", district, "--layer", "")
    assert result.code == 0 and "of the layers regions, towns;" in result.err


@pytest.mark.parametrize("definition", ["undefined", 'LOCAL_CS["Undefined SRS",UNIT["unknown",0]]'])
def test_polygons_without_a_system_are_in_the_photos_own(
        definition: str, run: Run, district: Path, tiny_clip: Path) -> None:
    change(district, "UPDATE gpkg_spatial_ref_sys SET organization = 'GDAL', definition = "
           f"'{definition}' WHERE srs_id = 32633")
    result = prepare(run, district.parent / "scenes", tiny_clip, "--labels", district)
    assert result.code == 0 and tags(district.parent / "scenes") == FIRST, result.err
    assert "ogr2ogr -a_srs EPSG:N" in result.err


def test_empty_polygons_are_skipped(run: Run, district: Path, tiny_clip: Path) -> None:
    empty = (b"GP\0\x01" + struct.pack("<iBII", 32633, 1, 3, 0)).hex()
    change(district, f"INSERT INTO regions (geom, class, label) VALUES (x'{empty}', 'void', 2)")
    result = prepare(run, district.parent / "scenes", tiny_clip, "--labels", district)
    assert result.code == 0 and tags(district.parent / "scenes") == FIRST, result.err


def test_geojson(run: Run, district: Path, tiny_clip: Path) -> None:
    """In WGS 84, or in the system that its `crs` names."""
    warp = pytest.importorskip("rasterio.warp")
    shape = {"type": "MultiPolygon", "coordinates": [[
        rectangle(500_000, 5_799_920, 500_080, 5_800_000)]]}
    named = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    path = district.with_suffix(".geojson")
    for geometry, more in ((warp.transform_geom("EPSG:32633", "EPSG:4326", shape), {}),
                           (shape, {"crs": named})):
        # Features need not have the same properties; a class comes before a name.
        features = [{"type": "Feature", "properties": {"name": "A 1"}, "geometry": geometry},
                    {"type": "Feature", "properties": {"class": "wood"}, "geometry": geometry},
                    {"type": "Feature", "properties": {}, "geometry": None}]
        path.write_text(json.dumps({"type": "FeatureCollection", "features": features, **more}))
        result = prepare(run, district.parent / "scenes", tiny_clip, "--labels", path)
        assert result.code == 0 and tags(district.parent / "scenes") == FIRST, result.err
    for text in ('{"type": "FeatureCollection"}', path.read_text().replace("5000", "1e999"),
                 path.read_text().replace('{"class": "wood"}', "[1]")):
        path.write_text(text)
        result = prepare(run, district.parent / "scenes", tiny_clip, "--labels", path)
        assert result.code == 1 and "cannot be read as GeoJSON" in result.lines("error:")[0]


def test_a_geometry_that_nests_without_end_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "deep.gpkg"
    write_geopackage(path, [([[(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)]], "cat", 1)], "", None)
    multi = struct.pack("<BII", 1, 6, 1)
    with contextlib.closing(sqlite3.connect(path)) as base:
        base.execute("UPDATE regions SET geom = ?", (b"GP\0\x01\xff\xff\xff\xff" + multi * 5000,))
        base.commit()
    with pytest.raises(VplError, match="cannot be read as a GeoPackage"):
        read_geopackage(path)


def test_a_row_that_names_its_photo_as_windows_does() -> None:
    regions = [Region("", ("cat",), [[(1, 1)]], photo="sub\\big")]
    assert placed(regions, None, Path("sub/big.png"), "sub/big") == regions
    assert placed(regions, None, Path("big.png"), "big") == []


def test_a_region_with_a_hole_is_not_in_the_hole() -> None:
    tiles = [Box(top, left, 10, 10) for top in (0, 10, 20) for left in (0, 10, 20)]
    ring = [(0.0, 0.0), (30.0, 0.0), (30.0, 30.0), (0.0, 30.0)]
    hole = [(10.0, 10.0), (20.0, 10.0), (20.0, 20.0), (10.0, 20.0)]
    found = tags_of_tiles(tiles, [Region("", ("wood",), [ring, hole])])
    assert [bool(tagged and tagged.labels) for tagged in found] == [True] * 4 + [False] + [True] * 4


def scene(path: Path, system: str, origin: tuple[float, float], bands: Any = None,
          pixel: float = 2) -> Scene:
    """A GeoTIFF of 80 × 80 pixels, or of given ones; 0 is nodata."""
    rasterio = pytest.importorskip("rasterio")
    bands = np.full((3, 80, 80), 9, np.uint8) if bands is None else bands
    _, height, width = bands.shape
    with rasterio.open(path, "w", driver="GTiff", count=len(bands), height=height, width=width,
                       dtype="uint8", crs=system, nodata=0,
                       transform=rasterio.transform.from_origin(*origin, pixel, pixel)) as file:
        file.write(bands)
    return Scene(path)


def rectangle(left: float, low: float, right: float, high: float) -> list[tuple[float, float]]:
    return [(left, low), (right, low), (right, high), (left, high), (left, low)]


def test_nodata_shows_nothing(tmp_path: Path) -> None:
    """Shares are of the valid pixels: here of the right half, and of the last tile's corner."""
    bands = np.full((3, 40, 80), 9, np.uint8)
    bands[:, :, :20], bands[:, :, 40:] = 0, 0
    bands[:, :3, 40:43] = 9
    map_ = scene(tmp_path / "map.tif", "EPSG:32633", (500_000, 5_800_000), bands)
    tiles, names = [Box(0, 0, 40, 40), Box(0, 40, 40, 40)], ("under", "across", "corner")
    shapes = (rectangle(0, 0, 20, 40), rectangle(10, 0, 30, 40), rectangle(40, 0, 43, 3))
    regions = [Region("", (name,), [ring]) for name, ring in zip(names, shapes, strict=True)]
    regions += [Region("", ("drowned",), [[(19.5, 5)]]), Region("", ("tree",), [[(20.5, 5)]])]
    found = tags_of_tiles(tiles, regions, map_)
    assert [tagged.labels for tagged in found if tagged] == [("across", "tree"), ("corner",)]
    assert tags_of_tiles(tiles, regions[:1], map_, unknown=True) == [None, None]
    cover = np.where(bands[:1] == 0, 1, 2).astype(np.uint8)
    scene(tmp_path / "cover.tif", "EPSG:32633", (500_000, 5_800_000), cover)
    raster = TagRaster(tmp_path / "cover.tif", ("water", "wood"))
    assert [tagged.labels for tagged in raster.tags_of(tiles, map_, map_.path, map_.size)
            ] == [("wood",), ("wood",)]


FAR = [(9.0, 48.0), (99.5, 0.0), (9.0, 47.0)]


@pytest.mark.parametrize(("system", "origin", "ring", "whole"), [
    ("EPSG:32632", (500_000, 5_300_000), rectangle(-10, 35, 150, 75), True),
    ("EPSG:32632", (500_000, 5_300_000), rectangle(-180, -90, 180, 90), True),
    ("EPSG:32632", (500_000, 5_300_000), rectangle(98, 0, 99.5, 1), False),
    ("EPSG:32632", (500_000, 5_316_224), FAR, True),
    ("EPSG:32760", (821_020, 8_228_800), rectangle(-180, -20, 180, -10), True),
    ("EPSG:3413", (-80, 80), rectangle(-180, 60, 180, 90), True)],
    ids=("large", "world", "far", "far vertex", "180th meridian", "pole"))
def test_only_what_is_near_a_scene_is_converted(
        system: str, origin: tuple[float, float], ring: Any, whole: bool, tmp_path: Path) -> None:
    """Elsewhere a projection folds, or is not defined."""
    map_ = scene(tmp_path / "map.tif", system, origin)
    tiles = [Box(top, left, 40, 40) for top in (0, 40) for left in (0, 40)]
    here = placed([Region("", ("land",), [ring], system="EPSG:4326")], map_, map_.path, "map")
    assert [bool(tagged and tagged.labels) for tagged in tags_of_tiles(tiles, here, map_)
            ] == [whole] * 4


def test_a_part_of_a_region_near_a_scene_is_not_half_of_it(tmp_path: Path) -> None:
    """A strip of less than 1 % of a tile, of which most lies beyond the scene."""
    map_ = scene(tmp_path / "map.tif", "EPSG:32632", (500_000, 5_300_000))
    ring = rectangle(9.0, 47.8526, 9.5, 47.852602)
    (here,) = placed([Region("", ("road",), [ring], system="EPSG:4326")], map_, map_.path, "map")
    assert here.whole > 100 and polygon_area(here.rings) < 30


def test_frames_and_pages(run: Run, tmp_path: Path, tiny_clip: Path) -> None:
    """A folder of frames, and a TIFF of several pages, have one row each."""
    photos = tmp_path / "photos"
    (photos / "clip1").mkdir(parents=True)
    frames = [Image.fromarray(np.full((24, 32, 3), 40 * number, np.uint8)) for number in (1, 2, 3)]
    frames[0].copy().save(photos / "stack.tif", save_all=True, append_images=[
        frame.copy() for frame in frames[1:]])
    for number, frame in enumerate(frames):
        frame.copy().save(photos / f"clip1/f{number}.png")
    frames[0].save(photos / "single.png")
    table = write(photos, "id,labels\nclip1,cat\nstack,dog\nsingle,cat\nclip1/f2,dog\n")
    line = ("prepare", "folder", photos, "--pretrained", tiny_clip, "--labels", table)
    result = run(*line, "--tags-of-folder", work=tmp_path / "work")
    assert result.code == 0, result.err
    workspace = open_workspace(tmp_path / "work")
    assert tags(photos) == {
        "clip1/f0": ("cat",), "clip1/f1": ("cat",), "clip1/f2": ("dog",), "single": ("cat",),
        "stack/00000": ("dog",), "stack/00001": ("dog",), "stack/00002": ("dog",)}
    for photo in workspace.photos():
        with Image.open(workspace.image_path(photo)) as image:
            assert image.size == (32, 24)
            if photo.id == "stack/00002":
                assert image.getpixel((0, 0)) == (120, 120, 120)


def test_a_raster_of_class_numbers(run: Run, tmp_path: Path, tiny_clip: Path) -> None:
    """Land cover at half the resolution, in another system, of a larger area; 0, 255: none."""
    rasterio = pytest.importorskip("rasterio")
    folder = tmp_path / "photos"
    folder.mkdir()
    origin = rasterio.transform.from_origin
    rng = np.random.default_rng(0)
    with rasterio.open(folder / "map.tif", "w", driver="GTiff", count=3, height=80, width=120,
                       dtype="uint8", crs="EPSG:32633",
                       transform=origin(500_000, 5_800_000, 2, 2)) as file:
        file.write(rng.integers(1, 255, (3, 80, 120), dtype=np.uint8))
    cover = np.zeros((60, 80), np.uint8)
    cover[10:30, 10:30] = 2
    cover[30:, 30:] = 255
    cover[10, 50] = 1  # 4 of the tile's 1,600 pixels
    with rasterio.open(tmp_path / "cover.tif", "w", driver="GTiff", count=1, height=60, width=80,
                       dtype="uint8", crs="EPSG:25833",
                       transform=origin(499_960, 5_800_040, 4, 4)) as file:
        file.write(cover, 1)
    (tmp_path / "names.txt").write_text("road\nforest\nlake\n")
    words = ("--labels", tmp_path / "cover.tif")
    result = prepare(run, folder, tiny_clip, *words)
    assert result.code == 1 and "--classes" in result.err
    result = prepare(run, folder, tiny_clip, *words, "--classes", tmp_path / "names.txt")
    assert result.code == 0, result.err
    assert tags(folder) == {f"map/{top:05}-{left:05}": ("forest",) * (top == 0 and left == 0)
                            for top in (0, 40) for left in (0, 40, 80)}
    (tmp_path / "names.txt").write_text("road\n")
    result = prepare(run, folder, tiny_clip, *words, "--classes", tmp_path / "names.txt")
    assert result.code == 1 and "2 is none of 1 classes" in result.err


def test_true_masks_of_geotiffs(run: Run, tmp_path: Path, tiny_clip: Path) -> None:
    """They are GeoTIFFs too, whose nodata is ignored; of another place they are refused."""
    folder, masks = tmp_path / "scenes", tmp_path / "masks"
    folder.mkdir()
    masks.mkdir()
    scene(folder / "map.tif", "EPSG:32633", (500_000, 5_800_000))
    table = write(folder, "id,labels\nmap,cat;dog\n")
    line = ("--labels", table, "--masks", masks)
    result = prepare(run, folder, tiny_clip, *line)
    assert result.code == 0 and "holds no mask of any photo" in result.err
    assert "map.png or .tif; found: nothing" in result.err
    truth = np.random.default_rng(0).integers(0, 3, (1, 80, 80), dtype=np.uint8)
    scene(masks / "map.tif", "EPSG:32633", (500_100, 5_800_000), truth)
    result = prepare(run, folder, tiny_clip, *line)
    assert result.code == 1 and "does not lie where" in result.err
    scene(masks / "map.tif", "EPSG:32633", (500_000, 5_800_000), truth)
    result = prepare(run, folder, tiny_clip, *line)
    assert result.code == 0, result.err
    found = read_labels(tmp_path / "work/tiles-truth/map/00040-00000.png")
    np.testing.assert_array_equal(found, np.where(truth == 0, 255, truth)[0, 40:, :40])
    # With more than 254 classes, 255 is one of them in the masks.
    (tmp_path / "many.txt").write_text("\n".join(["cat", "dog", *map(str, range(300))]))
    shutil.rmtree(tmp_path / "work")
    result = prepare(run, folder, tiny_clip, *line, "--classes", tmp_path / "many.txt")
    assert result.code == 1 and "has nodata, and 255 is a class" in result.lines("error:")[0]


def test_an_edited_file_is_told(run: Run, folder: Path, tiny_clip: Path,
                                monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is read again only if its size or times differ."""
    monkeypatch.setattr(file_hashes, "_SETTLED", -10**12)
    work = folder.parent / "work"
    assert prepare(run, folder, tiny_clip, "--labels",
                   write(folder, "id,labels\nbig,cat\nsmall,dog\n")).code == 0
    read = []
    whole = file_hashes.identity_of_file
    monkeypatch.setattr(file_hashes, "identity_of_file",
                        lambda path: read.append(path.name) or whole(path))
    assert "was edited" not in run("status", "--stale", work=work).err
    assert "big.png" not in read
    Image.fromarray(np.zeros((100, 160, 3), np.uint8)).save(folder / "big.png")
    for command in (("status", "--stale"), ("update",)):
        assert "1 file that was cut up was edited: big.png" in run(*command, work=work).err
    assert prepare(run, folder, tiny_clip).code == 0
    assert "was edited" not in run("status", "--stale", work=work).err
    assert not np.asarray(Image.open(work / "tiles/big/00030-00040.png")).any()


def test_a_raster_as_large_as_a_photo(run: Run, folder: Path, tiny_clip: Path) -> None:
    """Without coordinates, pixel by pixel; of another size it is refused."""
    rasterio = pytest.importorskip("rasterio")
    (folder / "small.png").unlink()
    cover = np.zeros((100, 160), np.uint16)
    cover[:20, :20], cover[90:, 150:] = 1, 3
    raster = folder.parent / "cover.tif"
    for number, values in enumerate((cover, cover[1:])):
        with rasterio.open(raster, "w", driver="GTiff", count=1, height=len(values), width=160,
                           dtype="uint16") as file:
            file.write(values, 1)
        (folder.parent / "names.txt").write_text("a\nb\nc\n")
        result = prepare(run, folder, tiny_clip, "--labels", raster, "--classes",
                         folder.parent / "names.txt")
        assert result.code == number, result.err
    assert "different sizes" in result.err
    found = tags(folder)
    assert found["big/00000-00000"] == ("a",) and found["big/00060-00120"] == ("c",)
    assert sum(map(len, found.values())) == 2
