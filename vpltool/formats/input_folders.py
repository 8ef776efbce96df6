"""Reading folders with one file per photo; files are checked against the folder's header."""

from __future__ import annotations

import contextlib
import difflib
import glob
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path

from vpltool import console
from vpltool.errors import NotPermitted, VplError, counted, first_few, near_name
from vpltool.formats import storage
from vpltool.formats.changes import difference
from vpltool.formats.header import Header, join_supervision
from vpltool.formats.kinds import (
    BadValues,
    check_form,
    folder_of,
    form_of,
    kind_named,
    results_of,
)
from vpltool.formats.labels import read_drawn_labels
from vpltool.formats.manifest import MANIFEST, Manifest, call_of, manifest_of
from vpltool.formats.packed import read_packed
from vpltool.formats.shards import shard_of
from vpltool.formats.storage import Description, describe
from vpltool.lazy import np, npt, torch
from vpltool.names import short_path

_VOTERS = 5
"""Number of photos that determine the usual tensor shapes of a folder's features."""


class InputFolder(Manifest):
    """A folder opened for reading by `open_input`."""

    @property
    def kind(self) -> str:
        """Kind of its files."""
        return self.header.kind

    @property
    def name(self) -> str:
        """NAME in `cams/NAME/SPLIT`; for a folder elsewhere, its own name."""
        split = self.header.options.get("split")
        return self.path.parent.name if self.path.name == split else self.path.name

    @cached_property
    def identity(self) -> str:
        """Identity of this folder as an input in other headers."""
        return self.header.config_hash

    def describe(self, photo_id: str) -> Description:
        """Read the header and tensor shapes of a photo's file.

        Raises:
            VplError: it is damaged.
        """
        if photo_id not in self.packed:
            return describe(self.path_of(photo_id))
        return storage.describe_bytes(self._unpacked(photo_id), self._where(photo_id))

    def _where(self, photo_id: str) -> str:
        entry = self.packed.get(photo_id)
        return f"{entry}: {photo_id}" if entry else str(self.path_of(photo_id))

    def _unpacked(self, photo_id: str) -> bytes:
        return read_packed(self.packed[photo_id], photo_id + self.suffix)

    def read_tensors(self, photo_id: str, *names: str) -> dict[str, torch.Tensor]:
        """Read the named tensors of a photo; all if no name is given.

        Raises:
            VplError: the file is missing or damaged, lacks a tensor, or comes from another run than
                the folder.
        """
        tensors = self._read(photo_id, *names)
        if self.kind == "features":
            where, hint = self._where(photo_id), f"delete it and run: {call_of(self.header)}"
            check_form(tensors, self._usual_form, where, hint)
            listed = self.header.options.get("layers", [])
            if "layer_index" in tensors and tensors["layer_index"].tolist() != listed:
                raise BadValues(where, "`layer_index` does not name the layers of its folder", hint)
        return tensors

    def _read(self, photo_id: str, *names: str) -> dict[str, torch.Tensor]:
        where, hint = self._where(photo_id), call_of(self.header)
        header, tensors = (
            storage.tensors_of(self._unpacked(photo_id), self.kind, names, where, hint)
            if photo_id in self.packed
            else storage.read_tensors(self.path_of(photo_id), self.kind, names, hint))
        self._check_run(header, where)
        return tensors

    @cached_property
    def _usual_form(self) -> Mapping[str, tuple[int, ...]]:
        """The majority form of a few photos' features, by tensor, robust to a damaged file."""
        votes: dict[str, Counter[tuple[int, ...]]] = {}
        for key in islice(filter(self.holds, self.photos or self.photo_ids()), _VOTERS):
            try:
                shapes = {name: shape for name, (_, shape) in self.describe(key).shapes.items()}
                patches = int(self._read(key, "grid")["grid"].prod())
            except VplError:
                continue
            for name, form in form_of(shapes, patches).items():
                votes.setdefault(name, Counter())[form] += 1
        return {name: forms.most_common(1)[0][0] for name, forms in votes.items()}

    def read_labels(self, photo_id: str) -> npt.NDArray[np.uint8]:
        """Read a photo's labels (height, width). A PNG without a header was edited by hand.

        Raises:
            VplError: the file is missing or damaged, or comes from another run than the folder.
        """
        path = self.path_of(photo_id)
        labels = read_drawn_labels(path)
        header = describe(path).header
        if header is not None:
            self._check_run(header, path)
        return labels

    def _check_run(self, header: Header, path: Path | str) -> None:
        if header.config_hash != self.identity:
            reasons = "; ".join(difference(self.header, header, self.path))
            raise VplError(f"{path} comes from a different run than its folder: {reasons}",
                           f"delete it; {call_of(self.header)} recomputes it")

    def left_out(self, ids: Iterable[str]) -> dict[str, str]:
        """Return the failure reasons by id, of photos that failed here or at an earlier stage."""
        return {key: self.failed[key] for key in ids
                if key in self.failed and not self.holds(key)}

    def available(self, ids: Iterable[str]) -> list[str]:
        """Return the ids that have a file; warn about failed ones.

        Raises:
            VplError: an id is missing without having failed, so the folder is incomplete; or none
                is left.
        """
        if self.replaced:
            raise VplError(f"{self.path} is being replaced, or the command that replaced it was "
                           "stopped", f"wait for it, or run it again: {call_of(self.header)}")
        wanted = list(ids)
        have = [key for key in wanted if self.holds(key)]
        lacking = set(wanted) - set(have)
        failed = [key for key in wanted if key in lacking and key in self.failed]
        missing = lacking - set(failed)
        if missing:
            raise VplError(
                f"{self.path} has {len(have)} of {len(wanted)} photos; {min(missing)} is missing",
                self._how_to_go_on(missing))
        if failed:
            console.warn("an earlier step failed on "
                         + counted(len(failed), "photo, which is", "photos, which are")
                         + f" skipped: {first_few(failed)}")
        if wanted and not have:
            raise VplError(f"{self.path} holds none of the selected photos", call_of(self.header))
        return have

    def _how_to_go_on(self, missing: Iterable[str]) -> str:
        """Return a hint with the call that computes the missing photos."""
        if self.shards == 1:
            return (f"{call_of(self.header)} continues where it stopped; if it is still running, "
                    "wait for it")
        lacking = sorted({shard_of(key, self.shards) for key in missing})
        named = ", ".join(f"{index}/{self.shards}" for index in lacking[:10])
        more = f" and {len(lacking) - 10} more" if len(lacking) > 10 else ""
        return (f"{call_of(self.header, shard=f'{lacking[0]}/{self.shards}')} continues with the "
                f"first incomplete shard of {named}{more}; `status()` prints all commands. If they "
                "are still running, wait for them")


