"""Pack predictions for VOC's server: results/VOC2012/Segmentation/comp6_test_cls/ID.png.

comp6 is the competition for methods trained on data other than VOC's, such as CLIP's. 255 becomes
background, as in eval.

Example: vpltool export voc-server --split test
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vpltool import options, settings
from vpltool.datasets.words import VOC
from vpltool.formats import IGNORE, archives
from vpltool.formats.labels import png_bytes
from vpltool.lazy import np
from vpltool.methods.inputs import Predictions

CLASSES = VOC.classes
SUFFIX = ".tgz"


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of VOC's server."""

    split: str = options.split("test")


def export(predictions: Predictions, path: Path, settings: Settings) -> list[Path]:
    """Write the archive."""
    archives.write_tgz(path, ((f"results/VOC2012/Segmentation/comp6_test_cls/{photo.id}.png",
                               png_bytes(np.where(labels == IGNORE, 0, labels).astype(np.uint8)))
                              for photo, labels in predictions.each()))
    return [path]
