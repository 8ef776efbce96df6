"""Trained segmenters as files: finding, inspecting and loading them.

Decoders, bundles and trained groups are one class each. Callers use the common interface and
never check which kind they have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from vpltool import console, formats
from vpltool.clip import encoders, stored_towers
from vpltool.core import blocks, segmenter
from vpltool.engine import checkpoints, groups, headers, models
from vpltool.engine.features import BEST_FIRST, open_features
from vpltool.engine.running import RunningNetwork, RunsSegmenter
from vpltool.errors import VplError, near_name
from vpltool.formats import Header, InputFolder, Workspace, changes, kinds, storage
from vpltool.formats.manifest import MANIFEST, call_of
from vpltool.lazy import Tensor, torch
from vpltool.methods import SegmenterMethod, load_method
from vpltool.methods.inputs import AUTO_SIDE, TrainedSegmenter, parse_tile, side_of
from vpltool.parallel.device import find_device, find_precision

RunningSegmenter: TypeAlias = "RunningNetwork | groups.GroupSegmenter"
"""A trained segmenter on its device, as returned by `SegmenterFile.load`."""

TOWER = "tower."
"""Prefix of the encoder's tensors in the file of a segmenter trained together with its encoder."""


@dataclass(frozen=True)
class SegmenterFile:
    """The file of a trained segmenter; this base class is a decoder, a network over an encoder."""

    path: Path
    header: Header

    role: ClassVar[str] = "decoder"
    """Its name among the inputs in headers."""

    portable: ClassVar[bool] = False
    """Whether it ignores the workspace that it runs in."""

    maps: ClassVar[tuple[str, ...]] = ()
    """Kinds of file that hold further outputs per photo, besides labels and probabilities."""

    unused: ClassVar[Mapping[str, str]] = dict.fromkeys(
        groups.GroupSettings.__annotations__, "only groups have it")
    """Settings without effect on it, and why."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, the first is label 1; VplError if the header lacks them."""
        return self._fact("classes", tuple, "its classes")

    @property
    def method(self) -> str:
        """Name of its network's method; VplError if the header lacks it."""
        return self._fact("segmenter", str, "the method of its network")

    @property
    def again(self) -> str:
        """The call that makes the file again, for hints."""
        return call_of(self.header)

    def _fact(self, name: str, kind: type, what: str) -> Any:
        if name not in self.header.facts:
            raise VplError(f"{self.path} does not name {what}", self.again)
        return kind(self.header.facts[name])

    @property
    def own_encoder(self) -> bool:
        """Whether the file contains its encoder, so that stored features cannot be used."""
        return bool(self.header.facts.get("tower"))

    @property
    def reads(self) -> tuple[set[str], set[int]]:
        """Inputs from a frozen encoder: any of `layers` and `patches`, and the layer indices."""
        return (set(self.header.facts.get("reads", ("layers", "patches"))),
                set(self.header.options.get("layers", ())))

    def has_made(self, header: Header) -> bool:
        """Return whether this file, in its present state, made an artifact with this header."""
        return header.inputs.get(self.role) == formats.identity_of_file(self.path)

    def workspace(self, path: Path) -> Workspace:
        """Return the workspace to run in; where there is none, one that exists only in memory."""
        if kinds.is_workspace(path):
            return formats.open_workspace(path)
        return stand_in_workspace(path, self.header.model, self.header.facts.get("classes", ()))

    def named(self, workspace: Workspace, words: Sequence[str] = ()) -> Workspace:
        """Return the workspace with the classes that will be predicted.

        Args:
            words: requested class names; empty: those of the segmenter or workspace.

        Raises:
            VplError: the segmenter cannot predict these classes, or needs names and has none.
        """
        if words and tuple(words) != self.classes:
            raise VplError(f"{self.path} is a decoder for {', '.join(self.classes)} only, and "
                           "knows its classes", "`train_groups()` makes what any word can name")
        return replace(workspace, classes=self.classes)

    def calibration(self, work: Path) -> Mapping[str, Any] | None:
        """Return the result of `calibrate` for this version of the file; None if there is none."""
        path = kinds.result_path(work, "calibration", self.path.stem)
        if not path.is_file():
            return None
        found = storage.read_json(path, "`calibrate()`")
        return found if found.get("decoder") == formats.identity_of_file(self.path) else None

    @cached_property
    def cut(self) -> dict[str, str]:
        """The settings `bands`, `percentiles` and `tile` with which its photos were cut.

        Those at their defaults are left out, and `tile` if tiles were not scaled down in training.
        """
        call = changes.last_call(kinds.workspace_around(self.path.resolve()))
        return _cut(call, side_of(self.header))

    def tile_scale(self) -> float:
        """Return the factor by which tiles were scaled down in training; 1 if they were not."""
        tile = self.cut.get("tile")
        return side_of(self.header) / parse_tile(tile, AUTO_SIDE)[0] if tile else 1.0

    def part(self, name: str) -> dict[str, Tensor]:
        """Read the state dict of the `decoder` network or of the `tower`; half becomes float32.

        Raises a VplError if the file is damaged.
        """
        names = tuple(key for key in formats.describe(self.path).shapes
                      if key.startswith(TOWER) == (name == "tower"))
        return {key.removeprefix(TOWER): tensor.float() if tensor.dtype.itemsize == 2 else tensor
                for key, tensor in formats.read_tensors(self.path, "decoder", names)[1].items()}

    def network(self) -> segmenter.SegmenterNetwork:
        """Rebuild the trained network on the CPU, in evaluation mode.

        Raises:
            VplError: there is no network, the file is damaged, or its method is not installed.
        """
        method = load_method(SegmenterMethod, self.method)
        try:
            network: segmenter.SegmenterNetwork = blocks.rebuild(
                lambda: method.rebuild(self.header.facts["config"]), self.part("decoder"))
        except ValueError as error:
            raise VplError(f"{self.path} does not hold the network that its header names "
                           f"({error})", self.again) from error
        named, outputs = 1 + len(self.classes), len(network.classes)
        # Fewer outputs are no fault: the last classes may have no prototypes.
        if outputs > named:
            raise VplError(f"{self.path}: its network has {outputs} outputs, and its header names "
                           f"{named}, with the background", self.again)
        return network.eval().requires_grad_(False)

    def trained(self, workspace: Workspace, device: torch.device) -> TrainedSegmenter:
        """Load the network together with its encoder.

        Args:
            workspace: specifies the encoder, unless the file contains it.

        Raises:
            VplError: see `network`; or the encoder is unavailable or does not match.
        """
        network = self.network()
        encoder = (self._stored_encoder(device) if self.own_encoder
                   else self._named_encoder(workspace, device))
        return TrainedSegmenter(self.path, self.header, network.to(device), encoder, self.classes)

    def _stored_encoder(self, device: torch.device) -> encoders.Encoder:
        """Return the encoder stored in the file."""
        facts = self.header.facts
        try:
            mean, std = (tuple(map(float, facts[name])) for name in ("mean", "std"))
            if len(mean) != 3 or len(std) != 3:
                raise ValueError(f"{mean}, {std} are not of RGB")
            tower = stored_towers.tower_from_config(facts["tower"], self.part("tower"))
        except (ValueError, KeyError, TypeError) as error:
            raise VplError(f"{self.path} does not hold the tower that its header names",
                           self.again) from error
        return encoders.Encoder(tower.to(device), (mean[0], mean[1], mean[2]),
                                (std[0], std[1], std[2]), self.header.model)

    def _named_encoder(self, workspace: Workspace, device: torch.device) -> encoders.Encoder:
        """Return the workspace's encoder, which must be the one in the header."""
        try:
            encoder = models.load_main(workspace, device)
        except VplError as error:
            if not self.portable and kinds.is_workspace(workspace.path):
                raise
            raise VplError(f"{self.path} only names its encoder: {error.message}",
                           "`export('bundle')` without `clip='identity'` puts it into the file; "
                           "in Python, Segmenter.load(FILE, pretrained=WEIGHTS) names the weights"
                           ) from error
        headers.check_same_model(encoder.identity, self.header.model,
                                 f"{workspace.encoder or workspace.pretrained} and {self.path}")
        return encoder

    def load(self, workspace: Workspace, settings: groups.GroupSettings) -> RunningSegmenter:
        """Load it onto the configured device, ready to segment photos.

        Args:
            workspace: as returned by `named`; specifies the encoder, unless the file contains it.

        Raises:
            VplError: it is damaged, its encoder is unavailable, or a setting does not fit it.
        """
        device = find_device(settings.device)
        dtype = find_precision(settings.precision, device, console.warn)
        trained = self.trained(workspace, device)
        trained.encoder.vision.to(dtype)
        return RunningNetwork(trained, device, self.tile_scale())

    def serving_features(self, workspace: Workspace, settings: RunsSegmenter, ids: Sequence[str]
                         ) -> InputFolder | None:
        """Find stored features of a split that can replace reading the photos; None: read photos.

        Raises:
            VplError: features were requested but cannot be used; the message gives the reason.
        """
        folder = settings.features or kinds.result_path(workspace.path, "features", settings.split)
        if settings.source == "photos":
            return None
        if not (folder / MANIFEST).exists():
            if settings.source == "features":
                raise VplError(f"`source='features'`: no features in {folder}", "`source='photos'`")
            return None
        features = open_features(workspace, settings.features, settings.split)
        if reason := self._reason_against(features, settings, ids):
            if settings.source == "features":
                raise VplError(f"`source='features'`: {reason}", "`source='photos'`")
            console.note(f"photos are read, since {reason}")
            return None
        headers.check_same_model(features.header.model, self.header.model,
                                 f"{features.path} and the decoder")
        return features

    def _reason_against(self, features: InputFolder, settings: RunsSegmenter, ids: Sequence[str]
                        ) -> str:
        """Return why features cannot replace the photos; empty if they can."""
        if self.own_encoder:
            return "the segmenter has an encoder of its own"
        held = features.header.options
        reads, layers = self.reads
        if settings.tile:
            return "stored features are not of the tiles that a segmenter sees"
        if len(settings.factors) > 1 or settings.flip:
            return "stored features are of one scale, not mirrored"
        side = side_of(self.header, settings.max_side)
        for name, wanted in (("scale", settings.factors[0]), ("max_side", side)):
            if held[name] != wanted:
                return (f"{features.path} was made with `{name}={held[name]}`, not "
                        f"`{name}={wanted}`")
        if not (reads <= set(held["keep"]) and layers <= set(held.get("layers") or ())
                and ("patches" not in reads or held.get("patches", "block") == "block")):
            return f"{features.path} lacks layers or patches that the decoder reads"
        if any(not features.holds(key) and key not in features.failed for key in ids):
            return f"{features.path} holds only some of the photos"
        return ""

    def open_probabilities(self, workspace: Workspace, split: str, again: str = "") -> InputFolder:
        """Open the class probabilities that `predict` stored for a split or folder.

        Args:
            split: name of the split, or of the folder of photos.
            again: the call that stores them, without the closing bracket; default: for the split.

        Raises:
            VplError: there are none, or they have other classes or are from another segmenter of
                this name.
        """
        name = self.path.stem
        path = kinds.result_path(workspace.path, "probabilities", name, split)
        again = again or f"predict(split={split!r}, decoder={name!r}"
        if not (path / MANIFEST).exists():
            raise VplError(f"there are no probabilities in {path}", f"`{again})`")
        found = formats.open_input(path, ("probabilities",))
        workspace.check_classes(found.header, found.path)
        if not self.has_made(found.header):
            raise VplError(f"{path} is of an earlier {name}", f"`{again}, update=True)`")
        return found


