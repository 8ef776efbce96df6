"""Trained segmenters as files: finding one, what is known of it, and loading it.

A decoder, a bundle and trained groups are one class each. Who uses a segmenter asks it, and not
what kind it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from vpltool import console, formats
from vpltool.clip import encoders, stored_towers
from vpltool.core import blocks, segmenter
from vpltool.engine import groups
from vpltool.engine.checkpoints import trained_header
from vpltool.engine.features import BEST_FIRST, open_features
from vpltool.engine.headers import check_same_model
from vpltool.engine.models import load_main, with_weights
from vpltool.engine.running import RunningNetwork, RunningSegmenter, RunsSegmenter
from vpltool.errors import VplError, near_name
from vpltool.formats import Header, InputFolder, Workspace
from vpltool.formats.kinds import folder_of, place, results_of
from vpltool.formats.manifest import again
from vpltool.formats.storage import read_json, read_part
from vpltool.lazy import Tensor, torch
from vpltool.methods import load_method
from vpltool.methods.inputs import TrainedSegmenter, side_of
from vpltool.methods.interfaces import SegmenterMethod
from vpltool.parallel.device import find_device, find_precision

TOWER = "tower."
"""Beginning of the names of an encoder's tensors in the file of a segmenter trained with it."""


@dataclass(frozen=True)
class SegmenterFile:
    """A trained segmenter on disk: here a decoder, a network over an encoder."""

    path: Path
    header: Header

    role: ClassVar[str] = "decoder"
    """What headers call it among their inputs."""

    portable: ClassVar[bool] = False
    """Whether it needs no workspace."""

    maps: ClassVar[tuple[str, ...]] = ()
    """Kinds of file, besides labels and probabilities, that hold what it says of a photo."""

    unused: ClassVar[Mapping[str, str]] = dict.fromkeys(
        groups.GROUP_SETTINGS, "only groups have it")
    """Settings that have no effect with it, and why."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, the first is label 1.

        Raises:
            VplError: the file does not name them.
        """
        return self._said("classes", tuple, "its classes")

    @property
    def method(self) -> str:
        """Name of the method of its network.

        Raises:
            VplError: the file does not name it.
        """
        return self._said("segmenter", str, "the method of its network")

    @property
    def again(self) -> str:
        """What makes the file again, for a hint."""
        return again(self.header)

    def _said(self, name: str, kind: type, what: str) -> Any:
        if name not in self.header.facts:
            raise VplError(f"{self.path} does not name {what}", self.again)
        return kind(self.header.facts[name])

    @property
    def own_encoder(self) -> bool:
        """Whether the file holds its encoder, so that it reads no features of another."""
        return bool(self.header.facts.get("tower"))

    @property
    def reads(self) -> tuple[set[str], set[int]]:
        """What it reads of a frozen encoder: `layers` and `patches`, and which layers."""
        return (set(self.header.facts.get("reads", ("layers", "patches"))),
                set(self.header.options.get("layers", ())))

    def has_made(self, header: Header) -> bool:
        """Tell whether this file, as it is now, made something."""
        return header.inputs.get(self.role) == formats.identity_of_file(self.path)

    def workspace(self, path: Path) -> Workspace:
        """Open the workspace that it is used in."""
        return formats.open_workspace(path)

    def named(self, workspace: Workspace, words: Sequence[str] = ()) -> Workspace:
        """Return the workspace with the classes that are predicted.

        Args:
            words: names that are asked for; empty: its own, or the workspace's.

        Raises:
            VplError: it does not know these words, or there are none and it needs some.
        """
        if words and tuple(words) != self.classes:
            raise VplError(f"{self.path} is a decoder for {', '.join(self.classes)} only, and "
                           "knows its classes", "`train_groups()` makes what any word can name")
        return replace(workspace, classes=self.classes)

    def calibration(self, work: Path) -> Mapping[str, Any] | None:
        """What `calibrate` has found out of it, as it is now; None, if it has not."""
        path = place(work, "calibration", self.path.stem)
        if not path.is_file():
            return None
        found = read_json(path, "`calibrate()`")
        return found if found.get("decoder") == formats.identity_of_file(self.path) else None

    def part(self, name: str) -> dict[str, Tensor]:
        """Read the state dict of its `decoder`, the network, or of its `tower`; half as float32.

        Raises:
            VplError: the file is damaged.
        """
        names = tuple(key for key in formats.describe(self.path).shapes
                      if key.startswith(TOWER) == (name == "tower"))
        return {key.removeprefix(TOWER): tensor.float() if tensor.dtype.itemsize == 2 else tensor
                for key, tensor in formats.read_tensors(self.path, "decoder", names)[1].items()}

    def network(self) -> segmenter.SegmenterNetwork:
        """Make its network again, as it was kept, on the CPU.

        Raises:
            VplError: there is none, the file is damaged, or its method is not there.
        """
        method = load_method(SegmenterMethod, self.method)
        try:
            network: segmenter.SegmenterNetwork = blocks.rebuild(
                lambda: method.rebuild(self.header.facts["config"]), self.part("decoder"))
        except ValueError as error:
            raise VplError(f"{self.path} does not hold the network that its header names "
                           f"({error})", self.again) from error
        return network.eval().requires_grad_(False)

    def trained(self, workspace: Workspace, device: torch.device) -> TrainedSegmenter:
        """Load its network together with its encoder.

        Args:
            workspace: names the encoder, unless the file holds it.

        Raises:
            VplError: see `network`; or the encoder is not to be had, or is another one.
        """
        network = self.network()
        encoder = (self._stored_encoder(device) if self.own_encoder
                   else self._named_encoder(workspace, device))
        return TrainedSegmenter(self.path, self.header, network.to(device), encoder, self.classes)

    def _stored_encoder(self, device: torch.device) -> encoders.Encoder:
        """The encoder that the file holds."""
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
        """The encoder of the workspace, which must be the one that the header names."""
        encoder = load_main(workspace, device)
        check_same_model(encoder.identity, self.header.model,
                         f"{workspace.encoder or workspace.pretrained} and {self.path}")
        return encoder

    def load(self, workspace: Workspace, settings: groups.GroupSettings) -> RunningSegmenter:
        """Load it onto the device of the settings, ready for photos.

        Args:
            workspace: that of `named`; it also says where the encoder is, unless the file holds it.

        Raises:
            VplError: it is damaged, its encoder is not to be had, or a setting does not fit it.
        """
        device = find_device(settings.device)
        dtype = find_precision(settings.precision, device, console.warn)
        trained = self.trained(workspace, device)
        trained.encoder.vision.to(dtype)
        return RunningNetwork(trained, device)

    def serving_features(self, workspace: Workspace, settings: RunsSegmenter, ids: Sequence[str]
                         ) -> InputFolder | None:
        """Find stored features of a split that can take the place of the photos.

        Raises:
            VplError: they were asked for and cannot; the message says why.
        """
        folder = settings.features or place(workspace.path, "features", settings.split)
        if settings.source == "photos":
            return None
        if not (folder / "artifact.json").exists():
            if settings.source == "features":
                raise VplError(f"`source='features'`: no features in {folder}", "`source='photos'`")
            return None
        features = open_features(workspace, settings.features, settings.split)
        if reason := self._reason_against(features, settings, ids):
            if settings.source == "features":
                raise VplError(f"`source='features'`: {reason}", "`source='photos'`")
            console.note(f"photos are read, since {reason}")
            return None
        check_same_model(features.header.model, self.header.model,
                         f"{features.path} and the decoder")
        return features

    def _reason_against(self, features: InputFolder, settings: RunsSegmenter, ids: Sequence[str]
                        ) -> str:
        """Say why features cannot take the place of the photos; empty if they can."""
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
        """Open the class probabilities that `predict` has stored of a split or folder.

        Args:
            split: name of the split, or of the folder of photos.
            again: the call that stores them, up to its last bracket; default: that for the split.

        Raises:
            VplError: there are none, they are of other classes, or of another segmenter of this
                name.
        """
        name = self.path.stem
        path = place(workspace.path, "probabilities", name, split)
        again = again or f"predict(split={split!r}, decoder={name!r}"
        if not (path / "artifact.json").exists():
            raise VplError(f"there are no probabilities in {path}", f"`{again})`")
        found = formats.open_input(path, ("probabilities",))
        workspace.check_classes(found.header, found.path)
        if not self.has_made(found.header):
            raise VplError(f"{path} is of an earlier {name}", f"`{again}, update=True)`")
        return found


