"""Photos given as files and folders instead of a split."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vpltool.datasets.layouts import named_photos
from vpltool.errors import VplError
from vpltool.formats import identity_of_file
from vpltool.formats.manifest import MANIFEST, manifest_of
from vpltool.names import short_path
from vpltool.parallel.threads import in_threads

_THREADS = 8
"""Number of threads that hash photos."""


@dataclass(frozen=True)
class NamedPhotos:
    """A group of photos.

    Args:
        name: name of their folder; `files` for single files.
        paths: path by id; an id is the file's path in the folder, without suffix.
        images: the folder or files that were given.
    """

    name: str
    paths: Mapping[str, Path]
    images: Sequence[Path]


def find_photos(images: Sequence[Path], *, together: bool) -> list[NamedPhotos]:
    """Find the photos in files and folders, including sub-folders.

    Args:
        together: whether to return one group; otherwise one per folder, and one of single files.

    Returns:
        the groups; folders of the same name share a group.

    Raises:
        VplError: a path is missing or not a photo by its suffix, or two photos have the same id.
    """
    groups: dict[str, list[Path]] = {}
    for path in images:
        own = path.resolve().name if path.is_dir() and not together else ""
        groups.setdefault(own or "files", []).append(path)
    return [NamedPhotos(name, named_photos(members), members) for name, members in groups.items()]


def check_same_folder(masks: Path, images: Sequence[Path], ids: Iterable[str], base: Path) -> None:
    """Check that photos of one folder do not replace masks of another folder's photos.

    Photos from a second folder of the same name are added unless their names collide.

    Args:
        images: the given paths; only a single folder is checked.
        base: folder to which paths in headers are relative.

    Raises:
        VplError: `masks` holds the mask of an existing photo in another folder.
    """
    if len(images) != 1 or not images[0].is_dir() or not (masks / MANIFEST).exists():
        return
    before = manifest_of(masks, "predict").header.sources.get("images", "")
    other = base / before
    if not before or not other.is_dir() or other.samefile(images[0]):
        return
    for key in ids:
        if (masks / f"{key}.png").exists() and any(other.glob(f"{glob.escape(key)}.*")):
            raise VplError(f"{masks} holds the masks of {short_path(other)}, which also has a "
                           f"photo {key}", "`out='DIR'` keeps both")


def photo_identities(paths: Mapping[str, Path]) -> dict[str, str]:
    """Return a hash of each photo's bytes by id, since a name may refer to another photo later."""
    hashes = in_threads(identity_of_file, paths.values(), _THREADS)
    return dict(zip(paths, hashes, strict=True))