def _cut(found: Mapping[str, object], side: int) -> dict[str, str]:
    taken = {name: str(found[name]) for name in ("bands", "percentiles", "tile")
             if found.get(name)}
    if "tile" in taken and not 0 < side < parse_tile(taken["tile"], AUTO_SIDE)[0]:
        del taken["tile"]
    return taken


@dataclass(frozen=True)
class BundleFile(SegmenterFile):
    """A portable segmenter written by `export`: network, encoder and classes in one file."""

    role = "segmenter"
    portable = True
    again = "`export('bundle')` writes it again; or copy it again from where it was made"

    def workspace(self, path: Path) -> Workspace:
        """Make a workspace that exists only in memory, with the bundle's classes."""
        return stand_in_workspace(path, self.header.model, self.classes)

    def calibration(self, work: Path) -> Mapping[str, Any] | None:
        """Return the calibration at the time of export."""
        return self.header.facts.get("about", {}).get("calibration")

    @cached_property
    def cut(self) -> dict[str, str]:
        """See `SegmenterFile`; as they were at the time of export."""
        return _cut(self.header.facts.get("about", {}), side_of(self.header))

    def part(self, name: str) -> dict[str, Tensor]:
        """See `SegmenterFile`."""
        return storage.read_part(self.path, name)[1]


