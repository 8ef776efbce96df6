"""Folders with one file a photo, being written: what is left to do, and going on after a stop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vpltool import console
from vpltool.errors import OtherSettings, PhotosFailed, VplError
from vpltool.formats.header import Header, difference, is_stale
from vpltool.formats.kinds import KINDS, kind_named
from vpltool.formats.labels import write_labels
from vpltool.formats.manifest import MANIFEST, UPDATE_HINT, files_of, header_of
from vpltool.formats.storage import describe, read_json, write_json, write_tensors

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch


@dataclass
class OutputFolder:
    """A folder to be written. Make one with `open_output`; nothing is changed before `begin`.

    Args:
        path: the folder.
        header: goes into every file; its config hash decides about resuming.
        todo: ids that are still to be made.
        total: number of ids asked for.
        own: id to the photo's own inputs that its file depends on (its tags).
        whole: whether all photos of the split were asked for.
        clears: whether `begin` deletes the files of an earlier run.
        outdated: ids whose files `begin` deletes, since their own inputs have changed.
        corrected: ids whose labels were corrected by hand; they are kept.
        failed: id to reason, of photos that failed in this run.
        known_failed: the same for earlier runs and earlier commands; used only in the manifest.
    """

    path: Path
    header: Header
    todo: list[str]
    total: int
    own: Mapping[str, str] = field(default_factory=dict)
    whole: bool = True
    clears: bool = False
    outdated: set[str] = field(default_factory=set)
    corrected: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    known_failed: dict[str, str] = field(default_factory=dict)

    def path_of(self, photo_id: str) -> Path:
        """Path of a photo's file."""
        return self.path / (photo_id + KINDS[self.header.kind].suffix)

    def begin(self) -> None:
        """Delete what is to be replaced, and mark the folder as not complete.

        Call this after all checks, since an error may no longer leave earlier files untouched.
        """
        if self.clears:
            _clear(self.path, {self.path_of(key) for key in self.corrected})
        else:
            # Only these, not all of `todo`: another process may have begun to write the others.
            for key in self.outdated:
                self.path_of(key).unlink(missing_ok=True)
        _remove_leftovers(self.path)
        if self.todo:
            self._write_manifest(complete=False)
        if len(self.todo) < self.total:
            console.note(f"{self.path}: {self.total - len(self.todo)} of {self.total} photos are "
                         "done already")

    def keep_corrected(self) -> None:
        """Keep the labels that were corrected by hand: what another program wrote has no header."""
        if KINDS[self.header.kind].layout != "labels-folder":
            return
        self.corrected = {key for key in self.todo if self.path_of(key).exists()
                          and describe(self.path_of(key)).header is None}
        self.todo = [key for key in self.todo if key not in self.corrected]
        if self.corrected:
            console.note(f"{self.path}: {len(self.corrected)} of {self.total} were corrected by "
                         "hand and are kept; `overwrite=True` replaces them")

    def write_tensors(self, photo_id: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write a photo's tensors."""
        write_tensors(self.path_of(photo_id), self.header, tensors)

    def write_labels(self, photo_id: str, labels: npt.NDArray[np.uint8]) -> None:
        """Write a photo's labels (height, width)."""
        write_labels(self.path_of(photo_id), labels, self.header)

    def fail(self, photo_id: str, reason: str) -> None:
        """Record that a photo failed; the others go on."""
        self.failed[photo_id] = reason

    def finish(self) -> None:
        """Set the completion mark."""
        self._write_manifest(complete=self.whole)

    def check_failed(self, result: object) -> None:
        """Raise an error if some photos failed; all others are done and kept.

        Raises:
            PhotosFailed: some photos failed; it carries `result`.
        """
        if self.failed:
            shown = "; ".join(_named(key, why) for key, why in sorted(self.failed.items())[:20])
            more = f"; and {len(self.failed) - 20} more" if len(self.failed) > 20 else ""
            raise PhotosFailed(
                f"{len(self.failed)} of {self.total} photos failed, the others are done: "
                f"{shown}{more}",
                "fix them and run the same command again: only they are done again", result,
                sorted(self.failed))

    def _write_manifest(self, *, complete: bool) -> None:
        """Write `artifact.json`, unless it has this content already."""
        manifest = self.path / MANIFEST
        before = read_json(manifest, "") if manifest.exists() else {}
        failed = {key: why for key, why in self.known_failed.items()
                  if not self.path_of(key).exists()}
        content = {
            "header": self.header.to_dict(), "config": self.header.config_hash,
            "complete": complete, "failed": dict(sorted((failed | self.failed).items()))}
        own = {**(before.get("own", {}) if not self.clears else {}), **self.own}
        if own:
            content["own"] = dict(sorted(own.items()))
        if before != content:
            write_json(manifest, content)


def _named(photo_id: str, reason: str) -> str:
    """Say which photo failed and why; a reason that begins with its file's name has said which."""
    own = f"{Path(photo_id).name}."
    return (f"{photo_id}.{reason.removeprefix(own)}" if reason.startswith(own)
            else f"{photo_id}: {reason}")


def finish_all(outputs: Sequence[OutputFolder]) -> list[Path]:
    """Finish several folders that were written together, the main one first.

    Returns:
        their paths, the main one last.

    Raises:
        PhotosFailed: some photos failed; all folders are finished before it is raised.
    """
    for output in outputs:
        output.finish()
    paths = [output.path for output in (*outputs[1:], outputs[0])]
    outputs[0].check_failed(paths)
    return paths


def open_output(
    path: Path, header: Header, ids: Sequence[str], *, overwrite: bool = False,
    update: bool = False, left_out: Mapping[str, str] | None = None,
    own: Mapping[str, str] | None = None, whole: bool = True,
) -> OutputFolder:
    """Find what is left to do in a folder of per-photo files; nothing is written or deleted.

    Files of the same configuration are kept, except those of photos whose own inputs have changed.

    Args:
        path: the folder.
        header: the header of every file.
        ids: photos asked for.
        overwrite: start over, whatever is there.
        update: start over if the folder was made by the same command with other options or from
            other inputs; labels that were corrected by hand are kept.
        left_out: id to reason, of photos that an earlier command failed on; it is passed on to
            later commands in the manifest.
        own: id to the photo's own inputs that its file depends on, such as its tags.
        whole: whether these are all photos of the split.

    Raises:
        OtherSettings: the folder was made with other settings.
        VplError: it was made by something else.
    """
    manifest = path / MANIFEST
    output = OutputFolder(path, header, list(ids), len(ids), own or {}, whole)
    known: dict[str, str] = {}
    if manifest.exists():
        content = read_json(manifest, kind_named(header.kind).made_by)
        found = header_of(content, manifest)
        same = found.config_hash == header.config_hash
        stale = is_stale(header, found)
        # An empty folder of other settings can go; one of the same settings may be another
        # process's, about to write its first file.
        empty = not same and not any(files_of(path, KINDS[found.kind].suffix))
        if overwrite or empty:
            output.clears = True
        elif update and not same and found.command == header.command:
            output.clears = True
            output.keep_corrected()
        elif not same:
            raise OtherSettings(
                f"{path} was made with other settings: "
                f"{'; '.join(difference(header, found, path))}",
                (UPDATE_HINT if stale else "")
                + "`overwrite=True` replaces it; `out='DIR'` keeps both", stale=stale)
        else:
            known = dict(content.get("failed", {}))
            before = content.get("own", {})
            changed = {key for key in output.own if before.get(key) != output.own[key]}
            there = {key for key in ids if output.path_of(key).exists()}
            output.todo = [key for key in ids if key not in there or key in changed]
            output.keep_corrected()
            output.outdated = (there & changed) - output.corrected
    elif path.is_dir() and any(entry for entry in path.iterdir()
                               if not entry.name.startswith(".part-")):
        raise VplError(f"{path} holds files that vpltool did not make",
                       "move them away, or choose another folder with `out='DIR'`")
    todo = set(output.todo)
    output.known_failed = {key: known[key] for key in known.keys() - todo} | dict(left_out or {})
    return output


def _remove_leftovers(path: Path) -> None:
    """Delete temporary files of killed runs, but not those of a current run."""
    for leftover in path.rglob(".part-*") if path.is_dir() else ():
        # Another process may finish and rename its file at any moment.
        with contextlib.suppress(FileNotFoundError):
            if time.time() - leftover.stat().st_mtime > 3600:
                leftover.unlink()


def _clear(path: Path, kept: Collection[Path]) -> None:
    """Delete an artifact's files; the manifest first, so that it never lists missing files."""
    manifest = path / MANIFEST
    if not manifest.exists():
        return
    suffix = KINDS[header_of(read_json(manifest, ""), manifest).kind].suffix
    manifest.unlink(missing_ok=True)
    for file in files_of(path, suffix):
        if file not in kept:
            file.unlink(missing_ok=True)
