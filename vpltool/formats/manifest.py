"""`artifact.json`, the manifest of a folder with one file a photo.

It holds the header, the ids that failed (and in `left_out` those of them that only an earlier
command failed on), what of its own each photo depends on, the hash of its file in `photos`, and
`complete`, set last. Where several processes do a shard of the photos each, each writes a manifest
of its own below `.shards`, so that none overwrites what another has found out; readers join them,
and so does the process that finishes last.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TypedDict, cast

from vpltool.errors import VplError, counted
from vpltool.formats.fields import FLAG, NUMBER, OBJECT, TEXT, TEXT_OF, TEXTS, check_fields
from vpltool.formats.header import Header
from vpltool.formats.kinds import KINDS
from vpltool.formats.packed import packed_slices
from vpltool.formats.shards import Shard
from vpltool.formats.storage import read_json
from vpltool.json_text import JsonObject, parse_json

MANIFEST = "artifact.json"

REPLACED: Final = "replaced"
"""Field of a manifest whose folder's files are being deleted: not all need be of its header."""

class Manifest(TypedDict, total=False):
    """The content of an `artifact.json`; that of a shard has no header, but the last three."""

    header: JsonObject
    config: str
    complete: bool
    failed: dict[str, str]
    left_out: list[str]
    own: dict[str, str]
    photos: dict[str, str]
    replaced: bool
    shard: int
    shards: int
    whole: bool


_SHARDS = ".shards"
"""Folder of the shards' manifests, in that of their artifact."""

_OF_PHOTOS = {"failed": TEXT_OF, "own": TEXT_OF}
_SOMETIMES = {"left_out": TEXTS, "photos": TEXT_OF}

UPDATE_HINT = "`update()` recomputes everything that is stale; "
"""Beginning of the hint if only inputs have changed."""


def manifest_of(path: Path) -> Manifest:
    """Read a folder's manifest, for `inspect`.

    Raises:
        VplError: there is none.
    """
    return joined_manifest(path, "`inspect(path='FILE')` reads one file of it")


def joined_manifest(path: Path, hint: str) -> Manifest:
    """Read a folder's `artifact.json`, joined with the manifests of its shards.

    Raises:
        VplError: there is none; the hint is `hint`.
    """
    # The shards' first: who joins them writes the whole before it deletes them.
    parts = shard_manifests(path)
    content = read_manifest(path / MANIFEST, hint)
    return join_manifests(content, [part for _, part in parts])


def read_manifest(manifest: Path, hint: str) -> Manifest:
    """Read an `artifact.json` alone, without those of its shards.

    Raises:
        VplError: it is missing or damaged; the hint is `hint`.
    """
    content = read_json(manifest, hint)
    try:
        check_fields(content, {"header": OBJECT},
                     {"config": TEXT, "complete": FLAG, REPLACED: FLAG} | _OF_PHOTOS | _SOMETIMES)
    except ValueError as error:
        raise VplError(f"{manifest} is damaged: {error}", hint) from error
    return cast(Manifest, {"complete": False, "failed": {}, **content})


def join_manifests(content: Manifest, parts: Sequence[Manifest]) -> Manifest:
    """Join the content of `artifact.json` with that of shards of its configuration.

    Args:
        content: of `artifact.json`.
        parts: of the shards, the newest last: what it says of a photo holds.
    """
    failed, own = dict(content.get("failed", {})), dict(content.get("own", {}))
    photos = dict(content.get("photos", {}))
    left_out = {*content.get("left_out", ())}
    for part in parts:
        if part.get("config") == content.get("config"):
            failed |= part["failed"]
            own |= part["own"]
            photos |= part.get("photos", {})
            left_out = (left_out - part["failed"].keys()) | {*part.get("left_out", ())}
    return {**content, "failed": failed, "left_out": sorted(left_out),
            **({"own": own} if own else {}), **({"photos": photos} if photos else {})}


