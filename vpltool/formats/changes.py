"""Descriptions of changes: in a workspace since a file was made, and between two headers.

Artifacts store identities (hashes) of their inputs. `changes.jsonl` has a line for each time the
workspace was written, so it can explain what has changed since an input had an older identity.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from vpltool import console
from vpltool.errors import OtherSettings, counted
from vpltool.formats.atomic import atomic_path
from vpltool.formats.fields import OBJECT, TEXT, TEXT_OF, TEXTS, check_fields
from vpltool.formats.header import Header, is_stale
from vpltool.formats.kinds import workspace_around
from vpltool.formats.manifest import UPDATE_HINT
from vpltool.json_text import JsonObject, parse_json

FILE = "changes.jsonl"

_WORDS = ("classes", "photos", "words", "masks")

Phrases = dict[str, list[str]]
"""Phrases by topic: `classes`, `photos` (with their tags and splits), `words`, `masks`."""


class Input(NamedTuple):
    """An input that is not a file.

    Args:
        name: its name for people.
        changed: says that it has changed, if `changes.jsonl` has no details.
        topic: the topic of `Phrases` with the details; empty: there are none.
        follows: roles of inputs whose changes also change this one.
    """

    name: str
    changed: str
    topic: str = ""
    follows: tuple[str, ...] = ()


INPUTS: Mapping[str, Input] = {
    "classes": Input("the class names", "the classes have changed", "classes"),
    "captions": Input("the captions", "photos or captions have changed", "photos"),
    "tags": Input("the photos' tags", "photos or tags have changed", "photos"),
    "photos": Input("the photos", "other photos can be read than it was made from",
                    follows=("tags",)),
    "photo-files": Input("the photos' files", "photos were replaced", follows=("tags", "photos")),
    "vocabulary": Input("the words of classes and background",
                        "the words of classes or background have changed"),
    "corrections": Input("the corrected masks", "corrected masks have changed"),
    "method-file": Input("the file of the method", "the file of the method has changed"),
}
"""Inputs that are not files, by their role in a header; each after those that it follows."""


def explain_change(workspace_path: Path, role: str, old_identity: str) -> str:
    """Describe what has changed since one of the `INPUTS` had an old identity.

    The result joins phrases, such as "2 photos added; class `goat` is new"; empty if unknown.
    """
    lines = read_changes(workspace_path)
    before, after = ([old_identity in _identities(line.get(key, {}), role) for line in lines]
                     for key in ("before", "after"))
    steps = [number for number, was in enumerate(before) if was and not after[number]]
    # An identity that has come back is up to date.
    topic = INPUTS[role].topic if role in INPUTS else ""
    if not topic or not steps or after[-1]:
        return ""
    phrases = [phrase for line in lines[steps[-1]:]
               for phrase in line.get("words", {}).get(topic, ())]
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
    phrases += _option_changes(expected, found)
    for role in roles:
        if role not in INPUTS:
            source = found.sources.get(role) or expected.sources.get(role) or role
            phrases.append(f"{source} has changed")
        elif not {*INPUTS[role].follows} & {*roles}:
            phrases.append(explain_change(work, role, found.inputs.get(role, ""))
                           or INPUTS[role].changed)
    if expected.model != found.model:
        old, new = _format_model(found.model), _format_model(expected.model)
        what = "encoder" if "encoder" in found.options else "CLIP"
        phrases.append(f"the {what} was {old}, now {new}" if old != new else
                       f"the weights of the {what} {new} have changed")
    return phrases


def _option_changes(expected: Header, found: Header) -> list[str]:
    """Describe which options differ, one phrase each: `alpha was 4, now 2.5`."""
    return [f"{name} was {_brief(found.options.get(name))}, "
            f"now {_brief(expected.options.get(name))}"
            for name in differing(expected.options, found.options)]


def has_same_settings(expected: Header, found: Header, path: Path, *, update: bool, hint: str,
                      stale_hint: str = UPDATE_HINT) -> bool:
    """Return whether an artifact is as it would be made now; if not, `update` replaces it.

    Args:
        update: replace what the same command made with other options or inputs, and print which
            options differ.
        hint: how to replace it, or to keep both.
        stale_hint: how to make it again if only inputs differ.

    Raises:
        OtherSettings: it is not, and is not replaced.
    """
    if found.config_hash == expected.config_hash:
        return True
    if update and found.command == expected.command:
        if changed := _option_changes(expected, found):
            console.note(f"{path}: {'; '.join(changed)}")
        return False
    stale = is_stale(expected, found)
    raise OtherSettings(
        f"{path} was made with other settings: {'; '.join(difference(expected, found, path))}",
        f"{stale_hint if stale else ''}{hint}{_accepting(expected, found)}", stale=stale)


def _accepting(expected: Header, found: Header) -> str:
    """Return the end of a hint: the settings that accept an artifact as it is.

    It is empty unless settings that the artifact's call has given are all that differs.
    """
    names = differing(expected.options, found.options)
    if (not all(name in found.call for name in names)
            or replace(expected, options=found.options).config_hash != found.config_hash):
        return ""
    return f"; `{', '.join(f'{name}={found.call[name]!r}' for name in names)}` accepts it as it is"


def differing(first: Mapping[str, object], second: Mapping[str, object]) -> list[str]:
    """Return the names whose values differ, sorted."""
    return [name for name in sorted(set(first) | set(second))
            if first.get(name) != second.get(name)]


def _format_model(model: Mapping[str, str]) -> str:
    named = f"{model.get('name', '?')} ({model.get('pretrained', '?')})"
    return named + (f", {model['normalise']}" if "normalise" in model else "")


def _brief(value: object) -> str:
    text = "the default" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "…"
