"""Inputs of stages over the photos of a split, opened and checked as their settings declare.

A setting declares which input it names (`reads="prototypes"`, see `settings.setting`). This module
opens it, checks it against the others, records it in the header, and knows where it has no effect.

    opened = open_inputs(workspace, settings, method.READS, ("prototypes",))   # the inputs
    header = opened.header("cams", "cam")                                      # of the output
    return opened.make("cam", {folder: header}, start)                         # the work
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vpltool import console, formats
from vpltool.core import alignment, vit
from vpltool.engine import features, headers, photo_work, photos, prototypes, segmenters
from vpltool.engine.prototypes import Prototypes
from vpltool.errors import VplError
from vpltool.formats import Header, InputFolder, OutputFolder, Photo, Workspace, shards
from vpltool.formats.kinds import FEATURE_TENSORS
from vpltool.lazy import Tensor, np, npt, torch
from vpltool.options import PerPhoto
from vpltool.parallel.batches import FeatureBatch, feature_batches, to_device
from vpltool.parallel.device import find_device, find_precision
from vpltool.settings import Settings, described, warn_without_effect, without_effect

_ABOUT = {"second": "second encoder", "prototypes": "prototypes", "decoder": "decoder",
          "proposals": "proposals"}
"""Inputs that only some methods read, as named in messages."""

_WITHOUT_CLASSES = ("features", "proposals", "prototypes")
"""Kinds of file that do not depend on the class names; prototypes do so by those they start from.
"""


@dataclass(frozen=True)
class Opened:
    """The opened inputs of a stage, as returned by `open_inputs`.

    Args:
        read: names of the inputs read per photo, as in `READS` of methods.
        required: names of the inputs that the stage reads with any method.
        folders: input folder by setting name, such as `cams`.
        rows: the prototypes by setting name, if the stage or method reads them.
        decoder: path of a trained decoder, if the method reads one.
        unused: reason by name, of settings without effect.
    """

    workspace: Workspace
    settings: Settings
    read: Collection[str]
    required: Sequence[str]
    folders: Mapping[str, InputFolder]
    rows: Mapping[str, Prototypes]
    decoder: Path | None
    unused: Mapping[str, str]

    @property
    def split(self) -> str:
        """Name of the split."""
        return str(vars(self.settings)["split"])

    @property
    def per_photo(self) -> PerPhoto:
        """The settings of a stage that makes one file per photo."""
        assert isinstance(self.settings, PerPhoto)
        return self.settings

    @property
    def prototypes(self) -> Prototypes | None:
        """The prototypes, if the stage or method reads them."""
        return next(iter(self.rows.values()), None)

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
        paths = photos.paths_of(self.workspace, self.split)
        return {key: paths[key] for key in ids}

    def available(self, shard: shards.Shard = shards.WHOLE) -> photos.Photos:
        """Return the photos of the split or shard that all folders contain; see `photos_with`."""
        return photos.photos_with(self.workspace, self.split, vars(self.settings)["limit"],
                                  *self.folders.values(), shard=shard)

    def without_effect(self, unused: Mapping[str, str]) -> Opened:
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
        files: dict[str, InputFolder | Path | str] = {
            **self.folders, **{role: found.path for role, found in self.rows.items()}}
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

    def header_of_split(self, command: str, **identities: str) -> Header:
        """Make the header of prototypes computed from all photos of the split.

        The names of the prototypes and CAMs that are read become options; `identities` are those of
        further inputs.
        """
        options = {role: found.path.stem for role, found in self.rows.items()} | {
            role: found.name for role, found in self.folders.items() if role != "features"}
        header = self.header("prototypes", command, options=options, inputs=identities)
        return photos.with_photo_files(self.workspace, header, ids=True)

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
        settings = self.per_photo
        warn_without_effect(settings, without=self.unused)
        chosen = self.available(photos.chosen_shard(settings.shard))
        if not any(header.kind in photos.TAGGED for header in folders.values()):
            chosen = replace(chosen, per_photo_inputs={})
        outputs = photo_work.open_outputs(folders, chosen, settings,
                                          1 + len(self.workspace.classes))

        def write_beside() -> None:
            for path, (header, tensors) in (beside or {}).items():
                if outputs[0].todo or not path.exists():
                    formats.write_tensors(path, header, tensors)

        return photo_work.make_photos(
            title, outputs, start,
            write or (lambda output, key, made: output.write_tensors(key, made)), settings,
            write_beside,
            photos.paths_of(self.workspace, self.split) if "photo" in self.read else None)

    def load(self, precision: str = "fp32") -> Loaded:
        """Load the inputs shared by all photos onto the device."""
        device, found = find_device(self.per_photo.device), self.prototypes
        dtype = find_precision(precision if "head" in self.read else "fp32", device, console.warn)
        space = prototypes.space_of(found) if found else None
        head = features.read_head(self.features) if "head" in self.read else None
        if head and space:
            # Its output lies in the space of the prototypes.
            head = alignment.AlignedHead.of(head, space).eval().requires_grad_(False)
        named = {photo.id: photo for photo in self.workspace.photos(self.split)}
        return Loaded(self, device, dtype, named, head.to(device, dtype) if head else None,
                      space.to(device, dtype) if space else None,
                      found.to(device) if found else None)


@dataclass(frozen=True)
class Loaded:
    """Inputs of a method that all photos share, on the device; returned by `Opened.load`.

    Args:
        head: CLIP's head, projecting into the space of the prototypes.
        space: the prototypes' space, unless it is CLIP's joint space.
    """

    opened: Opened
    device: torch.device
    dtype: torch.dtype
    photos: Mapping[str, Photo]
    head: vit.Head | None
    space: alignment.AlignedSpace | None
    prototypes: Prototypes | None

    def rgb(self, ids: Iterable[str]) -> list[npt.NDArray[np.uint8]]:
        """Read photos (H, W, 3), or raise a VplError; empty if the method needs none."""
        return ([photos.read_known_photo(self.opened.workspace, self.photos[key]) for key in ids]
                if "photo" in self.opened.read else [])

    def captions(self, ids: Iterable[str]) -> list[tuple[str, ...]]:
        """Return captions if the method needs them; otherwise an empty list."""
        wanted = "captions" in self.opened.read
        return [self.photos[key].captions for key in ids] if wanted else []

    def run(self, todo: list[str],
            make: Callable[[FeatureBatch, dict[str, Tensor]], Iterable[photo_work.Made]],
            copied: Sequence[str] = ()) -> Iterator[photo_work.Made]:
        """Run a method over batches of stored features; see `run_batches`.

        Args:
            make: called with a batch as stored, and the tensors that the method reads from it: on
                the device, with those of a second encoder, and patches in the prototypes' space.
            copied: further tensors to read into the batch, not passed to the method.
        """
        opened = self.opened
        names = [name for name in FEATURE_TENSORS if name in opened.read]

        def run(batch: FeatureBatch) -> Iterable[photo_work.Made]:
            others = [features.read_second(opened.second, key, opened.read, batch.grid)
                      for key in batch.ids]
            tensors = to_device(
                {name: batch.tensors[name] for name in names}
                | {name: torch.stack([photo[name] for photo in others]) for name in others[0]},
                self.device, self.dtype)
            if self.space is not None and "patches" in tensors:
                tensors["patches"] = self.space(tensors["patches"])
            return make(batch, tensors)

        batches = feature_batches(opened.features, todo, list(dict.fromkeys([*names, *copied])),
                                  opened.per_photo.batch_size, device=self.device)
        hint = features.smaller_photos_hint(opened.features.header)
        return photo_work.run_batches(batches, run, lambda _: hint)


def open_inputs(workspace: Workspace, settings: Settings, reads: Collection[str],
                required: Sequence[str] = (), *, kept: Collection[str] = (),
                preferred: Sequence[str] = ()) -> Opened:
    """Open the inputs that a stage's settings declare, and check that they fit together.

    Args:
        settings: have a `split` and a `limit`.
        reads: inputs read per photo, as in `READS` of methods; others are opened only if
            required.
        required: inputs that the stage reads with any method, in the order of the header, unless
            their settings have no effect.
        kept: feature tensors that the stage itself reads.
        preferred: CAMs to choose if none are named, most refined first.

    Raises:
        VplError: the split does not exist, or an input is missing, incomplete, or from another
            model or split.
    """
    chosen, split = vars(settings), vars(settings)["split"]
    required = [name for name in required if name not in without_effect(settings)]
    workspace.photos(split)
    folders: dict[str, InputFolder] = {}
    decoder: Path | None = None
    named = {entry.reads: entry.name for entry in described(type(settings)) if entry.reads}
    names = {*required, *reads, *("second" for name in features.SECOND if name in reads)}
    wanted = {kind: name for kind, name in named.items() if name in names}
    if "features" in wanted:
        stored = folders["features"] = features.open_features(workspace, chosen["features"], split)
    if "cams" in wanted:
        folders["cams"] = features.find_cams(workspace, chosen["cams"], split, preferred)
    if "what" in wanted:
        folders["what"] = features.find_scores(workspace, chosen["what"], split)
    if "second" in wanted:
        folders["second"] = features.open_second(workspace, chosen["second"], split, reads)
    rows = _read_rows(workspace, settings, wanted)
    for found in rows.values():
        prototypes.check_rows(found, reads)
        if "features" in wanted:
            prototypes.check_fits(stored, found, head="head" in reads)
    if "decoder" in wanted:
        decoder = _find_decoder(workspace, chosen["decoder"], stored)
    if "proposals" in wanted:
        kinds = ("proposals",)
        folders["proposals"] = formats.find_folder(workspace.path, kinds, chosen["proposals"],
                                                   split, f"`propose(split={split!r})`")
    if "features" in wanted:
        # Last: a typo is mended in seconds, missing tensors in hours.
        features.check_kept(stored, [*(name for name in FEATURE_TENSORS if name in reads), *kept])
    return Opened(workspace, settings, reads, required, folders, rows, decoder,
                  _without_effect(settings, {*named.values()} - names, reads))


def _read_rows(workspace: Workspace, settings: Settings, wanted: Mapping[str, str]
               ) -> dict[str, Prototypes]:
    """Read the prototypes, if any are wanted, by setting name."""
    for kind in ("prototypes", "text", "words"):
        if name := wanted.get(kind):
            choice = (prototypes.choice_of(workspace, settings, name) if kind == "prototypes"
                      else vars(settings)[name])
            return {name: prototypes.read_prototypes(workspace, choice, aligned=kind != "words")}
    return {}


def _without_effect(settings: Settings, unread: Collection[str], reads: Collection[str]
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
