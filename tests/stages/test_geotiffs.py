"""GeoTIFFs: read by windows, predicted by rows of tiles, written as GeoTIFF, exported."""

from __future__ import annotations

import json
import os
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TRAIN, Run, copy_workspace
from PIL import Image

from vpltool import Segmenter
from vpltool.core import segment as core_segment
from vpltool.formats import (
    Header,
    changes,
    describe,
    expect_header,
    read_labels,
    read_tensors,
    write_tensors,
)
from vpltool.formats.geopackage import read_geopackage
from vpltool.formats.rasters import Scaling, Scene, is_scene
from vpltool.stages import _scenes

rasterio = pytest.importorskip("rasterio")
pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")

PREDICT = ("predict", "--decoder", "tiny", "--tile", 32)
PLACE = rasterio.transform.from_origin(500_000, 5_800_000, 0.5, 0.5)


@pytest.fixture(autouse=True)
def several_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder of a few steps sees background alone; so each class is seen where it is most."""
    photo_logits = core_segment.photo_logits

    def centred(*arguments: Any) -> torch.Tensor:
        made = photo_logits(*arguments)
        return 20 * (made - made.mean(dim=(2, 3), keepdim=True))

    monkeypatch.setattr(core_segment, "photo_logits", centred)


@pytest.fixture
def work(layered: Path, tmp_path: Path, tiny_clip: Path) -> Path:
    return copy_workspace(layered, tmp_path / "base", tiny_clip) / "work"


def write(path: Path, bands: np.ndarray[Any, Any], **profile: Any) -> Path:
    given = {"driver": "GTiff", "count": len(bands), "height": bands.shape[1],
             "width": bands.shape[2], "dtype": bands.dtype.name, "crs": "EPSG:32633",
             "transform": PLACE, "tiled": True, "blockxsize": 16, "blockysize": 16} | profile
    with rasterio.open(path, "w", **{key: value for key, value in given.items()
                                     if value is not None}) as file:
        file.write(bands)
    return path


@pytest.fixture
def pixels() -> np.ndarray[Any, Any]:
    """RGB of a scene (100, 140, 3): shapes in the colours of the photos, on noise."""
    rng = np.random.default_rng(3)
    image = Image.fromarray(rng.integers(60, 120, (25, 35, 3), dtype=np.uint8)).resize((140, 100))
    made = np.asarray(image).copy()
    for number, (top, left) in enumerate(((5, 8), (40, 70), (70, 20), (60, 110), (10, 100))):
        made[top : top + 14, left : left + 16] = ((30, 60, 220), (40, 190, 40),
                                                  (230, 50, 40))[number % 3]
    return made


@pytest.fixture
def scene(tmp_path: Path, pixels: np.ndarray[Any, Any]) -> Path:
    """A scene with a corner of nodata."""
    bands = np.moveaxis(np.maximum(pixels, 1), 2, 0).copy()
    bands[:, 90:, 120:] = 0
    return write(tmp_path / "map.tif", bands, nodata=0)


def labels_of(path: Path) -> np.ndarray[Any, Any]:
    with rasterio.open(path) as file:
        found: np.ndarray[Any, Any] = file.read(1)
        return found


def test_a_scene_becomes_a_scene(run: Run, work: Path, scene: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels.tif"
    result = run(*PREDICT, scene, "--out", out, work=work)
    assert result.code == 0, result.err
    assert result.out.splitlines() == [str(out)]
    with rasterio.open(scene) as before, rasterio.open(out) as file:
        assert (file.crs, file.transform, file.shape) == (before.crs, before.transform,
                                                          before.shape)
        assert file.nodata == 255 and file.dtypes == ("uint8",) and file.count == 1
        assert file.compression.name == "deflate" and file.block_shapes == [(512, 512)]
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        labels = file.read(1)
        assert file.tags()["CLASS_1"] == "bar"
        assert file.colormap(1)[1][:3] == (128, 0, 0)
    assert (labels[90:, 120:] == 255).all() and (labels != 255).sum() == 100 * 140 - 10 * 20
    assert len(np.unique(labels)) > 2, "one class would hide a shift"
    assert expect_header(out, "scenes").options["tile"] == "32"
    assert list(tmp_path.glob("labels*")) == [out], "rows are gone"


def test_the_rows_are_those_of_the_whole_photo(run: Run, work: Path, tmp_path: Path,
                                               pixels: np.ndarray[Any, Any]) -> None:
    """A photo whose sides are multiples of the patch is not resized; so both must be the same."""
    cut = np.ascontiguousarray(pixels[:96, :136])
    out = tmp_path / "labels.tif"
    scene = write(tmp_path / "map.tif", np.moveaxis(cut, 2, 0))
    assert run(*PREDICT, scene, "--out", out, work=work).code == 0
    segmenter = Segmenter.load(work / "decoder/tiny.safetensors")
    whole = segmenter(cut, tile=32)
    np.testing.assert_array_equal(labels_of(out), whole.labels)
    assert len(np.unique(whole.labels)) > 2, "one class would hide a shift"
    assert (whole.labels != segmenter(cut).labels).any(), "tiles are seen"


def test_max_side_scales_a_scene_down_like_a_photo(run: Run, work: Path, tmp_path: Path,
                                                   pixels: np.ndarray[Any, Any]) -> None:
    large = np.asarray(Image.fromarray(pixels).resize((409, 303), Image.Resampling.BICUBIC))
    out = tmp_path / "labels.tif"
    scene = write(tmp_path / "map.tif", np.moveaxis(large, 2, 0))
    result = run(*PREDICT, scene, "--max-side", 130, "--out", out, work=work)
    assert result.code == 0, result.err
    whole = Segmenter.load(work / "decoder/tiny.safetensors", max_side=130)(large, tile=32)
    # GDAL and Pillow round pixels differently.
    assert (labels_of(out) == whole.labels).mean() > 0.99
    assert len(np.unique(whole.labels)) > 2
    full = Segmenter.load(work / "decoder/tiny.safetensors")(large, tile=32)
    assert (full.labels != whole.labels).mean() > 0.1


def test_a_stopped_run_goes_on(run: Run, work: Path, scene: Path, tmp_path: Path,
                               monkeypatch: pytest.MonkeyPatch) -> None:
    out, other = tmp_path / "labels.tif", tmp_path / "other.tif"
    assert run(*PREDICT, scene, "--out", other, work=work).code == 0
    write_labels = _scenes.write_labels
    written = []

    def stop(path: Path, *arguments: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write_labels(path, *arguments)

    monkeypatch.setattr(_scenes, "write_labels", stop)
    assert run(*PREDICT, scene, "--out", out, work=work).code != 0
    assert not out.exists() and len(written) == 2
    monkeypatch.setattr(_scenes, "write_labels", write_labels)
    left = tmp_path / f".part-{'0a' * 8}.tif.plain.tif"
    left.write_text("all labels, as a killed run leaves them")
    os.utime(left, (0, 0))
    again = run(*PREDICT, scene, "--out", out, work=work)
    assert again.code == 0 and "2 of 4 rows of tiles are done already" in again.err
    assert not left.exists()
    np.testing.assert_array_equal(labels_of(out), labels_of(other))
    assert "already exists" in run(*PREDICT, scene, "--out", out, work=work).err
    refused = run(*PREDICT, scene, "--out", out, "--flip", work=work)
    assert refused.code == 1 and "--overwrite" in refused.lines("hint:")[0]


def test_bands_and_their_scale(tmp_path: Path, pixels: np.ndarray[Any, Any]) -> None:
    """16 bits and bands in another order give the same picture, up to what percentiles cut."""
    red, green, blue = np.moveaxis(pixels, 2, 0).astype(np.uint16)
    path = write(tmp_path / "wide.tif", np.stack([blue, green, red, red * 0]) * 40 + 100)
    seen = Scene(path, Scaling.parse("3,2,1", "0,100"))
    low, high = pixels.reshape(-1, 3).min(axis=0), pixels.reshape(-1, 3).max(axis=0)
    wanted = (pixels.astype(float) - low) / (high - low) * 255
    np.testing.assert_allclose(seen.read(0, 0, 100, 140), wanted, atol=0.51)
    # Beyond the edge the last row is repeated.
    beyond = seen.read(96, 132, 8, 16)
    np.testing.assert_array_equal(beyond[4:, 8:], np.broadcast_to(beyond[3, 7], (4, 8, 3)))
    assert Scene(path).read(0, 0, 100, 140).max() == 255
    grey = Scene(path, Scaling.parse("2", "")).read(0, 0, 100, 140)
    assert (grey[..., 0] == grey[..., 2]).all()


def test_overviews_do_not_change_the_scale(tmp_path: Path) -> None:
    """Overviews that are means hide the darkest and the brightest pixels."""
    rng = np.random.default_rng(0)
    path = write(tmp_path / "wide.tif", rng.integers(1, 4000, (3, 1300, 1100), dtype=np.uint16),
                 nodata=0)
    before = Scene(path).limits
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4], rasterio.enums.Resampling.average)
    after = Scene(path).limits
    np.testing.assert_array_equal(after, before)
    assert after[0].max() < 100 and after[1].min() > 3900


def test_more_scenes_than_files_may_be_open(run: Run, work: Path, tmp_path: Path,
                                            pixels: np.ndarray[Any, Any]) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(40):
        write(folder / f"{number}.tif", np.moveaxis(pixels, 2, 0))
    tags = tmp_path / "tags.csv"
    tags.write_text("id,labels\n" + "".join(f"{number},box\n" for number in range(40)))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE,
                       (len(list(Path("/proc/self/fd").iterdir())) + 25, limits[1]))
    try:
        result = run("prepare", "folder", folder, "--labels", tags, "--tile", 64,
                     work=tmp_path / "cut")
        assert result.code == 0, result.err
        result = run("predict", "--decoder", "tiny", "--tile", 96, folder, work=work)
        assert result.code == 0, result.err
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def cut_with(work: Path, **call: str) -> None:
    """Let the photos of a workspace be cut from GeoTIFFs with these settings."""
    changes.add_change(work, {}, {}, {}, {"method": "folder", **call})


def test_bands_are_those_of_the_training(run: Run, work: Path, scene: Path, tmp_path: Path) -> None:
    """Of a decoder those of the workspace, of a bundle those in it; options win."""
    with rasterio.open(scene) as file:
        turned = write(tmp_path / "bgr.tif", file.read([3, 2, 1]), nodata=0)
    before, bundle = work / "exports/tiny.safetensors", tmp_path / "tiny.safetensors"
    assert run("export", "bundle", "--what", "tiny", "--measure", 0, work=work).code == 0
    assert "bands" not in expect_header(before, "bundle").facts["about"]
    cut_with(work, bands="3,2,1", percentiles="0,100")
    assert run("export", "bundle", "--what", "tiny", "--out", bundle, "--measure", 0,
               work=work).code == 0
    card = bundle.with_name("tiny.safetensors.md").read_text()
    assert "seen with bands 3,2,1 and percentiles 0,100." in card
    out = tmp_path / "out"
    wanted = run(*PREDICT, scene, "--out", out / "rgb.tif", "--bands", "1,2,3",
                 "--percentiles", "0,100", work=work)
    assert wanted.code == 0 and "--bands" not in wanted.err
    for name, how in (("a", ("--decoder", "tiny")), ("b", ("--segmenter", bundle))):
        result = run("predict", *how, "--tile", 32, turned, "--out", out / f"{name}.tif", work=work)
        assert result.code == 0, result.err
        assert "--bands 3,2,1, --percentiles 0,100: as tiny was trained" in result.err
        assert expect_header(out / f"{name}.tif", "scenes").options["bands"] == "3,2,1"
        np.testing.assert_array_equal(labels_of(out / f"{name}.tif"), labels_of(out / "rgb.tif"))
    assert run(*PREDICT, turned, "--bands", "1,2,3", "--percentiles", "0,100", "--out",
               out / "c.tif", work=work).code == 0
    assert (labels_of(out / "c.tif") != labels_of(out / "rgb.tif")).any()


def test_tiles_are_scaled_down_as_in_training(run: Run, work: Path, scene: Path, tmp_path: Path
                                              ) -> None:
    """Photos were tiles of twice the side to which the training scaled them down."""
    side = expect_header(work / "decoder/tiny.safetensors", "decoder").facts["max_side"]
    photo = tmp_path / "photos/map.png"
    photo.parent.mkdir()
    with rasterio.open(scene) as file:
        Image.fromarray(np.moveaxis(file.read(), 0, 2)).save(photo)
    out, before = tmp_path / "out", ("--tile", 32, "--max-side", 70)
    for what, name in ((scene, "a.tif"), (photo, "a.png")):
        result = run("predict", "--decoder", "tiny", *before, what, "--out", out / name, work=work)
        assert result.code == 0 and "tiles are scaled" not in result.err
    cut_with(work, tile=str(2 * side))
    for what, name in ((scene, "b.tif"), (photo, "b.png")):
        result = run("predict", "--decoder", "tiny", "--tile", 64, what, "--out", out / name,
                     work=work)
        assert result.code == 0, result.err
        assert result.err.count("tiles are scaled by 0.5, as tiny was trained") == 1
    np.testing.assert_array_equal(labels_of(out / "a.tif"), labels_of(out / "b.tif"))
    np.testing.assert_array_equal(read_labels(out / "a.png"), read_labels(out / "b.png"))
    bundle = tmp_path / "tiny.safetensors"
    assert run("export", "bundle", "--what", "tiny", "--out", bundle, "--measure", 0,
               work=work).code == 0
    seen = Segmenter.load(bundle)(photo, tile=64).labels
    np.testing.assert_array_equal(seen, read_labels(out / "a.png"))
    assert (Segmenter.load(bundle, max_side=0)(photo, tile=64).labels != seen).any()


def of_side(work: Path, side: int, **facts: object) -> None:
    """Write the decoder `small`: `tiny`, as if it had been trained at another side."""
    path = work / "decoder/tiny.safetensors"
    header, tensors = read_tensors(path, "decoder")
    write_tensors(path.with_name("small.safetensors"), replace(
        header, facts=header.facts | {"max_side": side} | facts), tensors)


@pytest.mark.parametrize(("before", "after", "changed"), [
    ({"bands": "3,2,1", "percentiles": "0,100"}, {"bands": "1,2,3"},
     {"bands": "1,2,3", "percentiles": None}), ({"bands": "3,2,1"}, {}, {"bands": None}),
    ({}, {"tile": "96"}, {"tile_scale": 0.5, "max_side": 48}),
    ({"tile": "96"}, {}, {"tile_scale": None, "max_side": 0})])
def test_update_asks_the_new_training(before: dict[str, str], after: dict[str, str],
                                      changed: dict[str, object], run: Run, work: Path,
                                      scene: Path, tmp_path: Path, pixels: np.ndarray[Any, Any]
                                      ) -> None:
    """What was not given is as in the latest training: for a scene, and for tiles of photos."""
    assert run("update", work=work).code == 0
    holiday = tmp_path / "holiday"
    holiday.mkdir()
    Image.fromarray(pixels).save(holiday / "sea.png")
    of_side(work, 48)
    cut_with(work, **before)
    lines = [("predict", "--decoder", "small", "--tile", 64, what) for what in (scene, holiday)]
    for line in lines:
        assert run(*line, work=work).code == 0
    # Trained again: the file has other bytes.
    of_side(work, 48, trained=2)
    cut_with(work, **after)
    result = run("update", work=work)
    assert result.code == 0, result.err
    assert "scenes/small/map.tif" in result.out and "predictions/small/holiday" in result.out
    options = expect_header(work / "scenes/small/map.tif", "scenes").options
    assert {name: options.get(name) for name in changed} == changed
    for line in lines:
        again = run(*line, work=work)
        assert again.code == 0, again.err
    assert run("status", "--stale", work=work).out == "no result is stale\n"


def test_a_photo_of_one_tile(run: Run, work: Path, tmp_path: Path, pixels: np.ndarray[Any, Any]
                             ) -> None:
    """Seen as in training; beside tiles that are not scaled down, at full size."""
    of_side(work, 48)
    photo = tmp_path / "map.png"
    Image.fromarray(pixels[:96, :96]).save(photo)
    sides = []
    for number, cut in enumerate(({"tile": "96"}, {})):
        cut_with(work, **cut)
        out = tmp_path / f"{number}.png"
        result = run("predict", "--decoder", "small", "--tile", 96, photo, "--out", out, work=work)
        assert result.code == 0, result.err
        seen = Segmenter.load(work / "decoder/small.safetensors")(photo, tile=96)
        np.testing.assert_array_equal(read_labels(out), seen.labels)
        sides.append((seen.field.shape[1], describe(out).header.options["max_side"]))
    assert sides == [(4 * 48 // 8, 48), (4 * 96 // 8, 0)]


def test_a_tile_is_too_small_once_it_is_scaled(run: Run, work: Path, scene: Path) -> None:
    of_side(work, 48)
    cut_with(work, tile="96")
    result = run("predict", "--decoder", "small", "--tile", 40, scene, work=work)
    (error,) = result.lines("error:")
    assert "--tile 40, scaled to 20 pixels as in training, is less than 3 patches of 8" in error
    assert "for example --tile 512" in result.lines("hint:")[0]


def test_scenes_of_an_earlier_segmenter(run: Run, work: Path, scene: Path, tmp_path: Path) -> None:
    """`status` lists those in scenes/, and `update` makes them again, as hints say."""
    out = tmp_path / "out.tif"
    assert run("update", work=work).code == 0
    for more in ((), ("--out", out)):
        assert run(*PREDICT, scene, *more, work=work).code == 0
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(work / "scenes/mine.tif")
    assert "scenes/tiny/map.tif" in run("status", work=work).out
    assert run("status", "--stale", work=work).out == "no result is stale\n"
    before = run(*TRAIN, "--iters", 2, "--name", "other", work=work)
    assert before.code == 0, before.err
    (work / "decoder/other.safetensors").replace(work / "decoder/tiny.safetensors")
    for more in ((), ("--out", out)):
        refused = run(*PREDICT, scene, *more, work=work)
        assert refused.code == 1 and "--update makes it again" in refused.lines("hint:")[0]
    assert "stale  scenes/tiny/map.tif" in run("status", "--stale", work=work).out
    result = run("update", work=work)
    assert "scenes/tiny/map.tif" in result.out, result.err
    assert "already exists" in run(*PREDICT, scene, work=work).err
    assert run(*PREDICT, scene, "--out", out, "--update", work=work).code == 0


def test_an_edited_scene_is_stale(run: Run, work: Path, scene: Path) -> None:
    assert run("update", work=work).code == 0
    assert run(*PREDICT, scene, work=work).code == 0
    with rasterio.open(scene, "r+") as file:
        file.write(255 - file.read())
    assert "map.tif has changed" in run("status", "--stale", work=work).out
    assert "scenes/tiny/map.tif" in run("update", work=work).out
    assert "already exists" in run(*PREDICT, scene, work=work).err
    scene.unlink()
    assert run("status", "--stale", work=work).out == "no result is stale\n", "it was moved away"


def test_polygons(run: Run, work: Path, scene: Path, tmp_path: Path) -> None:
    assert run(*PREDICT, scene, work=work).code == 0
    result = run("export", "geopackage", "--min-area", 0, work=work)
    assert result.code == 0, result.err
    (path,) = map(Path, result.out.splitlines())
    labels = labels_of(work / "scenes/tiny/map.tif")
    (layer,) = read_geopackage(path)
    assert layer.system == "EPSG:32633"
    shapes = [({"type": "Polygon", "coordinates": polygon}, feature.values["label"])
              for feature in layer.features for polygon in feature.polygons]
    again = rasterio.features.rasterize(shapes, labels.shape, transform=PLACE)
    np.testing.assert_array_equal(again, np.where(labels == 255, 0, labels))
    names = {feature.values["label"]: feature.values["class"] for feature in layer.features}
    assert names == {label: ("bar", "box", "disc")[label - 1] for label in names}


@pytest.mark.parametrize("place", [
    PLACE, rasterio.transform.from_origin(9.005, 48.012, 1.4e-5, 1e-5),
    rasterio.transform.Affine(1e-3, 2e-4, 3e7, 2e-4, -1e-3, -2e7)])
def test_the_smallest_region_is_counted_in_pixels(place: Any, run: Run, work: Path,
                                                  tmp_path: Path) -> None:
    """A region has the same size wherever it lies: 15 pixels are left out, 16 are not."""
    labels = np.zeros((400, 600), np.uint8)
    labels[300:304, 500:504] = labels[100:108, 100:102] = 1
    labels[50:53, 500:505] = labels[300:305, 50:53] = 2
    labels[350:352, 100:112], labels[350:352, 105:108] = 3, 0
    path = write(tmp_path / "labels.tif", labels[None], transform=place)
    with rasterio.open(path, "r+") as file:
        file.update_tags(vpltool=Header("scenes", "predict").to_json())
    result = run("export", "geopackage", "--what", path, work=work)
    (layer,) = read_geopackage(Path(result.out.strip()))
    assert [feature.values["label"] for feature in layer.features] == [1, 1]
    assert "2 regions" in result.err


def test_gdal_reads_the_polygons(run: Run, work: Path, scene: Path) -> None:
    pyogrio = pytest.importorskip("pyogrio")
    assert run(*PREDICT, scene, work=work).code == 0
    (path,) = run("export", "geopackage", work=work).out.splitlines()
    about = pyogrio.read_info(path)
    assert about["crs"] == "EPSG:32633" and about["geometry_type"] == "Polygon"
    (layer,) = read_geopackage(Path(path))
    assert about["features"] == len(layer.features) > 0
    left, bottom, right, top = about["total_bounds"]
    assert 500_000 <= left < right <= 500_070 and 5_799_950 <= bottom < top <= 5_800_000


def spoilt(tmp_path: Path, pixels: np.ndarray[Any, Any], how: str) -> list[object]:
    bands = np.moveaxis(pixels, 2, 0)
    if how == "all nodata":
        return [write(tmp_path / "a.tif", bands * 0, nodata=0)]
    if how == "truncated":
        path = write(tmp_path / "a.tif", bands)
        path.write_bytes(path.read_bytes()[:20_000])
        return [path]
    if how == "other bands":
        return [write(tmp_path / "a.tif", bands), write(tmp_path / "b.tif", bands[:1])]
    path = write(tmp_path / "a.tif", bands)
    return [path, *{"no such band": ("--bands", "5,2,1"), "no band": ("--bands", "red"),
                    "percentiles": ("--percentiles", "98,2"),
                    "tile": ("--tile", "big"), "small": ("--tile", "16")}[how]]


@pytest.mark.parametrize(("how", "said"), [
    ("all nodata", "has no valid pixel: all is nodata, 0"),
    ("truncated", "cannot be read as a GeoTIFF"),
    ("other bands", "b.tif has 1 of uint8"),
    ("no such band", "has 3 bands, and"), ("no band", "is not three numbers of bands, or one"),
    ("percentiles", "is not two of 0 to 100"), ("tile", "neither a number of pixels nor auto"),
    ("small", "less than 3 patches of 8 pixels")])
def test_bad_input_is_one_line(how: str, said: str, run: Run, work: Path, tmp_path: Path,
                               pixels: np.ndarray[Any, Any]) -> None:
    result = run(*PREDICT, *spoilt(tmp_path, pixels, how), "--out", tmp_path / "out", work=work)
    (error,) = result.lines("error:")
    assert result.code == 1 and said in error, result.err
    assert not list((tmp_path / "out").rglob("*.tif"))


@pytest.mark.parametrize(("placed", "out", "said", "hint"), [
    (True, "x.png", "the labels of a GeoTIFF are a GeoTIFF", "x.tif"),
    (True, "x.gpkg", "the labels of a GeoTIFF are a GeoTIFF", "x.tif"),
    (False, "x.tif", "the labels of a photo are a PNG", "x.png"),
    (True, "-", "results are files; standard output is not supported", "a file or a folder")])
def test_out_fits_what_is_written(placed: bool, out: str, said: str, hint: str, run: Run,
                                  work: Path, tmp_path: Path, pixels: np.ndarray[Any, Any],
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scene = write(tmp_path / "a.tif", np.moveaxis(pixels, 2, 0),
                  **({} if placed else {"crs": None, "transform": None}))
    result = run(*PREDICT, scene, "--out", out, work=work)
    assert result.code == 1 and said in result.lines("error:")[0], result.err
    assert hint in result.lines("hint:")[0]
    assert not Path(out).exists()


def test_a_damaged_scene_does_not_stop_the_others(run: Run, work: Path, tmp_path: Path,
                                                  pixels: np.ndarray[Any, Any]) -> None:
    folder = tmp_path / "scenes"
    folder.mkdir()
    for name in "abc":
        write(folder / f"{name}.tif", np.moveaxis(pixels, 2, 0))
    # Of one, only the pixels of the last rows are gone.
    for name, size in (("a", 300), ("b", -3000)):
        path = folder / f"{name}.tif"
        path.write_bytes(path.read_bytes()[:size])
    result = run(*PREDICT, folder, work=work)
    (error,) = result.lines("error:")
    assert result.code == 1 and error.startswith("2 of 3 GeoTIFFs failed, the others are done: ")
    assert "a.tif cannot be read" in error and "b.tif cannot be read" in error
    assert result.out.splitlines() == [str(work / "scenes/tiny/c.tif")]
    assert labels_of(work / "scenes/tiny/c.tif").shape == (100, 140)


@pytest.mark.parametrize("others", [(), ("--flip",)])
def test_what_another_command_finishes_is_kept(others: tuple[str, ...], run: Run, work: Path,
                                               scene: Path, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    second = Path(shutil.copy(scene, tmp_path / "b.tif"))
    finished, out = tmp_path / "finished.tif", tmp_path / "out"
    assert run(*PREDICT, second, *others, "--out", finished, work=work).code == 0
    predict = _scenes._predict

    def slow(*arguments: Any) -> None:
        predict(*arguments)
        shutil.copy(finished, out / "b.tif")

    monkeypatch.setattr(_scenes, "_predict", slow)
    result = run(*PREDICT, scene, second, "--out", out, work=work)
    assert (out / "b.tif").read_bytes() == finished.read_bytes()
    assert (out / "map.tif").exists()
    if others:
        assert result.code == 1 and "was made with other settings" in result.lines("error:")[0]
        assert "GeoTIFFs failed" not in result.err
    else:
        assert result.code == 0 and "b.tif already exists" in result.err


def test_a_scene_named_twice(run: Run, work: Path, scene: Path, tmp_path: Path,
                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("maps").mkdir()
    there = scene.rename(tmp_path / "maps/map.tif")
    result = run(*PREDICT, there, "maps/map.tif", "maps", work=work)
    assert result.code == 0, result.err
    assert result.out.splitlines() == [str(work / "scenes/tiny/map.tif")]


def test_no_coordinate_system_is_said_once_and_kept(run: Run, work: Path, tmp_path: Path,
                                                    pixels: np.ndarray[Any, Any]) -> None:
    scene = write(tmp_path / "a.tif", np.moveaxis(pixels, 2, 0), crs=None)
    out = tmp_path / "out.tif"
    result = run(*PREDICT, scene, "--out", out, work=work)
    assert result.code == 0, result.err
    assert result.err.count("has no coordinate reference system") == 1
    with rasterio.open(out) as file:
        assert file.crs is None and file.transform == PLACE


def test_what_is_a_scene(tmp_path: Path, pixels: np.ndarray[Any, Any]) -> None:
    bands = np.moveaxis(pixels, 2, 0)
    assert is_scene(write(tmp_path / "a.tif", bands))
    assert is_scene(write(tmp_path / "b.tif", np.concatenate([bands, bands]).astype(np.uint16),
                          crs=None, transform=None))
    Image.fromarray(pixels).save(tmp_path / "c.tif")
    assert not is_scene(tmp_path / "c.tif")
    (tmp_path / "d.tif").write_text(json.dumps({}))
    assert not is_scene(tmp_path / "d.tif")
    (tmp_path / ".tiles").mkdir()
    for hidden in (".tiles/a.tif", ".a.tif"):
        shutil.copy(tmp_path / "a.tif", tmp_path / hidden)
    assert [path.name for path in _scenes.scenes_among([tmp_path])] == ["a.tif", "b.tif"]


def test_a_tiff_that_is_neither_is_a_photo_among_photos(
    run: Run, work: Path, pixels: np.ndarray[Any, Any], tmp_path: Path,
) -> None:
    """Pillow reads no floats of 64 bits; beside photos it fails alone, and GeoTIFFs are refused."""
    mixed, out = tmp_path / "mixed", tmp_path / "labels"
    mixed.mkdir()
    Image.fromarray(pixels).save(mixed / "a.png")
    write(mixed / "b.tif", np.ones((1, 48, 48)), crs=None, transform=None)
    result = run("predict", mixed, "--decoder", "tiny", "--out", out, work=work)
    assert result.code == 1
    assert "1 of 2 photos failed" in result.lines("error:")[0]
    assert "a TIFF with 1 value of 64 bits a pixel" in result.lines("error:")[0]
    assert (out / "a.png").exists()
    write(mixed / "c.tif", np.ones((1, 48, 48), np.uint8))
    result = run("predict", mixed, "--decoder", "tiny", "--out", out, work=work)
    assert "c.tif is a GeoTIFF, and others are photos" in result.lines("error:")[0]
