"""The CRF at a bounded size: as ever for small photos, nearly the same for large ones."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vpltool.core.crf import (
    KERNELS,
    bounded_size,
    estimate_bytes,
    labels_at,
    mean_field,
    scores_of_labels,
    shrink,
    with_background,
)

CLASSES = np.array([0, 7, 12])


def large_photo(height: int = 96, width: int = 128) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(0)
    photo = np.full((height, width, 3), (90, 110, 100)) + rng.integers(-9, 10, (height, width, 3))
    photo[16:64, 16:56] += (110, -50, -50)
    photo[40:88, 72:120] += (-50, -50, 110)
    return photo.clip(0, 255).astype(np.uint8)


def cams_at(size: tuple[int, int]) -> np.ndarray[Any, Any]:
    cams = torch.zeros(1, 2, 12, 16)
    cams[0, 0, 1:7, 1:6], cams[0, 1, 6:10, 10:14] = 0.9, 0.9
    full = F.interpolate(cams, size=size, mode="bilinear", align_corners=False)[0]
    scores: np.ndarray[Any, Any] = with_background(full).numpy()
    return scores


def labels_within(max_side: int, confidence: float = 0.0) -> np.ndarray[Any, Any]:
    """What `crf` does with a photo."""
    photo = large_photo()
    own = (photo.shape[0], photo.shape[1])
    size = bounded_size(own, max_side)
    marginals = mean_field(shrink(photo, size), cams_at(size), KERNELS["clip-es"])
    assert marginals.shape[1:] == size
    return labels_at(marginals, CLASSES, own, confidence)


@pytest.mark.parametrize(("size", "max_side", "wanted"), [
    ((3000, 4000), 2048, (1536, 2048)), ((4000, 3000), 2048, (2048, 1536)),
    ((3000, 4000), 0, (3000, 4000)), ((375, 500), 2048, (375, 500)),
    ((2048, 2048), 2048, (2048, 2048)), ((5000, 2), 100, (100, 1)), ((333, 1000), 100, (33, 100))])
def test_bounded_size(size: tuple[int, int], max_side: int, wanted: tuple[int, int]) -> None:
    assert bounded_size(size, max_side) == wanted


@pytest.mark.parametrize("max_side", [0, 128, 2048])
@pytest.mark.parametrize("confidence", [0.0, 0.95])
def test_a_photo_that_is_small_enough_is_as_ever(max_side: int, confidence: float) -> None:
    plain = mean_field(large_photo(), cams_at((96, 128)), KERNELS["clip-es"])
    wanted = labels_at(plain, CLASSES, None, confidence)
    assert (labels_within(max_side, confidence) == wanted).all()


def test_a_large_photo_gets_labels_at_its_own_size() -> None:
    """Nearly those of the whole; its edges follow the photo's, not the maps'."""
    whole, within = labels_within(0), labels_within(64)
    assert within.shape == (96, 128)
    assert set(np.unique(within)) == {0, 7, 12}
    assert (whole == within).mean() > 0.97
    maps = CLASSES[cams_at((96, 128)).argmax(axis=0)]
    truth = np.zeros((96, 128), np.uint8)
    truth[16:64, 16:56], truth[40:88, 72:120] = 7, 12
    assert (within == truth).mean() > (maps == truth).mean() + 0.01


def test_the_mean_field_sees_the_small_photo_only() -> None:
    photo = large_photo()
    small = shrink(photo, (48, 64))
    assert (small.shape, small.dtype.name) == ((48, 64, 3), "uint8")
    assert np.abs(small.mean(axis=(0, 1)) - photo.mean(axis=(0, 1))).max() < 1
    assert shrink(photo, (96, 128)) is photo


def test_labels_are_scaled_by_neighbour() -> None:
    labels = np.array([[0, 9], [255, 3]], np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    small = shrink(labels, (4, 4))
    assert small.tolist() == [[0, 0, 9, 9]] * 2 + [[255, 255, 3, 3]] * 2
    scores, classes = scores_of_labels(small)
    assert classes.tolist() == [0, 3, 9]
    assert (labels_at(scores.numpy(), classes.numpy(), (16, 16))[:6, 10:] == 9).all()


def test_labels_at_is_that_of_the_scaled_marginals() -> None:
    marginals = torch.rand(3, 9, 11, generator=torch.Generator().manual_seed(0)).softmax(dim=0)
    full = F.interpolate(marginals[None], size=(30, 41), mode="bilinear", align_corners=False)[0]
    for confidence in (0.0, 0.4):
        found = labels_at(marginals.numpy(), CLASSES, (30, 41), confidence)
        assert (found == labels_at(full.numpy(), CLASSES, None, confidence)).all()


PEAK = """
import sys
from dataclasses import replace
import numpy as np
from PIL import Image
from vpltool.core.crf import mean_field
from vpltool.core.crf import KERNELS

def memory(what):
    # getrusage's peak begins with that of the process that started this one.
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines[what].split()[0]) * 1024

backend, (height, width, labels) = sys.argv[1], map(int, sys.argv[2:])
rng = np.random.default_rng(0)
coarse = rng.integers(0, 256, (height // 60, width // 60, 3)).astype(np.uint8)
smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
photo = (smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
scores = rng.random((labels, height, width), np.float32)
del coarse, smooth
settings = replace(KERNELS["clip-es"], iterations=1)
# The package is imported, and its loops are compiled.
mean_field(photo[:2, :2], scores[:, :2, :2], settings, backend=backend)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = memory("VmRSS")
mean_field(photo, scores, settings, backend=backend)
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is counted in other units")
@pytest.mark.parametrize("backend", ["numba", "pydensecrf"])
def test_the_estimate_is_about_what_it_takes(backend: str) -> None:
    pytest.importorskip(backend)
    done = subprocess.run([sys.executable, "-c", PEAK, backend, "400", "500", "3"], check=True,
                          text=True, capture_output=True)
    assert estimate_bytes((400, 500), 3, backend) == pytest.approx(int(done.stdout), rel=0.5)


def test_the_estimate_of_a_phones_photo_is_gigabytes() -> None:
    assert 4e9 < estimate_bytes((3000, 4000), 2, "pydensecrf") < 8e9
    assert estimate_bytes((1536, 2048), 2, "pydensecrf") < 2e9
    assert estimate_bytes((500, 375), 2, "torch") < 0.3e9
