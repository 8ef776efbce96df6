"""Fully connected CRF with Gaussian edges, by mean field (Krähenbühl and Koltun, NIPS 2011).

Kernels and weights are CLIP-ES's, or WeCLIP's. By torch, photos of one size are done together on a
GPU; by pydensecrf one at a time, on one core. Both give the same labels.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpltool import settings
from vpltool.errors import VplError, near_name
from vpltool.formats import read_json
from vpltool.methods.inputs import ScoredPhoto
from vpltool.presets import preset_files
from vpltool.settings import RUNNING, setting

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from vpltool.core.crf import CrfSettings

READS = ("photo",)

_FEW = 5
"""Labels up to which torch's lattice is faster than pydensecrf on a core: the lattice costs a third
of pydensecrf's, a label more three times as much."""

_SMALL = 2**20
"""Pixels up to which torch is taken on a CPU: it needs 1.1 kB a pixel, twice pydensecrf's."""

CONFIDENCE = 0.95
"""Where the stage's `confidence` is not given; source: CLIP-ES, its code."""


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of the dense CRF."""

    preset: str = setting("clip-es", "Of the CRF: clip-es, weclip, or a JSON file.",
                          metavar="NAME-OR-FILE", record="never", source="CLIP-ES, its code")
    backend: str = setting("auto", "auto, torch or pydensecrf: the same labels.",
                           choices=("auto", "torch", "pydensecrf"), panel=RUNNING, record="never")
    wrap_image: bool = setting(
        False, "Show the CRF the photo as CLIP-ES's code does: less ImageNet's mean, modulo 256.",
        off="--plain-image", record="changed")


def recorded(settings: Settings) -> dict[str, Any]:
    """What headers say of settings that name something else: the kernels of the preset.

    Raises:
        VplError: there is no such preset, or the file is not one.
    """
    return {"crf": asdict(_kernels(settings.preset))}


def runs_on(settings: Settings, device: torch.device) -> torch.device:
    """The device that the work is really done on: the CPU, for pydensecrf.

    Raises:
        VplError: pydensecrf is not installed.
    """
    import torch

    return device if _backend(settings, device, (1, 1), 2) == "torch" else torch.device("cpu")


def refine_labels(photos: Sequence[ScoredPhoto], settings: Settings, device: torch.device
                  ) -> list[npt.NDArray[np.float32]]:
    """Make the marginals of photos of one size and number of labels (L, H, W), each."""
    from vpltool.core import crf

    wrap = crf.wrap_image if settings.wrap_image else (lambda photo: photo)
    return crf.mean_fields([wrap(photo.photo) for photo in photos],
                           [photo.scores for photo in photos], _kernels(settings.preset),
                           backend=_backend(settings, device, photos[0].photo.shape[:2],
                                            len(photos[0].scores)), device=device)


def decided(photo: ScoredPhoto, confidence: float) -> npt.NDArray[np.float32] | None:
    """What the CRF cannot change: marginals (L, H, W) where one label leads everywhere, or None."""
    from vpltool.core import crf

    return crf.decided(photo.scores, confidence)


def memory_of(settings: Settings, device: torch.device, size: tuple[int, int], labels: int) -> int:
    """Estimate the memory that a photo of (height, width) takes, in bytes."""
    from vpltool.core.crf_size import estimate_bytes

    return estimate_bytes(size, labels, _backend(settings, device, size, labels))


def _kernels(preset: str) -> CrfSettings:
    from vpltool.core.crf import PRESETS, CrfSettings

    if preset in PRESETS:
        return PRESETS[preset]
    if not Path(preset).exists():
        raise VplError(f"`preset={preset!r}`: neither a preset of the CRF nor a file",
                       f"`{preset}` is a protocol, which is given before the command"
                       if preset in preset_files() else near_name(preset, PRESETS))
    try:
        return CrfSettings.from_json(read_json(Path(preset), ""))
    except ValueError as error:
        shown = json.dumps(asdict(PRESETS["clip-es"]))
        raise VplError(f"{preset}: {error}", f"`clip-es` is {shown}") from error


def _backend(settings: Settings, device: torch.device, size: Sequence[int], labels: int) -> str:
    """Which one runs: of two that give the same labels the faster."""
    from vpltool.core.permutohedral import by_mkl

    installed = importlib.util.find_spec("pydensecrf") is not None
    if settings.backend == "pydensecrf" and not installed:
        raise VplError("pydensecrf is not installed",
                       "pip install pydensecrf2, or `backend='torch'`")
    if settings.backend != "auto":
        return settings.backend
    slower = device.type == "cpu" and (
        labels > _FEW or size[0] * size[1] > _SMALL or not by_mkl(device))
    return "pydensecrf" if installed and slower else "torch"
