"""`inspect`: what a file is, what made it, and from what."""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vpltool.datasets.tags import write_tags
from vpltool.errors import VplError, near_name
from vpltool.formats import KINDS, JsonObject, changes, describe, kinds, open_workspace, read_json
from vpltool.formats.manifest import MANIFEST, Manifest, manifest_of
from vpltool.settings import Settings, Stage, setting

MOST_TENSORS = 20
"""Maximum number of tensors to list one by one; more are listed in groups."""

_DEEPEST = 3
"""Depth to which folders are searched: `cams/NAME/SPLIT` from the workspace."""


@dataclass(frozen=True, kw_only=True)
class InspectSettings(Settings):
    """Settings of `inspect`."""

    path: Path = setting(help="A file that vpltool wrote, a folder of them, or a workspace.",
                         positional=True, metavar="PATH")
    csv: Path | None = setting(
        None, "Of a workspace: also write its photos to this CSV, with the columns id, labels and "
              "split. `prepare folder --labels` reads it, so that another workspace holds out the "
              "same photos.", metavar="FILE", record="never", by_hand=True)


STAGE = Stage(order=96, panel="4. Scores and pictures", reads=tuple(KINDS), writes=(),
              settings=InspectSettings, begins=True)


def run(work: Path, settings: InspectSettings) -> JsonObject:
    """Describe a file: what it is, what made it, and from what.

    For a folder, list what it holds.

    Example: vpltool inspect prototypes/vision.safetensors

    Example: vpltool inspect work/photos --csv split.csv

    Returns:
        kind, and what the header says; inputs as hashes, with their paths in `sources`.

    Raises:
        VplError: it is not there, damaged, or nothing that vpltool wrote.
    """
    path = settings.path
    if not path.exists() and (work / path).exists():
        path = work / path
    if not path.exists():
        beside = ([entry.name for entry in path.parent.iterdir() if not entry.name.startswith(".")]
                  if path.parent.is_dir() else [])
        raise VplError(f"{path} does not exist", near_name(path.name, beside) if beside
                       else "give a file or a folder that vpltool wrote")
    if settings.csv:
        workspace = open_workspace(path if path.is_dir() else path.parent)
        write_tags(settings.csv, workspace.photos(),
                   str(changes.last_call(workspace.path).get("halve", "")))
    return _describe_folder(path) if path.is_dir() else _describe_file(path)


def _describe_file(path: Path) -> JsonObject:
    if path.suffix == ".json":
        content = read_json(path, "")
        if path.name == "workspace.json" or "header" in content:
            return _describe_folder(path.parent)
        if content.get("kind") in ("scores", "agreement", "gap"):
            return {key: value for key, value in content.items()
                    if key not in ("confusion", "sweep")}
        return {"kind": "JSON", "keys": sorted(content)}
    if path.name == changes.FILE:
        return {"kind": "changes", "changes": [line.get("words", {})
                                               for line in changes.read_changes(path.parent)]}
    if path.suffix == ".jsonl":
        lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
        return {"kind": "images", "photos": len(lines)}
    if path.suffix not in (".safetensors", ".png", ".tif"):
        raise VplError(f"{path} is not a kind of file that vpltool writes",
                       "it writes .safetensors, .png, .tif, .json and .jsonl")
    described = describe(path)
    result: JsonObject = {"kind": "unknown: no vpltool header"}
    if described.header is not None:
        result = _of_header(asdict(described.header))
    if described.shapes:
        result["tensors"] = {
            name: f"{dtype} {' × '.join(map(str, shape)) or 'scalar'}"
            for name, (dtype, shape) in sorted(described.shapes.items())}
    return result


def _describe_folder(path: Path) -> JsonObject:
    if (path / MANIFEST).exists():
        found = manifest_of(path)
        result = _of_header(asdict(found.header)) | _state_of(found)
        if found.failed:
            result["failed"] = found.failed
        return result
    if kinds.is_workspace(path):
        workspace = open_workspace(path)
        photos = workspace.photos()
        return {
            "kind": "workspace", "data set": workspace.name, "root": workspace.root,
            **({"encoder": workspace.encoder} if workspace.encoder else {}),
            **({"model": f"{workspace.model} ({workspace.pretrained})"} if workspace.has_words
               else {}), "photos": len(photos),
            "splits": dict(Counter(split for photo in photos for split in photo.splits)),
            "classes": list(workspace.classes),
            "with true masks": sum(photo.mask is not None for photo in photos)}
    holds = _holdings(path)
    if not holds:
        raise VplError(f"{path} holds nothing that vpltool wrote",
                       "give a workspace, a folder in one, or a file")
    return {"kind": "folder", "holds": holds}


