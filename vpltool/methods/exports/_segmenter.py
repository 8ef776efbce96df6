"""Settings and metadata that exports of a segmenter share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpltool import console, settings
from vpltool.clip import models
from vpltool.core.photos import describe_failure, fit_size, read_photo, to_pixels
from vpltool.errors import check_package
from vpltool.formats import JsonObject
from vpltool.lazy import Tensor
from vpltool.methods.inputs import TrainedSegmenter, side_of
from vpltool.settings import setting


@dataclass(frozen=True, kw_only=True)
class SegmenterSettings(settings.Settings):
    """Settings of every export of a segmenter."""

    max_side: int | None = setting(
        None, "Longer photos are scaled down to this side first; 0: never; default: as in "
              "training.", low=0, metavar="PIXELS")
    measure: int | None = setting(
        None, "Photos of the workspace on which the file is compared with predict and timed, for "
              "the card beside it; 0: none; default: 10, of a file in 8 bits 50.", low=0,
        metavar="N")
    licence: str = setting("", "Licence of the segmenter, such as CC-BY-4.0; it is stored beside "
                               "the encoder's.", metavar="NAME")


def inference_config(segmenter: TrainedSegmenter, settings: SegmenterSettings) -> JsonObject:
    """Return the JSON values that are needed to run a segmenter elsewhere."""
    return {
        "classes": list(segmenter.classes),
        "mean": list(segmenter.encoder.mean), "std": list(segmenter.encoder.std),
        "max_side": side_of(segmenter.header, settings.max_side),
        "licence": {"segmenter": settings.licence or "not stated",
                    "clip": models.licence_of(segmenter.header.model)
                    or "not known: ask whoever published it"}}


def photo_pixels(encoder: Any, paths: Iterable[Path], max_side: int
                 ) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Yield the (height, width) of readable photos, and their input pixels (1, 3, H, W).

    A warning names each photo that cannot be read.
    """
    for path in paths:
        try:
            rgb = read_photo(path)
        except OSError as error:
            console.warn(f"{describe_failure(path, error)}; it is left out")
            continue
        size = (rgb.shape[0], rgb.shape[1])
        target = fit_size(size, encoder.vision.patch, max_side=max_side)
        yield size, to_pixels(rgb, target, encoder.mean, encoder.std)[None]


def check_packages(extra: str, *names: str) -> None:
    """Raise a VplError if a package of `vpltool[extra]` is not installed."""
    for name in names:
        check_package(name, f"the package {name.replace('_', '-')} is not installed",
                      f"pip install 'vpltool[{extra}]'")
