"""Descriptions of changes: in a workspace since a file was made, and between two headers.

Artifacts store identities (hashes) of their inputs. `changes.jsonl` has a line for each time the
workspace was written, so it can explain what has changed since an input had an older identity.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vpltool import console
from vpltool.errors import counted
from vpltool.formats.atomic import atomic_path
from vpltool.formats.fields import OBJECT, TEXT, TEXT_OF, TEXTS, check_fields
from vpltool.formats.header import Header
from vpltool.formats.kinds import workspace_around
from vpltool.json_text import JsonObject, parse_json

FILE = "changes.jsonl"

_WORDS = ("classes", "photos", "words", "masks")

Phrases = dict[str, list[str]]
"""Phrases by topic: `classes`, `photos` (with their tags and splits), `words`, `masks`."""

_TOPICS = {"classes": "classes", "tags": "photos", "photos": "photos", "captions": "photos"}
"""Topic of `Phrases` that explains changes of an input, by its role in a header."""



def explain_change(workspace_path: Path, role: str, old_identity: str) -> str:
    """Describe what has changed since an input had an old identity.

    Roles are `classes`, `tags`, `photos` and `captions`. The result joins phrases, such as
    "2 photos added; class `goat` is new"; empty if unknown.
    """
    lines = read_changes(workspace_path)
    before, after = ([old_identity in _identities(line.get(key, {}), role) for line in lines]
                     for key in ("before", "after"))
    steps = [number for number, was in enumerate(before) if was and not after[number]]
    # An identity that has come back is up to date.
    if role not in _TOPICS or not steps or after[-1]:
        return ""
    phrases = [phrase for line in lines[steps[-1]:]
               for phrase in line.get("words", {}).get(_TOPICS[role], ())]
    return "; ".join(dict.fromkeys(phrases))


def _identities(known: Mapping[str, Any], role: str) -> Collection[str]:
    if role == "classes":
        return [known.get("classes", "")]
    return known.get("captions" if role == "captions" else "tags", {}).values()


def read_changes(workspace_path: Path) -> list[JsonObject]:
    """Read `changes.jsonl`, oldest first; unreadable lines are skipped."""
    try:
        text = (workspace_path / FILE).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    found = []
    for line in text.splitlines():
        try:
            entry = parse_json(line)
            check_fields(entry, {"before": OBJECT, "after": OBJECT},
                         {"words": OBJECT, "call": OBJECT})
            for known in (entry["before"], entry["after"]):
                check_fields(known, {}, {"classes": TEXT, "tags": TEXT_OF, "captions": TEXT_OF})
            check_fields(entry.get("words", {}), {}, dict.fromkeys(_WORDS, TEXTS))
            # A lone surrogate cannot be written again, and would break the next `prepare`.
            json.dumps(entry, ensure_ascii=False).encode()
        except ValueError:
            continue
        found.append(entry)
    return found


def last_call(workspace_path: Path) -> JsonObject:
    """Return the settings of the last call that wrote the workspace; empty if unknown."""
    lines = read_changes(workspace_path)
    return dict(lines[-1].get("call", {})) if lines else {}


def add_change(
    workspace_path: Path, before: Mapping[str, object], after: Mapping[str, Any], words: Phrases,
    call: Mapping[str, object],
) -> None:
    """Append a line to `changes.jsonl`.

    It holds the identities of classes and of each split's tags before the change (none for a new
    workspace) and after it, the phrases that describe it, and the settings of the call.
    """
    lines = [*read_changes(workspace_path),
             {"before": before, "after": after, "words": words, "call": call}]
    with atomic_path(workspace_path / FILE) as temporary:
        temporary.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n"
                                     for line in lines), "utf-8")


def count_photos(count: int) -> str:
    """Return `1 photo`, `2 photos`, and so on."""
    return counted(count, "photo", "photos")


def difference(expected: Header, found: Header, path: Path) -> list[str]:
    """Describe how the header that an artifact would get now differs from the present one.

    There is one phrase per difference; the change log of the workspace provides details.
    """
    work = workspace_around(path)
    phrases, roles = [], differing(expected.inputs, found.inputs)
    if expected.command != found.command:
        phrases.append(f"{found.command} made it, not {expected.command}")
    if expected.kind != found.kind:
        phrases.append(f"it holds {found.kind}, not {expected.kind}")
    if expected.format != found.format:
        phrases.append(f"its format is {found.format}, today's is {expected.format}")
    phrases += option_changes(expected, found)
    for role in roles:
        if (role == "photos" and "tags" in roles) or (
                role == "photo-files" and not {"photos", "tags"}.isdisjoint(roles)):
            # Other photos have other tags and files: one phrase is enough.
            continue
        phrases.append(explain_change(work, role, found.inputs.get(role, ""))
                    or _INPUT_CHANGES.get(role)
                    or f"{found.sources.get(role) or expected.sources.get(role) or role} "
                       "has changed")
    if expected.model != found.model:
        old, new = _format_model(found.model), _format_model(expected.model)
        what = "encoder" if "encoder" in found.options else "CLIP"
        phrases.append(f"the {what} was {old}, now {new}" if old != new else
                       f"the weights of the {what} {new} have changed")
    return phrases


def option_changes(expected: Header, found: Header) -> list[str]:
    """Describe which options differ, one phrase each: `alpha was 4, now 2.5`."""
    return [f"{name} was {_brief(found.options.get(name))}, "
            f"now {_brief(expected.options.get(name))}"
            for name in differing(expected.options, found.options)]


def accepting(expected: Header, found: Header) -> str:
    """Return the end of a hint: the settings that accept an artifact as it is.

    It is empty unless settings that the artifact's call has given are all that differs.
    """
    names = differing(expected.options, found.options)
    if (not all(name in found.call for name in names)
            or replace(expected, options=found.options).config_hash != found.config_hash):
        return ""
    return f"; `{', '.join(f'{name}={found.call[name]!r}' for name in names)}` accepts it as it is"


def tell_options(expected: Header, found: Header, path: Path) -> None:
    """Print which options differ for an artifact about to be recomputed."""
    if changes := option_changes(expected, found):
        console.note(f"{path}: {'; '.join(changes)}")


def differing(first: Mapping[str, object], second: Mapping[str, object]) -> list[str]:
    """Return the names whose values differ, sorted."""
    return [name for name in sorted(set(first) | set(second))
            if first.get(name) != second.get(name)]


_INPUT_CHANGES = {"classes": "the classes have changed", "tags": "photos or tags have changed",
                  "photos": "other photos can be read", "photo-files": "photos were replaced",
                  "corrections": "corrected masks have changed",
                  "method-file": "the file of the method has changed"}


def _format_model(model: Mapping[str, str]) -> str:
    named = f"{model.get('name', '?')} ({model.get('pretrained', '?')})"
    return named + (f", {model['normalise']}" if "normalise" in model else "")


def _brief(value: object) -> str:
    text = "the default" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "…"
