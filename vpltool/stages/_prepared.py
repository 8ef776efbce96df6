"""Messages of `prepare`: counts of photos and classes, changes, and warnings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vpltool import console
from vpltool.datasets import layouts
from vpltool.datasets.tags import class_counts, some
from vpltool.errors import counted, part_of
from vpltool.formats import Photo, Workspace
from vpltool.formats.changes import Words, count_photos

MADE = ("prototypes", "features", "cams", "masks", "decoder", "predictions")
"""Folders of what later stages make."""


def warn_of_truncated(root: Path, photos: Sequence[Photo]) -> None:
    """Warn of photos that are empty or truncated."""
    names = {root / photo.image: photo.image for photo in photos}
    if truncated := [names[path] for path in layouts.truncated_photos(list(names))]:
        console.warn(part_of(len(truncated), len(photos), "photos", "is", "are")
                     + f" empty or truncated: {some(truncated)}; extract or download "
                     + ("it again" if len(truncated) == 1 else "them again"))


def describe_workspace(workspace: Workspace, photos: Sequence[Photo], words: Words, afresh: str
                       ) -> None:
    """Say what the workspace holds, what has changed, and what looks wrong.

    Args:
        workspace: as it was written.
        photos: as they were written.
        words: what has changed.
        afresh: where classes keep the numbers of an earlier call, the call that numbers them anew.
    """
    splits = Counter(split for photo in photos for split in photo.splits)
    background = counted(len(workspace.background), "background word", "background words")
    console.note(
        f"{count_photos(len(photos))}, {counted(len(workspace.classes), 'class', 'classes')}"
        f"{f', {background}' if workspace.has_words else ''}; "
        + ", ".join(f"{split}: {count}" for split, count in sorted(splits.items())))
    if captions := [len(photo.captions) for photo in photos if photo.captions]:
        console.note(f"{count_photos(len(captions))} with captions, {sum(captions)} in all")
    if workspace.classes:
        console.note(class_counts(photos, workspace.classes))
    if words:
        console.note("; ".join(phrase for phrases in words.values() for phrase in phrases))
    if afresh and "classes" in words:
        console.note("new classes come after the known ones, which keep their numbers")
    if words.keys() - {"masks"} and any((workspace.path / name).is_dir() for name in MADE):
        console.advise("`update()` recomputes the stale results")
    _warn_of_masks(photos, splits)
    _warn_of_tags(workspace, photos, afresh)


def _warn_of_masks(photos: Sequence[Photo], splits: Counter[str]) -> None:
    masked = Counter(split for photo in photos if photo.mask for split in photo.splits)
    for split, count in sorted(splits.items()):
        if 0 < masked[split] < count or (masked and not masked[split] and split != "test"):
            console.warn(part_of(count - masked[split], count, f"photos of `{split}`",
                                 "has no true mask; eval leaves it out",
                                 "have no true mask; eval leaves them out"))


def _warn_of_tags(workspace: Workspace, photos: Sequence[Photo], afresh: str) -> None:
    if not workspace.classes:
        console.advise("no classes: `train_groups()` needs none; `classes='FILE'` names some")
        return
    if not any(photo.tags for photo in photos):
        console.advise("no photo has a tag; " + (
            "after `text_prototypes()`, `tag()` finds some" if workspace.has_words else
            "give them by `labels='FILE.csv'`, or `words='MODEL:PRETRAINED'` to find some"),
                       console.warn)
        return
    unused = sorted(set(workspace.classes).difference(*(photo.tags for photo in photos)))
    why = (f"; it stays a class, so that the others keep their numbers; {afresh} removes it"
           if afresh else "")
    for name in unused if len(unused) <= 5 else ():
        console.warn(f"no photo has the tag `{name}`{why}")
    if len(unused) > 5:
        console.warn(f"no photo has the tag of {len(unused)} classes: {some(unused)}")
    untagged = [photo.id for photo in photos if not photo.tags and photo.splits != ("test",)]
    if untagged:
        console.warn(counted(len(untagged), "photo has no tag and counts",
                             "photos have no tag and count")
                     + f" as background only: {some(untagged)}")
