"""Writing folders with one file per photo: finding the remaining work, resuming, manifests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vpltool import console
from vpltool.errors import PhotosFailed, VplError, counted, fix_and_repeat
from vpltool.formats.atomic import PART, PendingFiles, remove_leftovers
from vpltool.formats.changes import has_same_settings
from vpltool.formats.header import Header, is_stale
from vpltool.formats.kinds import KINDS, check_labels, check_values, kind_named
from vpltool.formats.labels import write_labels
from vpltool.formats.manifest import (
    MANIFEST,
    Manifest,
    PhotoFolder,
    check_replacing,
    files_of,
    is_of_another_run,
    known_manifest,
    mark_replaced,
    read_manifest,
    remove_shard_manifests,
    shard_manifest,
    shard_manifests,
)
from vpltool.formats.packed import PACKED
from vpltool.formats.shards import WHOLE, Shard
from vpltool.formats.storage import describe, write_json, write_tensors
from vpltool.lazy import np, npt, torch

_DEEPEST = 50
"""Maximum depth of folders in photo ids."""


@dataclass
class OutputFolder(PhotoFolder):
    """A folder of per-photo files to write, opened by `open_output`; `begin` makes first changes.

    `per_photo_inputs`, `photos`, `whole`, `shard` and `left_out` are those of `open_output`.
    """

    path: Path
    # written to every file; its config hash decides whether earlier files are reused
    header: Header
    todo: list[str]  # ids of the remaining photos, out of `total` requested
    total: int
    per_photo_inputs: Mapping[str, str] = field(default_factory=dict)
    photos: Mapping[str, str] = field(default_factory=dict)
    whole: bool = True
    shard: Shard = WHOLE
    left_out: Mapping[str, str] = field(default_factory=dict)
    before: Manifest | None = None  # found when the folder was opened
    clears: bool = False  # whether `begin` deletes the files of an earlier run
    # ids whose files `begin` deletes because their per-photo inputs have changed
    outdated: set[str] = field(default_factory=set)
    keeps_corrected: bool = False  # whether labels corrected by hand (`corrected`) are kept
    corrected: set[str] = field(default_factory=set)
    # reason by id, for photos that failed in this run
    failed: dict[str, str] = field(default_factory=dict)
    labels: int = 0  # number with the background; higher labels are refused; 0: no check
    _batch: PendingFiles | None = None

    def begin(self) -> None:
        """Delete the files to replace, and mark the folder as incomplete.

        Call this after all checks have passed: an error before it leaves earlier files untouched.
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
            # Only these, not all of `todo`: another process may have started to write the others.
            self.path_of(key).unlink(missing_ok=True)
        remove_leftovers(self.path, below=_DEEPEST)
        if self.todo:
            self._write_manifest(finished=False)
        if len(self.todo) < self.total:
            console.note(f"{self.path}: {self.total - len(self.todo)} of {self.total} photos are "
                         "done already")

    def _begin_shard(self) -> None:
        """Claim the folder for this configuration, safely beside other shards that do the same.

        Files just written by another process must survive: of other shards, only files of another
        configuration are deleted, before the manifest declares the new configuration.
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
        remove_shard_manifests(self.path, (file for file, _ in shard_manifests(self.path)))

    def keep_corrected(self) -> None:
        """Keep labels corrected by hand, which have no header since another program wrote them."""
        self.keeps_corrected = True
        if KINDS[self.header.kind].layout != "labels-folder":
            return
        self.corrected = {key for key in self.todo if self.path_of(key).exists()
                          and describe(self.path_of(key)).header is None}
        if self.before and (odd := sorted(self.corrected & replaced_photos(
                self.before.photos, self.photos))):
            raise VplError(f"{self.path_of(odd[0])} was edited by hand, and its photo was replaced "
                           "since", "run `prepare` again, which moves it to `corrections`; or "
                           "delete it")
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
            BadValues: the tensors contain NaN or an unknown class.
        """
        if self.labels and "classes" in tensors:
            check_values(self.header.kind, {"classes": tensors["classes"]}, "", labels=self.labels)
        write_tensors(self.path_of(photo_id), self.header, tensors, self._batch)

    def write_labels(self, photo_id: str, labels: npt.NDArray[np.uint8]) -> None:
        """Write a photo's labels (height, width).

        Raises:
            BadValues: the labels contain an unknown class.
        """
        check_labels(labels, self.labels)
        write_labels(self.path_of(photo_id), labels, self.header, self._batch)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Write several files in one batch, so that they wait for the disk together."""
        self._batch = batch = PendingFiles()
        try:
            yield
        finally:
            # However the work ended, finished files are kept.
            self._batch = None
            batch.name_all()

    def withdraw(self) -> None:
        """Remove the folder if this run has begun it and made no file, so that nobody resumes it.

        Other shards may have begun it, too, and are about to write their first files.
        """
        if self.before is None and self.shard.count == 1 and not any(
                files_of(self.path, KINDS[self.header.kind].suffix)):
            (self.path / MANIFEST).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.path.rmdir()

    def fail(self, photo_id: str, reason: str) -> None:
        """Record that a photo failed; work on the others continues."""
        # A reason may quote a header, and JSON can hold strings that UTF-8 cannot encode.
        self.failed[photo_id] = reason.encode("utf-8", "backslashreplace").decode()

    def finish(self) -> None:
        """Mark the shard's manifest as complete, and the folder's once all shards are."""
        self._write_manifest(finished=True)
        if self.shard.count > 1:
            self._join_shards()
        else:
            self._remove_shard_manifests()

    def check_failed(self, result: object) -> None:
        """Raise an error if some photos failed; the results of the others are kept.

        Raises:
            PhotosFailed: some photos failed; the error carries `result`.
        """
        if self.failed:
            shown = "; ".join(_named(key, why) for key, why in sorted(self.failed.items())[:20])
            more = f"; and {len(self.failed) - 20} more" if len(self.failed) > 20 else ""
            told = f"{len(self.failed)} of {self.total} photos failed, the others are done"
            if len(self.failed) == self.total:
                told = f"all {self.total} photos failed" if self.total > 1 else "the photo failed"
            raise PhotosFailed(
                f"{told}: {shown}{more}",
                fix_and_repeat(len(self.failed), "run the same command again"), result,
                sorted(self.failed))

    def _write_manifest(self, *, finished: bool) -> None:
        """Write `artifact.json` or the shard's manifest, unless it is up to date already."""
        own = self._own(complete=finished and self.whole)
        # Read shards first, as `manifest_of` does.
        parts = shard_manifests(self.path) if self.shard.count == 1 else []
        there = read_manifest(self.path) if (self.path / MANIFEST).exists() else None
        if self.shard.count > 1:
            if not (there and there.complete and not self.todo and _says(there, own)):
                write_json(shard_manifest(self.path, self.shard), {
                    "config": self.header.config_hash, "shard": self.shard.index,
                    "shards": self.shard.count, "whole": self.whole, "complete": finished,
                    **own.of_photos()})
            return
        if there and not self.clears and not there.replaced:
            known = there.joined(part for _, part in parts)
            own = replace(own, photos={**known.photos, **own.photos}, per_photo_inputs={
                **known.per_photo_inputs, **own.per_photo_inputs})
        if there is None or there.to_json() != own.to_json():
            self._write(own)

    def _own(self, *, complete: bool) -> Manifest:
        """Return a manifest of this process's photos, from this run and earlier ones."""
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
        """Merge the manifests of all shards into one, once every shard is complete.

        The process that finishes last sees all of them. If two do, they write the same bytes.
        """
        parts = [(file, part) for file, part in shard_manifests(self.path)
                 if part["config"] == self.header.config_hash]
        known = read_manifest(self.path)
        alike = [part for _, part in parts if part["shards"] == self.shard.count]
        done = {part["shard"] for part in alike if part["complete"]}
        # Only some shards of a complete folder were rerun, such as those with failed photos.
        again = known.complete and parts and all(part["complete"] for _, part in parts)
        if known.header.config_hash != self.header.config_hash or not (
                len(done) == self.shard.count or again):
            return
        joined = known.joined(part for _, part in parts)
        self._write(replace(
            joined, header=self.header, complete=all(part["whole"] for part in alike),
            replaced=False, failed={key: why for key, why in joined.failed.items()
                                    if not self.holds(key)}))
        remove_shard_manifests(self.path, (file for file, _ in parts))


