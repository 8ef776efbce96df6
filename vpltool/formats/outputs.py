"""Writing folders with one file a photo: what is left to do, and resuming."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vpltool import console
from vpltool.errors import OtherSettings, PhotosFailed, VplError, counted
from vpltool.formats.atomic import PART, Batch, remove_leftovers
from vpltool.formats.changes import difference, tell_options
from vpltool.formats.header import Header, is_stale
from vpltool.formats.kinds import KINDS, kind_named
from vpltool.formats.labels import write_labels
from vpltool.formats.manifest import (
    MANIFEST,
    UPDATE_HINT,
    Manifest,
    PhotoFolder,
    read_manifest,
    shard_manifest,
    shard_manifests,
)
from vpltool.formats.packed import PACKED
from vpltool.formats.replacing import (
    check_replacing,
    is_of_another_run,
    known_manifest,
    mark_replaced,
)
from vpltool.formats.shards import WHOLE, Shard
from vpltool.formats.storage import describe, write_json, write_tensors
from vpltool.formats.values import check_labels, check_values
from vpltool.lazy import np, npt, torch

_DEEPEST = 50
"""Levels of folders that ids may have."""


@dataclass
class OutputFolder(PhotoFolder):
    """A folder to be written. Make one with `open_output`; nothing is changed before `begin`.

    Args:
        path: the folder.
        header: goes into every file; its config hash decides about resuming.
        todo: ids that are still to be made, of so many in `total`.
        per_photo_inputs: see `open_output`, as for `photos`, `whole`, `shard` and `left_out`.
        before: what the folder said when it was opened; None: nothing of ours was there.
        clears: whether `begin` deletes the files of an earlier run.
        outdated: ids whose files `begin` deletes, since their own inputs have changed.
        keeps_corrected: whether labels that were corrected by hand, of `corrected`, are kept.
        failed: id to reason, of photos that failed in this run.
        labels: number of labels, with the background; others are not written. 0: any.
    """

    path: Path
    header: Header
    todo: list[str]
    total: int
    per_photo_inputs: Mapping[str, str] = field(default_factory=dict)
    photos: Mapping[str, str] = field(default_factory=dict)
    whole: bool = True
    shard: Shard = WHOLE
    left_out: Mapping[str, str] = field(default_factory=dict)
    before: Manifest | None = None
    clears: bool = False
    outdated: set[str] = field(default_factory=set)
    keeps_corrected: bool = False
    corrected: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    labels: int = 0
    _batch: Batch | None = None

    def begin(self) -> None:
        """Delete what is to be replaced, and mark the folder as not complete.

        Call this after all checks, since an error may no longer leave earlier files untouched.
        """
        if self.shard.count > 1:
            self._begin_shard()
        elif self.before is not None and (self.clears or self.before.replaced):
            mark_replaced(self.before)
            self._remove_shard_manifests()
            corrected = {self.path_of(key) for key in self.corrected}
            for file in self.before.files():
                if file not in corrected and (self.clears or self._is_of_another_run(file)):
                    file.unlink(missing_ok=True)
        for key in self.outdated:
            # Only these, not all of `todo`: another process may have begun to write the others.
            self.path_of(key).unlink(missing_ok=True)
        remove_leftovers(self.path, below=_DEEPEST)
        if self.todo:
            self._write_manifest(finished=False)
        if len(self.todo) < self.total:
            console.note(f"{self.path}: {self.total - len(self.todo)} of {self.total} photos are "
                         "done already")

    def _begin_shard(self) -> None:
        """Make the folder this configuration's, beside other processes that may do the same.

        Nobody deletes what another one has just made: of other shards only files of another
        configuration go, and these before the manifest says that the folder is of this one.
        """
        known = read_manifest(self.path) if (self.path / MANIFEST).exists() else self.before
        other = known is not None and (
            known.replaced or known.header.config_hash != self.header.config_hash)
        if known is not None and other:
            mark_replaced(known)
            for file in known.files():
                if self._is_of_another_run(file):
                    file.unlink(missing_ok=True)
        for key in self.todo if self.clears and known is not None else ():
            self.path_of(key).unlink(missing_ok=True)
        if known is None or other:
            self._write(Manifest(self.path, self.header, {}, complete=False))

    def _is_of_another_run(self, file: Path) -> bool:
        return is_of_another_run(file, self.header, keeps_corrected=self.keeps_corrected)

    def _write(self, manifest: Manifest) -> None:
        write_json(self.path / MANIFEST, manifest.to_json())

    def _remove_shard_manifests(self) -> None:
        for file, _ in shard_manifests(self.path):
            file.unlink(missing_ok=True)

    def keep_corrected(self) -> None:
        """Keep the labels that were corrected by hand: what another program wrote has no header."""
        self.keeps_corrected = True
        if KINDS[self.header.kind].layout != "labels-folder":
            return
        self.corrected = {key for key in self.todo if self.path_of(key).exists()
                          and describe(self.path_of(key)).header is None}
        self.todo = [key for key in self.todo if key not in self.corrected]
        self.outdated -= self.corrected
        if self.corrected:
            was, it = ("was", "it") if len(self.corrected) == 1 else ("were", "them")
            console.note(f"{self.path}: {len(self.corrected)} of {self.total} {was} corrected by "
                         f"hand and {'is' if it == 'it' else 'are'} kept; `overwrite=True` "
                         f"replaces {it}")

    def write_tensors(self, photo_id: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write a photo's tensors.

        Raises:
            BadValues: they hold NaN, or a class that there is not.
        """
        if self.labels and "classes" in tensors:
            check_values(self.header.kind, {"classes": tensors["classes"]}, "", labels=self.labels)
        write_tensors(self.path_of(photo_id), self.header, tensors, self._batch)

    def write_labels(self, photo_id: str, labels: npt.NDArray[np.uint8]) -> None:
        """Write a photo's labels (height, width).

        Raises:
            BadValues: one is of a class that there is not.
        """
        check_labels(labels, self.labels)
        write_labels(self.path_of(photo_id), labels, self.header, self._batch)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Let several files at once wait for the disk; all have their names in the end."""
        self._batch = batch = Batch()
        try:
            yield
        finally:
            # Whatever ended the work: what was made is kept.
            self._batch = None
            batch.name_all()

    def fail(self, photo_id: str, reason: str) -> None:
        """Record that a photo failed; the others are processed."""
        # It may quote a header, and JSON holds what no file can.
        self.failed[photo_id] = reason.encode("utf-8", "backslashreplace").decode()

    def finish(self) -> None:
        """Set the completion mark; of a shard's manifest, and of the folder's with the last one."""
        self._write_manifest(finished=True)
        if self.shard.count > 1:
            self._join_shards()
        else:
            self._remove_shard_manifests()

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
                "fix it and run the same command again: only it is processed"
                if len(self.failed) == 1 else
                "fix them and run the same command again: only these are processed", result,
                sorted(self.failed))

    def _write_manifest(self, *, finished: bool) -> None:
        """Write `artifact.json`, or the shard's own, unless it says as much already."""
        own = self._own(complete=finished and self.whole)
        there = read_manifest(self.path) if (self.path / MANIFEST).exists() else None
        if self.shard.count > 1:
            if not (there and there.complete and not self.todo and _says(there, own)):
                write_json(shard_manifest(self.path, self.shard), {
                    "config": self.header.config_hash, "shard": self.shard.index,
                    "shards": self.shard.count, "whole": self.whole, "complete": finished,
                    **own.of_photos()})
            return
        if there and not self.clears and not there.replaced:
            known = there.joined(part for _, part in shard_manifests(self.path))
            own = replace(own, photos={**known.photos, **own.photos}, per_photo_inputs={
                **known.per_photo_inputs, **own.per_photo_inputs})
        if there is None or there.to_json() != own.to_json():
            self._write(own)

    def _own(self, *, complete: bool) -> Manifest:
        """What is known of the photos of this process, in this run and from those before."""
        before = None if self.clears else self.before
        todo, waiting = {*self.todo, *self.failed}, {*self.left_out}
        known: dict[str, str] = {}
        if before is not None:
            known = {key: why for key, why in before.failed.items()
                     if self.shard.holds(key) and key not in todo}
            waiting |= known.keys() & before.waiting
        failed = {key: why for key, why in {**known, **self.left_out}.items()
                  if not self.holds(key)} | self.failed
        return Manifest(self.path, self.header, failed, self.per_photo_inputs, photos=self.photos,
                        waiting=frozenset(waiting - todo), complete=complete)

    def _join_shards(self) -> None:
        """Make one manifest of those of all shards, once each of them is complete.

        Who writes the last of them sees all others. Two that see all of them write the same.
        """
        parts = [(file, part) for file, part in shard_manifests(self.path)
                 if part["config"] == self.header.config_hash]
        known = read_manifest(self.path)
        alike = [part for _, part in parts if part["shards"] == self.shard.count]
        done = {part["shard"] for part in alike if part["complete"]}
        # Some shards of a folder that was complete before, such as those with photos that failed.
        again = known.complete and parts and all(part["complete"] for _, part in parts)
        if known.header.config_hash != self.header.config_hash or not (
                len(done) == self.shard.count or again):
            return
        joined = known.joined(part for _, part in parts)
        self._write(replace(
            joined, header=self.header, complete=all(part["whole"] for part in alike),
            replaced=False, failed={key: why for key, why in joined.failed.items()
                                    if not self.holds(key)}))
        for file, _ in parts:
            file.unlink(missing_ok=True)


