"""Corrected masks follow their photos and classes, which people rename, move, merge and renumber.

A correction belongs to the content of a photo and to the names of classes. Its header holds both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vpltool import console, formats
from vpltool.core.classes import renumbered
from vpltool.errors import VplError, counted, first_few, near_name
from vpltool.formats import Header, Photo, Workspace, corrections, kinds, manifest
from vpltool.formats.outputs import replaced_photos
from vpltool.formats.workspace import relative_to
from vpltool.lazy import np, npt


def parse_renames(words: Sequence[str]) -> dict[str, str]:
    """Return the new names of classes by the old, from words such as `cat=felis`.

    Raises:
        VplError: a word is not OLD=NEW.
    """
    renames = dict[str, str]()
    for word in words:
        old, _, new = (part.strip() for part in word.partition("="))
        if not old or not new or renames.setdefault(old, new) != new:
            raise VplError(f"`rename={word!r}` is not OLD=NEW with one name for each class",
                           "for example `rename='cat=felis'`")
    return renames


def with_renamed_classes(workspace: Workspace, renames: Mapping[str, str]) -> Workspace:
    """Return a workspace whose classes have their new names; classes of one name are merged."""
    names = [renames.get(name, name) for name in workspace.classes]
    classes = tuple(dict.fromkeys(names))
    number = {label: classes.index(name) + 1 for label, name in enumerate(names, 1)}
    return replace(workspace, classes=classes, mask_values={
        value: number.get(label, label) for value, label in workspace.mask_values.items()})


def check_renames(renames: Mapping[str, str], old: Workspace, tagged: Collection[str]) -> None:
    """Check that renamed classes are known, and that no photo is still tagged with an old name.

    Args:
        old: the workspace as it was.
        tagged: the classes of the photos' tags, or of the class file.

    Raises:
        VplError: one is unknown, or still in use.
    """
    known = {*old.classes}.union(*(header.facts.get("classes", ())
                                   for _, header in _corrections_in(old.path)))
    for name, new in renames.items():
        if name not in known:
            raise VplError(f"`rename='{name}={new}'`: no class was named `{name}`",
                           near_name(name, known))
        if name in tagged:
            raise VplError(f"`rename='{name}={new}'`: the tags or the class file still have "
                           f"`{name}`", f"write `{new}` there, and prepare again")


def renamed_photos(old: Workspace, before: Sequence[Photo], root: Path, photos: Sequence[Photo]
                   ) -> dict[str, str]:
    """Return the new id by old id, of photos that were renamed or moved: their files are the same.

    Results record the hashes of photos that are gone.

    Args:
        before: the photos of the workspace as it was.
        root: the folder of `photos`.
    """
    known = {photo.id for photo in before}
    gone = known - {photo.id for photo in photos}
    added = [photo for photo in photos if photo.id not in known]
    if not gone or not added:
        return {}
    here = replace(old, root=relative_to(root, old.path))
    return _paired({key: hashed for key, hashed in hashes_in_results(old.path).items()
                    if key in gone}, here.hashes_of(added))


def hashes_in_results(work: Path) -> dict[str, str]:
    """Return the hashes of photos by id, as results of a workspace record them."""
    known: dict[str, str] = {}
    for _, folder in manifest.folders_in(work):
        if not isinstance(folder, VplError):
            known |= folder.photos
    return known


def _paired(gone: Mapping[str, str], added: Mapping[str, str]) -> dict[str, str]:
    """Return the key of `added` by the key of `gone` that has the same hash, if it is unique."""
    keys: dict[str, list[str]] = {}
    for key, hashed in added.items():
        keys.setdefault(hashed, []).append(key)
    hashes = [*gone.values()]
    return {key: keys[hashed][0] for key, hashed in gone.items()
            if hashed and len(keys.get(hashed, ())) == 1 == hashes.count(hashed)}


def adopt_edits(old: Workspace, photos: Sequence[Photo], renamed: Collection[str], *,
                renumbered: bool) -> None:
    """Move masks edited in place to `corrections/`: they hold neither their photo nor classes.

    Those of photos that were replaced or `renamed` are moved, and all if classes are `renumbered`.
    `old` is the workspace as it was; `photos` are its own.
    """
    moved = list[str]()
    masks = kinds.folder_of(old.path, "masks")
    for path, folder in manifest.folders_in(old.path):
        # A copy beside it may be a backup.
        if isinstance(folder, VplError) or not path.is_relative_to(masks):
            continue
        chosen = {*folder.photo_ids()} if renumbered else {*renamed} | replaced_photos(
            folder.photos, old.hashes_of(photo for photo in photos if photo.id in folder.photos))
        for key in sorted(chosen):
            file = folder.path_of(key)
            if file.is_file() and formats.describe(file).header is None:
                put(old.path, key, formats.read_drawn_labels(file),
                    header_of(old, folder.photos.get(key, "")), only_new=True)
                file.unlink()
                moved.append(key)
    if moved:
        console.note(counted(len(moved), "mask that was edited in place is",
                             "masks that were edited in place are")
                     + f" in {old.path / corrections.FOLDER} now: {first_few(moved)}")


def header_of(workspace: Workspace, photo: str) -> Header:
    """Return the header of a corrected mask of a photo with a hash; empty: it is unknown."""
    return Header(kind=corrections.FOLDER, command="prepare", supervision="a corrected mask",
                  facts={"classes": list(workspace.classes),
                         **({corrections.PHOTO: photo} if photo else {})})


def put(work: Path, photo_id: str, labels: npt.NDArray[np.uint8], header: Header, *,
        only_new: bool = False) -> bool:
    """Write a corrected mask; return whether one with other labels is in the way.

    That one is moved to `corrections-replaced/`; with `only_new` it stays, and the labels go there.
    """
    path, aside = (work / folder / f"{photo_id}.png"
                   for folder in (corrections.FOLDER, corrections.FOLDER_OF_REPLACED))
    other = path.is_file() and not np.array_equal(formats.read_labels(path), labels)
    if other and not only_new:
        aside.parent.mkdir(parents=True, exist_ok=True)
        path.replace(aside)
    formats.write_labels(aside if other and only_new else path, labels, header)
    return other


def follow(workspace: Workspace, photos: Sequence[Photo], renames: Mapping[str, str]) -> None:
    """Bring corrected masks up to date: with their photos' names, and their classes' numbers.

    `renames` gives the new names of classes by the old. What cannot follow stays, and is told.
    """
    _follow_photos(workspace, photos)
    gone: dict[str, list[str]] = {}
    for key, header in _corrections_in(workspace.path):
        names = [renames.get(name, name) for name in header.facts.get("classes", ())]
        if tuple(header.facts.get("classes", ())) == workspace.classes[:len(names)]:
            continue
        path = workspace.path / corrections.FOLDER / f"{key}.png"
        try:
            labels = renumbered(formats.read_labels(path), names, workspace.classes)
        except KeyError as error:
            gone.setdefault(error.args[0], []).append(key)
            continue
        formats.write_labels(path, labels, replace(
            header, facts={**header.facts, "classes": list(workspace.classes)}))
        corrections.remember_exchanged(workspace.path, imported={
            key: corrections.identity_shown(labels, workspace.classes)})
    for name, keys in sorted(gone.items()):
        console.warn(counted(len(keys), "corrected mask shows", "corrected masks show")
                     + f" `{name}`, which is no class any more: {first_few(keys)}; if it has "
                     f"another name now, `prepare` takes `rename='{name}=NEW'`")


def _follow_photos(workspace: Workspace, photos: Sequence[Photo]) -> None:
    """Rename the corrected masks of photos that were renamed, which have the same hash."""
    ids, folder = {photo.id for photo in photos}, workspace.path / corrections.FOLDER
    there = {key: str(header.facts.get(corrections.PHOTO, ""))
             for key, header in _corrections_in(workspace.path)}
    orphans = {key: hashed for key, hashed in there.items() if key not in ids}
    if not orphans:
        return
    renamed = _paired(orphans, workspace.hashes_of(
        photo for photo in photos if photo.id not in there))
    for old, new in renamed.items():
        (folder / f"{new}.png").parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{old}.png").rename(folder / f"{new}.png")
    if lost := sorted(orphans.keys() - renamed.keys()):
        console.note(counted(len(lost), "corrected mask is of a photo that is gone, and is",
                             "corrected masks are of photos that are gone, and are")
                     + f" not used: {first_few(lost)}")


def _corrections_in(work: Path) -> Iterator[tuple[str, Header]]:
    """Yield the photo id and the header of each corrected mask; damaged ones are skipped."""
    folder = work / corrections.FOLDER
    for path in sorted(folder.rglob("*.png")):
        with contextlib.suppress(VplError):
            if header := corrections.header_of(path):
                yield path.relative_to(folder).with_suffix("").as_posix(), header