def _says(manifest: Manifest, own: Manifest) -> bool:
    """Return whether a folder's manifest already contains a shard's per-photo entries."""
    return all(mine.items() <= known.items() for mine, known in (
        (own.failed, manifest.failed), (own.photos, manifest.photos),
        (own.per_photo_inputs, manifest.per_photo_inputs)))


def _named(photo_id: str, reason: str) -> str:
    """Return id and reason of a failure; a reason that starts with the file name adds its path."""
    own = f"{Path(photo_id).name}."
    return (f"{photo_id}.{reason.removeprefix(own)}" if reason.startswith(own)
            else f"{photo_id}: {reason}")


def finish_all(outputs: Sequence[OutputFolder]) -> list[Path]:
    """Finish several folders written together; return their paths, with the first one last.

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
    """Find the remaining work in a folder of per-photo files; nothing is written or deleted.

    Files of the same configuration are kept unless their photo's own inputs have changed.

    Args:
        ids: ids of the requested photos.
        overwrite: start over in any case.
        update: start over if the folder was made by the same command with other options or from
            other inputs; labels that were corrected by hand are kept.
        left_out: reason by id, for photos that an earlier stage failed on; it is passed on.
        per_photo_inputs: id to a photo's own inputs, such as its tags.
        whole: whether `ids` are all photos of the split or shard.
        shard: photos that this process handles; all per-photo arguments cover only these.
        photos: hash of the photo's file by id, if readable. A file recorded without a hash
            counts as made from the present photo.

    Raises:
        OtherSettings: the folder was made with other settings.
        VplError: vpltool, or this stage, did not make it.
    """
    # Checked before the manifest is read: another process writes its manifest before its files.
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
    """Return whether the folder's whole content must be replaced; raise if that is not allowed."""
    path, header, found = output.path, output.header, before.header
    same = found.config_hash == header.config_hash
    check_replacing(path, same=same or is_stale(header, found))
    # An empty folder of other settings can be replaced. One of the same settings may belong to a
    # process that is about to write its first file.
    if overwrite or not (same or output.packed or any(before.files())):
        return True
    others = 0 if same else len(
        {*before.files()} - {path / f"{key}{before.suffix}" for key in ids})
    return not has_same_settings(
        header, found, path, update=update, hint="`overwrite=True` replaces it"
        + (f" and deletes {counted(others, 'file', 'files')} of other photos" if others else "")
        + "; `out='DIR'` keeps both")


def _resume(output: OutputFolder, before: Manifest) -> None:
    """Set `todo` and `outdated` of a folder of the same configuration."""
    replaced = replaced_photos(before.photos, output.photos)
    changed = replaced | {key for key, inputs in output.per_photo_inputs.items()
                          if before.per_photo_inputs.get(key) != inputs}
    there = {key for key in output.todo if output.holds(key)}
    if before.replaced:
        there = {key for key in there if key in output.packed or not is_of_another_run(
            output.path_of(key), output.header, keeps_corrected=True)}
    # Files of photos whose replacement an earlier stage could not process.
    lost = {key for key in replaced.intersection(output.left_out) if output.holds(key)}
    output.todo = [key for key in output.todo if key not in there or key in changed]
    output.outdated = (there & changed) | lost


def replaced_photos(before: Mapping[str, str], now: Mapping[str, str]) -> set[str]:
    """Return the ids of photos whose file hash has changed; a missing hash counts as unchanged."""
    return {key for key, hashed in now.items() if before.get(key, hashed) != hashed}
