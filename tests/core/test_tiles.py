"""Tiles: they cover a photo once, and each is seen as a photo of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from conftest import Run, save_clip
from PIL import Image

from vpltool.clip.load import load_clip
from vpltool.core.grids import blend, encode_windows, rim_weights, spans
from vpltool.core.vit import VisionTower
from vpltool.formats import open_input, open_workspace

See = Callable[[Sequence[tuple[int, int]]], torch.Tensor]


@pytest.fixture(scope="module")
def vision(tiny_clip: Path) -> VisionTower:
    return load_clip("", str(tiny_clip), torch.device("cpu")).vision


@pytest.mark.parametrize("overlap", [0, 0.25, 0.9])
@pytest.mark.parametrize("window", [1, 2, 7, 16])
@pytest.mark.parametrize("length", [1, 7, 8, 31, 250])
def test_windows_cover_an_axis_once(length: int, window: int, overlap: float) -> None:
    found = spans(length, window, overlap)
    assert [place for span in found for place in range(span.first, span.end)] == [*range(length)]
    for span in found:
        assert span.start <= span.first < span.end <= span.start + min(window, length)
        assert span.end <= length
    for one, other in zip(found, found[1:], strict=False):
        assert one.start + window - other.start >= min(round(window * overlap), window - 1)


def encoded(vision: VisionTower, pixels: torch.Tensor, window: int, overlap: float = 0.25,
            **more: object) -> dict[str, torch.Tensor]:
    given = {"at_once": 3, "patches": "block", "layers": [0, 1], "calibration": None,
             "store": torch.float32} | more
    return encode_windows(vision, pixels, window, overlap, **given)  # type: ignore[arg-type]


def test_one_window_is_the_whole_photo(vision: VisionTower) -> None:
    pixels = torch.randn(1, 3, 6 * vision.patch, 9 * vision.patch)
    whole = vision(pixels, attention=False, layers=[0, 1])
    found = encoded(vision, pixels, 9)
    assert torch.equal(found["patches"], whole.patches)
    assert torch.equal(found["layers"], whole.layers)


def test_each_window_is_a_photo_of_its_own(vision: VisionTower) -> None:
    """Two windows beside each other: each half of the photo is that of the nearer one."""
    unit = vision.patch
    pixels = torch.randn(1, 3, 4 * unit, 8 * unit)
    found = encoded(vision, pixels, 5)["patches"].unflatten(1, (4, 8))
    left, right = (vision(pixels[..., start * unit : (start + 5) * unit], attention=False).patches
                   .unflatten(1, (4, 5)) for start in (0, 3))
    torch.testing.assert_close(found, torch.cat([left[:, :, :4], right[:, :, 1:]], dim=2))
    assert (found - vision(pixels, attention=False).patches.unflatten(1, (4, 8))).abs().max() > 1e-3
    assert "layers" not in encoded(vision, pixels, 5, layers=[])
    assert "patches" not in encoded(vision, pixels, 5, patches="none")


def make_work(base: Path, size: tuple[int, int], run: Run) -> Path:
    (base / "photos").mkdir(parents=True)
    noise = torch.randint(0, 255, (24, 32, 3), dtype=torch.uint8).numpy()
    Image.fromarray(noise).resize(size).save(base / "photos/a.png")
    Image.fromarray(noise).resize((64, 48)).save(base / "photos/b.png")
    (base / "tags.csv").write_text("id,labels\na,x\nb,y\n")
    save_clip(base / "clip")
    assert run("prepare", "folder", base / "photos", "--labels", base / "tags.csv", "--pretrained",
               base / "clip", work=base / "work").code == 0
    return base / "work"


def test_extract_in_windows(tmp_path: Path, run: Run) -> None:
    """Photos that a window holds are as without one; larger ones have windows."""
    work = make_work(tmp_path, (256, 192), run)
    found = {}
    for window in (0, 128, 256):
        more = ("--window", window) if window else ()
        result = run("extract", *more, "--max-side", 0, "--overwrite", "--workers", 0, "--keep",
                     "patches,layers", work=work)
        assert result.code == 0, result.output
        stored = open_input(open_workspace(work).path / "features/train", ("features",))
        found[window] = {key: stored.read_tensors(key) for key in "ab"}
    for name in ("grid", "patches", "layers", "layer_index"):
        assert torch.equal(found[256]["a"][name], found[0]["a"][name])
        assert found[128]["a"][name].shape == found[0]["a"][name].shape
        for window in (128, 256):
            assert torch.equal(found[window]["b"][name], found[0]["b"][name])
    assert not torch.equal(found[128]["a"]["patches"], found[0]["a"]["patches"])


def test_what_all_patches_share_is_refused(tmp_path: Path, run: Run) -> None:
    work = make_work(tmp_path, (64, 48), run)
    for more, said in ((("--keep", "patches,attention"), "--keep patches"),
                       (("--max-side", 128), "--max-side 0"), (("--window", 3), "--window 256")):
        result = run("extract", "--window", 256, "--max-side", 0, *more, work=work)
        assert result.code == 1
        assert said in " ".join(result.err.split())
        assert not (work / "features").exists()
    assert run("extract", "--window", 256, "--max-side", 0, "--workers", 0,
               work=work).code == 0
    stored = open_input(work / "features/train", ("features",))
    assert {*stored.read_tensors("a")} == {"grid", "patches"}


def test_memory_is_that_of_a_window(vision: VisionTower) -> None:
    """49,152 patches: attention over all of them would take 10 GB a head."""
    pixels = torch.zeros(1, 3, 2048, 1536)
    window = 256 // vision.patch
    peak = Path("/proc/self/clear_refs")
    if not peak.exists():
        pytest.skip("Linux alone counts a peak anew")
    before = resident("VmRSS")
    peak.write_text("5")
    found = encoded(vision, pixels, window, layers=[], store=torch.float16)["patches"]
    assert found.shape[1] == 2048 * 1536 // vision.patch**2
    assert resident("VmHWM") - before < 200


def resident(name: str) -> float:
    """Memory in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) / 1024