@dataclass(frozen=True)
class BundleFile(SegmenterFile):
    """A segmenter in one file, with all that it needs, as `export` wrote it."""

    role = "segmenter"
    portable = True
    again = "`export('bundle')` writes it again"

    def workspace(self, path: Path) -> Workspace:
        """Make a workspace that exists only in memory, with the bundle's classes."""
        return stand_in_workspace(path, self.header.model, self.classes)

    def calibration(self, work: Path) -> Mapping[str, Any] | None:
        """What was known of it when it was exported."""
        found: Mapping[str, Any] | None = self.header.facts.get("about", {}).get("calibration")
        return found

    def part(self, name: str) -> dict[str, Tensor]:
        """See `SegmenterFile`."""
        return read_part(self.path, name)[1]

    def _named_encoder(self, workspace: Workspace, device: torch.device) -> encoders.Encoder:
        try:
            return super()._named_encoder(workspace, device)
        except VplError as error:
            raise VplError(f"{self.path} only names its encoder: {error.message}",
                           "`export('bundle')` without `clip='identity'` puts it into the file"
                           ) from error


@dataclass(frozen=True)
class GroupsFile(SegmenterFile):
    """Trained groups, which any words can name."""

    maps = ("cams", "group-maps")
    unused = dict.fromkeys(groups.NETWORK_SETTINGS, "groups see photos by windows, in float32")

    @property
    def own_encoder(self) -> bool:
        """They are their own encoder."""
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
        """They have none that could be read here."""
        raise VplError(f"{self.path} holds groups, not a network over the layers of an encoder",
                       "name a decoder of `train_decoder()`")

    def load(self, workspace: Workspace, settings: groups.GroupSettings) -> RunningSegmenter:
        """See `SegmenterFile`."""
        device = find_device(settings.device)
        return groups.GroupSegmenter.of(workspace, self.path, settings, device)

    def serving_features(self, workspace: Workspace, settings: RunsSegmenter, ids: Sequence[str]
                         ) -> InputFolder | None:
        """They read photos."""
        return None


