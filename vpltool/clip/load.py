"""Loading a CLIP with open_clip: its vision tower is copied into ours, its text tower is kept."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpltool.clip import models, stored_towers
from vpltool.clip.catalogue import check_source, import_open_clip, locate
from vpltool.clip.towers import tower_from_open_clip
from vpltool.clip.weights import read_weights, recognise, without_random_init
from vpltool.core.vit import VisionTower
from vpltool.errors import VplError, first_line, silent

LOSS_PARTS = ("logit_scale", "logit_bias")
"""Parameters of the training loss: stored in any shape, and not used here."""


@dataclass(frozen=True)
class Clip:
    """A frozen dual encoder.

    The identity, for headers, holds `name`, `pretrained`, `fingerprint` and `weights`, and
    `normalise` if it is not the model's own.
    """

    vision: VisionTower  # in evaluation mode
    text: Any  # open_clip's whole model, for `encode_text`
    load_tokenizer: Callable[[], Any]  # loads its tokenizer once; only text needs it
    mean: models.Colour  # mean of RGB in [0, 1], subtracted before encoding
    std: models.Colour  # standard deviation of RGB; photos are divided by it
    identity: dict[str, str]

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Encode prompts as L2-normed vectors (len(prompts), dim), float32.

        Raises a VplError if the tokenizer cannot be loaded.
        """
        device = next(self.text.parameters()).device
        tokenizer = self.load_tokenizer()
        parts = [
            self.text.encode_text(tokenizer(list(prompts[start : start + 256])).to(device))
            for start in range(0, len(prompts), 256)
        ]
        return F.normalize(torch.cat(parts).float(), dim=-1)


def load_clip(model: str, pretrained: str, device: torch.device, *, base: Path = Path(),
              normalise: str = "model") -> Clip:
    """Load a CLIP with all of its weights onto a device; nothing is left at random values.

    For `model`, `pretrained` and `base` see `find_source`, for `normalise` see `normalised`. Raises
    a VplError if there is no such model or weights, the weights are of another model or activation,
    or the tower lacks parts that CAMs need.
    """
    source = models.find_source(model, pretrained, base)
    check_source(source)
    open_clip = import_open_clip()
    name, weights, colours = locate(source)
    made_from = stored_towers.stamps(source, weights)
    hashed = models.weights_identity(source, weights.path)
    state = read_weights(weights)
    with silent(), without_random_init():
        try:
            whole = open_clip.create_model(
                name, load_weights=False, pretrained_text=False, device="cpu", precision="fp32",
                force_preprocess_cfg=colours)
        except (RuntimeError, ValueError, OSError, ImportError, TypeError) as error:
            raise VplError(f"open_clip cannot build {source.model}: {first_line(error)}",
                           "choose another model, or pip install -U open_clip_torch") from error
    _fill(open_clip, whole, state, source, weights.path)
    whole = whole.float().eval().requires_grad_(False)
    with without_random_init():
        vision = tower_from_open_clip(whole.visual)
    own = (tuple(whole.visual.image_mean), tuple(whole.visual.image_std))
    identity = {**source.names, "fingerprint": fingerprint(whole), "weights": hashed}
    stored_towers.write_entry(source, made_from, state, vision, own, identity)
    whole.visual = nn.Identity()
    return Clip(vision.to(device), whole.to(device), _tokenizer_loader(name, source),
                *normalised(own, identity, normalise))


def normalised(own: models.Colours, identity: Mapping[str, str], normalise: str
               ) -> tuple[models.Colour, models.Colour, dict[str, str]]:
    """Return mean and standard deviation of RGB, and the identity, of a model normalised so.

    `normalise` is `model`, with the model's `own` colours, or `imagenet`, as in WeCLIP.
    """
    if normalise == "imagenet":
        return *models.IMAGENET, {**identity, "normalise": normalise}
    return *own, dict(identity)


def _fill(open_clip: ModuleType, whole: Any, state: dict[str, Tensor], source: models.ModelSource,
          path: Path) -> None:
    """Load weights into a model, whose names and shapes they must match."""
    wanted = whole.state_dict()
    if "text.positional_embedding" in wanted:
        # Models with a separate text tower name its weights differently than older files.
        state = open_clip.model.convert_to_custom_text_state_dict(state)
    for name in LOSS_PARTS:
        if name in wanted:
            state[name] = state.get(name, wanted[name]).reshape(wanted[name].shape)
    # Masks and position ids are computed, not learned; some files contain them.
    state = {name: tensor for name, tensor in state.items()
             if name in wanted or not name.endswith(("attn_mask", "position_ids", *LOSS_PARTS))}
    if difference := _difference(state, wanted):
        raise _mismatch(path, source.model, state, difference)
    whole.load_state_dict(state)


