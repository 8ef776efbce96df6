"""What changed in a workspace, in words: `changes.jsonl`, one line for each time it was written.

Artifacts store identities (hashes) of their inputs. This file tells what has changed since an
input had an older identity.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpltool.errors import counted
from vpltool.formats.atomic import atomic_path
from vpltool.formats.fields import OBJECT, TEXT, TEXT_OF, TEXTS, check_fields
from vpltool.json_text import parse_json

if TYPE_CHECKING:
    from vpltool.formats.workspace import Photo, Workspace

FILE = "changes.jsonl"

_WORDS = ("classes", "photos", "words", "masks")

Words = dict[str, list[str]]
"""Topic to phrases: `classes`, `photos` (with their tags and splits), `words`, `masks`."""

_TOPICS = {"classes": "classes", "tags": "photos", "photos": "photos", "captions": "photos"}
"""Role of an input in a header to the topic of `Words` that explains it."""


def workspace_around(path: Path) -> Path:
    """Return the workspace folder that a path is in; the path itself if there is none."""
    return next((folder for folder in (path, *path.parents)
                 if (folder / "workspace.json").exists()), path)


def explain_change(workspace_path: Path, role: str, old_identity: str) -> str:
    """Say what has changed since an input had this identity.

    Args:
        workspace_path: the workspace folder.
        role: of the input in a header: `classes`, `tags`, `photos` or `captions`.
        old_identity: the identity that the header has.

    Returns:
        phrases such as "2 photos added; class `goat` is new"; empty if it is not known.
    """
    lines = read_changes(workspace_path)
    before, after = ([old_identity in _identities(line.get(key, {}), role) for line in lines]
                     for key in ("before", "after"))
    steps = [number for number, was in enumerate(before) if was and not after[number]]
    # After there and back again it is today's.
    if role not in _TOPICS or not steps or after[-1]:
        return ""
    phrases = [phrase for line in lines[steps[-1]:]
               for phrase in line.get("words", {}).get(_TOPICS[role], ())]
    return "; ".join(dict.fromkeys(phrases))


def _identities(known: Mapping[str, Any], role: str) -> Collection[str]:
    if role == "classes":
        return [known.get("classes", "")]
    return known.get("captions" if role == "captions" else "tags", {}).values()


def read_changes(workspace_path: Path) -> list[dict[str, Any]]:
    """Read `changes.jsonl`, oldest first; lines that cannot be read are left out."""
    try:
        text = (workspace_path / FILE).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    found = []
    for line in text.splitlines():
        try:
            entry = parse_json(line)
            check_fields(entry, {"before": OBJECT, "after": OBJECT}, {"words": OBJECT,
                                                                      "call": OBJECT})
            for known in (entry["before"], entry["after"]):
                check_fields(known, {}, {"classes": TEXT, "tags": TEXT_OF, "captions": TEXT_OF})
            check_fields(entry.get("words", {}), {}, dict.fromkeys(_WORDS, TEXTS))
            # What no file can hold, a lone surrogate, would end the next `prepare`.
            json.dumps(entry, ensure_ascii=False).encode()
        except ValueError:
            continue
        found.append(entry)
    return found


def last_call(workspace_path: Path) -> dict[str, Any]:
    """Return the settings that the workspace was last written with; empty if unknown."""
    lines = read_changes(workspace_path)
    return dict(lines[-1].get("call", {})) if lines else {}


def add_change(
    workspace_path: Path, before: Mapping[str, Any], after: Mapping[str, Any], words: Words,
    call: Mapping[str, Any],
) -> None:
    """Add a line to `changes.jsonl`.

    Args:
        workspace_path: the workspace folder.
        before: identities of the classes and of each split's tags before the change; empty for a
            new workspace.
        after: the same after the change.
        words: what changed.
        call: settings that the workspace is written with.
    """
    line = json.dumps({"before": before, "after": after, "words": words, "call": call},
                      ensure_ascii=False)
    lines = [json.dumps(entry, ensure_ascii=False) for entry in read_changes(workspace_path)]
    with atomic_path(workspace_path / FILE) as temporary:
        temporary.write_text("\n".join([*lines, line, ""]), "utf-8")


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
            (sum({*one.labels} != {*other.labels} for one, other in both), "tags of {} changed"),
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


def count_photos(count: int) -> str:
    """Return `1 photo`, `2 photos`, and so on."""
    return counted(count, "photo", "photos")
