"""Writing folders with one file a photo: what is left to do, and resuming."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from vpltool import console
from vpltool.errors import OtherSettings, PhotosFailed, VplError
from vpltool.formats.atomic import PART, Batch, remove_leftovers
from vpltool.formats.changes import difference, tell_options
from vpltool.formats.deletion import clear_folder, is_of_another_run, known_manifest, mark_replaced
from vpltool.formats.header import Header, is_stale
from vpltool.formats.kinds import KINDS, kind_named
from vpltool.formats.labels import write_labels
from vpltool.formats.manifest import (
    MANIFEST,
    REPLACED,
    UPDATE_HINT,
    Manifest,
    and_others,
    files_of,
    header_of,
    join_manifests,
    joined_manifest,
    manifest_content,
    read_manifest,
    shard_manifest,
    shard_manifests,
)
from vpltool.formats.packed import PACKED, packed_slices
from vpltool.formats.replacing import check_replacing
from vpltool.formats.shards import WHOLE, Shard
from vpltool.formats.storage import describe, write_json, write_tensors
from vpltool.formats.values import check_labels, check_values
from vpltool.lazy import np, npt, torch

_DEEPEST = 50
"""Levels of folders that ids may have."""


@dataclass
class OutputFolder:
    """A folder to be written. Make one with `open_output`; nothing is changed before `begin`.

    Args:
        path: the folder.
        header: goes into every file; its config hash decides about resuming.
        todo: ids that are still to be made.
        total: number of ids asked for.
        per_photo_inputs: id to the photo's own inputs that its file depends on (its tags).
        photos: id to hash of the photo's file.
        whole: whether all photos of the split were asked for.
        clears: whether `begin` deletes the files of an earlier run.
        outdated: ids whose files `begin` deletes, since their own inputs have changed.
        keeps_corrected: whether labels that were corrected by hand are kept.
        corrected: ids whose labels were corrected by hand; they are kept.
        failed: id to reason, of photos that failed in this run.
        known_failed: the same for earlier runs and earlier commands; used only in the manifest.
        left_out: ids of photos that only an earlier command failed on.
        shard: which of the folder's photos this process does; others may do the rest meanwhile.
        before: the manifest that was found; None: there was none.
        labels: number of labels, with the background; others are not written. 0: any.
    """

    path: Path
    header: Header
    todo: list[str]
    total: int
    per_photo_inputs: Mapping[str, str] = field(default_factory=dict)
    whole: bool = True
    clears: bool = False
    outdated: set[str] = field(default_factory=set)
    keeps_corrected: bool = False
    corrected: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    known_failed: dict[str, str] = field(default_factory=dict)
    left_out: set[str] = field(default_factory=set)
    shard: Shard = WHOLE
    before: Manifest | None = None
    labels: int = 0
    photos: Mapping[str, str] = field(default_factory=dict)
    _batch: Batch | None = None

    def path_of(self, photo_id: str) -> Path:
        """Path of a photo's file."""
        return self.path / (photo_id + KINDS[self.header.kind].suffix)

    @cached_property
    def packed(self) -> frozenset[str]:
        """Ids of the photos whose files lie in tars."""
        # Not a view of the places: worker processes get a folder pickled.
        return frozenset(packed_slices(self.path))

    def holds(self, photo_id: str) -> bool:
        """Tell whether a photo's file is there, by itself or in a tar."""
        return photo_id in self.packed or self.path_of(photo_id).exists()

    def begin(self) -> None:
        """Delete what is to be replaced, and mark the folder as not complete.

        Call this after all checks, since an error may no longer leave earlier files untouched.
        """
        if self.shard.count > 1:
            self._begin_shard()
        elif self.before is not None and (self.clears or self.before.get(REPLACED)):
            corrected = {self.path_of(key) for key in self.corrected}
            clear_folder(self.path, self.before, lambda file: file not in corrected and (
                self.clears or self._is_of_another_run(file)))
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
        manifest = self.path / MANIFEST
        known = read_manifest(manifest, "") if manifest.exists() else self.before
        if known is None:
            write_json(manifest, manifest_content(self.header, complete=False, failed={}))
            return
        other = header_of(known, manifest).config_hash != self.header.config_hash
        if other or known.get(REPLACED):
            mark_replaced(self.path, known)
            for file in files_of(self.path, KINDS[header_of(known, manifest).kind].suffix):
                if self._is_of_another_run(file):
                    file.unlink(missing_ok=True)
        for key in self.todo if self.clears else ():
            self.path_of(key).unlink(missing_ok=True)
        if other or known.get(REPLACED):
            write_json(manifest, manifest_content(self.header, complete=False, failed={}))

    def _is_of_another_run(self, file: Path) -> bool:
        return is_of_another_run(file, self.header, keeps_corrected=self.keeps_corrected)

    def keep_corrected(self) -> None:
        """Keep the labels that were corrected by hand: what another program wrote has no header."""
        self.keeps_corrected = True
        if KINDS[self.header.kind].layout != "labels-folder":
            return
        self.corrected = {key for key in self.todo if self.path_of(key).exists()
                          and describe(self.path_of(key)).header is None}
        self.todo = [key for key in self.todo if key not in self.corrected]
        if self.corrected:
            one = len(self.corrected) == 1
            console.note(f"{self.path}: {len(self.corrected)} of {self.total} "
                         f"{'was' if one else 'were'} corrected by hand and "
                         f"{'is' if one else 'are'} kept; `overwrite=True` replaces "
                         f"{'it' if one else 'them'}")

    def write_tensors(self, photo_id: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write a photo's tensors.

        Raises:
            BadValues: they hold NaN, or a class that there is not.
        """
        check_values(self.header.kind, {name: tensors[name] for name in ("classes",)
                                        if self.labels and name in tensors}, "",
                     labels=self.labels)
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
            for file, _ in shard_manifests(self.path):
                file.unlink(missing_ok=True)

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
                "fix them and run the same command again: only these are processed", result,
                sorted(self.failed))

    def _write_manifest(self, *, finished: bool) -> None:
        """Write `artifact.json`, or the shard's own, unless it has this content already."""
        if self.shard.count > 1:
            self._write_shard_manifest(finished=finished)
            return
        manifest = self.path / MANIFEST
        there = manifest.exists()
        before = read_manifest(manifest, "") if there else {}
        known = (joined_manifest(self.path, "")
                 if there and not self.clears and not before.get(REPLACED) else {})
        content = manifest_content(
            self.header, complete=finished and self.whole, failed=self._all_failed(),
            per_photo_inputs={**known.get("own", {}), **self.per_photo_inputs},
            left_out=self.left_out - self.failed.keys(),
            photos={**known.get("photos", {}), **self.photos})
        if before != content:
            write_json(manifest, content)

    def _all_failed(self) -> dict[str, str]:
        """Id to reason of the photos that failed, in this run or before, and have no file."""
        return {key: why for key, why in self.known_failed.items()
                if not self.holds(key)} | self.failed

    def _write_shard_manifest(self, *, finished: bool) -> None:
        """Write the shard's manifest, unless the whole folder's says as much already."""
        known, failed = read_manifest(self.path / MANIFEST, ""), self._all_failed()
        if (known["complete"] and not self.todo and failed.items() <= known["failed"].items()
                and self.per_photo_inputs.items() <= known.get("own", {}).items()
                and self.photos.items() <= known.get("photos", {}).items()):
            return
        waiting = sorted(self.left_out & (failed.keys() - self.failed.keys()))
        write_json(shard_manifest(self.path, self.shard), {
            "config": self.header.config_hash, "shard": self.shard.index,
            "shards": self.shard.count, "whole": self.whole, "complete": finished,
            "failed": dict(sorted(failed.items())),
            "own": dict(sorted(self.per_photo_inputs.items())),
            **({"left_out": waiting} if waiting else {}),
            **({"photos": dict(sorted(self.photos.items()))} if self.photos else {})})

    def _join_shards(self) -> None:
        """Make one manifest of those of all shards, once each of them is complete.

        Who writes the last of them sees all others. Two that see all of them write the same.
        """
        parts = [(file, part) for file, part in shard_manifests(self.path)
                 if part["config"] == self.header.config_hash]
        known = read_manifest(self.path / MANIFEST, "")
        alike = [part for _, part in parts if part["shards"] == self.shard.count]
        done = {part["shard"] for part in alike if part["complete"]}
        # Some shards of a folder that was complete before, such as those with photos that failed.
        again = known["complete"] and all(part["complete"] for _, part in parts)
        if known.get("config") != self.header.config_hash or not (
                len(done) == self.shard.count or (again and parts)):
            return
        content = join_manifests(known, [part for _, part in parts])
        failed = {key: why for key, why in content["failed"].items()
                  if not self.holds(key)}
        write_json(self.path / MANIFEST, manifest_content(
            self.header, complete=all(part["whole"] for part in alike), failed=failed,
            per_photo_inputs=content.get("own", {}), left_out=content["left_out"],
            photos=content.get("photos", {})))
        for file, _ in parts:
            file.unlink(missing_ok=True)


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
        left_out: id to reason, of photos that an earlier command failed on; it is passed on to
            later commands in the manifest.
        per_photo_inputs: id to the photo's own inputs that its file depends on, such as its tags.
        whole: whether these are all photos of the split, or of the shard.
        shard: which photos this process does; what is said of photos is only of these.
        photos: id to hash of the photo's file, where it can be read. A file made without one
            counts as made from the photo that is there now.

    Raises:
        OtherSettings: the folder was made with other settings.
        VplError: it was made by something else.
    """
    manifest = path / MANIFEST
    # Before the manifest is read: what another process has begun meanwhile begins with one.
    filled = path.is_dir() and any(not entry.name.startswith(PART) for entry in path.iterdir())
    content = known_manifest(path, header, kind_named(header.kind).made_by)
    output = OutputFolder(path, header, list(ids), len(ids), per_photo_inputs or {}, whole,
                          shard=shard, before=content, photos=photos or {})
    known: dict[str, str] = {}
    waiting: Collection[str] = ()
    if content is not None:
        found = header_of(content, manifest)
        same = found.config_hash == header.config_hash
        stale = is_stale(header, found)
        check_replacing(path, same=same or stale)
        # An empty folder of other settings can go; one of the same settings may be another
        # process's, about to write its first file.
        empty = not (same or output.packed or any(files_of(path, KINDS[found.kind].suffix)))
        if overwrite or empty:
            output.clears = True
        elif update and not same and found.command == header.command:
            tell_options(header, found, path)
            output.clears = True
            output.keep_corrected()
        elif not same:
            raise OtherSettings(
                f"{path} was made with other settings: "
                f"{'; '.join(difference(header, found, path))}",
                (UPDATE_HINT if stale else "") + f"`overwrite=True` replaces it"
                f"{and_others(path, found.kind, ids)}; `out='DIR'` keeps both", stale=stale)
        else:
            known = {key: why for key, why in content["failed"].items() if shard.holds(key)}
            before, waiting = content.get("own", {}), content["left_out"]
            changed = {key for key, inputs in output.per_photo_inputs.items()
                       if before.get(key) != inputs}
            replaced = replaced_photos(content.get("photos", {}), output.photos)
            changed |= replaced
            there = {key for key in ids if output.holds(key)}
            if content.get(REPLACED):
                there = {key for key in there if key in output.packed or not is_of_another_run(
                    output.path_of(key), header, keeps_corrected=True)}
            output.todo = [key for key in ids if key not in there or key in changed]
            output.keep_corrected()
            # An earlier command could not do what is in its place now.
            lost = {key for key in replaced.intersection(left_out or ()) if output.holds(key)}
            output.outdated = ((there & changed) | lost) - output.corrected
    else:
        check_replacing(path, same=True)
    if content is None and filled:
        raise VplError(f"{path} holds files that vpltool did not make",
                       "move them away, or choose another folder with `out='DIR'`")
    if output.packed and (output.clears or output.outdated):
        raise VplError(f"{path} is packed into tars, which are not replaced",
                       f"delete {path / PACKED} first, or choose another folder with `out='DIR'`")
    todo = set(output.todo)
    output.known_failed = {key: known[key] for key in known.keys() - todo} | dict(left_out or {})
    output.left_out = {*(left_out or ()), *(known.keys() & waiting)} - todo
    return output


def replaced_photos(before: Mapping[str, str], now: Mapping[str, str]) -> set[str]:
    """Return the ids of photos whose file is another one than before; unknown ones are the same.

    Args:
        before: id to hash of the file that something was made from.
        now: id to hash of the file that is there.
    """
    return {key for key, hashed in now.items() if before.get(key, hashed) != hashed}
