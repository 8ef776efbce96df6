"""`artifact.json`, the manifest of a folder with one file per photo.

It holds the header; the failed ids, those of earlier stages also in `left_out`; per-photo inputs
and photo hashes; and `complete`, set last. When several processes share the photos, each writes a
shard manifest below `.shards`, so that none overwrites another's records. Readers merge them, and
the process that finishes last merges them for good.

Before the first file of a folder is replaced, its manifest is marked `replaced`, until all old
files are gone and the new header is written. So the next command detects and finishes a killed one.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

from vpltool.errors import NotPermitted, VplError, not_readable
from vpltool.formats.fields import FLAG, NUMBER, OBJECT, TEXT, TEXT_OF, TEXTS, check_fields
from vpltool.formats.header import Header
from vpltool.formats.kinds import KINDS, folders_of, is_workspace
from vpltool.formats.packed import TarSlice, packed_slices
from vpltool.formats.shards import Shard
from vpltool.formats.storage import check_file, read_json, salvaged_header, write_json
from vpltool.json_text import JsonObject, parse_json

MANIFEST = "artifact.json"

PHOTO_FOLDERS = (*folders_of(per_photo=True), "ground-truth")
"""Workspace folders, or prefixes of their names, that hold per-photo files."""

_SHARDS = ".shards"
"""Subfolder of an artifact that holds shard manifests."""

_OF_PHOTOS = {"own": TEXT_OF, "left_out": TEXTS, "photos": TEXT_OF}
"""Per-photo entries of the file: `own` is `Manifest.per_photo_inputs`, `left_out` is `waiting`."""

UPDATE_HINT = "`update()` recomputes everything that is stale; "
"""Prefix of a hint if only inputs have changed."""

_limits: ContextVar[tuple[Path, frozenset[Path]] | None] = ContextVar("limits", default=None)


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
    dated, files = [], list[Path]()
    # Another process may be removing the empty folder.
    with contextlib.suppress(FileNotFoundError):
        files = sorted((path / _SHARDS).glob("*-of-*.json"))
    for file in files:
        # Another process may have merged and deleted this file meanwhile.
        with contextlib.suppress(FileNotFoundError):
            dated.append((file.stat().st_mtime_ns, file, _read_shard(file)))
    return [(file, content) for _, file, content in sorted(dated, key=lambda entry: entry[:2])]


def remove_shard_manifests(path: Path, files: Iterable[Path]) -> None:
    """Delete shard manifests of a folder, and their subfolder once it is empty."""
    for file in files:
        file.unlink(missing_ok=True)
    # Another shard may be writing its manifest.
    with contextlib.suppress(OSError):
        (path / _SHARDS).rmdir()


def _read_shard(file: Path) -> JsonObject:
    try:
        content: JsonObject = parse_json(file.read_text("utf-8"))
        check_fields(content, {"config": TEXT, "shard": NUMBER, "shards": NUMBER, "whole": FLAG,
                               "complete": FLAG, "failed": TEXT_OF}, _OF_PHOTOS)
        if not 0 <= content["shard"] < content["shards"]:
            raise ValueError(f"there is no shard {content['shard']} of {content['shards']}")
    except PermissionError as error:
        raise not_readable(file) from error
    except ValueError as error:
        raise VplError(f"{file} is damaged: {error}",
                       "delete it and run the same shard again") from error
    return content


def call_of(header: Header, shard: str = "") -> str:
    """Return the call that makes or resumes an artifact, or one shard of it."""
    used = [f"{key}={header.options[key]!r}" for key in ("prototypes", "method", "split")
            if header.options.get(key)]
    split = f"/{header.options.get('split', '')}"
    # Spelled out, since the command could not choose among several inputs.
    used += [f"{key}={header.sources[key].removesuffix(split)!r}" for key in ("cams", "what")
             if key in header.sources]
    if "decoder" in header.sources:
        used.append(f"decoder={Path(header.sources['decoder']).stem!r}")
    # What was not at its default: without it, the same command would be refused.
    known = {*header.sources, "prototypes", "method", "split", "out", "shard"}
    used += [f"{key}={value!r}" for key, value in header.call.items() if key not in known]
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


@contextlib.contextmanager
def replacing_only(work: Path, artifacts: Iterable[Path]) -> Iterator[None]:
    """Restrict the block to write below `work`, and to replace only these artifacts.

    `update` needs this, since headers are data that anybody may have written.
    """
    token = _limits.set((work.resolve(), frozenset(path.resolve() for path in artifacts)))
    try:
        yield
    finally:
        _limits.reset(token)


def check_replacing(path: Path, *, same: bool) -> None:
    """Check that an artifact may be written under the limits of `replacing_only`.

    `same`: nothing is there, or it was made with the same settings.

    Raises:
        VplError: it may not be written.
    """
    limits, target = _limits.get(), path.resolve()
    if limits is None or target in limits[1]:
        return
    if not target.is_relative_to(limits[0]):
        raise VplError(f"{path} is outside of the workspace", "`update` writes nothing there; type "
                       "the command yourself")
    if not same:
        raise VplError(f"{path} was made with other settings than the file whose header asks to "
                       "replace it", "that file was not made here: move it out of the workspace")


def known_manifest(path: Path, header: Header, hint: str) -> Manifest | None:
    """Return a folder's manifest, or one derived from its files, marked `replaced`, if it is lost.

    Files with the configuration of `header`, about to be written, take precedence. Returns None if
    the folder holds nothing made by vpltool.

    Raises:
        VplError: the manifest is damaged; the hint is `hint`.
    """
    if (path / MANIFEST).exists():
        return manifest_of(path, hint)
    headers = (found for file in files_of(path, KINDS[header.kind].suffix)
               if (found := _header_in(file)) and found.kind == header.kind)
    first = next(headers, None)
    if first is None:
        return None
    same = any(found.config_hash == header.config_hash for found in chain([first], headers))
    return Manifest(path, header if same else first, {}, complete=False, replaced=True)


def _header_in(file: Path) -> Header | None:
    try:
        return check_file(file) if file.suffix == ".png" else salvaged_header(file)
    except (VplError, OSError):
        return None


def is_of_another_run(file: Path, header: Header, *, keeps_corrected: bool) -> bool:
    """Return whether a photo's file has other settings than a header, or is damaged.

    With `keeps_corrected`, a PNG without a header counts as corrected by hand and is kept.
    """
    try:
        found = check_file(file)
    except FileNotFoundError:
        # Another process has just deleted it.
        return False
    except NotPermitted:
        raise
    except VplError:
        return True
    return (not keeps_corrected if found is None else found.config_hash != header.config_hash)


def mark_replaced(manifest: Manifest) -> None:
    """Mark a folder's manifest as being replaced, unless it already is."""
    path = manifest.path
    if not (path / MANIFEST).exists() or not read_manifest(path).replaced:
        write_json(path / MANIFEST, replace(manifest, complete=False, replaced=True).to_json())


