"""Import photos, captions and tags from WebDataset tars.

In a tar, the files of one photo follow each other and differ only after the first dot: 0001.jpg;
0001.txt, one caption per line; 0001.json with captions or labels; 0001.cls, a class. The photos are
unpacked into the workspace; train-groups can also read the tars directly.

Example: vpltool prepare webdataset 'tars/{000..009}.tar' --val tars/010.tar

Next: vpltool text-prototypes
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vpltool import console, options, settings
from vpltool.datasets import webdataset as tars
from vpltool.datasets.layouts import check_class_count, check_labels
from vpltool.datasets.tags import class_remarks
from vpltool.datasets.words import VOC
from vpltool.errors import VplError, counted, part_of
from vpltool.file_hashes import hashes_of, identity_of_bytes
from vpltool.formats import OutputFolder, Photo, Workspace, atomic
from vpltool.methods.inputs import Source, SourceRequest
from vpltool.names import leads_out
from vpltool.settings import setting

FOLDER = "unpacked"
"""Folder of the workspace that photos are written to."""

OUTSIDE = "names that lead out of their folder"


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """Settings of WebDataset tars."""

    tars: tuple[str, ...] = setting(
        help="Tars of the split train, folders of tars, or addresses such as s3://…; {000..009} "
             "stands for ten.", metavar="TARS...", positional=True)
    val: tuple[str, ...] = setting((), "Tars of the split val. Repeatable.", metavar="TARS")
    allow_pipe: bool = options.allow_pipe()


def read(workspace_path: Path, settings: Settings, shared: SourceRequest) -> Source:
    """Read the tars once; the photos are written later, into the new workspace."""
    def found(name: str) -> list[str]:
        """Return the tars of a setting; values of an earlier call may start no program."""
        allowed = settings.allow_pipe and name in settings.given
        return tars.find_tars(getattr(settings, name), allow_pipe=allowed)

    splits = dict.fromkeys(found("val"), "val") if settings.val else {}
    splits = {tar: "train" for tar in found("tars") if tar not in splits} | splits
    names = dict(zip(splits, tars.folder_names(list(splits)), strict=True))
    flaws, photos, hashes = tars.Flaws(), dict[str, Photo](), dict[str, str]()
    with console.progress("prepare", len(splits)) as advance:
        for tar, split in splits.items():
            for pair in _placed(tar, flaws):
                photo = _photo(pair, names[tar], split, shared.classes)
                if photo.id in photos:
                    flaws.add(tars.Flaw(tars.TWICE, tars.location_of(tar, pair.key)))
                    continue
                photos[photo.id], hashes[photo.image] = photo, identity_of_bytes(pair.photo)
            advance()
    listed, first = list(photos.values()), next(iter(splits))
    if not listed:
        raise VplError(f"{first} holds no photo"
                       + "".join(f"; {remark}" for remark in flaws.remarks()),
                       "a photo is KEY.jpg, its caption KEY.txt after it")
    classes = shared.classes or tuple(sorted({tag for photo in listed for tag in photo.tags}))
    check_class_count(classes, first, listed=bool(shared.classes))
    check_labels(listed, classes)

    def paint(workspace: Workspace, photos: Sequence[Photo]
              ) -> tuple[list[Photo], list[OutputFolder]]:
        _unpack(workspace.path / FOLDER, names, hashes)
        return list(photos), []

    return Source("webdataset", workspace_path / FOLDER, listed, classes, VOC.background,
                  from_tags=not shared.classes, paint=paint, unlisted=True,
                  remarks=[*flaws.remarks(), *_remarks(listed, classes),
                           *class_remarks(listed, classes_known=bool(shared.classes))])


def _placed(tar: str, flaws: tars.Flaws) -> Iterator[tars.Pair]:
    """Yield the photos of a tar that can be written below a folder, and count all flaws."""
    for pair in tars.read_tar(tar):
        if isinstance(pair, tars.Flaw):
            flaws.add(pair)
        elif leads_out(pair.key):
            flaws.add(tars.Flaw(OUTSIDE, tars.location_of(tar, pair.key)))
        else:
            yield pair


def _photo(pair: tars.Pair, name: str, split: str, classes: Sequence[str]) -> Photo:
    tags = tuple(classes[int(tag)] if tag not in classes and tag.isdecimal() and len(tag) < 6
                 and int(tag) < len(classes) else tag for tag in pair.tags)
    key = f"{name}/{pair.key}"
    return Photo(key, f"{key}.{pair.suffix}", tuple(dict.fromkeys(tags)), (split,),
                 captions=pair.captions)


def _unpack(folder: Path, names: Mapping[str, str], hashes: Mapping[str, str]) -> None:
    """Write missing and changed photos, tar by tar."""
    present = hashes_of(folder, hashes)
    todo = {image for image, hashed in hashes.items() if present.get(image) != hashed}
    if not todo:
        return
    console.note(f"writing {counted(len(todo), 'photo', 'photos')} to {folder}")
    with console.progress("unpack", len(todo)) as advance:
        for tar, name in names.items():
            if not any(image.startswith(f"{name}/") for image in todo):
                continue
            for pair in _placed(tar, tars.Flaws()):
                image = f"{name}/{pair.key}.{pair.suffix}"
                if image in todo:
                    todo.discard(image)
                    with atomic.atomic_path(folder / image) as temporary:
                        temporary.write_bytes(pair.photo)
                    advance()


def _remarks(photos: Sequence[Photo], classes: Sequence[str]) -> Iterator[str]:
    if bare := [photo.id for photo in photos if not photo.captions]:
        yield (part_of(len(bare), len(photos), "photos", "has", "have")
               + f" no caption, such as {bare[0]}")
    if classes and all(name.isdecimal() for name in classes):
        yield (f"the classes are numbers, such as {classes[0]}; `classes='FILE'` names them, a "
               "line each from 0 on")
