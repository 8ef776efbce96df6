"""Counting pixels for `eval`: of CAMs, masks or predictions, beside the true masks."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from vpltool import console
from vpltool.core import metrics
from vpltool.core.photos import photo_size
from vpltool.engine.photos import naming_photo
from vpltool.errors import VplError
from vpltool.formats import InputFolder, JsonObject, Photo, Workspace, identity_of_file
from vpltool.formats.kinds import check_values
from vpltool.formats.manifest import again
from vpltool.formats.shards import rank_of_process
from vpltool.lazy import F, np, npt
from vpltool.parallel.ranks import joined
from vpltool.parallel.threads import in_threads
from vpltool.stages._truth import read_truth, untagged_class, warn_of_untagged_classes


@dataclass
class Tally:
    """What is counted over the photos of a split.

    Args:
        counts: `Confusion`, or `SeedHistogram` of CAMs; 0 before the first photo.
        parts: id to identity of the file, of each photo that is scored.
        untagged: id to a class that the true mask holds and the tags do not.
        each: id to its own `Confusion`; none of CAMs.
        boundaries: see `boundary_counts`; 0 if they are not scored.
    """

    counts: Any = 0
    parts: dict[str, str] = field(default_factory=dict)
    untagged: dict[str, str] = field(default_factory=dict)
    each: JsonObject = field(default_factory=dict)
    boundaries: Any = 0


def count_pixels(workspace: Workspace, source: InputFolder, photos: list[Photo],
                 tolerance: float = 0.0) -> Tally:
    """Count how CAMs, masks or predictions label the pixels of photos, beside their true masks.

    Photos that the source lacks are left out. Boundaries are scored with a tolerance, a share of
    the diagonal; 0: they are not. Under torchrun each process counts its shard of the photos, and
    has the sums of all: whole numbers, so they do not depend on how many there are.
    """
    if rank_of_process()[1] == 1:
        tally = _tally(workspace, source, photos, tolerance)
    else:
        with joined("cpu") as ranks:
            mine = [photo for photo in photos if ranks.shard.holds(photo.id)]
            tally = Tally()
            for part in ranks.collect(_tally(workspace, source, mine, tolerance)):
                if part.parts:
                    tally.counts += part.counts
                    tally.boundaries += part.boundaries
                tally.parts |= part.parts
                tally.untagged |= part.untagged
                tally.each |= part.each
        tally.each = {photo.id: tally.each[photo.id] for photo in photos if photo.id in tally.each}
    warn_of_untagged_classes(tally.untagged, len(tally.parts))
    return tally


def _tally(workspace: Workspace, source: InputFolder, photos: list[Photo], tolerance: float
           ) -> Tally:
    have = set(source.available(photo.id for photo in photos))
    photos = [photo for photo in photos if photo.id in have]
    tally = Tally()
    threads = min(8, os.cpu_count() or 1)
    with console.progress("eval", len(photos)) as advance:
        for photo, (counts, stray, edges) in zip(photos, in_threads(
                lambda photo: _count(workspace, source, photo, tolerance), photos, threads),
                strict=True):
            tally.counts += counts
            tally.boundaries += edges
            tally.parts[photo.id] = identity_of_file(source.path_of(photo.id))
            if source.kind != "cams":
                tally.each[photo.id] = counts
            if stray:
                tally.untagged[photo.id] = stray
            advance()
    return tally


def _count(workspace: Workspace, source: InputFolder, photo: Photo, tolerance: float
           ) -> tuple[metrics.Confusion | metrics.SeedHistogram, str, metrics.Counts | int]:
    """Confusion matrix of a photo's labels, or histogram of its CAMs; `untagged_class`; edges."""
    classes = len(workspace.classes) + 1
    if source.kind == "cams":
        truth = read_truth(workspace, photo, _size_of(workspace, photo))
        best, best_class = _strongest(source, photo.id, truth.shape, classes)
        return (metrics.seed_histogram(truth, best, best_class, classes, workspace.ignore),
                untagged_class(workspace, photo, truth), 0)
    path = source.path_of(photo.id)
    label = source.read_labels(photo.id)
    truth = read_truth(workspace, photo, label.shape, path)
    if (label[label != workspace.ignore] >= classes).any():
        raise VplError(f"{path}: a label above {classes - 1}, the workspace's last class",
                       f"correct it, or delete it: {again(source.header)} recomputes it")
    return (metrics.confusion(truth, label, classes, workspace.ignore),
            untagged_class(workspace, photo, truth),
            metrics.boundary_counts(truth, label, classes, tolerance,
                                    workspace.ignore) if tolerance else 0)


def _size_of(workspace: Workspace, photo: Photo) -> tuple[int, int]:
    path = workspace.image_path(photo)
    with naming_photo(photo, path):
        return photo_size(path)


def _strongest(source: InputFolder, photo_id: str, shape: tuple[int, ...], labels: int
               ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Value and class of the strongest map at each pixel, both (H, W)."""
    tensors = source.read_tensors(photo_id)
    check_values(source.kind, tensors, str(source.path_of(photo_id)), again(source.header), labels)
    if not len(tensors["classes"]):
        return np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    cam = F.interpolate(tensors["cam"].float()[None], size=tuple(shape), mode="bilinear",
                        align_corners=False)[0]
    return metrics.strongest(cam.numpy(), tensors["classes"].tolist())