def _says(manifest: Manifest, own: Manifest) -> bool:
    """Tell whether a folder's manifest says of photos all that a shard's would say."""
    return all(mine.items() <= known.items() for mine, known in (
        (own.failed, manifest.failed), (own.photos, manifest.photos),
        (own.per_photo_inputs, manifest.per_photo_inputs)))


def _named(photo_id: str, reason: str) -> str:
    """Say which photo failed and why; a reason that begins with its file's name has said which."""
    own = f"{Path(photo_id).name}."
    return (f"{photo_id}.{reason.removeprefix(own)}" if reason.startswith(own)
            else f"{photo_id}: {reason}")


def finish_all(outputs: Sequence[OutputFolder]) -> list[Path]:
    """Finish several folders that were written together; return their paths, the first one last.

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
    per_photo_inputs: Mapping[str, str] | None = None, whole: bool = True, shard: Shard = WHOLE,
    photos: Mapping[str, str] | None = None,
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
        left_out: id to reason, of photos that an earlier command failed on, for later commands.
        per_photo_inputs: id to the photo's own inputs that its file depends on, such as its tags.
        whole: whether these are all photos of the split, or of the shard.
        shard: which photos this process does; what is said of photos is only of these.
        photos: id to hash of the photo's file, where it can be read. A file made without one
            counts as made from the photo that is there now.

    Raises:
        OtherSettings: the folder was made with other settings.
        VplError: it was made by something else.
    """
    # Before the manifest is read: what another process has begun meanwhile begins with one.
    filled = path.is_dir() and any(not entry.name.startswith(PART) for entry in path.iterdir())
    before = known_manifest(path, header, kind_named(header.kind).made_by)
    if before is None:
        check_replacing(path, same=True)
        if filled:
            raise VplError(f"{path} holds files that vpltool did not make",
                           "move them away, or choose another folder with `out='DIR'`")
    output = OutputFolder(path, header, list(ids), len(ids), per_photo_inputs or {}, photos or {},
                          whole, shard, left_out or {}, before)
    if before is not None:
        output.clears = _starts_over(output, before, ids, overwrite=overwrite, update=update)
        if not output.clears:
            _resume(output, before)
        if not overwrite:
            output.keep_corrected()
    if output.packed and (output.clears or output.outdated):
        raise VplError(f"{path} is packed into tars, which are not replaced",
                       f"delete {path / PACKED} first, or choose another folder with `out='DIR'`")
    return output


