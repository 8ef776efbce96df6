"""What exports of a segmenter share: their settings, and what they say of it."""

from __future__ import annotations

from dataclasses import dataclass

from vpltool import settings
from vpltool.formats import JsonObject, voc_palette
from vpltool.methods.inputs import TrainedSegmenter, side_of
from vpltool.settings import setting


@dataclass(frozen=True, kw_only=True)
class SegmenterSettings(settings.Settings):
    """Settings of every export of a segmenter."""

    max_side: int | None = setting(
        None, "Longer photos are scaled down to this side first; 0: never; default: as in "
              "training.", low=0, metavar="PIXELS")
    licence: str = setting("", "Licence of the segmenter, such as CC-BY-4.0; it is stored beside "
                               "CLIP's.", metavar="NAME")


def inference_config(segmenter: TrainedSegmenter, settings: SegmenterSettings) -> JsonObject:
    """Return what is needed to run a segmenter elsewhere, as values for JSON."""
    from vpltool.clip.licences import licence_of

    model = segmenter.header.model
    return {
        "classes": list(segmenter.classes),
        "mean": list(segmenter.encoder.mean), "std": list(segmenter.encoder.std),
        "max_side": side_of(segmenter.header, settings.max_side),
        "licence": {"segmenter": settings.licence or "not stated",
                    "clip": licence_of(model) or "not known: ask whoever published it"}}


def palette_of(count: int) -> list[list[int]]:
    """Colours (red, green, blue) of the background and `count` classes, VOC's."""
    flat = voc_palette()
    return [list(flat[3 * index : 3 * index + 3]) for index in range(count + 1)]
