"""What the page needs of the rest of vpltool, in one place: masks, corrections, tags, orders."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vpltool import console
from vpltool.engine.features import BEST_FIRST
from vpltool.errors import VplError
from vpltool.formats import (
    IGNORE,
    InputFolder,
    Photo,
    Workspace,
    find_folder,
    open_input,
    open_workspace,
    read_labels,
)
from vpltool.formats.atomic import atomic_path
from vpltool.formats.changes import last_call
from vpltool.formats.corrections import FOLDER, corrections_of
from vpltool.formats.labels import png_bytes
from vpltool.formats.workspace_writing import write_workspace
from vpltool.lazy import Image, np, npt
from vpltool.parallel.threads import in_threads
from vpltool.stages._corrections import take_corrections
from vpltool.stages._panels import columns_there

Labels = "npt.NDArray[np.uint8]"

OWN = "review"
"""Folder of the workspace that holds the journal, the tags and the earlier states."""

ORDERS = ("uncertain", "worst-tags", "random", "file")

SHARE, _THREADS = 0.01, 4
"""Share of a photo that a class must cover to count as shown, as in `eval --against tags`."""


@dataclass(frozen=True)
class Shown:
    """The computed masks that a person looks at; `source` is None where there are none."""

    name: str
    source: InputFolder

    def read(self, photo_id: str) -> npt.NDArray[np.uint8] | None:
        """Read a photo's labels (H, W); None if it has none."""
        return self.source.read_labels(photo_id) if self.source.holds(photo_id) else None


def find_shown(workspace: Workspace, what: str, split: str) -> Shown:
    """Find the masks to be corrected: those named, else predictions, else masks without 255.

    Raises:
        VplError: there are none, or several to choose from.
    """
    source = find_folder(
        workspace.path, ("predictions", "masks"), what, split, ("predictions", "masks"),
        f"`predict(split={split!r})` or `crf(split={split!r})` makes some", BEST_FIRST, full=True)
    workspace.check_classes(source.header, source.path)
    return Shown(f"{source.kind}/{source.name}", source)


def other_layers(workspace: Workspace, split: str) -> list[str]:
    """Name all masks and predictions of a split, and the earlier states of those shown."""
    rounds = sorted((workspace.path / OWN / "rounds").glob("*"), key=lambda path: int(path.name))
    return [name for name in columns_there(workspace.path, split)
            if name.startswith(("masks/", "predictions/"))] + [
        f"before training {path.name}" for path in rounds]


def read_layer(workspace: Workspace, name: str, split: str, photo_id: str
               ) -> npt.NDArray[np.uint8] | None:
    """Read a photo's labels (H, W) in one of `other_layers`; None if it has none there."""
    if name not in other_layers(workspace, split):
        raise VplError(f"no masks are called {name!r}", "reload the page")
    if name.startswith("before training "):
        path = workspace.path / OWN / "rounds" / name.split()[-1] / f"{photo_id}.png"
        return read_labels(path) if path.is_file() else None
    return find_shown(workspace, name, split).read(photo_id)


def read_correction(workspace: Workspace, photo_id: str) -> npt.NDArray[np.uint8] | None:
    """Read the corrected mask (H, W) that a workspace holds of a photo; None if there is none."""
    path = corrections_of(workspace.path, [photo_id]).get(photo_id)
    return read_labels(path) if path else None


def write_correction(workspace: Workspace, photo_id: str, labels: npt.NDArray[np.uint8]) -> None:
    """Write a corrected mask (H, W), as `prepare --corrections` does."""
    with console.heard_by(console.Silence()):
        take_corrections(workspace, {photo_id: lambda: labels})


def drop_correction(workspace: Workspace, photo_id: str) -> None:
    """Delete a photo's corrected mask, so that the computed one counts again."""
    (workspace.path / FOLDER / f"{photo_id}.png").unlink(missing_ok=True)


def correction_stamp(workspace: Workspace, photo_id: str) -> str:
    """Say which file a photo's corrected mask is; empty if there is none."""
    try:
        found = (workspace.path / FOLDER / f"{photo_id}.png").stat()
    except OSError:
        return ""
    return f"{found.st_mtime_ns}:{found.st_size}"