def _difference(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Return how the weights differ from the model's; empty if they match."""
    if not any(name.startswith("visual.") for name in state):
        if any(name.startswith("vision_model.") for name in state):
            return "it is in the format of the package transformers, not open_clip's"
        return "it has no vision tower (`visual.`)"
    for name, tensor in wanted.items():
        if name not in state:
            return f"it has no `{name}`"
        if state[name].shape != tensor.shape:
            found, expected = ("×".join(map(str, part.shape)) for part in (state[name], tensor))
            return f"its `{name}` is {found}, the model's {expected}"
    extra = sorted(set(state) - set(wanted))
    return f"the model has no `{extra[0]}`" if extra else ""


_Shape = tuple[int, int, int, int, int]
"""Embedding, blocks, width, positions and patch of a vision tower."""


def _shape_of_state(state: Mapping[str, Tensor]) -> _Shape | None:
    conv, proj = state.get("visual.conv1.weight"), state.get("visual.proj")
    positions = state.get("visual.positional_embedding")
    if conv is None or proj is None or positions is None:
        return None
    depth = len({name.split(".")[3] for name in state
                 if name.startswith("visual.transformer.resblocks.")})
    return proj.shape[1], depth, conv.shape[0], len(positions), conv.shape[-1]


def _shape_of_config(config: Mapping[str, Any]) -> _Shape:
    vision = config["vision_cfg"]
    patch = int(vision.get("patch_size") or 16)
    side = int(vision.get("image_size", 224)) // patch
    return (config["embed_dim"], vision.get("layers"), vision.get("width"), side * side + 1, patch)


def check_weights(source: models.ModelSource) -> None:
    """Check by the shapes that a file holds the vision tower of its model; none is built.

    Raises a VplError if it does not; the hint names the model that it may hold.
    """
    assert source.path is not None
    open_clip = import_open_clip()
    state = read_weights(recognise(source.path))
    found = _shape_of_state(state)
    wanted = _shape_of_config(open_clip.get_model_config(source.model))
    if not any(name.startswith("visual.") for name in state):
        raise _mismatch(source.path, source.model, state, _difference(state, {}))
    if found is not None and found != wanted:
        raise _mismatch(
            source.path, source.model, state,
            "its vision tower has {1} blocks, width {2}, {3} positions, patch {4} and embedding "
            "{0}, ".format(*found) + "the model's {1}, {2}, {3}, {4} and {0}".format(*wanted))


def _mismatch(path: Path, model: str, state: Mapping[str, Tensor], difference: str) -> VplError:
    """Return an error for weights of another model; its hint names models with their shapes."""
    open_clip, shape = import_open_clip(), _shape_of_state(state)
    alike = [name for name in open_clip.list_models() if shape is not None
             and _shape_of_config(open_clip.get_model_config(name)) == shape]
    return VplError(f"{path} does not hold {model}: {difference}",
                    f"its shapes are those of {', '.join(alike[:3])}: `model={alike[0]!r}`" if alike
                    else "give the model of this file: `model='NAME'`")


def _tokenizer_loader(name: str, source: models.ModelSource) -> Callable[[], object]:
    """Return a function that loads a model's tokenizer, from its folder or by open_clip's name."""
    @functools.cache
    def load() -> object:
        open_clip, folder = import_open_clip(), name.removeprefix("local-dir:")
        config = (models.read_config(Path(folder)) if folder != name
                  else open_clip.get_model_config(name))
        text = config.get("text_cfg", {})
        own = "hf_tokenizer_name" in text
        key = json.dumps(text, sort_keys=True)
        if not own and key in _tokenizers:
            return _tokenizers[key]
        # The local folder holds only the weights; open_clip finds the tokenizer on the hub.
        from_hub = source.form == "hub" and bool(text.get("hf_tokenizer_name"))
        try:
            with silent():
                tokenizer = open_clip.get_tokenizer(source.pretrained if from_hub else name)
        # transformers raises many types of errors.
        except Exception as error:
            raise VplError(f"cannot load the tokenizer of {source.model}: {first_line(error)}",
                           "it comes with the package transformers, from the hub, or from the "
                           "model's folder") from None
        if not own:
            _tokenizers[key] = tokenizer
        return tokenizer

    return load


_tokenizers: dict[str, object] = {}
"""CLIP's own tokenizer by settings of the text tower: its 49,152 words take 0.1 s to read."""


def fingerprint(model: nn.Module) -> str:
    """Return a hash of a sample of all weights, for models whose file is not known.

    `weights_identity` distinguishes any two files.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().flatten()[::101].contiguous().float().numpy().tobytes())
    return digest.hexdigest()[:16]
