"""docs/large.md on the demo's scene: polygons, tiles, masks, a GeoTIFF of labels, polygons."""

from __future__ import annotations

import re
import shlex
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from test_docs import ROOT, blocks, commands

rasterio = pytest.importorskip("rasterio")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    """The folder in which the lines of the page's walk have run."""
    folder = tmp_path_factory.mktemp("large")
    (walk,) = (block for block in blocks(ROOT / "docs/large.md") if "demo --scene" in block)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("vpltool.parallel.device.default_workers", lambda: 0)
        for line in commands(walk):
            result = run(*shlex.split(line)[1:])
            assert result.code == 0, f"{line}: {result.err}"
    return folder


def test_gdal_reads_the_labels(made: Path) -> None:
    with (rasterio.open(made / "work/demo/scene/photos/map.tif") as scene,
          rasterio.open(made / "map-labels.tif") as labels):
        assert (labels.crs, labels.transform, labels.shape) == (scene.crs, scene.transform,
                                                                scene.shape)
        assert labels.nodata == 255 and labels.overviews(1)
        assert len(np.unique(labels.read(1))) > 3
        assert labels.checksum(1)


def test_tiles_have_the_tags_of_the_objects_in_them(made: Path) -> None:
    """As the true mask says, which the polygons were drawn around."""
    from vpltool.formats import open_workspace, read_labels

    workspace = open_workspace(made / "work/map")
    truth = read_labels(made / "work/demo/scene/truth/map.png")
    names = open_workspace(made / "work/demo").classes
    photos = workspace.photos()
    assert len(photos) == 48
    for photo in photos:
        top, left = map(int, re.findall(r"\d+", photo.id)[-2:])
        tile = truth[top : top + 240, left : left + 240]
        shown = {names[label - 1] for label in range(1, len(names) + 1)
                 if (tile == label).mean() > 0.02}
        assert shown <= set(photo.tags), photo.id


def test_nothing_is_stale(made: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles are compared with what would be cut now."""
    monkeypatch.chdir(made)
    result = run("status", "--stale", work=Path("work/map"))
    assert result.code == 0 and result.out == "no result is stale\n", result.out


def test_the_polygons_are_the_regions_of_the_labels(made: Path) -> None:
    pyogrio = pytest.importorskip("pyogrio")
    about = pyogrio.read_info(made / "map.gpkg")
    assert about["crs"] == "EPSG:32633" and about["features"] > 10
    with sqlite3.connect(made / "map.gpkg") as base:
        assert base.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = {label for label, in base.execute("SELECT DISTINCT label FROM regions")}
    with rasterio.open(made / "map-labels.tif") as labels:
        assert found <= set(np.unique(labels.read(1)).tolist()) - {0, 255}