_KINDS: Mapping[str, type[SegmenterFile]] = {
    "decoder": SegmenterFile, "groups": GroupsFile, "bundle": BundleFile}


def open_segmenter(path: Path) -> SegmenterFile:
    """Read the header of a segmenter.

    Raises:
        VplError: the file is none, or only the checkpoint of one.
    """
    found = formats.describe(path).header
    kind = found.kind if found and found.kind in _KINDS else "decoder"
    return _KINDS[kind](path, trained_header(path, kind))


def find_segmenter(work: Path, choice: str) -> SegmenterFile:
    """Open a segmenter given by NAME or path; if none is named, the only one or the furthest.

    Decoders come before groups where none is named.

    Raises:
        VplError: there is none, or there are several.
    """
    decoders, others = (results_of(work, kind) for kind in ("decoder", "groups"))
    if not choice:
        listed = ([path for name in BEST_FIRST for path in decoders if path.stem == name][:1]
                  or decoders or others)
        if len(listed) != 1:
            raise VplError(f"{listed[0].parent} holds several segmenters" if listed else
                           f"no segmenter in {folder_of(work, 'decoder')}",
                           " or ".join(f"`decoder={path.stem!r}`" for path in listed)
                           or "`train_decoder()`, or `train_groups()`")
        return open_segmenter(listed[0])
    here = [path for path in (*decoders, *others) if path.stem == choice]
    if len(here) > 1:
        raise VplError(f"both {here[0]} and {here[1]} are called `{choice}`",
                       f"name one by its path, such as {here[0]}")
    # A checkpoint is no result, but it can be named, and is refused as what it is.
    for path in (*here, place(work, "decoder", choice), Path(choice), work / choice):
        if path.is_file():
            return open_segmenter(path)
    names = [path.stem for path in (*decoders, *others)]
    raise VplError(f"no segmenter called `{choice}`", near_name(choice, names) if names else
                   "`train_decoder()`, or `train_groups()`")


def stand_in_workspace(path: Path, model: Mapping[str, str], classes: Sequence[str] = (), *,
                       pretrained: str = "") -> Workspace:
    """Return a workspace that exists only in memory, around a segmenter that was given away.

    Args:
        path: the folder that outputs go to, and that a relative path of weights is relative to.
        pretrained: its weights; default: those that the identity names.
    """
    encoder = model.get("encoder", "")
    clip = ("", "") if encoder else (model.get("name", ""),
                                     pretrained or model.get("pretrained", ""))
    return Workspace(path, "", "", tuple(classes), (), *clip,
                     encoder=with_weights(encoder, pretrained) if pretrained else encoder,
                     normalise=model.get("normalise", "model"))
