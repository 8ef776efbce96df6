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
"""Folder of the shards' manifests, in that of their artifact."""

_OF_PHOTOS = {"own": TEXT_OF, "left_out": TEXTS, "photos": TEXT_OF}

UPDATE_HINT = "`update()` recomputes everything that is stale; "
"""Beginning of the hint if only inputs have changed."""


class PhotoFolder:
    """A folder with one file a photo, all of one kind, by themselves or in tars."""

    path: Path
    header: Header

    @property
    def suffix(self) -> str:
        """Suffix of the photos' files."""
        return KINDS[self.header.kind].suffix

    def path_of(self, photo_id: str) -> Path:
        """Path of a photo's file."""
        return self.path / (photo_id + self.suffix)

    @cached_property
    def packed(self) -> Mapping[str, TarSlice]:
        """Id to where the file is, of photos whose files lie in tars."""
        return packed_slices(self.path)

    def holds(self, photo_id: str) -> bool:
        """Tell whether a photo's file is there, by itself or in a tar."""
        return photo_id in self.packed or self.path_of(photo_id).exists()

    def files(self) -> Iterator[Path]:
        """Yield its finished files, without those in tars and of artifacts nested in it."""
        return files_of(self.path, self.suffix)

    def photo_ids(self) -> list[str]:
        """Return the ids of the photos that it holds files of."""
        return list(dict.fromkeys([*self.packed, *(
            file.relative_to(self.path).as_posix().removesuffix(self.suffix)
            for file in self.files())]))


@dataclass(frozen=True)
class Manifest(PhotoFolder):
    """What a folder's `artifact.json` says, and those of its shards.

    Args:
        path: the folder.
        header: that of every file in it.
        failed: id to reason, of photos that a step failed on.
        per_photo_inputs: id to the photo's own inputs that its file depends on; `own` in the file.
        shards: number of shards that processes are, or were, making it in; 1: none.
        waiting: ids of those that failed, but only in an earlier step; `left_out` in the file.
        complete: whether no photo that was asked for is to be done.
        replaced: whether a command is deleting its files, or was killed while it did: not all need
            be of the header.
        photos: id to hash of the photo's file that was read, where it could be.
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
        """Return it as `artifact.json` holds it."""
        return {"header": self.header.to_dict(), "config": self.header.config_hash,
                "complete": self.complete, **self.of_photos(),
                **({"replaced": True} if self.replaced else {})}

    def of_photos(self) -> JsonObject:
        """Return what it says of photos, as the manifest of a folder or of a shard holds it."""
        found = {"left_out": sorted(self.waiting & self.failed.keys()),
                 "own": dict(sorted(self.per_photo_inputs.items())),
                 "photos": dict(sorted(self.photos.items()))}
        return {"failed": dict(sorted(self.failed.items())),
                **{name: value for name, value in found.items() if value}}

    def joined(self, parts: Iterable[JsonObject]) -> Manifest:
        """Join it with what shards of its configuration say, the newest last, which holds."""
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
    """Read a folder's `artifact.json`, joined with the manifests of its shards.

    Raises:
        VplError: there is none, or it is damaged; the hint is `hint`.
    """
    # The shards' first: who joins them writes the whole before it deletes them.
    parts = shard_manifests(path)
    return read_manifest(path, hint).joined(part for _, part in parts)


def read_manifest(path: Path, hint: str = "") -> Manifest:
    """Read a folder's `artifact.json` alone, without those of its shards.

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
    """Path of the manifest of a shard."""
    return path / _SHARDS / f"{shard.index}-of-{shard.count}.json"


def shard_manifests(path: Path) -> list[tuple[Path, JsonObject]]:
    """Read the manifests of a folder's shards, the newest last.

    Raises:
        VplError: one is damaged.
    """
    dated = []
    for file in sorted((path / _SHARDS).glob("*-of-*.json")):
        # Another process may have joined them, and deleted this one, meanwhile.
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