def _holdings(folder: Path) -> dict[str, JsonObject]:
    """Return kind, command and state of everything in a folder that vpltool wrote, by path."""
    found: dict[str, JsonObject] = {}
    for depth in range(1, _DEEPEST):
        for manifest in folder.glob("/".join(["*"] * depth + [MANIFEST])):
            inside = manifest_of(manifest.parent)
            found[manifest.parent.relative_to(folder).as_posix()] = {
                "kind": inside.header.kind, "made by": inside.header.command} | _state_of(inside)
    for file in folder.iterdir():
        # Damaged files are left out, as are those of other programs.
        with contextlib.suppress(VplError):
            if file.suffix in (".safetensors", ".png") and (header := describe(file).header):
                found[file.name] = {"kind": header.kind, "made by": header.command}
            elif file.suffix == ".json" and (kind := str(read_json(file, "").get("kind"))) in KINDS:
                command = KINDS[kind].made_by.strip("`").partition("(")[0]
                found[file.name] = {"kind": kind, "made by": command}
    return dict(sorted(found.items()))


def _state_of(folder: Manifest) -> JsonObject:
    return {"photos": len(folder.photo_ids()), "complete": folder.complete}


def _of_header(header: Mapping[str, Any]) -> JsonObject:
    found = {
        "kind": header["kind"],
        "made by": f"vpltool {header['command']} (version {header['version']})",
        "settings": header.get("call", {}), "options": header["options"],
        "inputs": header["inputs"], "sources": header.get("sources", {}),
        "supervision": header.get("supervision", ""), "model": header["model"],
        "preset": header.get("preset", {}), "facts": header["facts"]}
    return {key: value for key, value in found.items()
            if value or key in ("options", "inputs", "model")}


def show(found: Mapping[str, Any], _values: Mapping[str, object]) -> str:
    """Format a line per entry, with many tensors in groups, and hashes after their objects."""
    shown = dict(found)
    if "inputs" in shown:
        sources = shown.pop("sources", {})
        shown["inputs"] = {role: _format_input(role, identity, sources.get(role, ""))
                           for role, identity in shown["inputs"].items()}
    shown |= {key: f"{shown[key]} ({of})" for key, of in _HASHES.get(shown["kind"], {}).items()
              if key in shown}
    if len(shown.get("tensors", ())) > MOST_TENSORS:
        shown["tensors"] = _groups(shown["tensors"])
    if "holds" in shown:
        shown["holds"] = {name: _format_content(entry) for name, entry in shown["holds"].items()}
    lines = []
    for key, value in shown.items():
        if isinstance(value, dict):
            lines.append(f"{key}:{'' if value else ' none'}")
            lines += [f"  {name}: {_brief(entry)}" for name, entry in value.items()]
        else:
            lines.append(f"{key}: {_brief(value)}")
    return "\n".join(lines)


_HASHES = {
    **dict.fromkeys(("scores", "agreement"), {
        "config": "hash of how it was made", "content": "hash of what was scored"}),
    "gap": {"features": "hash of how they were made", "maps": "hash of how they were made"}}


def _format_input(role: str, identity: str, source: str) -> str:
    """Format the path of an input, and its hash with the object of the hash."""
    if not source:
        name = changes.INPUTS[role].name if role in changes.INPUTS else role
        return f"{name} (hash {identity})"
    return f"{source} ({'content' if Path(source).suffix else 'config'} {identity})"


def _format_content(entry: Mapping[str, Any]) -> str:
    words = [entry["kind"]]
    if "photos" in entry:
        words.append(f"{entry['photos']} photos" + ("" if entry["complete"] else ", not complete"))
    return ", ".join([*words, f"made by {entry['made by']}"])


def _groups(tensors: Mapping[str, str]) -> dict[str, str]:
    """Group tensors by the first parts of their names, by as many parts as give few groups."""
    groups: dict[str, list[str]] = {}
    for depth in range(9, 0, -1):
        groups = defaultdict(list)
        for name in tensors:
            parts = name.split(".")
            groups[".".join(parts[:depth]) + (".*" if len(parts) > depth else "")].append(name)
        if len(groups) <= MOST_TENSORS:
            break
    return {group: tensors[names[0]] if names == [group] else _format_group(tensors, names)
            for group, names in groups.items()}


def _format_group(tensors: Mapping[str, str], names: list[str]) -> str:
    kinds, numbers = set(), 0
    for name in names:
        kind, _, shape = tensors[name].partition(" ")
        kinds.add(kind)
        numbers += 1 if shape == "scalar" else math.prod(map(int, shape.split(" × ")))
    return f"{len(names)} tensors, {numbers:,} numbers, {' and '.join(sorted(kinds))}"


def _brief(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 160 else text[:157] + "…"
