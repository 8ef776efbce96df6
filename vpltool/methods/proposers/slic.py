"""Superpixels of several sizes by SLIC (Achanta et al., PAMI 2012).

K-means of colour and place: segments of about one size, whatever the photo shows. No weights.
Needs scikit-image: pip install 'vpltool[superpixels]'.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vpltool import settings
from vpltool.core.proposals import Proposals
from vpltool.errors import check_skimage
from vpltool.lazy import skimage
from vpltool.methods.inputs import ProposalRequest
from vpltool.methods.proposers import _photos
from vpltool.settings import setting

READS = ("photo",)
PROCESSES = True


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of SLIC."""

    segments: str = setting("50,100,200,400", "Approximate numbers of superpixels.", metavar="LIST")
    compactness: float = setting(10.0, "More: rounder superpixels; less: truer to colours.",
                                 low=0.01, source="SLIC, section 3.3")
    rounds: int = setting(10, "Iterations of k-means.", low=1, source="SLIC, section 3.1")
    max_side: int = _photos.max_side_setting()


def propose(request: ProposalRequest, settings: Settings
            ) -> Iterator[tuple[str, Proposals | str]]:
    """Yield the superpixels of each photo, of all sizes."""
    check_skimage("slic needs")
    return _photos.of_segments(
        request, settings.max_side, _photos.numbers_of("segments", settings.segments),
        lambda photo, number: skimage.segmentation.slic(
            photo, number, settings.compactness, settings.rounds, start_label=0, channel_axis=-1))
