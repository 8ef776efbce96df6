"""Pictures of predictions: each photo with its labels and the names of its classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vpltool import console
from vpltool.core.photos import describe_failure, read_photo
from vpltool.formats import Workspace, read_labels
from vpltool.formats.atomic import atomic_path
from vpltool.parallel import device, threads
from vpltool.pictures.colours import class_palette
from vpltool.pictures.overlays import overlay

_QUALITY = 90
"""Of the JPEGs."""


def pictures_of(workspace: Workspace, predictions: Path) -> Path:
    """Where pictures of predictions go: below pictures/, or beside what lies elsewhere."""
    base = workspace.path.resolve()
    if base in predictions.resolve().parents:
        return workspace.path / "pictures" / predictions.resolve().relative_to(base)
    return predictions.with_name(f"{predictions.name}-overlays")


def write_overlays(workspace: Workspace, predictions: Path, pictures: Path,
                   photos: Mapping[str, Path], workers: int) -> Path:
    """Draw the predictions that are there and have no picture, or an older one.

    Args:
        workspace: its classes.
        predictions: folder of the labels, ID.png.
        pictures: folder that the pictures go to, ID.jpg.
        photos: id to path.
        workers: number of threads, see `worker_count`.

    Returns:
        the folder of pictures.
    """
    labels = {key: predictions / f"{key}.png" for key in photos}
    todo = [key for key, path in labels.items()
            if path.exists() and _written(pictures / f"{key}.jpg") <= _written(path)]
    with console.progress(f"pictures {pictures.name}", len(todo)) as advance:
        for _ in threads.in_threads(lambda key: write_overlay(
                workspace, photos[key], labels[key], pictures / f"{key}.jpg"),
                todo, device.worker_count(workers)):
            advance()
    return pictures


def write_overlay(workspace: Workspace, photo: Path, labels: Path, picture: Path) -> Path:
    """Draw one prediction over its photo; a photo that cannot be read is warned of.

    Returns:
        the picture's path.
    """
    try:
        pixels = read_photo(photo)
    except OSError as error:
        console.warn(f"no picture of {describe_failure(photo, error)}")
        return picture
    page = overlay(pixels, read_labels(labels), class_palette(),
                   dict(enumerate(workspace.classes, 1)))
    with atomic_path(picture) as temporary:
        page.save(temporary, format="JPEG", quality=_QUALITY)
    return picture


def _written(path: Path) -> float:
    """When a file was written; 0 if it is not there."""
    return path.stat().st_mtime if path.exists() else 0.0
