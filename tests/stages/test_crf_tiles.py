"""`crf --tile`: large photos at their own size, each tile a photo of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Run

from vpltool.core.crf import CrfKernels, mean_field, scores_of_labels, with_background
from vpltool.core.segment import part_of
from vpltool.engine.scored import ReadPhoto, Stored, refined_in_tiles
from vpltool.formats import read_labels
from vpltool.methods.inputs import ScoredPhoto

Array = np.ndarray[Any, Any]

KERNELS = CrfKernels(smooth_sxy=1, smooth_weight=3, bilateral_sxy=6, bilateral_srgb=13,
                      bilateral_weight=4, iterations=5)


def drawn(height: int, width: int) -> Array:
    """A photo of two discs on ground with texture."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    photo = np.full((height, width, 3), 90.0) + rng.normal(0, 6, (height, width, 1))
    for row, column, colour in ((0.3, 0.35, (200, 60, 50)), (0.7, 0.6, (60, 70, 210))):
        inside = np.hypot(rows - row * height, columns - column * width) < height / 5
        photo[inside] = np.array(colour) + rng.normal(0, 6, (inside.sum(), 1))
    return photo.clip(0, 255).astype(np.uint8)


def a_read(photo: Array, stored: Stored) -> ReadPhoto:
    classes = stored.labels().numpy()
    scored = ScoredPhoto(photo, np.empty(0, np.float32), ("",) * len(classes))
    return ReadPhoto("a", Path("a.png"), scored, classes, photo.shape[:2], stored=stored)


def cams_of(photo: Array) -> Stored:
    """Coarse CAMs of the two discs."""
    colours = photo.astype(np.float32)
    maps = torch.from_numpy(np.stack([colours[..., 0] - colours[..., 2],
                                      colours[..., 2] - colours[..., 0]])).clamp(0, 150) / 150
    size = (photo.shape[0] // 30, photo.shape[1] // 30)
    return Stored("cams", F.interpolate(maps[None], size=size, mode="area")[0],
                  torch.tensor([3, 900]), 1.0)


@pytest.mark.parametrize("size", [(40, 60), (17, 33), (5, 4)])
def test_a_part_is_that_of_the_whole_enlarged(size: tuple[int, int]) -> None:
    field = torch.rand(3, 5, 7)
    whole = F.interpolate(field[None], size=size, mode="bilinear", align_corners=False)[0]
    for top, left, height, width in ((0, 0, *size), (3, 2, 2, 2), (1, 0, size[0] - 1, 3)):
        torch.testing.assert_close(part_of(field, size, (top, left), (height, width)),
                                   whole[:, top : top + height, left : left + width])


def test_scores_of_a_part_are_those_of_the_whole() -> None:
    stored = cams_of(drawn(96, 120))
    whole, classes = stored.whole((96, 120))
    part, own = stored.part((96, 120), (30, 20), (40, 50))
    assert classes.tolist() == own.tolist() == [0, 3, 900]
    torch.testing.assert_close(part, whole[:, 30:70, 20:70])
    labels = torch.zeros(96, 120, dtype=torch.uint8)
    labels[:40], labels[60:, 60:] = 255, 7
    stored = Stored("predictions", labels, torch.tensor([0, 7]), 0)
    part, own = stored.part((96, 120), (50, 50), (30, 30))
    wanted, shown = scores_of_labels(labels[50:80, 50:80].numpy())
    assert torch.equal(part, wanted) and own.tolist() == shown.tolist() == [0, 7]


@pytest.mark.parametrize("kind", ["cams", "predictions"])
def test_tiles_say_what_the_whole_photo_says(kind: str) -> None:
    photo = drawn(240, 320)
    stored = cams_of(photo)
    if kind == "predictions":
        coarse = stored.whole((240, 320))[0].argmax(dim=0)
        labels = torch.tensor([0, 3, 9], dtype=torch.uint8)[coarse]
        stored = Stored(kind, labels, torch.tensor([0, 3, 9]), 0)
    scores = stored.whole((240, 320))[0].numpy()
    whole = mean_field(photo, scores, KERNELS).argmax(axis=0)
    parts = [*refined_in_tiles(a_read(photo, stored), 96, lambda tile: mean_field(
        tile.photo, tile.scores, KERNELS))]
    assert len(parts) > 2
    found = np.concatenate([part.argmax(axis=0) for part in parts])
    assert found.shape == whole.shape
    changed = (scores.argmax(axis=0) != whole).mean()
    apart = (found != whole).mean()
    assert changed > 0.005 and apart < 0.1 * changed, (changed, apart)


def test_memory_is_that_of_a_row_of_tiles() -> None:
    """All marginals of 24 megapixels would take 290 MB, and as much for each sum of them."""
    peak = Path("/proc/self/clear_refs")
    if not peak.exists():
        pytest.skip("Linux alone counts a peak anew")
    photo = np.zeros((6000, 4000, 3), np.uint8)
    stored = Stored("cams", torch.rand(2, 40, 30), torch.tensor([1, 2]), 1.0)
    before = resident("VmRSS")
    peak.write_text("5")
    rows = sum(part.shape[1] for part in refined_in_tiles(
        a_read(photo, stored), 256, lambda tile: tile.scores))
    assert rows == 6000
    assert resident("VmHWM") - before < 100


def resident(name: str) -> float:
    """Memory in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) / 1024


def test_small_photos_are_as_without_tiles(run: Run, ready: Path, tmp_path: Path) -> None:
    """Photos of 48 × 40 pixels: tiles of 48 divide none of them, those of 32 all."""
    found = {}
    for tile in (0, 48, 32):
        out = tmp_path / str(tile)
        result = run("crf", "--workers", 0, "--what", "text-refined", "--out", out, "--tile", tile,
                     "--confidence", 0.5, work=ready / "work")
        assert result.code == 0, result.err
        found[tile] = {path.stem: read_labels(path) for path in out.glob("*.png")}
        assert len(found[tile]) == 6
    for key, labels in found[0].items():
        assert np.array_equal(labels, found[48][key])
        assert labels.shape == found[32][key].shape


def test_the_background_of_cams_without_a_class() -> None:
    """A photo without tags has only background in each tile."""
    stored = Stored("cams", torch.zeros(0, 3, 4), torch.zeros(0, dtype=torch.long), 1.0)
    part, classes = stored.part((30, 40), (5, 5), (10, 12))
    assert classes.tolist() == [0] and torch.equal(part, with_background(torch.zeros(0, 10, 12)))
