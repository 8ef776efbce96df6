"""Encoders of timm, run by timm's own code: transformers of any kind, Swin, ConvNeXt."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpltool.clip.catalogue import import_library
from vpltool.clip.weights import without_random_init
from vpltool.core.tower import AdaptedTower, Level, Passed, grid_of
from vpltool.errors import VplError, first_line, silent
from vpltool.json_text import JsonObject

TIMM = "timm:"
"""Prefix of a name of timm."""

INSTEAD = ("`timm:vit_small_patch14_reg4_dinov2.lvd142m` and timm's other transformers, Swin and "
           "ConvNeXt take any size")

_WAYS: tuple[JsonObject, ...] = ({"dynamic_img_size": True}, {})
"""Options of models that take any size; the first that a model knows."""

_FOREIGN = ("pretrained", "checkpoint", "cache", "file", "url")
"""Beginnings of options that would read something else than the weights that are given."""


def check_timm(name: str) -> ModuleType:
    """Return timm; raise a VplError if it has no model of this name, or is not installed."""
    timm = import_library("timm")
    if not timm.is_model(name.partition(".")[0]):
        known = timm.list_models()
        # All of its thousand names are no help.
        near = get_close_matches(name, known, n=1) or ["vit_small_patch14_dinov2.lvd142m"]
        raise VplError(f"timm has no model `{name}`", f"`encoder='{TIMM}{near[0]}'`")
    return timm


def create_timm(name: str, options: Mapping[str, object] | None = None, *,
                pretrained: bool = False, seed: int | None = None) -> tuple[Any, JsonObject]:
    """Build a model of timm without its classifier, frozen and in evaluation mode.

    The default `options` let it take any size; those it was built with are returned too.
    `pretrained` fetches its weights; a `seed` gives random ones, as for training; otherwise they
    are filled in later. Raises a VplError if timm has no such model, or cannot build or load it.
    """
    timm = check_timm(name)
    for given in (options,) if options is not None else _WAYS:
        try:
            if seed is not None:
                torch.manual_seed(seed)
            with silent(), without_random_init() if seed is None else contextlib.nullcontext():
                model = timm.create_model(name, pretrained=pretrained, num_classes=0, **given)
            return model.float().eval().requires_grad_(False), dict(given)
        # Its loaders and the hub's client raise many types of errors.
        except Exception as error:
            if options is None and given and isinstance(error, TypeError):
                continue
            raise VplError(f"timm cannot load {name}: {first_line(error)}",
                           f"without a network, download its weights elsewhere: "
                           f"`encoder='{TIMM}{name},FILE'`") from error
    raise AssertionError("the last way has no options that could be wrong")


def fill_timm(model: nn.Module, state: Mapping[str, Tensor], name: str, where: str) -> None:
    """Load weights into a model of timm, without those of a classifier.

    Weights with their authors' names are renamed by timm's own code. Raises a VplError if names or
    shapes differ.
    """
    wanted = model.state_dict()
    if not set(wanted) <= set(state):
        state = _renamed(model, state, name, where)
    for key, tensor in wanted.items():
        if key not in state or state[key].shape != tensor.shape:
            raise VplError(f"{where} does not hold timm's {name}: its `{key}` is "
                           + ("missing" if key not in state else "of another shape"),
                           "timm's own file of this model is model.safetensors on the hub")
    model.load_state_dict({key: state[key] for key in wanted})


def _renamed(model: nn.Module, state: Mapping[str, Tensor], name: str, where: str
             ) -> Mapping[str, Tensor]:
    """Rename the weights of an authors' own file as timm does; unchanged if it cannot."""
    if "qkvb" not in name and "storage_tokens" in state and any(
            key.endswith("qkv.bias") and bool(tensor.any()) for key, tensor in state.items()):
        raise VplError(f"{where} has biases (`qkv.bias`), timm's {name} has none",
                       f"`encoder='{TIMM}{name.partition('.')[0]}_qkvb,{where}'`")
    patch = "patch_embed.proj.weight"
    own = model.state_dict()
    if patch in state and patch in own and state[patch].shape != own[patch].shape:
        # It would be resampled to another size of patch.
        return state
    rename = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    # It may raise anything for a file of something else.
    with contextlib.suppress(Exception), silent():
        return rename(dict(state), model) if rename else state
    return state


