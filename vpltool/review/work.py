"""What the page needs of the rest of vpltool, in one place: masks, tags, orders, proposals."""

from __future__ import annotations

import contextlib
import csv
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from vpltool import console, formats
from vpltool.core import agreement
from vpltool.engine.features import BEST_FIRST
from vpltool.engine.panels import columns_there
from vpltool.errors import VplError
from vpltool.formats import IGNORE, InputFolder, JsonObject, Photo, Workspace
from vpltool.formats.atomic import atomic_path
from vpltool.formats.changes import last_call
from vpltool.formats.input_folders import names_in, open_probabilities
from vpltool.formats.kinds import called, folder_of, place
from vpltool.formats.workspace import write_workspace
from vpltool.lazy import np, npt
from vpltool.parallel.threads import in_threads
from vpltool.shell import to_shell

Labels: TypeAlias = "npt.NDArray[np.uint8]"

OWN = "review"
"""Folder of the workspace that holds the journal, the tags and the earlier states."""

_BEFORE = "before training "

SHARE, _THREADS = 0.01, 4
"""Share of a photo that a class must cover to count as shown, as in `eval --against tags`."""


def find_shown(workspace: Workspace, what: str, split: str) -> InputFolder:
    """Find the masks to be corrected: those named, else predictions, else masks without 255.

    Raises:
        VplError: there are none, or several to choose from.
    """
    source = formats.find_folder(
        workspace.path, ("predictions", "masks"), what, split, ("predictions", "masks"),
        f"`predict(split={split!r})` or `crf(split={split!r})` makes some", BEST_FIRST, full=True)
    workspace.check_classes(source.header, source.path)
    return source


def find_proposals(workspace: Workspace, split: str) -> dict[str, InputFolder]:
    """The proposals of a split, by name."""
    return {name: formats.open_input(place(workspace.path, "proposals", name, split),
                                     ("proposals",))
            for name in names_in(folder_of(workspace.path, "proposals"), split)}


def other_layers(workspace: Workspace, split: str) -> list[str]:
    """Name all masks and predictions of a split, and the earlier states of those shown."""
    rounds = sorted((workspace.path / OWN / "rounds").glob("*"), key=lambda path: int(path.name))
    return [name for name in columns_there(workspace.path, split)
            if name.partition("/")[0] in ("masks", "predictions")] + [
        f"{_BEFORE}{path.name}" for path in rounds]


def read_layer(workspace: Workspace, name: str, split: str, photo_id: str) -> Labels | None:
    """Read a photo's labels (H, W) in one of `other_layers`; None if it has none there."""
    if name not in other_layers(workspace, split):
        raise VplError(f"no masks are called {name!r}", "reload the page")
    if name.startswith(_BEFORE):
        path = workspace.path / OWN / "rounds" / name.split()[-1] / f"{photo_id}.png"
        return formats.read_labels(path) if path.is_file() else None
    return labels_of(find_shown(workspace, name, split), photo_id)


def labels_of(folder: InputFolder, photo_id: str) -> Labels | None:
    """Read a photo's labels (H, W); None if it has none."""
    return folder.read_labels(photo_id) if folder.holds(photo_id) else None


def find_scored(workspace: Workspace, split: str) -> JsonObject:
    """The split that the curve is of, `val` if there is one; `masks`, or `tags` without true masks.

    Returns:
        `split` and `against`, as `eval` has them.
    """
    photos = workspace.photos()
    name = "val" if any("val" in photo.splits for photo in photos) else split
    masks = any(photo.mask for photo in photos if name in photo.splits)
    return {"split": name, "against": "masks" if masks else "tags"}