def positions(grid: tuple[int, int], tile: int, fineness: int = 2) -> See:
    """What tiles would say that see where they are: row, and column."""
    rows, columns = torch.meshgrid(*(torch.arange(fineness * side).float() for side in grid),
                                   indexing="ij")
    whole = torch.stack([rows, columns])

    def see(corners: Sequence[tuple[int, int]]) -> torch.Tensor:
        return torch.stack([whole[:, fineness * top : fineness * (top + min(tile, grid[0])),
                                  fineness * left : fineness * (left + min(tile, grid[1]))]
                            for top, left in corners])

    return see


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize(("grid", "tile"), [((9, 14), 4), ((3, 14), 4), ((4, 4), 4), ((5, 5), 4),
                                            ((23, 2), 7), ((6, 6), 1)])
def test_tiles_that_agree_are_blended_into_what_they_say(grid: tuple[int, int], tile: int,
                                                         overlap: float) -> None:
    parts = list(blend(grid, tile, overlap, positions(grid, tile), fineness=2))
    tops = [top for top, _ in parts]
    assert tops == [span.start for span in spans(grid[0], tile, overlap)]
    assert [2 * top for top in (*tops[1:], grid[0])] == [
        2 * top + part.shape[1] for top, part in parts]
    found = torch.cat([part for _, part in parts], dim=1)
    torch.testing.assert_close(found, positions(grid, max(grid))([(0, 0)])[0])


@pytest.mark.parametrize("overlap", [0, 0.25, 0.6])
def test_a_later_row_of_tiles_is_the_same_by_itself(overlap: float) -> None:
    grid, tile = (31, 9), 6
    noise: dict[tuple[int, int], torch.Tensor] = {}

    def see(corners: Sequence[tuple[int, int]]) -> torch.Tensor:
        return torch.stack([noise.setdefault(corner, torch.rand(3, 24, 24)) for corner in corners])

    whole = list(blend(grid, tile, overlap, see, fineness=4))
    for first in range(len(whole)):
        rest = list(blend(grid, tile, overlap, see, fineness=4, first=first))
        assert [top for top, _ in rest] == [top for top, _ in whole[first:]]
        for (_, one), (_, other) in zip(rest, whole[first:], strict=True):
            assert torch.equal(one, other)


def test_the_middle_of_a_tile_counts_more_than_its_rim() -> None:
    weights = rim_weights(8)
    assert weights.min() > 0 and torch.equal(weights, weights.flip(0))
    assert (weights[:4].diff() > 0).all()
    # Two tiles that say 0 and 1: from one to the other without a step.
    found = torch.cat([part for _, part in blend(
        (1, 6), 4, 0.5, lambda corners: torch.stack(
            [torch.full((1, 2, 8), float(left > 0)) for _, left in corners]),
        fineness=2)], dim=1)[0, 0]
    assert found[:4].eq(0).all() and found[-4:].eq(1).all()
    assert (found[3:9].diff() > 0).all() and found.diff().max() < 0.3
