"""A program that uses vpltool from outside: `mypy --strict` checks it against what is installed.

See tests/test_package.py. It is not run.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vpltool import PhotosFailed, Segmenter, VplError, Workspace, __version__


def shares(bundle: Path, photo: str) -> dict[str, float]:
    """Share of a photo's pixels that each class has."""
    segmenter = Segmenter.load(bundle, device="cpu", max_side=512)
    result = segmenter(photo, scales=(1.0, 0.75), flip=True)
    height, width = result.labels.shape
    counts = np.bincount(result.labels.ravel(), minlength=len(result.classes) + 1)
    return {name: float(counts[index]) / (height * width)
            for index, name in enumerate(segmenter.classes, 1)}


def photos(segmenter: Segmenter, path: Path) -> list[tuple[int, ...]]:
    """Shapes of the labels of what counts as a photo."""
    with path.open("rb") as file, Image.open(path) as image:
        return [segmenter(photo).labels.shape for photo in (
            path, str(path), path.read_bytes(), file, image, np.asarray(image),
            torch.from_numpy(np.array(image)))]


def ids(folder: str, split: str) -> list[str]:
    """Ids of the photos of a split that CAMs could be made of."""
    work = Workspace(folder, preset="vpl-voc")
    failed: tuple[str, ...] = ()
    try:
        work.cam(split=split, method="dense")
    except PhotosFailed as error:
        failed = error.photos
    except VplError as error:
        raise SystemExit(f"vpltool {__version__}: {error.message} ({error.hint})") from error
    return [photo.id for photo in work.photos(split) if photo.id not in failed]