@dataclass(frozen=True)
class GroupsFile(SegmenterFile):
    """Trained groups, which can be labelled with any words."""

    maps = ("cams", "group-maps")
    unused = dict.fromkeys(groups.NETWORK_SETTINGS, "groups see photos by windows, in float32")

    @property
    def own_encoder(self) -> bool:
        """Always: groups are their own encoder."""
        return True

    def named(self, workspace: Workspace, words: Sequence[str] = ()) -> Workspace:
        """See `SegmenterFile`."""
        named = replace(workspace, classes=tuple(words)) if words else workspace
        if not named.classes:
            raise VplError(f"{self.path} needs class names, and none are given",
                           "`classes='FILE'` has the words, one class per line; in memory, "
                           "`classes=['cat', 'dog']`")
        return named

    def network(self) -> segmenter.SegmenterNetwork:
        """Raise an error: groups have no network over an encoder's layers."""
        raise VplError(f"{self.path} holds groups, not a network over the layers of an encoder",
                       "name a decoder of `train_decoder()`")

    def load(self, workspace: Workspace, settings: groups.GroupSettings) -> RunningSegmenter:
        """See `SegmenterFile`."""
        device = find_device(settings.device)
        return groups.GroupSegmenter.of(workspace, self.path, settings, device)

    def serving_features(self, workspace: Workspace, settings: RunsSegmenter, ids: Sequence[str]
                         ) -> InputFolder | None:
        """Return None: groups always read photos."""
        return None


