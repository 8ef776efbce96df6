"""Orders of photos for a review, by how useful a look at their masks is."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Sequence
from typing import TypeAlias

from vpltool import formats
from vpltool.core import agreement
from vpltool.core.photos import photo_size
from vpltool.engine.features import BEST_FIRST
from vpltool.engine.photo_work import tracked
from vpltool.errors import VplError
from vpltool.formats import IGNORE, InputFolder, Photo, Workspace, input_folders, kinds
from vpltool.lazy import np, npt
from vpltool.parallel.threads import in_threads

Labels: TypeAlias = "npt.NDArray[np.uint8]"

Measure = Callable[[Photo], float]
"""How useful a look at a photo is."""

SHARE, _THREADS = 0.01, 4
"""Share of a photo that a class must cover to count as shown, as in `eval --against tags`."""


def find_shown(workspace: Workspace, what: str, split: str) -> InputFolder:
    """Find the masks to correct: the named ones, else predictions, else masks without 255.

    Raises:
        VplError: there are none, or several to choose from.
    """
    source = formats.find_folder(
        workspace.path, ("predictions", "masks"), what, split,
        f"`predict(split={split!r})` or `crf(split={split!r})` makes some", BEST_FIRST, full=True)
    workspace.check_classes(source.header, source.path)
    return source


def labels_of(folder: InputFolder, photo_id: str) -> Labels | None:
    """Read a photo's labels (H, W); None if it has none."""
    return folder.read_labels(photo_id) if folder.holds(photo_id) else None


def rank(workspace: Workspace, shown: InputFolder, photos: Sequence[Photo], order: str,
         split: str) -> list[str]:
    """Return photo ids in one of `ORDERS`, the most useful first.

    Raises:
        VplError: this order needs probabilities, and there are none.
    """
    measure = ORDERS[order](workspace, shown, split)
    values = list(tracked(f"order: {order}", in_threads(measure, photos, _THREADS), len(photos)))
    return [photos[place].id for place in np.argsort(-np.array(values), kind="stable")]


def _uncertain(workspace: Workspace, shown: InputFolder, split: str) -> Measure:
    """Measure uncertainty: the mean entropy, or the share of pixels that the CRF left at 255."""
    if shown.kind == "predictions":
        folder = input_folders.open_probabilities(workspace.path, shown,
                                                  "`order='worst-tags'`")
        return lambda photo: (
            agreement.mean_entropy(
                folder.read_tensors(photo.id, "probabilities")["probabilities"])
            if folder.holds(photo.id) else 0.0)
    try:
        masks = kinds.result_name("masks", shown.name.removesuffix("-full"))
        unsure = find_shown(workspace, masks, split)
    except VplError:
        unsure = shown

    def share_left_open(photo: Photo) -> float:
        labels = labels_of(unsure, photo.id)
        return 1.0 if labels is None else float((labels == IGNORE).mean())

    return share_left_open


def _worst_tags(workspace: Workspace, shown: InputFolder, split: str) -> Measure:
    """Count classes that differ from the tags; `_doubt` decides between equal counts."""
    doubt = _doubt(workspace, shown, split)

    def measure(photo: Photo) -> float:
        labels = labels_of(shown, photo.id)
        if labels is None:
            try:
                photo_size(workspace.image_path(photo))
            except OSError:
                # It cannot be shown, either.
                return -1.0
            return float("inf")
        shares = agreement.class_shares(labels, 1 + len(workspace.classes))
        tags = set(workspace.indices_of(photo))
        shows = {int(index) for index in np.flatnonzero(shares[1:] >= SHARE) + 1}
        return len(shows ^ tags) + (doubt(photo) + sum(shares[index] for index in shows - tags)) / 2

    return measure


def _doubt(workspace: Workspace, shown: InputFolder, split: str) -> Measure:
    """Measure in [0, 1] how far masks and predictions differ, or else uncertainty."""
    other = "masks" if shown.kind == "predictions" else "predictions"
    with contextlib.suppress(VplError):
        second = formats.find_folder(workspace.path, (other,), "", split, "", BEST_FIRST,
                                     full=True)
        return lambda photo: _differing(labels_of(shown, photo.id), labels_of(second, photo.id))
    with contextlib.suppress(VplError):
        unsure = _uncertain(workspace, shown, split)
        return lambda photo: unsure(photo) / np.log(max(3, 1 + len(workspace.classes)))
    return lambda _photo: 0.0


def _differing(one: Labels | None, other: Labels | None) -> float:
    """Return the share of pixels with different labels; 0 if it is unknown."""
    if one is None or other is None or one.shape != other.shape:
        return 0.0
    return float((one != other).mean())


# The first is the default, the best of fourteen (docs/results.md).
ORDERS: dict[str, Callable[[Workspace, InputFolder, str], Measure]] = {
    "worst-tags": _worst_tags, "uncertain": _uncertain,
    "random": lambda *_: lambda photo: random.Random(photo.id).random(),
    "file": lambda *_: lambda _photo: 0.0}