def encode(labels: npt.NDArray[np.uint8]) -> bytes:
    """Encode labels (H, W) as PNG, for the journal."""
    return png_bytes(labels)


def decode(content: bytes) -> npt.NDArray[np.uint8]:
    """Decode what `encode` has made: (H, W)."""
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        return np.array(image, np.uint8)


def set_tags(work: Path, photo_id: str, tags: Sequence[str]) -> Workspace:
    """Give a photo other tags, in `images.jsonl`; the CSV of the user is left as it is.

    A folder's tags come from its CSV, so a copy with the changes, `review/tags.csv`, takes its
    place in later calls of `prepare`.
    """
    workspace = open_workspace(work)
    photos = [replace(photo, labels=tuple(tags)) if photo.id == photo_id else photo
              for photo in workspace.photos()]
    call = last_call(work)
    if call.get("method") == "folder":
        call |= {"labels": f"{OWN}/tags.csv"}
        with atomic_path(work / OWN / "tags.csv") as path, path.open(
                "w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("id", "labels", "split"))
            halves = {f"{call['halve']}-{half}" for half in "ab"} if call.get("halve") else set()
            rows.writerows((photo.image, "".join(f"{label};" for label in photo.labels),
                            "".join(f"{name};" for name in photo.splits if name not in halves))
                           for photo in photos)
    write_workspace(workspace, photos, call)
    return open_workspace(work)


def rank(workspace: Workspace, shown: Shown, photos: Sequence[Photo], order: str, split: str
         ) -> list[str]:
    """Order photos by how much a look at them is worth.

    Args:
        workspace: holds probabilities, and the CRF's masks with 255 where it is unsure.
        shown: the masks.
        photos: those to be ordered.
        order: one of `ORDERS`.
        split: of the photos.

    Returns:
        their ids, the first to be looked at first.

    Raises:
        VplError: nothing says how unsure these masks are.
    """
    ids = [photo.id for photo in photos]
    if order == "random":
        random.Random(0).shuffle(ids)
    if order in ("random", "file"):
        return ids
    measure = (_uncertainty(workspace, shown, split) if order == "uncertain" else
               _disagreement(workspace, shown, {photo.id: photo for photo in photos}))
    with console.progress(f"order: {order}", len(ids)) as advance:
        values = {}
        for key, value in zip(ids, in_threads(measure, ids, _THREADS), strict=True):
            values[key] = value
            advance()
    return sorted(ids, key=lambda key: -values[key])


def _uncertainty(workspace: Workspace, shown: Shown, split: str):  # type: ignore[no-untyped-def]
    """A function from a photo's id to how unsure its mask is."""
    kind, _, name = shown.name.partition("/")
    if kind == "predictions":
        from vpltool.core.uncertainty import mean_entropy

        path = workspace.path / "probabilities" / name / split
        if not (path / "artifact.json").exists():
            raise VplError(f"no probabilities in {path}, which say how sure the segmenter is",
                           f"`predict(decoder={name!r}, split={split!r})` stores them; or "
                           "`order='worst-tags'`")
        folder = open_input(path, ("probabilities",))
        return lambda key: (mean_entropy(folder.read_tensors(key, "probabilities")["probabilities"])
                            if folder.holds(key) else 0.0)
    try:
        unsure = find_shown(workspace, f"masks/{name.removesuffix('-full')}", split)
    except VplError:
        unsure = shown

    def share_left_open(key: str) -> float:
        labels = unsure.read(key)
        return 1.0 if labels is None else float((labels == IGNORE).mean())

    return share_left_open


def _disagreement(workspace: Workspace, shown: Shown, photos: Mapping[str, Photo]):  # type: ignore[no-untyped-def]
    """A function from a photo's id to how far its mask is from its tags."""
    from vpltool.core.agreement import class_shares

    def measure(key: str) -> float:
        labels = shown.read(key)
        if labels is None:
            return float("inf")
        shares = class_shares(labels, 1 + len(workspace.classes))
        tags = set(workspace.indices_of(photos[key]))
        said = {int(index) for index in np.flatnonzero(shares[1:] >= SHARE) + 1}
        # Photos with as many wrong classes: by the pixels of classes that nobody has tagged.
        return len(said ^ tags) + float(sum(shares[index] for index in said - tags))

    return measure
