"""Pixel-adaptive refinement: scores spread to nearby pixels of similar colour (AFA, WeCLIP).

From AFA (Ru et al., CVPR 2022), with the constants of WeCLIP's code (Zhang et al., CVPR 2024). A
pixel's new scores are a weighted mean over 8 neighbours at each of six distances; beyond the border
the nearest pixel inside is repeated. WeCLIP's weights sum to 1.01; here they sum to 1, which
changes no label. What comes out is no marginal of a CRF: `confidence` is compared with a label's
share of a pixel's scores, and is 0 unless given, as WeCLIP ignores no pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vpltool import settings
from vpltool.errors import VplError
from vpltool.methods.inputs import ScoredPhoto
from vpltool.settings import setting

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from vpltool.core.par import ParSettings

READS = ("photo",)

CONFIDENCE = 0.0
"""Where the stage's `confidence` is not given; source: WeCLIP, official code."""


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of PAR."""

    iterations: int = setting(20, "Number of iterations.", low=0,
                              source="WeCLIP, official code")
    dilations: str = setting("1,2,4,8,12,24", "Distances of the 8 neighbours, in pixels "
                                              "(dilations).",
                             metavar="LIST", source="WeCLIP, official code")
    w1: float = setting(0.3, "Width of both kernels, in standard deviations of the neighbours; "
                             "smaller: only very similar pixels count.", low=1e-3,
                        source="WeCLIP, official code")
    w2: float = setting(0.01, "Weight of the position kernel relative to the colour kernel.", low=0,
                        source="WeCLIP, official code")


def runs_on(settings: Settings, device: torch.device) -> torch.device:
    """The device that is asked for; checks the settings.

    Raises:
        VplError: the distances are no list of whole numbers.
    """
    _parameters(settings)
    return device


def refine_labels(photos: Sequence[ScoredPhoto], settings: Settings, device: torch.device
                  ) -> list[npt.NDArray[np.float32]]:
    """Refine the scores of photos of one size and number of labels (L, H, W), each summing to 1."""
    import torch

    from vpltool.core.par import refine_scores

    pixels = torch.stack([torch.from_numpy(photo.photo) for photo in photos]).to(device)
    scores = torch.stack([torch.from_numpy(photo.scores) for photo in photos]).to(device)
    refined = refine_scores(pixels.permute(0, 3, 1, 2), scores, _parameters(settings))
    return list((refined / refined.sum(dim=1, keepdim=True).clamp_min(1e-12)).cpu().numpy())


def memory_of(settings: Settings, device: torch.device, size: tuple[int, int], labels: int) -> int:
    """Estimate the memory that a photo of (height, width) takes, in bytes."""
    from vpltool.core.par import estimate_bytes

    return estimate_bytes(size, labels, len(_parameters(settings).offsets))


def _parameters(settings: Settings) -> ParSettings:
    from vpltool.core.par import ParSettings, parse_dilations

    try:
        dilations = parse_dilations(settings.dilations)
    except ValueError:
        raise VplError(f"`dilations={settings.dilations!r}` is not a list of at most 20 distances, "
                       "each a whole number of 1 or more", "`dilations='1,2,4,8,12,24'`") from None
    return ParSettings(settings.iterations, dilations, settings.w1, settings.w2)