_KINDS: Mapping[str, type[SegmenterFile]] = {
    "decoder": SegmenterFile, "groups": GroupsFile, "bundle": BundleFile}


def open_segmenter(path: Path) -> SegmenterFile:
    """Read the header of a segmenter.

    Raises a VplError if the file is not a segmenter, or is only a training checkpoint.
    """
    found = formats.describe(path).header
    kind = found.kind if found and found.kind in _KINDS else "decoder"
    return _KINDS[kind](path, checkpoints.trained_header(path, kind))


def find_segmenter(work: Path, choice: str, setting: str = "decoder") -> SegmenterFile:
    """Open a segmenter by NAME or path; without a choice, the only one or the most refined.

    Without a choice, decoders take precedence over groups. Hints name the setting.

    Raises a VplError if there is none, or several fit.
    """
    decoders, others = (kinds.results_of(work, kind) for kind in ("decoder", "groups"))
    if not choice:
        listed = ([path for name in BEST_FIRST for path in decoders if path.stem == name][:1]
                  or decoders or others)
        if len(listed) != 1:
            raise VplError(f"{listed[0].parent} holds several segmenters" if listed else
                           f"no segmenter in {kinds.folder_of(work, 'decoder')}",
                           " or ".join(f"`{setting}={path.stem!r}`" for path in listed)
                           or "`train_decoder()`, or `train_groups()`")
        return open_segmenter(listed[0])
    here = [path for path in (*decoders, *others) if path.stem == choice]
    if len(here) > 1:
        raise VplError(f"both {here[0]} and {here[1]} are called `{choice}`",
                       f"name one by its path, such as {here[0]}")
    # A checkpoint is not a result; it is tried so that it gets its own error message.
    for path in (*here, kinds.result_path(work, "decoder", choice), Path(choice), work / choice):
        if path.is_file():
            return open_segmenter(path)
    names = [path.stem for path in (*decoders, *others)]
    raise VplError(f"no segmenter called `{choice}`", near_name(choice, names) if names else
                   "`train_decoder()`, or `train_groups()`")


def stand_in_workspace(path: Path, model: Mapping[str, str], classes: Sequence[str] = (), *,
                       pretrained: str = "") -> Workspace:
    """Return an in-memory workspace for a segmenter used outside of its own workspace.

    Args:
        path: output folder, to which a relative path of weights also refers.
        pretrained: weights of the encoder; default: those in `model`.
    """
    encoder = model.get("encoder", "")
    clip = ("", "") if encoder else (model.get("name", ""),
                                     pretrained or model.get("pretrained", ""))
    return Workspace(path, "", "", tuple(classes), (), *clip,
                     encoder=models.with_weights(encoder, pretrained) if pretrained else encoder,
                     normalise=model.get("normalise", "model"))