def manifest_content(header: Header, *, complete: bool, failed: Mapping[str, str],
                     per_photo_inputs: Mapping[str, str] | None = None,
                     left_out: Collection[str] = (), photos: Mapping[str, str] | None = None
                     ) -> Manifest:
    """Return what an `artifact.json` says.

    Args:
        header: of the folder.
        complete: whether no photo is to be done.
        failed: id to reason of the photos that it lacks.
        per_photo_inputs: id to the photo's own inputs; the file calls them `own`.
        left_out: ids of photos that an earlier command failed on; others are of no interest.
        photos: id to hash of the photo's file.
    """
    waiting = sorted(key for key in failed if key in left_out)
    return {"header": header.to_dict(), "config": header.config_hash, "complete": complete,
            "failed": dict(sorted(failed.items())), **({"left_out": waiting} if waiting else {}),
            **({"own": dict(sorted(per_photo_inputs.items()))} if per_photo_inputs else {}),
            **({"photos": dict(sorted(photos.items()))} if photos else {})}


def shard_manifest(path: Path, shard: Shard) -> Path:
    """Path of the manifest of a shard."""
    return path / _SHARDS / f"{shard.index}-of-{shard.count}.json"


def shard_manifests(path: Path) -> list[tuple[Path, Manifest]]:
    """Read the manifests of a folder's shards, the newest last."""
    dated = []
    for file in sorted((path / _SHARDS).glob("*-of-*.json")):
        # Another process may have joined them, and deleted this one, meanwhile.
        with contextlib.suppress(FileNotFoundError):
            dated.append((file.stat().st_mtime_ns, file, _read_shard(file)))
    return [(file, content) for _, file, content in sorted(dated, key=lambda entry: entry[:2])]


def _read_shard(file: Path) -> Manifest:
    """Read the manifest of a shard.

    Raises:
        FileNotFoundError: another process has joined it meanwhile.
        VplError: it is damaged.
    """
    try:
        content = parse_json(file.read_text("utf-8"))
        check_fields(content, {"config": TEXT, "shard": NUMBER, "shards": NUMBER, "whole": FLAG,
                               "complete": FLAG} | _OF_PHOTOS, _SOMETIMES)
        if not 0 <= content["shard"] < content["shards"]:
            raise ValueError(f"there is no shard {content['shard']} of {content['shards']}")
    except ValueError as error:
        raise VplError(f"{file} is damaged: {error}",
                       "delete it and run the same shard again") from error
    return cast(Manifest, content)


def photo_ids(path: Path) -> list[str]:
    """Ids of the photos that a folder holds files of; those of nested artifacts are not its own."""
    suffix = KINDS[header_of(manifest_of(path), path / MANIFEST).kind].suffix
    return list(dict.fromkeys([
        *packed_slices(path), *(file.relative_to(path).as_posix().removesuffix(suffix)
                                for file in files_of(path, suffix))]))


def header_of(content: Manifest, manifest: Path) -> Header:
    """Read the header in a manifest's content.

    Raises:
        VplError: it is not one.
    """
    return Header.from_json(json.dumps(content.get("header", {})), manifest)


def again(header: Header, shard: str = "") -> str:
    """Return the call that makes an artifact again, or resumes it; or only a shard of it."""
    used = [f"{key}={header.options[key]!r}" for key in ("prototypes", "method", "split")
            if header.options.get(key)]
    split = f"/{header.options.get('split', '')}"
    # Of several inputs a command would not know which.
    used += [f"{key}={header.sources[key].removesuffix(split)!r}" for key in ("cams", "what")
             if key in header.sources]
    if "decoder" in header.sources:
        used.append(f"decoder={Path(header.sources['decoder']).stem!r}")
    used += [f"shard={shard!r}"] if shard else []
    return f"`{header.command.replace('-', '_')}({', '.join(used)})`"


def files_of(path: Path, suffix: str) -> Iterator[Path]:
    """Yield the finished files of a folder, except those of artifacts nested in it."""
    for entry in sorted(path.iterdir()) if path.is_dir() else ():
        if entry.is_dir():
            if not (entry / MANIFEST).exists():
                yield from files_of(entry, suffix)
        elif (entry.name.endswith(suffix) and entry.name != MANIFEST
              and not entry.name.startswith(".part-")):
            yield entry


def and_others(path: Path, kind: str, ids: Collection[str]) -> str:
    """Say how many files of other photos than `ids` are deleted with a folder; empty if none."""
    suffix = KINDS[kind].suffix
    known = {f"{key}{suffix}" for key in ids}
    others = sum(file.relative_to(path).as_posix() not in known for file in files_of(path, suffix))
    return f" and deletes {counted(others, 'file', 'files')} of other photos" if others else ""
