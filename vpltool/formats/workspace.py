"""The workspace: its photos, classes and encoder; reading it, writing it, logging changes."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from vpltool.errors import VplError, first_few, near_name
from vpltool.file_hashes import hashes_of
from vpltool.formats import changes, manifest, storage
from vpltool.formats.atomic import atomic_path
from vpltool.formats.fields import NUMBER, NUMBER_OF, TEXT, TEXT_OR_NONE, TEXTS, check_fields
from vpltool.formats.header import Header, identity_of_many
from vpltool.formats.kinds import IGNORE, KINDS, MOST_CLASSES, is_workspace
from vpltool.json_text import JsonObject, parse_json
from vpltool.names import leads_out, without_folders

_PREPARE = KINDS["workspace"].made_by

_PHOTO = {"id": TEXT, "image": TEXT, "labels": TEXTS, "splits": TEXTS}
_FIELDS = {"name": TEXT, "root": TEXT, "classes": TEXTS, "background": TEXTS, "model": TEXT,
           "pretrained": TEXT, "ignore": NUMBER}


@dataclass(frozen=True)
class Photo:
    """One photo of the data set, a line of `images.jsonl`."""

    id: str  # unique; the file name without suffix, with its folder if it is in one
    image: str  # path relative to the data set's root
    # classes that the photo shows, without the background; `labels` in the line
    tags: tuple[str, ...]
    splits: tuple[str, ...]
    # path of its true mask relative to the root; only `eval`, `show` and `report` open it
    mask: str | None = None
    captions: tuple[str, ...] = ()  # one line each; empty if unknown
    # fields of the line unknown to vpltool, which are preserved
    more: Mapping[str, object] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the photo as a line of `images.jsonl`."""
        entry = {"labels" if name == "tags" else name: value
                 for name, value in asdict(self).items() if name != "more"} | dict(self.more)
        if not self.captions:
            del entry["captions"]
        return json.dumps(entry, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Photo:
        """Read a line of `images.jsonl`.

        Raises:
            ValueError: the line is not a photo.
        """
        entry = parse_json(line)
        check_fields(entry, _PHOTO, {"mask": TEXT_OR_NONE, "captions": TEXTS})
        for what, names in (("id", [entry["id"]]), ("split", entry["splits"])):
            if odd := [*filter(leads_out, names)]:
                raise ValueError(f"the {what} {odd[0]!r} leads out of a folder")
        return cls(entry.pop("id"), entry.pop("image"), tuple(entry.pop("labels")),
                   tuple(entry.pop("splits")), entry.pop("mask", None),
                   tuple(entry.pop("captions", ())), entry)


def untagged_show_none(workspace_path: Path, photos: Iterable[Photo]) -> bool:
    """Return whether photos without a tag show no class.

    Otherwise nobody has looked at some of them, or at all, as in splits such as `test`.
    """
    call = changes.last_call(workspace_path)
    unlisted = call.get("untagged") or call.get("method") == "webdataset"
    return not unlisted and any(photo.tags for photo in photos)


def with_known_tags(workspace_path: Path, photos: Sequence[Photo]) -> list[Photo]:
    """Return the photos of which it is known what they show; see `untagged_show_none`."""
    known = untagged_show_none(workspace_path, photos)
    return [photo for photo in photos if known or photo.tags]


@dataclass(frozen=True)
class Workspace:
    """The content of `workspace.json`, and the folder that it is in."""

    path: Path
    name: str  # name of the data set (`voc` selects CLIP-ES's class words for VOC)
    root: str  # the data set's folder, relative to the workspace
    # class names in index order, without the background: the first is class 1
    classes: tuple[str, ...]
    background: tuple[str, ...]  # words for things that are not classes, such as `sky`
    model: str  # open_clip's name of the CLIP model; empty if the workspace has no text encoder
    pretrained: str  # its weights: a tag, or a path relative to the workspace
    ignore: int = IGNORE  # label that is not scored
    # maps pixel values of the true masks to labels; empty: the values are labels
    mask_values: Mapping[int, int] = field(default_factory=dict)
    normalise: str = "model"  # normalisation of photos: `model`, as in training, or `imagenet`
    # image encoder used instead of CLIP, as in the setting `encoder`, a path being relative to the
    # workspace; empty: CLIP
    encoder: str = ""

    @property
    def has_words(self) -> bool:
        """Whether there is a CLIP model, for text prototypes and tags."""
        return bool(self.model)

    @property
    def main_encoder(self) -> str:
        """Name of the image encoder, as in headers."""
        return without_folders(self.encoder) or self.model

    def index_of(self, label: str) -> int:
        """Return the index of a class, counting from 1.

        Raises:
            VplError: there is no class of this name.
        """
        if label not in self.classes:
            raise VplError(f"`{label}` is not a class of this workspace",
                           near_name(label, self.classes))
        return self.classes.index(label) + 1

    def indices_of(self, photo: Photo) -> list[int]:
        """Return the class indices of a photo's tags, ascending."""
        return sorted(self.index_of(label) for label in photo.tags)

    @property
    def classes_identity(self) -> str:
        """Hash of the class names in their order, which gives class indices their meaning."""
        return identity_of_many({str(index): name for index, name in enumerate(self.classes)})

    def tags_identity(self, split: str) -> str:
        """Return a hash of the tags of a split's photos."""
        return _tags_identity(self.photos(split))

    def captions_identity(self, split: str) -> str:
        """Return a hash of the captions of a split's photos."""
        return _captions_identity(self.photos(split))

    def check_classes(self, header: Header, where: Path) -> None:
        """Check that an artifact was made with this workspace's classes.

        Raises:
            VplError: its class indices refer to other classes.
        """
        found = header.inputs.get("classes", self.classes_identity)
        if found != self.classes_identity:
            change = changes.explain_change(self.path, "classes", found) or "their names differ"
            raise VplError(f"{where} was made with other classes than the workspace has: {change}",
                           f"{manifest.UPDATE_HINT}{manifest.call_of(header)}, with "
                           "`overwrite=True`, replaces it")

    def class_name(self, index: int) -> str:
        """Return the name of the class with this index; 0 is the background."""
        return "background" if index == 0 else self.classes[index - 1]

    def image_path(self, photo: Photo) -> Path:
        """Return the path of a photo."""
        return self.path / self.root / photo.image

    def missing(self, photos: Iterable[Photo]) -> list[Photo]:
        """Return the photos whose files do not exist."""
        return [photo for photo in photos if not self.image_path(photo).is_file()]

    def hashes_of(self, photos: Iterable[Photo]) -> dict[str, str]:
        """Return a hash of each photo's file by id; unreadable files are left out.

        Each file is hashed once per instance: reopen the workspace if photos have changed.
        """
        photos = list(photos)
        new = [photo for photo in photos if photo.id not in self._hashes]
        found = hashes_of(self.path / self.root, [photo.image for photo in new]) if new else {}
        self._hashes.update({photo.id: found.get(photo.image, "") for photo in new})
        return {photo.id: self._hashes[photo.id] for photo in photos if self._hashes[photo.id]}

    @cached_property
    def _hashes(self) -> dict[str, str]:
        return {}

    def has_true_masks_in(self, folder: Path, photos: Iterable[Photo] | None = None) -> bool:
        """Return whether a folder holds true masks of `photos`, by default of all photos.

        Only paths are compared; no mask is opened.
        """
        held = {(self.path / self.root / photo.mask).parent
                for photo in (self._listed if photos is None else photos) if photo.mask}
        return any(path.resolve().is_relative_to(folder.resolve()) for path in held)

    @cached_property
    def _listed(self) -> list[Photo]:
        return read_images(self.path / "images.jsonl")

    def photos(self, split: str = "", limit: int = 0) -> list[Photo]:
        """Return the photos of a split (all if empty), only the first `limit` if not 0.

        `images.jsonl` is read once per instance: reopen the workspace if it has changed.

        Raises:
            VplError: the file is missing or damaged, or the split does not exist.
        """
        photos = list(self._listed)
        if split:
            known = {name for photo in photos for name in photo.splits}
            photos = [photo for photo in photos if split in photo.splits]
            if not photos:
                raise VplError(
                    f"no photo is in the split `{split}`",
                    "all are in `train`; add a column `split` with train or val to the CSV of "
                    "tags, and prepare again; the recipe own-photos needs none with `held=0`"
                    if known == {"train"} else near_name(split, known))
        if not photos:
            raise VplError(f"{self.path / 'images.jsonl'} lists no photo", _PREPARE)
        unknown = {label for photo in photos for label in photo.tags} - set(self.classes)
        if unknown:
            raise VplError(f"`{min(unknown)}` in images.jsonl is not a class of this workspace",
                           near_name(min(unknown), self.classes))
        return photos[:limit] if limit else photos


def check_folder(path: Path) -> None:
    """Check that a path can be a workspace, that is, not a file.

    Raises:
        VplError: it is a file.
    """
    if path.is_file():
        inside = path.name == "workspace.json"
        raise VplError(f"{path} is a file; a workspace is a folder",
                       f"`Workspace({str(path.parent)!r})`" if inside else
                       "name the workspace folder, as in `Workspace('DIR')`")


def near_workspace(path: Path) -> str:
    """Suggest a workspace of a similar name if a folder does not exist; empty if there is none."""
    if path.exists():
        return ""
    beside = [file.parent.name for file in path.parent.glob("*/workspace.json")]
    close = difflib.get_close_matches(path.name, beside, n=1)
    return f"did you mean `Workspace({str(path.parent / close[0])!r})`?" if close else ""


def _where_else(path: Path) -> str:
    """Suggest how to name a workspace: one of a similar name, or one in a subfolder, if any."""
    if near := near_workspace(path):
        return near
    found = sorted(str(file.parent) for depth in ("*", "*/*")
                   for file in path.glob(f"{depth}/workspace.json"))
    if found:
        return (f"name it, as in `Workspace({found[0]!r})`; "
                f"there {'are' if found[1:] else 'is'} {first_few(found)}")
    return ("name yours, as in `Workspace('DIR')`; or make one: "
            "`prepare('folder', images='IMAGES', labels='FILE.csv')`")


def open_workspace(path: Path) -> Workspace:
    """Return the workspace in a folder.

    Raises:
        VplError: it is missing or damaged; the hint lists workspaces in subfolders.
    """
    check_folder(path)
    if not is_workspace(path):
        raise VplError(f"no workspace in {path.resolve()}", _where_else(path))
    content = storage.read_json(path / "workspace.json", _PREPARE)
    try:
        check_fields(content, _FIELDS, {"mask_values": NUMBER_OF, "normalise": TEXT,
                                         "encoder": TEXT})
        values = {int(value): label for value, label in content.get("mask_values", {}).items()}
        if len(content["classes"]) > MOST_CLASSES:
            raise ValueError(f"`classes` has {len(content['classes'])} names, and a mask has "
                             f"values for {MOST_CLASSES:,}")
        last = len(content["classes"])
        if other := [label for label in values.values()
                     if not 0 <= label <= last and label != content["ignore"]]:
            raise ValueError(f"`mask_values` has {other[0]}, and the last class is {last}")
        for name, numbers in {"mask_values": values, "ignore": (content["ignore"],)}.items():
            if other := [number for number in numbers if not 0 <= number < 1 << 16]:
                raise ValueError(f"`{name}` has {other[0]}, which no pixel of a mask can have")
        return Workspace(
            path=path, name=content["name"], root=content["root"],
            classes=tuple(content["classes"]), background=tuple(content["background"]),
            model=content["model"], pretrained=content["pretrained"], ignore=content["ignore"],
            mask_values=values, normalise=content.get("normalise", "model"),
            encoder=content.get("encoder", ""))
    except ValueError as error:
        raise VplError(f"{path / 'workspace.json'} is not valid: {error}", _PREPARE
                       ) from error


def _tags_identity(photos: Iterable[Photo]) -> str:
    def named(tags: Sequence[str]) -> object:
        # Joined, the class "a b" would be the classes "a" and "b".
        return sorted(tags) if any(" " in tag for tag in tags) else " ".join(sorted(tags))

    return identity_of_many({photo.id: named(photo.tags) for photo in photos})


def _captions_identity(photos: Iterable[Photo]) -> str:
    return identity_of_many({photo.id: "\n".join(photo.captions) for photo in photos})


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
                except ValueError as error:
                    raise VplError(f"{path}:{number} is not a photo ({error})", _PREPARE) from error
    except FileNotFoundError:
        raise VplError(f"{path} does not exist", _PREPARE) from None
    except UnicodeDecodeError as error:
        raise VplError(f"{path} is not UTF-8 ({error})", _PREPARE) from error
    return photos


def relative_to(path: Path, folder: Path) -> str:
    """Return a path relative to a folder, with `..` if outside, so that both can move together."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def write_workspace(
    workspace: Workspace, photos: Sequence[Photo], call: Mapping[str, object] | None = None
) -> changes.Phrases:
    """Write `images.jsonl`, `changes.jsonl` and, last, `workspace.json`, if anything changed.

    The call's settings are stored as defaults of a later call. Returns the changes by topic;
    empty for a new workspace.

    Raises:
        VplError: the folder cannot be written.
    """
    path, photos = workspace.path, list(photos)
    old: Workspace | None = None
    old_photos: list[Photo] = []
    # A damaged workspace is treated as a new one.
    with contextlib.suppress(VplError):
        old, old_photos = open_workspace(path), read_images(path / "images.jsonl")
    words = describe_change(old, old_photos, workspace, photos) if old else {}
    same_call = call is None or (old is not None and changes.last_call(path) == call)
    if old == workspace and old_photos == photos and same_call:
        return words
    if old is None or old_photos != photos:
        with atomic_path(path / "images.jsonl") as temporary, temporary.open(
                "w", encoding="utf-8") as file:
            file.writelines(f"{photo.to_json()}\n" for photo in photos)
    changes.add_change(path, _identities(old, old_photos) if old else {},
                       _identities(workspace, photos), words, call or {})
    if old != workspace:
        unset = {"mask_values": {}, "normalise": "model", "encoder": ""}
        storage.write_json(path / "workspace.json", {
            name: value for name, value in asdict(workspace).items()
            if name != "path" and value != unset.get(name)})
    return words


def _identities(workspace: Workspace, photos: Sequence[Photo]) -> JsonObject:
    """Return the identities of the classes, and of the tags and captions of each split."""
    by_split = {split: [photo for photo in photos if split in photo.splits]
                for split in sorted({split for photo in photos for split in photo.splits})}
    captions = {split: _captions_identity(those) for split, those in by_split.items()
                if any(photo.captions for photo in those)}
    return {"classes": workspace.classes_identity,
            "tags": {split: _tags_identity(those) for split, those in by_split.items()},
            **({"captions": captions} if captions else {})}


def describe_change(
    old: Workspace, old_photos: Sequence[Photo], new: Workspace, new_photos: Sequence[Photo]
) -> changes.Phrases:
    """Describe the differences between two states of a workspace, by topic."""
    words = {
        "classes": _class_words(old.classes, new.classes),
        "photos": _photo_words(old_photos, new_photos),
        "words": (["the background words changed"] if old.background != new.background else []),
        "masks": _mask_words(old, old_photos, new, new_photos),
    }
    return {topic: phrases for topic, phrases in words.items() if phrases}


def _class_words(old: Sequence[str], new: Sequence[str]) -> list[str]:
    phrases = [f"class `{name}` is new" for name in new if name not in old]
    phrases += [f"class `{name}` is gone" for name in old if name not in new]
    if [name for name in old if name in new] != [name for name in new if name in old]:
        phrases.append("the classes are in another order")
    return phrases


def _photo_words(old: Sequence[Photo], new: Sequence[Photo]) -> list[str]:
    before, after = ({photo.id: photo for photo in photos} for photos in (old, new))
    both = [(before[key], after[key]) for key in after if key in before]
    return _counted((
        (len(after.keys() - before.keys()), "{} added"),
        (len(before.keys() - after.keys()), "{} gone"),
        (sum({*one.tags} != {*other.tags} for one, other in both), "tags of {} changed"),
        (sum({*one.splits} != {*other.splits} for one, other in both), "splits of {} changed"),
        (sum(one.image != other.image for one, other in both), "files of {} changed"),
        (sum(one.captions != other.captions for one, other in both), "captions of {} changed")))


def _counted(found: Iterable[tuple[int, str]], before: str = "") -> list[str]:
    return [before + text.format(changes.count_photos(count)) for count, text in found if count]


def _mask_words(old: Workspace, old_photos: Sequence[Photo], new: Workspace,
                new_photos: Sequence[Photo]) -> list[str]:
    before = {photo.id: photo.mask for photo in old_photos}
    pairs = [(before.get(photo.id), photo.mask) for photo in new_photos]
    found = ((sum(new is not None and was is None for was, new in pairs), "{} are new"),
             (sum(None not in (was, new) and was != new for was, new in pairs), "{} changed"),
             (sum(new is None and was is not None for was, new in pairs), "{} are gone"))
    phrases = _counted(found, "true masks of ")
    if old.mask_values != new.mask_values:
        phrases.append("the values of true masks changed")
    return phrases
