"""Inputs of stages that process photos one by one, opened and checked as their settings declare.

A setting declares which input it names (`reads="prototypes"`, see `settings.setting`). This module
opens it, checks it against the others, records it in the header, and knows where it has no effect.

    given = open_given(workspace, settings, method.READS, ("prototypes",))     # the inputs
    header = given.header("cams", "cam")                                       # of the output
    return given.make("cam", {folder: header}, start)                          # the work
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vpltool import console, formats
from vpltool.core import alignment, vit
from vpltool.engine import features, headers, photo_work, prototypes, segmenters
from vpltool.engine.photos import TAGGED, chosen_shard, paths_of, photos_with, read_known_photo
from vpltool.engine.prototypes import Prototypes
from vpltool.errors import VplError
from vpltool.formats import Header, InputFolder, OutputFolder, Photo, Workspace
from vpltool.formats.kinds import FEATURE_TENSORS
from vpltool.lazy import Tensor, np, npt, torch
from vpltool.options import PerPhoto
from vpltool.parallel.batches import FeatureBatch, feature_batches, to_device
from vpltool.parallel.device import find_device, find_precision
from vpltool.settings import described, warn_without_effect

_ABOUT = {"second": "second encoder", "prototypes": "prototypes", "decoder": "decoder",
          "proposals": "proposals"}
"""Inputs that only some methods read, as named in messages."""

_WITHOUT_CLASSES = ("features", "proposals")
"""Kinds of file that do not depend on the class names."""


@dataclass(frozen=True)
class Given:
    """The opened inputs of a per-photo stage, as returned by `open_given`.

    Args:
        read: names of the inputs read per photo, as in `READS` of methods.
        required: names of the inputs that the stage reads with any method.
        folders: input folder by setting name, such as `cams`.
        prototypes: the prototypes, if the stage or method reads them.
        decoder: path of a trained decoder, if the method reads one.
        unused: reason by name, of settings without effect.
    """

    workspace: Workspace
    settings: PerPhoto
    read: Collection[str]
    required: Sequence[str]
    folders: Mapping[str, InputFolder]
    prototypes: Prototypes | None
    decoder: Path | None
    unused: Mapping[str, str]

    @property
    def features(self) -> InputFolder:
        """Stored CLIP features of the split."""
        return self.folders["features"]

    @property
    def second(self) -> InputFolder | None:
        """Features of the second encoder, if the method reads them."""
        return self.folders.get("second")

    def paths(self, ids: Iterable[str]) -> dict[str, Path]:
        """Return the paths of photos by id."""
        paths = paths_of(self.workspace, self.settings.split)
        return {key: paths[key] for key in ids}

    def without_effect(self, unused: Mapping[str, str]) -> Given:
        """Return a copy with further settings without effect, reason by name."""
        return replace(self, unused={**self.unused, **unused})

    def header(self, kind: str, command: str, *, options: Mapping[str, object] | None = None,
               model: Mapping[str, str] | None = None,
               inputs: Mapping[str, Path | str] | None = None, skip: Collection[str] = ()
               ) -> Header:
        """Make the header of an output; see `make_header`.

        Args:
            options: options that replace or extend those of the settings.
            model: identity of the encoder; default: from the features, else from the first input.
            inputs: further inputs.
            skip: settings that do not change the result, besides those without effect.
        """
        files: dict[str, InputFolder | Path | str] = {**self.folders}
        if self.prototypes:
            files["prototypes"] = self.prototypes.path
        if self.decoder:
            files["decoder"] = self.decoder
        if model is None:
            first = next(iter(self.folders.values()), self.prototypes)
            assert first is not None
            model = first.header.model
        classes = {} if kind in _WITHOUT_CLASSES else {"classes": self.workspace.classes_identity}
        return headers.make_header(
            self.workspace, kind, command, self.settings, model=model,
            inputs={name: files.pop(name) for name in self.required} | classes | files
            | dict(inputs or {}), options=options, skip={*skip, *self.unused})

    def make(self, title: str, folders: Mapping[Path, Header],
             start: Callable[[list[str]], Iterable[photo_work.Made]], *,
             write: Callable[[OutputFolder, str, Any], None] | None = None,
             beside: Mapping[Path, tuple[Header, Mapping[str, Tensor]]] | None = None
             ) -> list[Path]:
        """Make the missing files of the output folders; see `make_photos`.

        Args:
            write: writes the result of one photo; default: its tensors.
            beside: header and tensors by path, of single files that belong to the folders.

        Raises:
            VplError: an input is incomplete or stale, or a folder was made with other settings.
            PhotosFailed: some photos failed.
        """
        settings = self.settings
        warn_without_effect(settings, without=self.unused)
        photos = photos_with(
            self.workspace, settings.split, settings.limit,
            *self.folders.values(),
            shard=chosen_shard(settings.shard))
        if not any(header.kind in TAGGED for header in folders.values()):
            photos = replace(photos, per_photo_inputs={})
        outputs = photo_work.open_outputs(folders, photos, settings,
                                          1 + len(self.workspace.classes))

        def write_beside() -> None:
            for path, (header, tensors) in (beside or {}).items():
                if outputs[0].todo or not path.exists():
                    formats.write_tensors(path, header, tensors)

        return photo_work.make_photos(
            title, outputs, start,
            write or (lambda output, key, made: output.write_tensors(key, made)), settings,
            write_beside,
            paths_of(self.workspace, settings.split) if "photo" in self.read else None)

    def load(self, precision: str = "fp32") -> Loaded:
        """Load the inputs shared by all photos onto the device."""
        device, found = find_device(self.settings.device), self.prototypes
        dtype = find_precision(precision if "head" in self.read else "fp32", device, console.warn)
        space = prototypes.space_of(found) if found else None
        head = features.read_head(self.features) if "head" in self.read else None
        if head and space:
            # Its output lies in the space of the prototypes.
            head = alignment.AlignedHead.of(head, space).eval().requires_grad_(False)
        photos = {photo.id: photo for photo in self.workspace.photos(self.settings.split)}
        return Loaded(self, device, dtype, photos, head.to(device, dtype) if head else None,
                      space.to(device, dtype) if space else None,
                      found.to(device) if found else None)


@dataclass(frozen=True)
class Loaded:
    """Inputs of a method that all photos share, on the device; returned by `Given.load`.

    Args:
        head: CLIP's head, projecting into the space of the prototypes.
        space: the prototypes' space, unless it is CLIP's joint space.
    """

    given: Given
    device: torch.device
    dtype: torch.dtype
    photos: Mapping[str, Photo]
    head: vit.Head | None
    space: alignment.AlignedSpace | None
    prototypes: Prototypes | None

    def rgb(self, ids: Iterable[str]) -> list[npt.NDArray[np.uint8]]:
        """Read photos (H, W, 3), or raise a VplError; empty if the method needs none."""
        return ([read_known_photo(self.given.workspace, self.photos[key]) for key in ids]
                if "photo" in self.given.read else [])

    def captions(self, ids: Iterable[str]) -> list[tuple[str, ...]]:
        """Return captions if the method needs them; otherwise an empty list."""
        return ([self.photos[key].captions for key in ids] if "captions" in self.given.read else [])

    def run(self, todo: list[str],
            make: Callable[[FeatureBatch, dict[str, Tensor]], Iterable[photo_work.Made]],
            copied: Sequence[str] = ()) -> Iterator[photo_work.Made]:
        """Run a method over batches of stored features; see `run_batches`.

        Args:
            make: called with a batch as stored, and the tensors that the method reads from it: on
                the device, with those of a second encoder, and patches in the prototypes' space.
            copied: further tensors to read into the batch, not passed to the method.
        """
        given = self.given
        names = [name for name in FEATURE_TENSORS if name in given.read]

        def run(batch: FeatureBatch) -> Iterable[photo_work.Made]:
            others = [features.read_second(given.second, key, given.read, batch.grid)
                      for key in batch.ids]
            tensors = to_device(
                {name: batch.tensors[name] for name in names}
                | {name: torch.stack([photo[name] for photo in others]) for name in others[0]},
                self.device, self.dtype)
            if self.space is not None and "patches" in tensors:
                tensors["patches"] = self.space(tensors["patches"])
            return make(batch, tensors)

        batches = feature_batches(given.features, todo, list(dict.fromkeys([*names, *copied])),
                                  given.settings.batch_size, device=self.device)
        hint = features.smaller_photos_hint(given.features.header)
        return photo_work.run_batches(batches, run, lambda _: hint)


def open_given(workspace: Workspace, settings: PerPhoto, reads: Collection[str],
               required: Sequence[str] = (), *, kept: Collection[str] = (),
               preferred: Sequence[str] = ()) -> Given:
    """Open the inputs that a stage's settings declare, and check that they fit together.

    Args:
        reads: inputs read per photo, as in `READS` of methods; others are opened only if
            required.
        required: inputs that the stage reads with any method, in the order of the header.
        kept: feature tensors that the stage itself reads.
        preferred: CAMs to choose if none are named, most refined first.

    Raises:
        VplError: the split does not exist, or an input is missing, incomplete, or from another
            model or split.
    """
    split, names = settings.split, {*required, *reads}
    workspace.photos(split)
    folders: dict[str, InputFolder] = {}
    rows: Prototypes | None = None
    decoder: Path | None = None
    named = {entry.reads: getattr(settings, entry.name)
             for entry in described(type(settings)) if entry.reads}
    if "features" in named:
        stored = folders["features"] = features.open_features(workspace, named["features"], split)
    if "cams" in named:
        folders["cams"] = features.find_cams(workspace, named["cams"], split, preferred)
    if "what" in named:
        folders["what"] = features.find_scores(workspace, named["what"], split)
    if not set(reads).isdisjoint(features.SECOND):
        folders["second"] = features.open_second(workspace, named["second"], split, reads)
    if "words" in named:
        rows = prototypes.read_prototypes(workspace, named["words"])
    if "prototypes" in named and "prototypes" in names:
        choice = prototypes.class_rows(workspace, settings)
        rows = prototypes.read_prototypes(workspace, choice, aligned=True)
        prototypes.check_rows(rows, reads)
        prototypes.check_fits(stored, rows, head="head" in reads)
    if "decoder" in named and "decoder" in reads:
        decoder = _find_decoder(workspace, named["decoder"], stored)
    if "proposals" in named and "proposals" in reads:
        kinds = ("proposals",)
        folders["proposals"] = formats.find_folder(workspace.path, kinds, named["proposals"],
                                                   split, f"`propose(split={split!r})`")
    if "features" in named:
        # Last: a typo is mended in seconds, missing tensors in hours.
        features.check_kept(stored, [*(name for name in FEATURE_TENSORS if name in reads), *kept])
    unread = named.keys() - folders.keys() - ({"prototypes"} if rows else set()) - (
        {"decoder"} if decoder else set())
    return Given(workspace, settings, reads, required, folders, rows, decoder,
                 _without_effect(settings, unread, reads))


def _without_effect(settings: PerPhoto, unread: Collection[str], reads: Collection[str]
                    ) -> dict[str, str]:
    """Return the settings that have no effect with a method, to the reason."""
    unused = {name: f"`{vars(settings)['method']}` reads no {what}"
              for name, what in _ABOUT.items() if name in unread}
    if "head" not in reads and hasattr(settings, "precision") and hasattr(settings, "features"):
        unused["precision"] = "no network is run"
    return unused


def _find_decoder(workspace: Workspace, choice: str, stored: InputFolder) -> Path:
    """Return the path of a decoder, after checking that the features hold the layers it reads."""
    segmenter = segmenters.find_segmenter(workspace.path, choice)
    path, header = segmenter.path, segmenter.header
    if segmenter.own_encoder:
        raise VplError(f"{path} has an encoder of its own, and reads no stored features",
                       "`predict()` runs it; here, name a decoder of `train_decoder()` that was "
                       "trained on the frozen encoder")
    headers.check_same_model(stored.header.model, header.model, f"{stored.path} and {path}")
    reads, layers = segmenter.reads
    features.check_kept(stored, [name for name in FEATURE_TENSORS if name in reads])
    held = stored.header.options["layers"]
    if not layers <= set(held):
        wanted = ",".join(map(str, sorted(layers)))
        raise VplError(f"{stored.path} holds the layers {held}; {path} reads {wanted}",
                       f"`extract(split={stored.header.options['split']!r}, keep="
                       f"{','.join(stored.header.options['keep'])!r}, layers={wanted!r}, "
                       "overwrite=True)`")
    return path
