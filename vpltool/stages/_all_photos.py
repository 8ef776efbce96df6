"""Which photos a file is made from that is made from all photos of a split at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from vpltool.errors import VplError
from vpltool.formats import (
    Header,
    InputFolder,
    Photo,
    Workspace,
    identity_of_many,
    open_input,
)
from vpltool.formats.kinds import KINDS
from vpltool.formats.manifest import MANIFEST


def photos_identity(workspace: Workspace, split: str, limit: int, *inputs: InputFolder) -> str:
    """Return a hash of the ids of the photos that folders give: all but those that failed.

    It is the input `photos` of such a file: once a failed photo is there, the file is stale.

    Args:
        workspace: gives the photos.
        split: of the photos.
        limit: only the first photos; 0: all.
        inputs: what is read of each photo.
    """
    ids = [photo.id for photo in workspace.photos(split, limit)]
    left_out = {key for folder in inputs for key in folder.left_out(ids)}
    return identity_of_many({key: "" for key in ids if key not in left_out})


def known_hashes(workspace: Workspace, photos: Iterable[Photo], inputs: Iterable[InputFolder]
                 ) -> dict[str, str]:
    """Return id to hash of each photo's file; where it cannot be read, as folders know it.

    Args:
        workspace: where the photos are.
        photos: of the workspace.
        inputs: folders that were made from them.
    """
    photos = list(photos)
    known: Mapping[str, str] = {key: hashed for folder in inputs
                                for key, hashed in folder.photos.items()}
    return {photo.id: known[photo.id] for photo in photos if photo.id in known
            } | workspace.hashes_of(photos)


def with_photo_files(workspace: Workspace, header: Header) -> Header:
    """Add the input `photo-files` to the header of a file that is made from all photos of a split.

    Args:
        workspace: gives the photos.
        header: its sources are the folders that are read, its options the split and the limit.
    """
    return replace(header, inputs=header.inputs | {
        "photo-files": _files_identity(workspace, header)})


def _files_identity(workspace: Workspace, header: Header) -> str:
    """Hash of the files of the photos that the sources of a header give."""
    photos = workspace.photos(str(header.options.get("split", "train")),
                              int(header.options.get("limit", 0)))
    folders = list(_folders(workspace, header))
    left_out = {key for folder in folders for key in folder.left_out(
        [photo.id for photo in photos])}
    return identity_of_many(known_hashes(
        workspace, (photo for photo in photos if photo.id not in left_out), folders))


def other_photos(workspace: Workspace, header: Header) -> list[str]:
    """Say that a file would be made from other photos now, if it would.

    Files of earlier versions do not record theirs.
    """
    if header.inputs.keys().isdisjoint(("photos", "photo-files")):
        return []
    split = str(header.options.get("split", "train"))
    try:
        if header.inputs.get("tags", "") not in ("", workspace.tags_identity(split)):
            # That photos or tags have changed is said anyway.
            return []
        if "photos" in header.inputs and header.inputs["photos"] != photos_identity(
                workspace, split, int(header.options.get("limit", 0)),
                *_folders(workspace, header)):
            return ["other photos can be read than it was made from"]
        if "photo-files" in header.inputs and header.inputs["photo-files"] != _files_identity(
                workspace, header):
            return ["photos were replaced"]
    except VplError:
        return ["photos have changed"]
    return []


def _folders(workspace: Workspace, header: Header) -> Iterator[InputFolder]:
    for source in header.sources.values():
        path = workspace.path / source
        if (path / MANIFEST).exists():
            yield open_input(path, tuple(KINDS))


def given_again(folder: InputFolder, sources: list[InputFolder]) -> set[str]:
    """Return the photos that a folder lacks since an earlier step failed, which works by now."""
    return {key for key in folder.waiting if sources and not folder.holds(key)
            and all(source.holds(key) for source in sources)}
