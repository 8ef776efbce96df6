"""Segments of like colour at several scales (Felzenszwalb and Huttenlocher, IJCV 2004).

A graph of pixels is cut where neighbours differ more than the pixels within a segment do. Scales,
smoothing and least sizes are those with which Selective Search begins (Uijlings et al., IJCV 2013).
Each scale covers the photo. No weights. Needs scikit-image: pip install 'vpltool[superpixels]'.
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
    """Settings of Felzenszwalb's segments."""

    scales: str = setting("50,100,150,300", "Scales: the larger, the larger the segments. Each is "
                                            "also the least size of its segments, in pixels.",
                          metavar="LIST", source="Selective Search, section 5.4 (`quality`)")
    sigma: float = setting(0.8, "Deviation of the Gaussian that smooths the photo first, in "
                                "pixels.", low=0, source="Selective Search, official code")
    max_side: int = _photos.max_side_setting()


def propose(request: ProposalRequest, settings: Settings
            ) -> Iterator[tuple[str, Proposals | str]]:
    """Yield the segments of each photo at all scales."""
    check_skimage("felzenszwalb needs")
    return _photos.of_segments(
        request, settings.max_side, _photos.numbers_of("scales", settings.scales),
        lambda photo, scale: skimage.segmentation.felzenszwalb(
            photo, scale=scale, sigma=settings.sigma, min_size=scale))
