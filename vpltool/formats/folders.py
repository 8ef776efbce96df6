"""Folders with one file a photo: resumable when written, checked when read.

`artifact.json` in the folder carries the header, the ids that failed, and `complete`, set last.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpltool import console
from vpltool.errors import PhotosFailed, VplError
from vpltool.formats.header import Header, difference
from vpltool.formats.kinds import KINDS, kind_named
from vpltool.formats.labels import read_labels, write_labels
from vpltool.formats.storage import read_json, read_tensors, write_json, write_tensors

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

_MANIFEST = "artifact.json"


@dataclass
class OutputFolder:
    """A folder being written. Make one with `open_output`.

    Args:
        path: the folder.
        header: goes into every file; its config hash decides about resuming.
        todo: ids that are still to be made.
        total: number of ids asked for.
        failed: id to reason, of photos that could not be done in this run.
        known_failed: the same of earlier runs and earlier commands, for the manifest alone.
    """

    path: Path
    header: Header
    todo: list[str]
    total: int
    failed: dict[str, str] = field(default_factory=dict)
    known_failed: dict[str, str] = field(default_factory=dict)

    def path_of(self, photo_id: str) -> Path:
        """Path of a photo's file."""
        return self.path / (photo_id + KINDS[self.header.kind].suffix)

    def write_tensors(self, photo_id: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write a photo's tensors."""
        write_tensors(self.path_of(photo_id), self.header, tensors)

    def write_labels(self, photo_id: str, labels: npt.NDArray[np.uint8]) -> None:
        """Write a photo's labels (height, width)."""
        write_labels(self.path_of(photo_id), labels, self.header)

    def fail(self, photo_id: str, reason: str) -> None:
        """Note that a photo cannot be done; the others go on."""
        self.failed[photo_id] = reason

    def finish(self) -> None:
        """Set the completion mark, print the folder's path on stdout, and report what failed.

        Raises:
            PhotosFailed: all others are done and kept.
        """
        self.write_manifest(complete=True)
        print(self.path)
        if self.failed:
            shown = "; ".join(f"{key}: {why}" for key, why in sorted(self.failed.items())[:20])
            more = f"; and {len(self.failed) - 20} more" if len(self.failed) > 20 else ""
            raise PhotosFailed(
                f"{len(self.failed)} of {self.total} photos failed, the others are done: "
                f"{shown}{more}",
                "mend them and run the same command again: only they are done anew")

    def write_manifest(self, *, complete: bool) -> None:
        """Write `artifact.json`, unless it says just this already."""
        failed = {key: why for key, why in self.known_failed.items()
                  if not self.path_of(key).exists()}
        content = {
            "header": asdict(self.header), "config": self.header.config_hash,
            "complete": complete, "failed": dict(sorted((failed | self.failed).items()))}
        manifest = self.path / _MANIFEST
        if not manifest.exists() or read_json(manifest, "") != content:
            write_json(manifest, content)


def finish_all(outputs: Sequence[OutputFolder]) -> None:
    """Finish several folders that were written together, the most wanted first.

    Raises:
        PhotosFailed: all folders are finished before it is raised.
    """
    for output in outputs[1:]:
        output.write_manifest(complete=True)
        print(output.path)
    outputs[0].finish()


def open_output(
    path: Path, header: Header, ids: Sequence[str], *, overwrite: bool = False,
    left_out: Mapping[str, str] | None = None,
) -> OutputFolder:
    """Begin, or go on with, a folder of per-photo files.

    With the same configuration what exists is kept and skipped. With another one it is an error,
    unless `overwrite`, which deletes what the folder holds of this kind.

    Args:
        path: the folder.
        header: what goes into every file.
        ids: photos asked for.
        overwrite: begin anew.
        left_out: id to reason, of photos that an earlier command failed on: later ones must know.

    Raises:
        VplError: the folder was made with other settings, or by something else.
    """
    manifest = path / _MANIFEST
    known_failed: dict[str, str] = {}
    if manifest.exists():
        found = _read_manifest(path, header.kind)
        if overwrite or not any(path.rglob("*" + KINDS[found.kind].suffix)):
            _clear(path, found.kind)
        elif found.kind != header.kind or found.config_hash != header.config_hash:
            raise VplError(
                f"{path} was made with other settings: {difference(header, found) or 'kind'}",
                "add --overwrite to replace it, or --out DIR to keep both")
        if manifest.exists():
            known_failed = dict(read_json(manifest, "").get("failed", {}))
    elif path.is_dir() and any(path.iterdir()):
        raise VplError(f"{path} holds files that vpltool did not make",
                       "move them away, or choose another place with --out DIR")
    output = OutputFolder(path, header, [], len(ids), known_failed=known_failed)
    output.todo = [key for key in ids if not output.path_of(key).exists()]
    for key in output.todo:
        output.known_failed.pop(key, None)
    output.known_failed |= dict(left_out or {})
    _remove_leftovers(path)
    if output.todo:
        output.write_manifest(complete=False)
    if len(output.todo) < len(ids):
        console.note(f"{path}: {len(ids) - len(output.todo)} of {len(ids)} photos are done already")
    return output


def _remove_leftovers(path: Path) -> None:
    """Delete temporary files of killed runs, but not those of a run that is at work."""
    for leftover in path.rglob(".part-*") if path.is_dir() else ():
        if time.time() - leftover.stat().st_mtime > 3600:
            leftover.unlink(missing_ok=True)


def _clear(path: Path, kind: str) -> None:
    for file in path.rglob("*" + KINDS[kind].suffix):
        file.unlink()
    (path / _MANIFEST).unlink()


@dataclass(frozen=True)
class InputFolder:
    """A folder being read. Make one with `open_input`."""

    path: Path
    header: Header
    failed: Mapping[str, str]

    @property
    def kind(self) -> str:
        """Kind of the files in it."""
        return self.header.kind

    @property
    def name(self) -> str:
        """NAME of `cams/NAME/SPLIT`; of a folder elsewhere, its own name."""
        split = self.header.options.get("split")
        return self.path.parent.name if self.path.name == split else self.path.name

    @property
    def identity(self) -> str:
        """What stands for this folder among the inputs of another header."""
        return self.header.config_hash

    def path_of(self, photo_id: str) -> Path:
        """Path of a photo's file."""
        return self.path / (photo_id + KINDS[self.kind].suffix)

    def read_tensors(self, photo_id: str, *names: str) -> dict[str, torch.Tensor]:
        """Read tensors of a photo; all if no name is given."""
        hint = _again(self.header)
        return read_tensors(self.path_of(photo_id), self.kind, names, hint)[1]

    def read_labels(self, photo_id: str) -> npt.NDArray[np.uint8]:
        """Read a photo's labels (height, width)."""
        return read_labels(self.path_of(photo_id))

    def left_out(self, ids: Iterable[str]) -> dict[str, str]:
        """Id to reason, of those photos that failed here or before."""
        return {key: self.failed[key] for key in ids
                if key in self.failed and not self.path_of(key).exists()}

    def available(self, ids: Iterable[str]) -> list[str]:
        """Drop the ids that failed when the folder was made, or before, with a warning.

        Raises:
            VplError: an id is missing although it did not fail: the folder is not complete.
        """
        wanted = list(ids)
        have = [key for key in wanted if self.path_of(key).exists()]
        lacking = set(wanted) - set(have)
        failed = [key for key in wanted if key in lacking and key in self.failed]
        missing = lacking - set(failed)
        if missing:
            raise VplError(
                f"{self.path} has {len(have)} of {len(wanted)} photos; {min(missing)} is missing",
                f"{_again(self.header)} goes on where it stopped")
        if failed:
            console.warn(f"{len(failed)} photos are left out, they failed in "
                         f"{self.header.command}: {', '.join(failed[:5])}"
                         + (" …" if len(failed) > 5 else ""))
        if not have:
            raise VplError(f"{self.path} holds none of the photos asked for", _again(self.header))
        return have


def open_input(path: Path, kinds: Sequence[str], hint: str = "") -> InputFolder:
    """Open a folder of per-photo files.

    Args:
        path: the folder.
        kinds: the kinds that will do.
        hint: command that makes it; default: that of the first kind.

    Raises:
        VplError: it is not there, or of another kind.
    """
    hint = hint or kind_named(kinds[0]).made_by
    if not (path / _MANIFEST).exists():
        raise VplError(f"no {kinds[0]} in {path}", hint)
    content = read_json(path / _MANIFEST, hint)
    header = _read_manifest(path, kinds[0])
    if header.kind not in kinds:
        raise VplError(f"{path} holds {header.kind}, expected {' or '.join(kinds)}", hint)
    return InputFolder(path, header, content.get("failed", {}))


def manifest_of(path: Path) -> dict[str, Any]:
    """Read a folder's `artifact.json`, for `inspect`.

    Raises:
        VplError: there is none.
    """
    return read_json(path / _MANIFEST, "vpltool inspect FILE takes one file of it")


def _read_manifest(path: Path, kind: str) -> Header:
    import json

    content = read_json(path / _MANIFEST, kind_named(kind).made_by)
    return Header.from_json(json.dumps(content.get("header", {})), path / _MANIFEST)


def _again(header: Header) -> str:
    used = [f" --{key} {header.options[key]}" for key in ("prototypes", "method", "split")
            if header.options.get(key)]
    return f"vpltool {header.command}{''.join(used)}"
