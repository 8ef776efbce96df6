"""Masks that a segmenter learns from: those of `crf`, or a folder of one's own; checked."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vpltool import console, formats
from vpltool.engine import corrected_masks, features
from vpltool.engine.photos import check_current
from vpltool.errors import VplError, part_of
from vpltool.formats import Header, Photo, Workspace
from vpltool.formats.corrections import corrections_of
from vpltool.formats.header import join_supervision
from vpltool.formats.manifest import MANIFEST
from vpltool.lazy import np, npt
from vpltool.parallel import threads

_THREADS = 8
"""Threads that read masks: decoding a PNG lets others run."""


@dataclass(frozen=True)
class Masks:
    """A folder of masks: palette or greyscale PNGs, named as the photos' ids.

    Args:
        path: the folder.
        name: its name, which a decoder gets.
        ids: photos that have one.
        corrected: id to path of those masks that a person has corrected, which take the place of
            the folder's.
        header: of the folder, if vpltool made it.
    """

    path: Path
    name: str
    ids: Sequence[str]
    corrected: Mapping[str, Path] = field(default_factory=dict)
    header: Header | None = None

    def path_of(self, photo_id: str) -> Path:
        """Path of a photo's mask."""
        return self.corrected.get(photo_id) or self.path / f"{photo_id}.png"

    def read_labels(self, photo_id: str) -> npt.NDArray[np.uint8]:
        """Read a photo's labels (height, width)."""
        return formats.read_drawn_labels(self.path_of(photo_id),
                                         other_palettes=self.has_other_palettes(photo_id))

    def has_other_palettes(self, photo_id: str) -> bool:
        """Tell whether a mask's palette may be any: that of masks that vpltool never wrote."""
        return self.header is None and photo_id not in self.corrected


def find_masks(workspace: Workspace, choice: str, split: str, photos: Sequence[Photo]) -> Masks:
    """Find masks of `crf` by NAME or path, or one's own by path; else those of the furthest maps.

    Photos without a mask are left out with a warning.

    Raises:
        VplError: there are none, they are of other classes, or they are the true masks.
    """
    ids = [photo.id for photo in photos]
    corrected = corrections_of(workspace.path, ids)
    corrected_masks.check_corrections(workspace, corrected)
    # The maps of a corrected photo may have failed.
    masks = _pseudo_masks(workspace, choice, split, [key for key in ids if key not in corrected])
    learned = {*masks.ids, *corrected}
    return replace(masks, corrected=corrected, ids=[key for key in ids if key in learned])


def _pseudo_masks(workspace: Workspace, choice: str, split: str, ids: Sequence[str]) -> Masks:
    try:
        found = formats.find_folder(workspace.path, ("masks",), choice, split, ("masks",),
                                    f"`crf(split={split!r})`", preferred=features.BEST_FIRST)
    except VplError:
        for folder in (Path(choice), workspace.path / choice) if choice else ():
            if folder.is_dir() and not (folder / MANIFEST).exists():
                return _own_masks(workspace, folder, ids)
        raise
    workspace.check_classes(found.header, found.path)
    there = found.available(ids) if ids else []
    check_current(workspace, there, found)
    return Masks(found.path, found.name, there, header=found.header)


def _own_masks(workspace: Workspace, folder: Path, ids: Sequence[str]) -> Masks:
    if workspace.has_true_masks_in(folder):
        raise VplError(f"{folder} holds the true masks of this workspace, which are for `eval`",
                       "train on the masks of `crf()`, or on others")
    masks = Masks(folder, folder.resolve().name, ids)
    have = [key for key in ids if masks.path_of(key).is_file()]
    if ids and not have:
        raise VplError(f"{folder} holds no mask of the selected photos",
                       f"a mask has its photo's name: {masks.path_of(ids[0])}")
    if len(have) < len(ids):
        console.warn(part_of(len(ids) - len(have), len(ids), "photos",
                             f"has no mask in {folder}; it is skipped",
                             f"have no mask in {folder}; they are skipped"))
    return Masks(folder, masks.name, have)


def content_identity(folder: Path, ids: Iterable[str]) -> str:
    """Hash the bytes of the masks in a folder, so that those corrected by hand are other ones."""
    there = {key: path for key in ids if (path := folder / f"{key}.png").exists()}
    hashes = threads.in_threads(formats.identity_of_file, there.values(), _THREADS)
    return formats.identity_of_many(dict(zip(there, hashes, strict=True)))


def identities_of(masks: Masks, ids: Collection[str]) -> dict[str, str]:
    """Hash the masks of photos, by role in a header; `corrections` where some were corrected."""
    corrected = {key: path for key, path in masks.corrected.items() if key in ids}
    return {"masks": content_identity(masks.path, ids)} | (
        {"corrections": corrected_masks.identity_of_corrections(corrected)} if corrected else {})


def repeated(masks: Masks, ids: Sequence[str], times: int) -> list[str]:
    """Return the photos of an epoch, with corrected photos repeated `times` times."""
    return [key for key in ids for _ in range(times if key in masks.corrected else 1)]


def supervision_by(masks: Masks, ids: Sequence[str]) -> str:
    """Say what the masks of photos hold beyond tags; see `Header`."""
    # What another program wrote into a folder of vpltool's has no header.
    corrected = [key for key in ids if key in masks.corrected or (
        masks.header is not None and formats.describe(masks.path_of(key)).header is None)]
    own = 0 if masks.header else len(ids) - len(corrected)
    return join_supervision([
        masks.header.supervision if masks.header else "",
        f"tags and {own} mask{'s' * (own > 1)} of one's own" if own else "",
        f"tags and {len(corrected)} corrected mask{'s' * (len(corrected) > 1)}" if corrected
        else ""])


def newer_than(masks: Masks, file: Path, ids: Iterable[str]) -> int:
    """Count the masks that were written after a file."""
    written = file.stat().st_mtime
    return sum(masks.path_of(key).stat().st_mtime > written for key in ids)


def check_masks(masks: Masks, workspace: Workspace, photos: Sequence[Photo]) -> None:
    """Check that masks hold classes of the workspace, and fit their photos; note corrected ones.

    Raises:
        VplError: a value is no class, or a mask has another size than its photo; the first such
            file is named.
    """
    def check(photo: Photo) -> bool:
        path = masks.path_of(photo.id)
        labels = corrected_masks.read_mask(
            path, workspace.image_path(photo), len(workspace.classes),
            other_palettes=masks.has_other_palettes(photo.id))
        # What was imported has been warned of; what vpltool computed may know more than the tags.
        return (photo.id not in masks.corrected
                and corrected_masks.is_untagged(labels, workspace.indices_of(photo))
                and formats.describe(path).header is None)

    with console.progress(f"check {masks.name}", len(photos)) as advance:
        untagged = []
        for photo, odd in zip(photos, threads.in_threads(check, photos, _THREADS), strict=True):
            if odd:
                untagged.append(photo.id)
            advance()
    corrected_masks.warn_of_untagged(untagged)
    if supervision := supervision_by(masks, [photo.id for photo in photos]):
        console.note(f"{masks.path}: supervised by {supervision}")