def supervision_of(inputs: Iterable[InputFolder | Path | str]) -> str:
    """Return the inputs' supervision beyond tags, from their headers; see `Header`."""
    headers = [item.header if isinstance(item, InputFolder) else describe(item).header
               for item in inputs if isinstance(item, InputFolder)
               or (isinstance(item, Path) and item.suffix == ".safetensors")]
    return join_supervision(header.supervision for header in headers if header)


def open_input(path: Path, kinds: Sequence[str], hint: str = "") -> InputFolder:
    """Open a folder of per-photo files of one of several kinds; `hint` is the call that makes it.

    Raises:
        VplError: the folder is missing or of another kind.
    """
    hint = hint or kind_named(kinds[0]).made_by
    if not (path / MANIFEST).exists():
        raise VplError(f"no {kinds[0]} in {path}", hint)
    found = manifest_of(path, hint)
    if found.header.kind not in kinds:
        raise VplError(f"{path} holds {found.header.kind}, expected {' or '.join(kinds)}", hint)
    return InputFolder(**vars(found))


def faults_in(folder: InputFolder) -> tuple[dict[Path, str], list[Path]]:
    """Check that every file of a folder is intact, of the folder's kind, and of the same run.

    A PNG without a header is a mask corrected by hand, not a fault.

    Returns:
        fault by damaged file; and files with other settings or inputs.

    Raises:
        NotPermitted: the user may not read a file.
    """
    damaged: dict[Path, str] = {}
    foreign: list[Path] = []
    for file in folder.files():
        try:
            header = storage.check_file(file)
            if header is None and file.suffix != ".png":
                damaged[file] = "it has no header of vpltool"
            elif header is not None and header.config_hash != folder.identity:
                foreign.append(file)
        except FileNotFoundError:
            # A running command has replaced it.
            pass
        except NotPermitted:
            raise
        except VplError as error:
            damaged[file] = error.message.removeprefix(str(file)).lstrip(": ")
    for key, entry in folder.packed.items():
        # Tars on other machines are checked when they are read.
        if entry.path is not None:
            try:
                folder.read_tensors(key)
            except VplError as error:
                damaged.setdefault(entry.index, error.message)
    return damaged, foreign