def folders_in(work: Path, *, everywhere: bool = False
               ) -> Iterator[tuple[Path, Manifest | VplError]]:
    """Yield each folder of per-photo files in a workspace, with its manifest or its error.

    If a killed command has left none, the manifest says `replaced`. Hidden folders and other
    workspaces are skipped, and those with names of no kind unless `everywhere`.
    """
    for top in sorted(work.iterdir()):
        of_kind = top.name.startswith(PHOTO_FOLDERS)
        # Results may be a link to another disk; other links may lead anywhere.
        if not of_kind and (not everywhere or top.is_symlink() or top.name.startswith(".")):
            continue
        found: set[Path] = set()
        for root, below, names in os.walk(top):
            folder = Path(root)
            below[:] = () if is_workspace(folder) else sorted(
                name for name in below if not name.startswith("."))
            if MANIFEST in names:
                found.add(folder)
                try:
                    yield folder, manifest_of(folder)
                except VplError as error:
                    yield folder, error
            elif of_kind and found.isdisjoint(folder.parents) and (
                    lost := _lost_manifest(top, folder, names)):
                found.add(lost.path)
                yield lost.path, lost


def _lost_manifest(top: Path, folder: Path, names: Iterable[str]) -> Manifest | None:
    """Return a manifest of files that lack theirs, if vpltool made one of them for a photo."""
    headers = (_header_in(folder / name) for name in sorted(names) if not name.startswith("."))
    header = next((found for found in headers if found and KINDS[found.kind].per_photo), None)
    if header is None:
        return None
    # Photo ids may contain folders.
    root = next((above for above in (folder, *folder.parents) if above.is_relative_to(top)
                 and above.name == header.options.get("split")), folder)
    return Manifest(root, header, {}, complete=False, replaced=True)


def first_header(folder: Path) -> Header | None:
    """Return the first header found among the files of a folder; None if there is none."""
    files = chain(files_of(folder, ".safetensors"), files_of(folder, ".png"))
    return next(filter(None, map(_header_in, files)), None)
