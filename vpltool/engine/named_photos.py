"""Photos that are named on their own, not those of a split: files and folders."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vpltool.datasets.layouts import named_photos
from vpltool.errors import VplError
from vpltool.formats import identity_of_file
from vpltool.formats.manifest import MANIFEST, manifest_of
from vpltool.formats.whereabouts import short_path
from vpltool.parallel.threads import in_threads

_THREADS = 8
"""Threads that read photos to hash them."""


@dataclass(frozen=True)
class NamedPhotos:
    """Photos that belong together.

    Args:
        name: of their folder; `files` for single files.
        paths: id to path; an id is the file's name below the folder, without suffix.
        images: what was named: the folder, or the files.
    """

    name: str
    paths: Mapping[str, Path]
    images: Sequence[Path]


def find_photos(images: Sequence[Path], *, together: bool) -> list[NamedPhotos]:
    """Find the photos that files and folders name, sub-folders included.

    Args:
        together: whether all of them are one group; else each folder is one, and all single files.

    Returns:
        the groups. Folders of the same name are one group, named as the first of them.

    Raises:
        VplError: a file or folder is missing or is no photo by its suffix, or two have one id.
    """
    groups: dict[str, list[Path]] = {}
    for path in images:
        own = path.resolve().name if path.is_dir() and not together else ""
        groups.setdefault(own or "files", []).append(path)
    return [NamedPhotos(name, named_photos(members), members) for name, members in groups.items()]


def check_same_folder(masks: Path, images: Sequence[Path], ids: Iterable[str], base: Path) -> None:
    """Check that photos of one folder do not replace the masks of another one's.

    Photos of a second folder of the same name are added, unless both have photos of one name.

    Args:
        images: what is named; only a single folder is checked.
        base: folder that paths in headers are relative to.

    Raises:
        VplError: `masks` holds the mask of a photo of another folder, which still exists.
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
    """Id to hash of each photo's bytes: a name may be another folder's photo next time."""
    hashes = in_threads(identity_of_file, paths.values(), _THREADS)
    return dict(zip(paths, hashes, strict=True))
