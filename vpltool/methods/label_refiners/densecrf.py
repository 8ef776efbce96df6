"""Fully connected CRF with Gaussian edges; mean field (Krähenbühl and Koltun, NIPS 2011).

Kernels and weights are CLIP-ES's, or WeCLIP's. By torch, photos of one size are done together on a
GPU; by Numba or pydensecrf one at a time, each on one core. All give the same labels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vpltool import console, settings
from vpltool.core import crf, crf_numba
from vpltool.errors import VplError, check_package, near_name
from vpltool.formats import read_json
from vpltool.lazy import np, npt, torch
from vpltool.methods.inputs import ScoredPhoto
from vpltool.presets import preset_files
from vpltool.settings import RUNNING, setting

READS = ("photo",)

_PACKAGES = {"numba": "numba", "torch": "torch", "pydensecrf": "pydensecrf2"}
"""Backends, and what pip calls them."""

_COMPILED = 6
"""Number of labels up to which the loops are compiled beforehand; they serve more, too."""

CONFIDENCE = 0.95
"""The stage's `confidence` unless it is given; source: CLIP-ES, official code."""


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of the dense CRF."""

    kernels: str = setting("clip-es", "Parameters of the CRF: clip-es, weclip, or a JSON file.",
                          metavar="NAME-OR-FILE", record="never", aliases=["--preset"],
                           source="CLIP-ES, official code")
    backend: str = setting("auto", "Implementation: auto, numba, torch or pydensecrf. All give the "
                                   "same labels.", choices=("auto", *_PACKAGES), panel=RUNNING,
                         record="never")
    wrap_image: bool = setting(
        False, "Preprocess the photo as CLIP-ES's code does: minus ImageNet's mean, modulo 256.",
        off="--plain-image", record="changed")


def recorded(settings: Settings) -> dict[str, object]:
    """Return the header's record of the kernels; raise a VplError if there are none."""
    return {"crf": asdict(_kernels(settings.kernels))}


def runs_on(settings: Settings, device: torch.device) -> torch.device:
    """Return the CPU, unless the backend is torch; raise a VplError without the backend."""
    return device if _backend(settings, device) == "torch" else torch.device("cpu")


def warm_up(settings: Settings, device: torch.device, labels: int) -> None:
    """Compile the loops for photos of up to so many labels, for all processes, on disk."""
    if _backend(settings, device) != "numba":
        return
    if not crf_numba.are_compiled():
        console.note("compiling the CRF (once per machine)")
    for count in range(2, min(labels, _COMPILED) + 1):
        crf.mean_field(np.zeros((2, 2, 3), np.uint8), np.full((count, 2, 2), 0.5, np.float32),
                       _kernels(settings.kernels), backend="numba")


def frees_lock(settings: Settings, device: torch.device) -> bool:
    """Return whether it runs without the interpreter's lock: Numba's loops do."""
    return _backend(settings, device) == "numba"


def refine_labels(photos: Sequence[ScoredPhoto], settings: Settings, device: torch.device
                  ) -> list[npt.NDArray[np.float32]]:
    """Return the marginals (L, H, W) of each of several photos of one size and number of labels."""
    wrap = crf.wrap_image if settings.wrap_image else (lambda photo: photo)
    return crf.mean_fields([wrap(photo.photo) for photo in photos],
                           [photo.scores for photo in photos], _kernels(settings.kernels),
                           backend=_backend(settings, device), device=device)


def decided(photo: ScoredPhoto, confidence: float) -> npt.NDArray[np.float32] | None:
    """Return marginals (L, H, W) if one label leads everywhere, which the CRF keeps; else None."""
    return crf.decided(photo.scores, confidence)


def memory_of(settings: Settings, device: torch.device, size: tuple[int, int], labels: int) -> int:
    """Estimate the memory that a photo of (height, width) takes, in bytes."""
    return crf.estimate_bytes(size, labels, _backend(settings, device))


def _kernels(kernels: str) -> crf.CrfKernels:
    if kernels in crf.KERNELS:
        return crf.KERNELS[kernels]
    if not Path(kernels).exists():
        raise VplError(f"`kernels={kernels!r}`: neither the name of CRF parameters nor a file",
                       f"`{kernels}` is a protocol, which is given before the command"
                       if kernels in preset_files() else near_name(kernels, crf.KERNELS))
    try:
        return crf.CrfKernels.from_json(read_json(Path(kernels), ""))
    except ValueError as error:
        shown = json.dumps(asdict(crf.KERNELS["clip-es"]))
        raise VplError(f"{kernels}: {error}", f"`clip-es` is {shown}") from error


def _backend(settings: Settings, device: torch.device) -> str:
    """Return the backend of the settings: `auto` is the fastest, as all give the same labels."""
    if settings.backend == "auto":
        return crf.fastest_backend(device)
    check_package(settings.backend, f"{settings.backend} is not installed",
                  f"pip install {_PACKAGES[settings.backend]}, or `backend='auto'`")
    return settings.backend
