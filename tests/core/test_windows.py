"""Windows: they cover a photo once, and each is seen as a photo of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import Run, save_clip
from PIL import Image

from vpltool.clip.load import load_clip
from vpltool.core.calibration import Calibration
from vpltool.core.vit import VisionTower
from vpltool.core.windows import encode_windows, spans
from vpltool.formats import open_input, open_workspace


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
    given = {"at_once": 3, "patches": "block", "layers": [0, 1], "calibration": Calibration(),
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
