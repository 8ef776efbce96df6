"""The workspace: which photos, classes and CLIP; and where everything else lies by default."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from vpltool.errors import VplError, near_name
from vpltool.formats.folders import InputFolder, open_input
from vpltool.formats.header import Header, identity_of_many
from vpltool.formats.kinds import IGNORE
from vpltool.formats.storage import atomic_path, read_json, write_json

_PREPARE = "vpltool prepare folder IMAGES --labels FILE.csv"


@dataclass(frozen=True)
class Photo:
    """One photo of the data set, a line of `images.jsonl`.

    Args:
        id: unique; file name without suffix, with its folders if there are any.
        image: path below the data set's root.
        labels: class names that the photo shows, without the background.
        splits: names of the splits that it belongs to.
        mask: path of its true mask below the root, or None. Only `eval` and `show` open it.
    """

    id: str
    image: str
    labels: tuple[str, ...]
    splits: tuple[str, ...]
    mask: str | None = None


@dataclass(frozen=True)
class Workspace:
    """What `workspace.json` says, and the folder it lies in.

    Args:
        path: the workspace folder.
        name: name of the data set (`voc` selects CLIP-ES's class words for VOC).
        root: the data set's folder, relative to the workspace.
        classes: class names in index order, without the background: the first is class 1.
        background: words for what is not a class, such as `sky`.
        model: open_clip's model name.
        pretrained: its weights: a tag, or a path relative to the workspace.
        ignore: label that is not scored.
        mask_values: pixel value in the true masks to label, where they are not the same; see
            `vpltool.datasets.classes`. Empty: the true masks hold labels.
        normalise: how photos are normalised: as the `model` was trained, or `imagenet`.
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
        """Class index of a name, 1 for the first class.

        Raises:
            VplError: no class has this name.
        """
        if label not in self.classes:
            raise VplError(f"`{label}` is no class of this workspace",
                           near_name(label, self.classes))
        return self.classes.index(label) + 1

    def indices_of(self, photo: Photo) -> list[int]:
        """Class indices of a photo's tags, ascending."""
        return sorted(self.index_of(label) for label in photo.labels)

    @property
    def classes_identity(self) -> str:
        """Hash of the class names in their order: what an index in a file stands for."""
        return identity_of_many({str(place): name for place, name in enumerate(self.classes)})

    def tags_identity(self, split: str) -> str:
        """Hash of the tags of a split's photos."""
        return identity_of_many({photo.id: " ".join(sorted(photo.labels))
                                 for photo in self.photos(split)})

    def check_classes(self, header: Header, where: Path) -> None:
        """Check that an artifact was made with this workspace's class names.

        Raises:
            VplError: its class indices stand for other names.
        """
        found = header.inputs.get("classes", self.classes_identity)
        if found != self.classes_identity:
            raise VplError(f"{where} was made with other class names than workspace.json has",
                           f"vpltool {header.command} --overwrite")

    def class_name(self, index: int) -> str:
        """Name of a class index; 0 is the background."""
        return "background" if index == 0 else self.classes[index - 1]

    def image_path(self, photo: Photo) -> Path:
        """Where a photo lies."""
        return self.path / self.root / photo.image

    @cached_property
    def _listed(self) -> list[Photo]:
        return read_images(self.path / "images.jsonl")

    def photos(self, split: str = "", limit: int = 0) -> list[Photo]:
        """Photos of a split (all if empty), the first `limit` if not 0.

        `images.jsonl` is read once: open the workspace again if it has changed.

        Raises:
            VplError: the file is missing or damaged, or there is no such split.
        """
        photos = list(self._listed)
        if split:
            known = {name for photo in photos for name in photo.splits}
            photos = [photo for photo in photos if split in photo.splits]
            if not photos:
                raise VplError(f"no photo is in the split `{split}`", near_name(split, known))
        if not photos:
            raise VplError(f"{self.path / 'images.jsonl'} lists no photo", _PREPARE)
        unknown = {label for photo in photos for label in photo.labels} - set(self.classes)
        if unknown:
            raise VplError(f"`{min(unknown)}` in images.jsonl is no class of this workspace",
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


def write_workspace(workspace: Workspace, photos: Sequence[Photo]) -> None:
    """Write `images.jsonl`, then `workspace.json`."""
    with atomic_path(workspace.path / "images.jsonl") as temporary, temporary.open(
            "w", encoding="utf-8") as file:
        for photo in photos:
            file.write(json.dumps(asdict(photo), ensure_ascii=False) + "\n")
    content = asdict(workspace)
    del content["path"]
    if not workspace.mask_values:
        del content["mask_values"]
    if workspace.normalise == "model":
        del content["normalise"]
    write_json(workspace.path / "workspace.json", content)


def read_images(path: Path) -> list[Photo]:
    """Read `images.jsonl`.

    Raises:
        VplError: missing, or a line is damaged.
    """
    photos = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    entry = json.loads(line)
                    photos.append(Photo(entry["id"], entry["image"], tuple(entry["labels"]),
                                        tuple(entry["splits"]), entry.get("mask")))
                except (ValueError, KeyError, TypeError) as error:
                    raise VplError(f"{path}:{number} is no photo ({error})", _PREPARE) from error
    except FileNotFoundError:
        raise VplError(f"{path} is not there", _PREPARE) from None
    return photos


def relative_to(path: Path, workspace: Path) -> str:
    """Spell a path relative to the workspace, so that both can be moved together."""
    return os.path.relpath(path.resolve(), workspace.resolve())


def find_folder(
    work: Path, kind_folders: Sequence[str], what: str, split: str, kinds: Sequence[str],
    hint: str, preferred: Iterable[str] = (),
) -> InputFolder:
    """Find the per-photo folder that a command reads.

    Args:
        work: the workspace folder.
        kind_folders: where such things lie by default, most wanted first: `("cams",)`.
        what: a path, `cams/NAME`, or NAME; empty: the first of `preferred` that exists, else
            the first by name.
        split: its sub-folder.
        kinds: kinds that will do.
        hint: command that makes one.
        preferred: NAMEs to try when `what` is empty.

    Raises:
        VplError: there is none, or of another kind.
    """
    if what:
        places = [base / part for base in (Path(what), work / what,
                                           *(work / folder / what for folder in kind_folders))
                  for part in (split, _whole(split), "")]
        for place in places:
            if (place / "artifact.json").exists():
                return open_input(place, kinds, hint)
        names = [f"{folder}/{name}" for folder in kind_folders
                 for name in _names(work / folder, split)]
        raise VplError(f"no {' or '.join(kinds)} called `{what}` for the split `{split}`",
                       near_name(what, names) if names else hint)
    for folder in kind_folders:
        names = _names(work / folder, split)
        chosen = [name for name in preferred if name in names]
        # Masks come in pairs; the full ones are for scoring, where they are preferred by name.
        chosen = chosen or [name for name in names if not name.endswith("-full")]
        if len(chosen) > 1 and chosen[0] not in preferred:
            raise VplError(f"{work / folder} holds several for the split `{split}`: "
                           f"{', '.join(chosen)}", f"name one, such as {folder}/{chosen[0]}")
        if chosen:
            return open_input(work / folder / chosen[0] / split, kinds, hint)
    raise VplError(f"no {' or '.join(kinds)} for the split `{split}` in {work}", hint)


def _whole(split: str) -> str:
    """The split that a half belongs to: `train` for `train-a`."""
    return split[:-2] if split.endswith(("-a", "-b")) else split


def _names(folder: Path, split: str) -> list[str]:
    return sorted(entry.parent.parent.name for entry in folder.glob(f"*/{split}/artifact.json"))