def set_tags(work: Path, photo_id: str, tags: Sequence[str]) -> Workspace:
    """Give a photo other tags, in `images.jsonl`; the CSV of the user is left as it is.

    A folder's tags come from its CSV, so a copy with the changes, `review/tags.csv`, takes its
    place in later calls of `prepare`.
    """
    workspace = formats.open_workspace(work)
    photos = [replace(photo, tags=tuple(tags)) if photo.id == photo_id else photo
              for photo in workspace.photos()]
    call = last_call(work)
    if call.get("method") == "folder":
        call |= {"labels": f"{OWN}/tags.csv"}
        with atomic_path(work / OWN / "tags.csv") as path, path.open(
                "w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("id", "labels", "split"))
            halves = {f"{call['halve']}-{half}" for half in "ab"} if call.get("halve") else set()
            rows.writerows((photo.image, "".join(f"{label};" for label in photo.tags),
                            "".join(f"{name};" for name in photo.splits if name not in halves))
                           for photo in photos)
    write_workspace(workspace, photos, call)
    return formats.open_workspace(work)


def words_of(error: Exception) -> str:
    """Say in a line for the page what went wrong, as a shell would have it typed."""
    return to_shell(str(error).replace("\nhint: ", "; "))


# ---- orders: from a photo to how much a look at it is worth

Measure = Callable[[Photo], float]


def rank(workspace: Workspace, shown: InputFolder, photos: Sequence[Photo], order: str,
         split: str) -> list[str]:
    """Ids of photos in one of `ORDERS`, those first of whose masks a look is worth most.

    Raises:
        VplError: nothing says how unsure these masks are.
    """
    measure = ORDERS[order](workspace, shown, split)
    with console.progress(f"order: {order}", len(photos)) as advance:
        values = []
        for value in in_threads(measure, photos, _THREADS):
            values.append(value)
            advance()
    return [photos[place].id for place in np.argsort(-np.array(values), kind="stable")]


def _uncertain(workspace: Workspace, shown: InputFolder, split: str) -> Measure:
    """How unsure a photo's mask is: its mean entropy, or the share that the CRF left open."""
    if shown.kind == "predictions":
        folder = open_probabilities(workspace.path, shown.name, split, "`order='worst-tags'`")
        return lambda photo: (
            agreement.mean_entropy(
                folder.read_tensors(photo.id, "probabilities")["probabilities"])
            if folder.holds(photo.id) else 0.0)
    try:
        unsure = find_shown(workspace, called("masks", shown.name.removesuffix("-full")), split)
    except VplError:
        unsure = shown

    def share_left_open(photo: Photo) -> float:
        labels = labels_of(unsure, photo.id)
        return 1.0 if labels is None else float((labels == IGNORE).mean())

    return share_left_open


def _worst_tags(workspace: Workspace, shown: InputFolder, split: str) -> Measure:
    """How far a photo's mask is from its tags; among photos with as many wrong classes, from
    another mask of it."""
    doubt = _doubt(workspace, shown, split)

    def measure(photo: Photo) -> float:
        labels = labels_of(shown, photo.id)
        if labels is None:
            return float("inf")
        shares = agreement.class_shares(labels, 1 + len(workspace.classes))
        tags = set(workspace.indices_of(photo))
        said = {int(index) for index in np.flatnonzero(shares[1:] >= SHARE) + 1}
        return len(said ^ tags) + (doubt(photo) + sum(shares[index] for index in said - tags)) / 2

    return measure


def _doubt(workspace: Workspace, shown: InputFolder, split: str) -> Measure:
    """In [0, 1]: how much of a photo is another class in masks or predictions, where there are
    both; else how unsure its mask is."""
    other = "masks" if shown.kind == "predictions" else "predictions"
    with contextlib.suppress(VplError):
        second = formats.find_folder(workspace.path, (other,), "", split, (other,), "", BEST_FIRST,
                                     full=True)
        return lambda photo: _differing(labels_of(shown, photo.id), labels_of(second, photo.id))
    with contextlib.suppress(VplError):
        unsure = _uncertain(workspace, shown, split)
        return lambda photo: unsure(photo) / np.log(max(3, 1 + len(workspace.classes)))
    return lambda _photo: 0.0


def _differing(one: Labels | None, other: Labels | None) -> float:
    """The share of pixels that have another label; 0 where that cannot be said."""
    if one is None or other is None or one.shape != other.shape:
        return 0.0
    return float((one != other).mean())


# The first is the default: it was the best of fourteen (docs/results.md).
ORDERS: dict[str, Callable[[Workspace, InputFolder, str], Measure]] = {
    "worst-tags": _worst_tags, "uncertain": _uncertain,
    "random": lambda *_: lambda photo: random.Random(photo.id).random(),
    "file": lambda *_: lambda _photo: 0.0}