def find_folder(
    work: Path, kind_folders: Sequence[str], what: str, split: str, hint: str,
    preferred: Iterable[str] = (), *, full: bool = False, kinds: Sequence[str] = (),
) -> InputFolder:
    """Find the per-photo folder that a command reads for a split.

    Args:
        kind_folders: default parent folders of such inputs, preferred first: `("cams",)`.
        what: a path, `cams/NAME`, or NAME; empty: the first existing of `preferred`, else the only
            one.
        split: name of the sub-folder.
        hint: call that makes one.
        preferred: NAMEs to try if `what` is empty.
        full: whether to prefer masks without unlabelled pixels if `what` is empty.
        kinds: accepted kinds, if others than those of the folders.

    Raises:
        VplError: there is none, or only one of another kind, or several.
    """
    kinds = kinds or kind_folders
    if what:
        # The halves `train-a` and `train-b` can use results for the whole split.
        whole = split[:-2] if split.endswith(("-a", "-b")) else split
        for base in (Path(what), work / what, *(work / folder / what for folder in kind_folders)):
            for path in (base / split, base / whole, base):
                if (path / MANIFEST).exists():
                    return open_input(path, kinds, hint)
        raise VplError(f"no {' or '.join(kinds)} called `{what}` for the split `{split}`",
                       _near_folder(work, kind_folders, what, split) or hint)
    for folder in kind_folders:
        names = names_in(work / folder, split)
        chosen = [name for name in preferred if name in names]
        # Masks come in pairs; full ones are for scoring, which lists them in `preferred`.
        chosen = chosen or [name for name in names if not name.endswith("-full")]
        if len(chosen) > 1 and chosen[0] not in preferred:
            raise VplError(f"{work / folder} holds several for the split `{split}`: "
                           f"{', '.join(chosen)}", f"name one, such as {folder}/{chosen[0]}")
        if chosen:
            name = f"{chosen[0]}-full" if full and f"{chosen[0]}-full" in names else chosen[0]
            return open_input(work / folder / name / split, kinds, hint)
    raise VplError(f"no {' or '.join(kinds)} for the split `{split}` in {work}", hint)


def probabilities_beside(work: Path, predictions: InputFolder) -> InputFolder | None:
    """Open the class probabilities that `predict` stored with predictions of a workspace.

    None: there are none, or they are from another run, such as of an earlier segmenter.
    """
    base, path = folder_of(work, "predictions").resolve(), predictions.path.resolve()
    if base not in path.parents:
        return None
    beside = folder_of(work, "probabilities") / path.relative_to(base)
    if not (beside / MANIFEST).exists():
        return None
    found, header = open_input(beside, ("probabilities",)), predictions.header
    same = replace(found.header, kind=header.kind, format=header.format)
    return found if same.config_hash == header.config_hash else None


def open_probabilities(work: Path, predictions: InputFolder, otherwise: str) -> InputFolder:
    """Open the `probabilities_beside` predictions.

    `otherwise` is an alternative without probabilities for the hint, in backticks.

    Raises:
        VplError: there are none.
    """
    found = probabilities_beside(work, predictions)
    if found is None:
        header = predictions.header
        images = [short_path(work / image) for image in header.images]
        which = (f"images={images!r}, probabilities=True" if images else
                 f"split={header.options.get('split')!r}")
        raise VplError(f"no probabilities of the same run as {predictions.path}, which say how "
                       "sure the segmenter is",
                       f"`predict(decoder={predictions.name!r}, {which}, overwrite=True)` "
                       f"stores them; or {otherwise}")
    return found


def trained_splits(work: Path) -> set[str]:
    """Return the splits whose photos the segmenters of a workspace learned from, or `train`."""
    found = set[str]()
    for path in results_of(work, "decoder"):
        with contextlib.suppress(VplError):
            if (header := describe(path).header) and "split" in header.options:
                found.add(str(header.options["split"]))
    return found or {"train"}


def _near_folder(work: Path, kind_folders: Sequence[str], what: str, split: str) -> str:
    """Suggest a folder of a similar name, of this or another split; empty if there is none."""
    there = {f"{folder}/{entry.parent.parent.name}": entry.parent.name for folder in kind_folders
             for entry in sorted((work / folder).glob(f"*/*/{MANIFEST}"))}
    names = [f"{folder}/{name}" for folder in kind_folders
             for name in names_in(work / folder, split)]
    near = difflib.get_close_matches(what, {*names, *there}, n=1)
    if near and near[0] not in names:
        return f"`{near[0]}` is there for `split={there[near[0]]!r}`"
    return near_name(what, names) if names else ""


def names_in(folder: Path, split: str) -> list[str]:
    """Return the names of results for a split in a folder of the workspace."""
    return sorted(entry.parent.parent.name
                  for entry in folder.glob(f"*/{glob.escape(split)}/{MANIFEST}"))
