"""Loading vision encoders: the CLIP's own tower, or a second one of a CLIP, of timm, or of DINO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vpltool.clip import tower_cache
from vpltool.clip.catalogue import import_timm
from vpltool.clip.load import NORMALISATIONS, fingerprint, load_clip, normalised
from vpltool.clip.models import HUB, find_source, find_weights
from vpltool.clip.state_towers import is_state_of_vit, tower_from_state, tower_from_timm
from vpltool.clip.weights import read_weights, recognise, without_random_init
from vpltool.core.vit import VisionTower
from vpltool.errors import VplError, first_line, near_name, silent

TIMM = "timm:"
"""Prefix of a name of timm."""

FORMS = ("a file of DINO's or DINOv2's weights, `encoder='timm:MODEL'`, or a CLIP of open_clip, "
         "`encoder='MODEL:PRETRAINED'`")


@dataclass(frozen=True)
class EncoderSource:
    """Where an encoder comes from.

    Args:
        form: `state` (a file with the names of DINO's code), `timm`, or `clip`.
        model: name in timm or open_clip; empty for a state, and a folder or repository.
        pretrained: tag or repository, where there is no path.
        path: weights file, or open_clip's folder; None for a download.
    """

    form: str
    model: str = ""
    pretrained: str = ""
    path: Path | None = None

    @property
    def weights(self) -> Path | None:
        """The file that holds the weights; None for a download."""
        if self.path is None or self.path.is_file():
            return self.path
        return find_weights(self.path).path

    def setting(self, path: str) -> str:
        """The setting `encoder` that means this source, with another spelling of its path."""
        what = path if self.path else self.pretrained
        if self.form == "timm":
            return TIMM + ",".join(filter(None, (self.model, what)))
        return ":".join(filter(None, (self.model, what)))


@dataclass(frozen=True)
class Encoder:
    """A frozen vision encoder.

    Args:
        vision: its tower, in evaluation mode.
        mean: mean of RGB in [0, 1], subtracted before encoding.
        std: standard deviation of RGB; photos are divided by it.
        identity: `name`, `pretrained` and `fingerprint`; goes into headers.
    """

    vision: VisionTower
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    identity: dict[str, str]


def load_vision(model: str, pretrained: str, device: torch.device, *, base: Path = Path(),
                normalise: str = "model") -> Encoder:
    """Load the vision tower of a CLIP; of a model that was loaded before, without open_clip.

    The arguments are those of `load_clip`.

    Raises:
        VplError: as `load_clip`.
    """
    known = tower_cache.read_entry(find_source(model, pretrained, base))
    if known is None:
        clip = load_clip(model, pretrained, device, base=base, normalise=normalise)
        return Encoder(clip.vision, clip.mean, clip.std, clip.identity)
    vision, colours, identity = known
    return Encoder(vision.to(device), *normalised(colours, identity, normalise))


def find_encoder(given: str, folders: Sequence[Path]) -> EncoderSource:
    """Tell what the setting `encoder` means; only names and files are looked at.

    Args:
        given: `FILE`, `FOLDER`, `timm:MODEL[,FILE]`, `MODEL:PRETRAINED`, or `hf-hub:org/name`.
        folders: that a relative path may be relative to, the first where it exists.

    Raises:
        VplError: it is none of these, or there is no such file.
    """
    def find(path: str) -> Path | None:
        return next((folder / path for folder in folders if path and (folder / path).exists()),
                    None)

    if given.startswith(TIMM):
        model, _, file = given.removeprefix(TIMM).partition(",")
        path = find(file)
        if file and path is None:
            raise VplError(f"`encoder={given!r}`: there is no {file}", "check the path")
        return EncoderSource("timm", model, path=path)
    path = find(given)
    if path is not None:
        return EncoderSource("clip" if path.is_dir() else "state", path=path)
    if given.startswith(HUB):
        return EncoderSource("clip", pretrained=given)
    model, colon, pretrained = given.partition(":")
    if not colon or not pretrained:
        raise VplError(f"`encoder={given!r}`: no such file, and not of the form MODEL:PRETRAINED",
                       f"give {FORMS}")
    return EncoderSource("clip", model, pretrained, find(pretrained))


def load_encoder(source: EncoderSource, device: torch.device) -> Encoder:
    """Load an encoder with all of its weights.

    Raises:
        VplError: there is no such model or weights, or its tower cannot be used.
    """
    if source.form == "clip":
        return load_vision(source.model, str(source.path or source.pretrained), device)
    file = source.path or Path()
    load = _load_timm if source.form == "timm" else _load_state
    with without_random_init():
        vision, colours = load(source)
    identity = {"name": TIMM + source.model if source.model else file.stem,
                "pretrained": file.name or "timm", "fingerprint": fingerprint(vision)}
    return Encoder(vision.to(device), *colours, identity)


_Loaded = tuple[VisionTower, tuple[Any, Any]]


def _load_state(source: EncoderSource) -> _Loaded:
    assert source.path is not None
    state = read_weights(recognise(source.path))
    if not is_state_of_vit(state):
        raise VplError(f"{source.path} {_other_format(state)}", f"give {FORMS}")
    return tower_from_state(state, str(source.path)), NORMALISATIONS["imagenet"]


def _other_format(state: Mapping[str, Tensor]) -> str:
    if any(name.startswith("visual.") for name in state):
        return "holds a CLIP, and does not say which"
    if any(name.startswith(("encoder.layer.", "vision_model.")) for name in state):
        return "is in the format of the package transformers, not DINO's own"
    return f"has no tensors with DINO's names, but `{next(iter(state))}`"


def _load_timm(source: EncoderSource) -> _Loaded:
    timm = import_timm()
    if not timm.is_model(source.model.partition(".")[0]):
        raise VplError(f"timm has no model `{source.model}`",
                       near_name(source.model, timm.list_models()))
    try:
        with silent():
            model = timm.create_model(source.model, pretrained=source.path is None, num_classes=0)
    # Its loaders and the hub's client raise many types of errors.
    except Exception as error:
        raise VplError(f"timm cannot load {source.model}: {first_line(error)}",
                       f"without a network, download its weights elsewhere: "
                       f"`encoder='{TIMM}{source.model},FILE'`") from error
    model = model.float().eval().requires_grad_(False)
    if source.path is not None:
        _fill(model, read_weights(recognise(source.path)), source)
    colours = (tuple(model.pretrained_cfg["mean"]), tuple(model.pretrained_cfg["std"]))
    return tower_from_timm(model, f"{TIMM}{source.model}"), colours


def _fill(model: torch.nn.Module, state: dict[str, Tensor], source: EncoderSource) -> None:
    """Load weights into a model of timm; those of a classifier are left out.

    Raises:
        VplError: names or shapes differ.
    """
    wanted = model.state_dict()
    for name, tensor in wanted.items():
        if name not in state or state[name].shape != tensor.shape:
            raise VplError(f"{source.path} does not hold timm's {source.model}: its `{name}` is "
                           + ("missing" if name not in state else "of another shape"),
                           "timm's own file of this model is model.safetensors on the hub")
    model.load_state_dict({name: state[name] for name in wanted})
