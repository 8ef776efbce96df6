"""Writing a workspace: its files, and what changed in them, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from vpltool.errors import VplError
from vpltool.formats.atomic import atomic_path
from vpltool.formats.changes import Words, add_change, count_photos, last_call
from vpltool.formats.storage import write_json
from vpltool.formats.workspace import (
    Photo,
    Workspace,
    captions_identity_of,
    open_workspace,
    read_images,
    tags_identity_of,
)
from vpltool.json_text import JsonObject


def write_workspace(
    workspace: Workspace, photos: Sequence[Photo], call: Mapping[str, object] | None = None
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
    if not workspace.encoder:
        del content["encoder"]
    write_json(workspace.path / "workspace.json", content)


def _identities(workspace: Workspace, photos: Sequence[Photo]) -> JsonObject:
    """Return the identities of the classes, and of the tags and captions of each split."""
    by_split = {split: [photo for photo in photos if split in photo.splits]
                for split in sorted({split for photo in photos for split in photo.splits})}
    captions = {split: captions_identity_of(those) for split, those in by_split.items()
                if any(photo.captions for photo in those)}
    return {"classes": workspace.classes_identity,
            "tags": {split: tags_identity_of(those) for split, those in by_split.items()},
            **({"captions": captions} if captions else {})}


def describe_change(
    old: Workspace, old_photos: Sequence[Photo], new: Workspace, new_photos: Sequence[Photo]
) -> Words:
    """Describe how two states of a workspace differ; topics without a change are left out."""
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
    phrases = [(len(after.keys() - before.keys()), "{} added"),
            (len(before.keys() - after.keys()), "{} gone"),
            (sum({*one.tags} != {*other.tags} for one, other in both), "tags of {} changed"),
            (sum({*one.splits} != {*other.splits} for one, other in both), "splits of {} changed"),
            (sum(one.image != other.image for one, other in both), "files of {} changed"),
            (sum(one.captions != other.captions for one, other in both), "captions of {} changed")]
    return [text.format(count_photos(count)) for count, text in phrases if count]


def _mask_words(old: Workspace, old_photos: Sequence[Photo], new: Workspace,
                new_photos: Sequence[Photo]) -> list[str]:
    before = {photo.id: photo.mask for photo in old_photos}
    pairs = [(before.get(photo.id), photo.mask) for photo in new_photos]
    counts = ((sum(new is not None and was is None for was, new in pairs), "are new"),
              (sum(None not in (was, new) and was != new for was, new in pairs), "changed"),
              (sum(new is None and was is not None for was, new in pairs), "are gone"))
    phrases = [f"true masks of {count_photos(count)} {words}" for count, words in counts if count]
    if old.mask_values != new.mask_values:
        phrases.append("the values of true masks changed")
    return phrases