def _starts_over(output: OutputFolder, before: Manifest, ids: Sequence[str], *, overwrite: bool,
                 update: bool) -> bool:
    """Tell whether all that is in a folder is to be replaced, and may be."""
    path, header, found = output.path, output.header, before.header
    same = found.config_hash == header.config_hash
    stale = is_stale(header, found)
    check_replacing(path, same=same or stale)
    # An empty folder of other settings can go; one of the same settings may be another
    # process's, about to write its first file.
    if overwrite or not (same or output.packed or any(before.files())):
        return True
    if update and not same and found.command == header.command:
        tell_options(header, found, path)
        return True
    if not same:
        others = len({*before.files()} - {path / f"{key}{before.suffix}" for key in ids})
        raise OtherSettings(
            f"{path} was made with other settings: {'; '.join(difference(header, found, path))}",
            (UPDATE_HINT if stale else "") + "`overwrite=True` replaces it"
            + (f" and deletes {counted(others, 'file', 'files')} of other photos" if others else "")
            + "; `out='DIR'` keeps both", stale=stale)
    return False


def _resume(output: OutputFolder, before: Manifest) -> None:
    """Find what is left to do in a folder of the same configuration."""
    replaced = replaced_photos(before.photos, output.photos)
    changed = replaced | {key for key, inputs in output.per_photo_inputs.items()
                          if before.per_photo_inputs.get(key) != inputs}
    there = {key for key in output.todo if output.holds(key)}
    if before.replaced:
        there = {key for key in there if key in output.packed or not is_of_another_run(
            output.path_of(key), output.header, keeps_corrected=True)}
    # An earlier command could not do what is in the place of some photos now.
    lost = {key for key in replaced.intersection(output.left_out) if output.holds(key)}
    output.todo = [key for key in output.todo if key not in there or key in changed]
    output.outdated = (there & changed) | lost


def replaced_photos(before: Mapping[str, str], now: Mapping[str, str]) -> set[str]:
    """Return the ids of photos whose file has another hash than before; unknown ones are the same.
    """
    return {key for key, hashed in now.items() if before.get(key, hashed) != hashed}
