"""`artifact.json`, the manifest of a folder with one file per photo.

It holds the header; the failed ids, those of earlier stages also in `left_out`; per-photo inputs
and photo hashes; and `complete`, set last. When several processes share the photos, each writes a
shard manifest below `.shards`, so that none overwrites another's records. Readers merge them, and
the process that finishes last merges them for good.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from vpltool.errors import VplError
from vpltool.formats.fields import FLAG, NUMBER, OBJECT, TEXT, TEXT_OF, TEXTS, check_fields
from vpltool.formats.header import Header
from vpltool.formats.kinds import KINDS
from vpltool.formats.packed import TarSlice, packed_slices
from vpltool.formats.shards import Shard
from vpltool.formats.storage import read_json
from vpltool.json_text import JsonObject, parse_json

MANIFEST = "artifact.json"

_SHARDS = ".shards"
"""Subfolder of an artifact that holds shard manifests."""

_OF_PHOTOS = {"own": TEXT_OF, "left_out": TEXTS, "photos": TEXT_OF}

UPDATE_HINT = "`update()` recomputes everything that is stale; "
"""Prefix of a hint if only inputs have changed."""


class PhotoFolder:
    """A folder with one file per photo, all of one kind, stored individually or in tars."""

    path: Path
    header: Header

    @property
    def suffix(self) -> str:
        """Suffix of the per-photo files."""
        return KINDS[self.header.kind].suffix

    def path_of(self, photo_id: str) -> Path:
        """Return the path of a photo's file."""
        return self.path / (photo_id + self.suffix)

    @cached_property
    def packed(self) -> Mapping[str, TarSlice]:
        """Tar slices by id, of photos packed into tars."""
        return packed_slices(self.path)

    def holds(self, photo_id: str) -> bool:
        """Return whether a photo's file exists, individually or in a tar."""
        return photo_id in self.packed or self.path_of(photo_id).exists()

    def files(self) -> Iterator[Path]:
        """Yield finished files, without packed ones and those of nested artifacts."""
        return files_of(self.path, self.suffix)

    def photo_ids(self) -> list[str]:
        """Return the ids of all photos that have a file."""
        return list(dict.fromkeys([*self.packed, *(
            file.relative_to(self.path).as_posix().removesuffix(self.suffix)
            for file in self.files())]))


@dataclass(frozen=True)
class Manifest(PhotoFolder):
    """The content of a folder's `artifact.json`, merged with its shard manifests.

    Args:
        path: the folder.
        header: header of every file in the folder.
        failed: reason by id, of photos that a stage failed on.
        per_photo_inputs: id to the photo's own inputs, such as tags; `own` in the file.
        shards: number of shards in which the folder is or was made; 1: not sharded.
        waiting: failed ids that only an earlier stage failed on; `left_out` in the file.
        complete: whether all requested photos have been processed.
        replaced: whether a command is replacing files, or was killed while doing so; files may
            then have other headers.
        photos: hash by id of the photo's file that was read, if known.
    """

    path: Path
    header: Header
    failed: Mapping[str, str]
    per_photo_inputs: Mapping[str, str] = field(default_factory=dict)
    shards: int = 1
    waiting: frozenset[str] = frozenset()
    complete: bool = True
    replaced: bool = False
    photos: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> JsonObject:
        """Return the content of `artifact.json`."""
        return {"header": self.header.to_dict(), "config": self.header.config_hash,
                "complete": self.complete, **self.of_photos(),
                **({"replaced": True} if self.replaced else {})}

    def of_photos(self) -> JsonObject:
        """Return the per-photo fields, as stored in the manifest of a folder or shard."""
        found = {"left_out": sorted(self.waiting & self.failed.keys()),
                 "own": dict(sorted(self.per_photo_inputs.items())),
                 "photos": dict(sorted(self.photos.items()))}
        return {"failed": dict(sorted(self.failed.items())),
                **{name: value for name, value in found.items() if value}}

    def joined(self, parts: Iterable[JsonObject]) -> Manifest:
        """Merge with shard manifests of the same configuration, oldest first; later ones win."""
        failed, own, photos = dict(self.failed), dict(self.per_photo_inputs), dict(self.photos)
        waiting, shards = {*self.waiting}, self.shards
        for part in parts:
            if part["config"] == self.header.config_hash:
                failed |= part["failed"]
                own |= part.get("own", {})
                photos |= part.get("photos", {})
                waiting = (waiting - part["failed"].keys()) | {*part.get("left_out", ())}
                shards = part["shards"]
        return replace(self, failed=failed, per_photo_inputs=own, photos=photos,
                       waiting=frozenset(waiting), shards=shards)


