"""The workspace: its photos, classes and CLIP, and where to find everything else by default."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from vpltool.errors import VplError, near_name
from vpltool.formats.changes import (
    Words,
    add_change,
    describe_change,
    explain_change,
    last_call,
)
from vpltool.formats.header import Header, identity_of_many
from vpltool.formats.inputs import InputFolder, open_input
from vpltool.formats.kinds import IGNORE
from vpltool.formats.manifest import UPDATE_HINT, again
from vpltool.formats.storage import atomic_path, read_json, write_json

_PREPARE = "`prepare('folder', images='IMAGES', labels='FILE.csv')`"


@dataclass(frozen=True)
class Photo:
    """One photo of the data set, a line of `images.jsonl`.

    Args:
        id: unique; the file name without suffix, with its folders if there are any.
        image: path below the data set's root.
        labels: names of the classes that the photo shows, without the background.
        splits: names of the splits that it belongs to.
        mask: path of its true mask below the root, or None. Only `eval` and `show` open it.
        caption: what the photo shows, in words; empty if unknown.
        more: fields of the line that vpltool does not know; they are kept.
    """

    id: str
    image: str
    labels: tuple[str, ...]
    splits: tuple[str, ...]
    mask: str | None = None
    caption: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the photo as a line of `images.jsonl`."""
        entry = asdict(self) | dict(self.more)
        del entry["more"]
        if not self.caption:
            del entry["caption"]
        return json.dumps(entry, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Photo:
        """Read a line of `images.jsonl`.

        Raises:
            ValueError, KeyError, TypeError: the line is not a photo.
        """
        entry = json.loads(line)
        return cls(entry.pop("id"), entry.pop("image"), tuple(entry.pop("labels")),
                   tuple(entry.pop("splits")), entry.pop("mask", None), entry.pop("caption", ""),
                   entry)


@dataclass(frozen=True)
class Workspace:
    """The content of `workspace.json`, and the folder that it is in.

    Args:
        path: the workspace folder.
        name: name of the data set (`voc` selects CLIP-ES's class words for VOC).
        root: the data set's folder, relative to the workspace.
        classes: class names in index order, without the background: the first is class 1.
        background: words for things that are not classes, such as `sky`.
        model: open_clip's model name.
        pretrained: its weights: a tag, or a path relative to the workspace.
        ignore: label that is not scored.
        mask_values: pixel value in the true masks to label, see `vpltool.datasets.classes`; empty
            if the values are the labels.
        normalise: how photos are normalised: `model`, as in its training, or `imagenet`.
    """

    path: Path
    name: str
    root: str
    classes: tuple[str, ...]
    background: tuple[str, ...]
    model: str
    pretrained: str
    ignore: int = IGNORE
    mask_values: Mapping[int, int] = field(default_factory=dict)
    normalise: str = "model"

    def index_of(self, label: str) -> int:
        """Return the index of a class, 1 for the first.

        Raises:
            VplError: no class has this name.
        """
        if label not in self.classes:
            raise VplError(f"`{label}` is not a class of this workspace",
                           near_name(label, self.classes))
        return self.classes.index(label) + 1

    def indices_of(self, photo: Photo) -> list[int]:
        """Return the class indices of a photo's tags, ascending."""
        return sorted(self.index_of(label) for label in photo.labels)

    @property
    def classes_identity(self) -> str:
        """Hash of the class names in their order, which gives class indices their meaning."""
        return identity_of_many({str(index): name for index, name in enumerate(self.classes)})

    def tags_identity(self, split: str) -> str:
        """Return a hash of the tags of a split's photos."""
        return _tags_identity(self.photos(split))

    def check_classes(self, header: Header, where: Path) -> None:
        """Check that an artifact was made with this workspace's class names.

        Raises:
            VplError: its class indices mean other names.
        """
        found = header.inputs.get("classes", self.classes_identity)
        if found != self.classes_identity:
            change = explain_change(self.path, "classes", found) or "their names differ"
            raise VplError(f"{where} was made with other classes than the workspace has: {change}",
                           f"{UPDATE_HINT}{again(header)}, with `overwrite=True`, replaces it")

    def class_name(self, index: int) -> str:
        """Return the name of a class index; 0 is the background."""
        return "background" if index == 0 else self.classes[index - 1]

    def image_path(self, photo: Photo) -> Path:
        """Return the path of a photo."""
        return self.path / self.root / photo.image

    def has_true_masks_in(self, folder: Path) -> bool:
        """Tell from their paths whether true masks are in a folder; none is opened."""
        wanted = folder.resolve()
        held = {(self.path / self.root / photo.mask).parent for photo in self._listed if photo.mask}
        return any(wanted in (parent, *parent.parents)
                   for parent in (path.resolve() for path in held))

    @cached_property
    def _listed(self) -> list[Photo]:
        return read_images(self.path / "images.jsonl")

    def photos(self, split: str = "", limit: int = 0) -> list[Photo]:
        """Return the photos of a split (all if empty), only the first `limit` if not 0.

        `images.jsonl` is read once: open the workspace again if it has changed.

        Raises:
            VplError: the file is missing or damaged, or there is no such split.
        """
        photos = list(self._listed)
        if split:
            known = {name for photo in photos for name in photo.splits}
            photos = [photo for photo in photos if split in photo.splits]
            if not photos:
                raise VplError(
                    f"no photo is in the split `{split}`",
                    "all are in `train`; a third column `split` in the CSV of tags says train or "
                    "val: prepare again" if known == {"train"} else near_name(split, known))
        if not photos:
            raise VplError(f"{self.path / 'images.jsonl'} lists no photo", _PREPARE)
        unknown = {label for photo in photos for label in photo.labels} - set(self.classes)
        if unknown:
            raise VplError(f"`{min(unknown)}` in images.jsonl is not a class of this workspace",
                           near_name(min(unknown), self.classes))
        return photos[:limit] if limit else photos


def open_workspace(path: Path) -> Workspace:
    """Read `workspace.json` in a folder.

    Raises:
        VplError: it is missing or damaged.
    """
    content = read_json(path / "workspace.json", f"make a workspace first: {_PREPARE}")
    try:
        return Workspace(
            path=path, name=content["name"], root=content["root"],
            classes=tuple(content["classes"]), background=tuple(content["background"]),
            model=content["model"], pretrained=content["pretrained"], ignore=content["ignore"],
            mask_values={int(value): label
                         for value, label in content.get("mask_values", {}).items()},
            normalise=content.get("normalise", "model"))
    except KeyError as error:
        raise VplError(f"{path / 'workspace.json'} has no {error}", _PREPARE) from error


def write_workspace(
    workspace: Workspace, photos: Sequence[Photo], call: Mapping[str, Any] | None = None
) -> Words:
    """Write `images.jsonl`, `changes.jsonl` and, last, `workspace.json`, if anything has changed.

    Args:
        workspace: the content of `workspace.json`.
        photos: the lines of `images.jsonl`.
        call: settings that it is written with, so that a later call can leave them out.

    Returns:
        what changed, by topic; empty for a new workspace.

    Raises:
        VplError: the folder cannot be written.
    """
    path = workspace.path
    old, old_photos = _read_old(path)
    words = describe_change(old, old_photos, workspace, photos) if old else {}
    same_call = call is None or (old is not None and last_call(path) == call)
    if old == workspace and old_photos == list(photos) and same_call:
        return words
    if old is None or old_photos != list(photos):
        with atomic_path(path / "images.jsonl") as temporary, temporary.open(
                "w", encoding="utf-8") as file:
            for photo in photos:
                file.write(photo.to_json() + "\n")
    add_change(path, _identities(old, old_photos) if old else {},
               _identities(workspace, photos), words, call or {})
    if old != workspace:
        _write_description(workspace)
    return words


def _read_old(path: Path) -> tuple[Workspace | None, list[Photo]]:
    """The workspace that is to be replaced; None if there is none, or it is damaged."""
    try:
        return open_workspace(path), read_images(path / "images.jsonl")
    except VplError:
        return None, []


def _write_description(workspace: Workspace) -> None:
    content = asdict(workspace)
    del content["path"]
    if not workspace.mask_values:
        del content["mask_values"]
    if workspace.normalise == "model":
        del content["normalise"]
    write_json(workspace.path / "workspace.json", content)


def _identities(workspace: Workspace, photos: Sequence[Photo]) -> dict[str, Any]:
    """Return the identities of the classes, and of the tags of each split."""
    splits = sorted({split for photo in photos for split in photo.splits})
    return {"classes": workspace.classes_identity,
            "tags": {split: _tags_identity(photo for photo in photos if split in photo.splits)
                     for split in splits}}


def _tags_identity(photos: Iterable[Photo]) -> str:
    return identity_of_many({photo.id: " ".join(sorted(photo.labels)) for photo in photos})


def read_images(path: Path) -> list[Photo]:
    """Read `images.jsonl`.

    Raises:
        VplError: the file is missing, or a line is damaged.
    """
    photos = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    photos.append(Photo.from_json(line))
                except (ValueError, KeyError, TypeError) as error:
                    raise VplError(f"{path}:{number} is not a photo ({error})", _PREPARE) from error
    except FileNotFoundError:
        raise VplError(f"{path} is not there", _PREPARE) from None
    return photos


def relative_to(path: Path, workspace: Path) -> str:
    """Return a path relative to the workspace, so that both can be moved together."""
    return os.path.relpath(path.resolve(), workspace.resolve())


def find_folder(
    work: Path, kind_folders: Sequence[str], what: str, split: str, kinds: Sequence[str],
    hint: str, preferred: Iterable[str] = (),
) -> InputFolder:
    """Find the per-photo folder that a command reads.

    Args:
        work: the workspace folder.
        kind_folders: default folders for such inputs, the preferred first: `("cams",)`.
        what: a path, `cams/NAME`, or NAME; empty: the first of `preferred` that exists, else the
            only one there is.
        split: its sub-folder.
        kinds: the accepted kinds.
        hint: command that makes one.
        preferred: NAMEs to try if `what` is empty.

    Raises:
        VplError: there is none, or only one of another kind, or several to choose from.
    """
    if what:
        paths = [base / part for base in (Path(what), work / what,
                                          *(work / folder / what for folder in kind_folders))
                 for part in (split, _whole(split), "")]
        for path in paths:
            if (path / "artifact.json").exists():
                return open_input(path, kinds, hint)
        raise VplError(f"no {' or '.join(kinds)} called `{what}` for the split `{split}`",
                       _near_folder(work, kind_folders, what, split) or hint)
    for folder in kind_folders:
        names = _names(work / folder, split)
        chosen = [name for name in preferred if name in names]
        # Masks come in pairs; the full ones are for scoring, which names them in `preferred`.
        chosen = chosen or [name for name in names if not name.endswith("-full")]
        if len(chosen) > 1 and chosen[0] not in preferred:
            raise VplError(f"{work / folder} holds several for the split `{split}`: "
                           f"{', '.join(chosen)}", f"name one, such as {folder}/{chosen[0]}")
        if chosen:
            return open_input(work / folder / chosen[0] / split, kinds, hint)
    raise VplError(f"no {' or '.join(kinds)} for the split `{split}` in {work}", hint)


def _near_folder(work: Path, kind_folders: Sequence[str], what: str, split: str) -> str:
    """Say which folder may be meant, of this split or of another; empty if there is none."""
    there = {f"{folder}/{entry.parent.parent.name}": entry.parent.name for folder in kind_folders
             for entry in sorted((work / folder).glob("*/*/artifact.json"))}
    names = [f"{folder}/{name}" for folder in kind_folders for name in _names(work / folder, split)]
    near = difflib.get_close_matches(what, {*names, *there}, n=1)
    if near and near[0] not in names:
        return f"`{near[0]}` is there for `split={there[near[0]]!r}`"
    return near_name(what, names) if names else ""


def _whole(split: str) -> str:
    """Return the split that a half belongs to: `train` for `train-a`."""
    return split[:-2] if split.endswith(("-a", "-b")) else split


def _names(folder: Path, split: str) -> list[str]:
    return sorted(entry.parent.parent.name for entry in folder.glob(f"*/{split}/artifact.json"))
