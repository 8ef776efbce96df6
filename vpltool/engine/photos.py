"""Selection of the photos that a stage processes, and identities of whole splits."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from vpltool import console, formats
from vpltool.core.photos import describe_failure, photo_size, read_photo
from vpltool.errors import VplError, first_few, part_of
from vpltool.formats import Header, InputFolder, Photo, Workspace, kinds, outputs, shards
from vpltool.formats.manifest import MANIFEST, UPDATE_HINT, call_of
from vpltool.lazy import np, npt
from vpltool.names import short_path
from vpltool.parallel import threads

_THREADS = 8
"""Threads that hash files."""

SEE_THE_DISK = ("see that the disk with the photos is there; `prepare` with another folder follows "
                "photos that have moved, and leaves out photos that are gone")
"""The hint where photos are gone."""

TAGGED = ("cams", "masks")
"""Kinds of file that depend on the photo's tags."""


@dataclass(frozen=True)
class Photos:
    """The photos requested from a stage.

    Args:
        per_photo_inputs: the photo's own inputs by id, see `open_output`.
        left_out: reason by id, of photos that an earlier stage failed on.
        whole: whether these are all photos of the split, or all of the shard.
        hashes: hash of the photo's file by id, if readable.
    """

    ids: Sequence[str]
    per_photo_inputs: Mapping[str, str]
    left_out: Mapping[str, str]
    whole: bool = True
    shard: shards.Shard = shards.WHOLE
    hashes: Mapping[str, str] = field(default_factory=dict)


def chosen_shard(choice: str) -> shards.Shard:
    """Return the shard of this process, and print it unless it is all photos.

    Raises a VplError if the setting or the environment specifies no valid shard.
    """
    shard = shards.find_shard(choice)
    if shard.count > 1:
        console.note(f"shard {shard} of the photos, {shard.set_by}")
    if (tasks := shards.undivided_tasks(choice)) > 1:
        number = f"{tasks} × SLURM_ARRAY_TASK_ID + " if shard.count > 1 else ""
        console.warn(f"srun started {tasks} tasks (SLURM_STEP_NUM_TASKS), and each takes the same "
                     f"photos; to divide them, give each task `shard='I/{tasks * shard.count}'`, "
                     f"where I is {number or 'its '}SLURM_PROCID")
    return shard


Named = TypeVar("Named")
Result = TypeVar("Result")


def assigned(photos: Iterable[Named], shard: shards.Shard, key: Callable[[Named], str] = str
             ) -> list[Named]:
    """Select the photos that this process handles.

    All per-photo stages use this function, and no other.
    """
    return [photo for photo in photos if shard.holds(key(photo))]


def photos_with(workspace: Workspace, split: str, limit: int, *inputs: InputFolder,
                shard: shards.Shard = shards.WHOLE) -> Photos:
    """Return the photos of a split or shard that all inputs contain, with their tags.

    Raises a VplError if an input is incomplete, holds none of them, or was made from other photos
    or tags.
    """
    photos = assigned(workspace.photos(split, limit), shard, lambda photo: photo.id)
    ids = [photo.id for photo in photos]
    left_out = {key: why for folder in inputs for key, why in folder.left_out(ids).items()}
    for folder in inputs:
        ids = folder.available(ids)
    check_current(workspace, ids, *inputs)
    hashes = known_hashes(workspace, photos, inputs)
    return Photos(ids, tags_of(workspace, photos), left_out, not limit, shard,
                  {key: hashes[key] for key in (*ids, *left_out) if key in hashes})


def check_current(workspace: Workspace, ids: Collection[str], *inputs: InputFolder) -> None:
    """Check that folders were made from the present photos and tags.

    Raises a VplError if a folder was not; the hint is the call that recomputes the outdated files.
    """
    wanted = set(ids)
    photos = [photo for photo in workspace.photos() if photo.id in wanted]
    hashes, tags = workspace.hashes_of(photos), tags_of(workspace, photos)
    for folder in inputs:
        tagged = folder.per_photo_inputs if folder.kind in TAGGED else {}
        for what, before, now in (("photo replaced", folder.photos, hashes),
                                  ("tags changed", tagged, tags)):
            if old := sorted(outputs.replaced_photos(before, now) & wanted):
                raise VplError(
                    f"{folder.path}: {part_of(len(old), len(wanted), 'files', 'is', 'are')} out of "
                    f"date ({what}): {first_few(old)}",
                    f"{UPDATE_HINT}{call_of(folder.header)} makes only these again")


def tags_of(workspace: Workspace, photos: Iterable[Photo]) -> dict[str, str]:
    """Return class indices as text by id: the tags on which a photo's maps depend."""
    return {photo.id: " ".join(map(str, workspace.indices_of(photo))) for photo in photos}


def paths_of(workspace: Workspace, split: str) -> dict[str, Path]:
    """Return the paths of a split's photos by id."""
    return {photo.id: workspace.image_path(photo) for photo in workspace.photos(split)}