def manifest_of(path: Path, hint: str = "`inspect(path='FILE')` reads one file of it") -> Manifest:
    """Read a folder's `artifact.json`, merged with its shard manifests.

    Raises:
        VplError: it is missing or damaged; the hint is `hint`.
    """
    # Read shards first: the process that merges them writes the whole before it deletes them.
    parts = shard_manifests(path)
    return read_manifest(path, hint).joined(part for _, part in parts)


def read_manifest(path: Path, hint: str = "") -> Manifest:
    """Read a folder's `artifact.json` without its shard manifests.

    Raises:
        VplError: it is missing or damaged; the hint is `hint`.
    """
    manifest = path / MANIFEST
    content = read_json(manifest, hint)
    try:
        check_fields(content, {"header": OBJECT}, {
            "config": TEXT, "complete": FLAG, "replaced": FLAG, "failed": TEXT_OF} | _OF_PHOTOS)
    except ValueError as error:
        raise VplError(f"{manifest} is damaged: {error}", hint) from error
    return Manifest(path, Header.from_json(json.dumps(content["header"]), manifest),
                    content.get("failed", {}), content.get("own", {}),
                    waiting=frozenset(content.get("left_out", ())),
                    complete=content.get("complete", False),
                    replaced=content.get("replaced", False), photos=content.get("photos", {}))


def shard_manifest(path: Path, shard: Shard) -> Path:
    """Return the path of a shard's manifest."""
    return path / _SHARDS / f"{shard.index}-of-{shard.count}.json"


def shard_manifests(path: Path) -> list[tuple[Path, JsonObject]]:
    """Read the shard manifests of a folder, oldest first.

    Raises:
        VplError: a shard manifest is damaged.
    """
    dated = []
    for file in sorted((path / _SHARDS).glob("*-of-*.json")):
        # Another process may have merged and deleted this file meanwhile.
        with contextlib.suppress(FileNotFoundError):
            dated.append((file.stat().st_mtime_ns, file, _read_shard(file)))
    return [(file, content) for _, file, content in sorted(dated, key=lambda entry: entry[:2])]


def _read_shard(file: Path) -> JsonObject:
    try:
        content: JsonObject = parse_json(file.read_text("utf-8"))
        check_fields(content, {"config": TEXT, "shard": NUMBER, "shards": NUMBER, "whole": FLAG,
                               "complete": FLAG, "failed": TEXT_OF}, _OF_PHOTOS)
        if not 0 <= content["shard"] < content["shards"]:
            raise ValueError(f"there is no shard {content['shard']} of {content['shards']}")
    except ValueError as error:
        raise VplError(f"{file} is damaged: {error}",
                       "delete it and run the same shard again") from error
    return content


def again(header: Header, shard: str = "") -> str:
    """Return the call that makes or resumes an artifact, or one shard of it."""
    used = [f"{key}={header.options[key]!r}" for key in ("prototypes", "method", "split")
            if header.options.get(key)]
    split = f"/{header.options.get('split', '')}"
    # Spelled out, since the command could not choose among several inputs.
    used += [f"{key}={header.sources[key].removesuffix(split)!r}" for key in ("cams", "what")
             if key in header.sources]
    if "decoder" in header.sources:
        used.append(f"decoder={Path(header.sources['decoder']).stem!r}")
    used += [f"shard={shard!r}"] if shard else []
    return f"`{header.command.replace('-', '_')}({', '.join(used)})`"


def files_of(path: Path, suffix: str) -> Iterator[Path]:
    """Yield the finished files of a folder, without those of nested artifacts."""
    for entry in sorted(path.iterdir()) if path.is_dir() else ():
        if entry.is_dir():
            if not (entry / MANIFEST).exists():
                yield from files_of(entry, suffix)
        elif (entry.name.endswith(suffix) and entry.name != MANIFEST
              and not entry.name.startswith(".part-")):
            yield entry