class TimmTower(AdaptedTower):
    """A model of timm, by its `forward_intermediates`."""

    def __init__(self, model: Any, name: str, options: Mapping[str, object]) -> None:
        """Wrap a model of timm in evaluation mode, built with these options.

        Raises a VplError if it gives no patches, or takes photos of one size only.
        """
        levels, tokens = _probe(model, name)
        prefix = int(getattr(model, "num_prefix_tokens", 0)) if tokens else 0
        nn.Module.__init__(self)
        self.model = model
        self.tokens = tokens
        self.config = {"library": "timm", "model": name, "options": dict(options)}
        # The size that it was trained at.
        height, width = getattr(getattr(model, "patch_embed", None), "img_size", None) or (
            model.pretrained_cfg.get("input_size", (3, 224, 224))[1:])
        patch = grid_of(levels)[0]
        self.describe(TIMM + name, levels, prefix, (height // patch, width // patch), False)
        if tokens and self._shows_attention():
            self.able |= {"attention", "attentions"}

    def run(self, pixels: Tensor, levels: Sequence[int], attention_blocks: int) -> Passed:
        """Run the model once; see `AdaptedTower.run`."""
        model: Any = self.model
        last = self.depth - 1
        wanted = sorted({*levels, last})
        with self._watched(attention_blocks) as attentions:
            final, found = model.forward_intermediates(
                pixels, indices=wanted, output_fmt="NLC" if self.tokens else "NCHW")
        if not self.tokens:
            found = [maps.flatten(2).transpose(1, 2) for maps in found]
        outputs = dict(zip(wanted, found, strict=True))
        normed = final[:, -outputs[last].shape[1]:] if self.tokens else outputs[last]
        norm = None if self.tokens else _last_norm(model, self.levels[last].width)
        if norm is not None:
            normed = F.layer_norm(normed, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        return Passed(normed, outputs, attentions)

    @contextlib.contextmanager
    def _watched(self, blocks: int) -> Iterator[list[Tensor]]:
        """Record the attention of the last blocks while the model runs, heads averaged."""
        recorded: list[Tensor] = []
        modules = [block.attn for block in list(getattr(self.model, "blocks", ()))[-blocks:]
                   ] if blocks else []
        fused = [module.fused_attn for module in modules]
        hooks = [module.attn_drop.register_forward_hook(
            lambda _module, _inputs, output: recorded.append(output.mean(dim=1)))
            for module in modules]
        try:
            for module in modules:
                module.fused_attn = False
            yield recorded
        finally:
            for module, before, hook in zip(modules, fused, hooks, strict=True):
                module.fused_attn = before
                hook.remove()

    @torch.no_grad()
    def _shows_attention(self) -> bool:
        """Return whether each block attends to all tokens, in a way that can be recorded."""
        blocks = list(getattr(self.model, "blocks", ()))
        if len(blocks) != self.depth or not all(
                isinstance(getattr(getattr(block, "attn", None), "attn_drop", None), nn.Dropout)
                and hasattr(block.attn, "fused_attn") for block in blocks):
            return False
        found = self.run(self.weight.new_zeros(1, 3, 2 * self.patch, 3 * self.patch), (),
                         self.depth).attentions
        length = 6 + self.prefix
        return [part.shape for part in found] == [(1, length, length)] * self.depth


def described_timm(config: Mapping[str, Any]) -> tuple[
        JsonObject, Callable[[], nn.Module], Callable[[Any], TimmTower]]:
    """Read a file's description of a model of timm.

    Returns the model's options, a function that builds it, and one that makes a tower of it. Raises
    a ValueError if it describes no such model.
    """
    name, options = config.get("model"), config.get("options")
    if not isinstance(name, str) or not isinstance(options, dict) or any(
            key.startswith(_FOREIGN) for key in options):
        raise ValueError(f"{name} with {options} is no model of timm")
    return (options, lambda: create_timm(name, options)[0],
            lambda model: TimmTower(model, name, options))


@torch.no_grad()
def _probe(model: Any, name: str) -> tuple[list[Level], bool]:
    """Return the levels of a model, run on a small photo, and whether they are tokens, not maps."""
    if not hasattr(model, "forward_intermediates"):
        raise VplError(f"timm's {name} does not give the outputs of its layers", INSTEAD)
    strides = [int(entry.get("reduction", 32)) for entry in model.feature_info]
    size = (4 * max(strides), 6 * max(strides))
    pixels = next(model.parameters()).new_zeros(1, 3, *size)
    try:
        _, found = model.forward_intermediates(pixels)
    except (AssertionError, RuntimeError, ValueError, TypeError) as error:
        side = "×".join(map(str, model.pretrained_cfg.get("input_size", "?")[1:]))
        raise VplError(f"timm's {name} takes only photos of {side} pixels "
                       f"({first_line(error)})", INSTEAD) from error
    levels = [Level(maps.shape[1], size[0] // maps.shape[2]) for maps in found]
    if len(levels) != len(strides) or any(
            (maps.shape[2] * level.stride, maps.shape[3] * level.stride) != size
            for maps, level in zip(found, levels, strict=True)):
        raise VplError(f"timm's {name} does not give its layers on grids of square patches",
                       INSTEAD)
    return levels, len(set(levels)) == 1 and _gives_tokens(model, pixels, found[-1])


def _gives_tokens(model: Any, pixels: Tensor, maps: Tensor) -> bool:
    """Return whether a model ends in tokens (B, prefix+n, width), all normed."""
    try:
        final, found = model.forward_intermediates(pixels, indices=1, output_fmt="NLC")
    except (AssertionError, TypeError):
        return False
    patches = maps.shape[2] * maps.shape[3]
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    return (final.shape == (1, prefix + patches, maps.shape[1])
            and found[-1].shape == (1, patches, maps.shape[1]))


def _last_norm(model: object, width: int) -> nn.LayerNorm | None:
    """Return the norm after the last level of a model of maps; None if there is none."""
    parts = [getattr(model, "norm", None), getattr(getattr(model, "head", None), "norm", None)]
    if hasattr(model, "stages"):
        parts.insert(0, getattr(model, "norm_pre", None))
    return next((part for part in parts if isinstance(part, nn.LayerNorm)
                 and tuple(part.normalized_shape) == (width,)), None)
