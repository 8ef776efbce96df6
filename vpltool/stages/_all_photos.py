"""Which photos a file is made from that is made from all photos of a split at once."""

from __future__ import annotations

from collections.abc import Iterator

from vpltool.errors import VplError
from vpltool.formats import Header, InputFolder, Workspace, identity_of_many, open_input
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


def other_photos(workspace: Workspace, header: Header) -> list[str]:
    """Say that the input folders of a file give other photos than it was made from, if they do.

    Files of earlier versions do not record theirs.
    """
    if "photos" not in header.inputs:
        return []
    split = str(header.options.get("split", "train"))
    try:
        if header.inputs.get("tags", "") not in ("", workspace.tags_identity(split)):
            # That photos or tags have changed is said anyway.
            return []
        now = photos_identity(workspace, split, int(header.options.get("limit", 0)),
                              *_folders(workspace, header))
    except VplError:
        return ["photos have changed"]
    return [] if header.inputs["photos"] == now else [
        "other photos can be read than it was made from"]


def _folders(workspace: Workspace, header: Header) -> Iterator[InputFolder]:
    for source in header.sources.values():
        path = workspace.path / source
        if (path / MANIFEST).exists():
            yield open_input(path, tuple(KINDS))


def given_again(folder: InputFolder, sources: list[InputFolder]) -> set[str]:
    """Return the photos that a folder lacks since an earlier step failed, which works by now."""
    return {key for key in folder.waiting if sources and not folder.holds(key)
            and all(source.holds(key) for source in sources)}