def check_there(paths: Collection[Path]) -> None:
    """Check that any of these photos is there; else their disk is probably away.

    Raises a VplError, before good pictures are replaced by empty ones.
    """
    if any(os.access(path, os.R_OK) for path in paths):
        return
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    raise VplError(
        f"no photo in {short_path(folder)} can be read: {first_few(path.name for path in paths)}"
        if folder.is_dir() else f"{short_path(folder)}, the folder of the photos, is missing",
        SEE_THE_DISK)


def warn_of_pages(pages: Mapping[str, int], total: int) -> None:
    """Warn of photos that have several pages, since only the first counts.

    Args:
        pages: number of pages by name of the file.
        total: number of photos.
    """
    if stacks := [f"{name} ({count})" for name, count in pages.items() if count > 1]:
        console.warn(part_of(len(stacks), total, "photos", "has", "have")
                     + f" several pages, of which only the first counts: {first_few(stacks)}")


def tell_of_side(paths: Iterable[Path], side: int, say: Callable[[str], None]) -> None:
    """Tell that a side scales no photo down, if none is longer; the first that is ends the look."""
    longest = 0
    for path in paths:
        with contextlib.suppress(OSError):
            longest = max(longest, *photo_size(path))
        if longest > side:
            return
    if longest:
        say(f"no photo is longer than {longest} pixels, so `max_side={side}` changes nothing: "
            "photos are only scaled down")


def read_known_photo(workspace: Workspace, photo: Photo) -> npt.NDArray[np.uint8]:
    """Read a photo, RGB (H, W, 3), that an earlier stage could read; else raise a VplError."""
    return _read_known(workspace, photo, read_photo)


def known_photo_size(workspace: Workspace, photo: Photo) -> tuple[int, int]:
    """Read (height, width) of a photo that an earlier stage could read; else raise a VplError."""
    return _read_known(workspace, photo, photo_size)


def _read_known(workspace: Workspace, photo: Photo, read: Callable[[Path], Result]) -> Result:
    path = workspace.image_path(photo)
    try:
        return read(path)
    except OSError as error:
        raise VplError(f"{photo.id}: {describe_failure(path, error)}",
                       "fix it and run the same command again") from error


def file_identities(paths: Mapping[str, Path]) -> dict[str, str]:
    """Return a hash of each file's bytes by id, since a name may refer to another file later."""
    hashes = threads.in_threads(formats.identity_of_file, paths.values(), _THREADS)
    return dict(zip(paths, hashes, strict=True))


def known_hashes(workspace: Workspace, photos: Sequence[Photo], inputs: Iterable[InputFolder]
                 ) -> dict[str, str]:
    """Return the hash of each photo's file by id; of unreadable ones, as recorded by folders."""
    known: Mapping[str, str] = {key: hashed for folder in inputs
                                for key, hashed in folder.photos.items()}
    return {photo.id: known[photo.id] for photo in photos if photo.id in known
            } | workspace.hashes_of(photos)


def with_photo_files(workspace: Workspace, header: Header, *, ids: bool = False) -> Header:
    """Add the input `photo-files` to the header of a file made from all photos of a split.

    Args:
        header: has the input folders as sources, and the options `split` and `limit`.
        ids: whether to add `photos`, too, so that the file is stale once a failed photo is
            available.
    """
    known = {"photos": photos_identity(workspace, header)} if ids else {}
    return replace(header, inputs=header.inputs | known | {
        "photo-files": photo_files_identity(workspace, header)})


def photo_files_identity(workspace: Workspace, header: Header) -> str:
    """Return a hash of the files of all photos that the header's sources contain."""
    return formats.identity_of_many(known_hashes(workspace, *_photos_of(workspace, header)))


def photos_identity(workspace: Workspace, header: Header) -> str:
    """Return a hash of the ids of all photos that the header's sources contain."""
    photos, _ = _photos_of(workspace, header)
    return formats.identity_of_many({photo.id: "" for photo in photos})


def _photos_of(workspace: Workspace, header: Header) -> tuple[list[Photo], list[InputFolder]]:
    """Return the photos of a split that failed in none of the header's folders, and the folders."""
    photos = workspace.photos(str(header.options.get("split", "train")),
                              int(header.options.get("limit", 0)))
    folders = [formats.open_input(workspace.path / source, tuple(kinds.KINDS))
               for source in header.sources.values()
               if (workspace.path / source / MANIFEST).exists()]
    ids = [photo.id for photo in photos]
    left_out = {key for folder in folders for key in folder.left_out(ids)}
    return [photo for photo in photos if photo.id not in left_out], folders


def available_again(folder: InputFolder, sources: list[InputFolder]) -> set[str]:
    """Return photos missing because an earlier stage failed on them, if it succeeds now."""
    return {key for key in folder.waiting if sources and not folder.holds(key)
            and all(source.holds(key) for source in sources)}
