"""Encoders of the package transformers, run by its own code: DINOv2 and 3, CLIP, SigLIP, TIPSv2.

Only classes that are named here are built: no Python code comes from a repository, and weights are
read from safetensors alone.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vpltool.clip.catalogue import fetch_file, import_library
from vpltool.clip.models import IMAGENET, Colours, colours_of, read_model_file
from vpltool.core.tower import AdaptedTower, Level, Passed, grid_of
from vpltool.errors import VplError, first_line, near_name, silent
from vpltool.json_text import JsonObject

HF = "hf:"
"""Prefix of a repository on the Hugging Face hub in the form of transformers."""

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
"""Names of the weights in a folder or repository; the second lists several files."""

_COLOURS = ("preprocessor_config.json", "processor_config.json")
"""Files that give the mean and standard deviation of RGB."""

_OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@dataclass(frozen=True)
class Family:
    """A vision model of transformers."""

    name: str  # of its classes, `NAMEConfig` and `NAMEModel`
    colours: Colours = IMAGENET  # mean and standard deviation of RGB, if no file gives them
    resampled: bool = False  # whether it must be asked to resample its positions
    norm: str = ""  # name of the norm that its last hidden state lacks; empty: none
    packed: bool = False  # whether it takes patches instead of pixels


FAMILIES = {
    "dinov2": Family("Dinov2"),
    "dinov2_with_registers": Family("Dinov2WithRegisters"),
    "dinov3_vit": Family("DINOv3ViT"),
    "dinov3_convnext": Family("DINOv3ConvNext"),
    "vit": Family("ViT", _HALF, resampled=True),
    "ijepa": Family("IJepa", resampled=True),
    "clip_vision_model": Family("CLIPVision", _OPENAI, True, "post_layernorm"),
    "metaclip_2_vision_model": Family("MetaClip2Vision", _OPENAI, True, "post_layernorm"),
    "siglip_vision_model": Family("SiglipVision", _HALF, resampled=True),
    "siglip2_vision_model": Family("Siglip2Vision", _HALF, packed=True),
    "tipsv2_vision_model": Family("Tipsv2Vision", _PLAIN),
}
"""`model_type` of config.json to its family."""

WHOLE = {"clip": "clip_vision_model", "metaclip_2": "metaclip_2_vision_model",
         "siglip": "siglip_vision_model", "siglip2": "siglip2_vision_model",
         "tipsv2": "tipsv2_vision_model"}
"""Models with a text tower to the `model_type` of their vision tower."""

_LEFT_OUT = ("_", "auto_map", "quantization_config", "attn_implementation", "transformers_version",
             "architectures", "torch_dtype", "dtype", "out_", "stage_names")
"""Beginnings of entries of a configuration that name code, or how it is to be run."""


def fetch_folder(repository: str) -> Path:
    """Return the folder of a repository on this machine, after downloading what is missing.

    Raises a VplError without a network, or if there is no such repository, or it has another form.
    """
    hint = (f"without a network: download {CONFIG} and {WEIGHTS[0]} from "
            f"https://huggingface.co/{repository} into a folder, and give that")
    folder = fetch_file(repository, (CONFIG,), hint).parent
    weights = fetch_file(repository, WEIGHTS, hint)
    if weights.suffix == ".json":
        parts = read_model_file(weights, WEIGHTS[0]).get("weight_map", {})
        for name in sorted({str(part) for part in parts.values()}):
            fetch_file(repository, (name,), hint)
    # Not every repository has one.
    with contextlib.suppress(VplError):
        fetch_file(repository, _COLOURS, hint)
    return folder


def load_folder(folder: Path, name: str) -> tuple[TransformersTower, Colours]:
    """Load the vision tower of a folder with `config.json` and `model.safetensors`.

    Returns the tower, which messages call `name`, with mean and standard deviation of RGB. Raises a
    VplError if the model is of no known family, or the weights are of another one.
    """
    kind, values = _vision_values(folder / CONFIG)
    weights = next((folder / file for file in WEIGHTS if (folder / file).is_file()), None)
    if weights is None:
        raise VplError(f"{folder} has no {WEIGHTS[0]}", f"put {WEIGHTS[0]} next to {CONFIG}")
    config, model_class = _classes(kind)
    try:
        with silent():
            model, found = model_class.from_pretrained(
                folder, config=config.from_dict(values), local_files_only=True,
                use_safetensors=True, dtype=torch.float32, output_loading_info=True)
    # Its readers raise many types of errors.
    except Exception as error:
        raise VplError(f"transformers cannot load {folder}: {first_line(error)}",
                       "pip install -U transformers, or download the files again") from error
    missing = sorted({*found["missing_keys"], *(entry[0] for entry in found["mismatched_keys"])})
    missing = [key for key in missing if not key.startswith(("head.", "pooler."))]
    if missing:
        raise VplError(f"{weights} does not hold the model of {CONFIG}: its `{missing[0]}` is "
                       "missing, or of another shape", "download both files again")
    return TransformersTower(model.eval().requires_grad_(False), kind, values, name), _colours(
        folder, FAMILIES[kind])


class TransformersTower(AdaptedTower):
    """A vision model of transformers."""

    def __init__(self, model: object, kind: str, values: Mapping[str, object], name: str) -> None:
        """Wrap a model in evaluation mode; raise a VplError if it takes photos of one size only.

        `kind` is its `model_type`, `values` are those of its configuration; `name` is for messages.
        """
        nn.Module.__init__(self)
        self.model = model
        self.family = FAMILIES[kind]
        self.config: JsonObject = {
            "library": "transformers", "model": kind, "name": name, "values": dict(values)}
        levels, prefix = self._probe(name)
        size = values.get("image_size") or 224
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        attention = levels[0].stride == levels[-1].stride
        side = grid_of(levels)[0]
        self.describe(name, levels, prefix, (height // side, width // side), attention)

    def run(self, pixels: Tensor, levels: Sequence[int], attention_blocks: int) -> Passed:
        """Run the model once; see `AdaptedTower.run`."""
        outputs: dict[int, Tensor] = {}
        last, attentions = self._pass(pixels, outputs, set(levels), bool(attention_blocks))
        return Passed(last[:, self.prefix:], {
            index: tokens[:, self.prefix:] if tokens.ndim == 3
            else tokens.flatten(2).transpose(1, 2) for index, tokens in outputs.items()},
            [part.mean(dim=1) for part in attentions[-attention_blocks:]] if attention_blocks
            else [])

    def _pass(self, pixels: Tensor, outputs: dict[int, Tensor], levels: set[int] | None,
              attention: bool) -> tuple[Tensor, Sequence[Tensor]]:
        """Run the model, and collect the outputs of levels; None: of all."""
        def note(index: int) -> Any:
            def hook(_module: nn.Module, _inputs: object, output: Any) -> None:
                outputs[index] = output[0] if isinstance(output, tuple) else output
            return hook

        model: Any = self.model
        hooks = [layer.register_forward_hook(note(index))
                 for index, layer in enumerate(_layers(model))
                 if levels is None or index in levels]
        usual = model.config._attn_implementation
        try:
            if attention:
                model.set_attn_implementation("eager")
            found = model(**self._given(pixels), output_attentions=attention, return_dict=True)
        finally:
            if attention:
                model.set_attn_implementation(usual)
            for hook in hooks:
                hook.remove()
        last = found.last_hidden_state
        if self.family.norm:
            last = getattr(model, self.family.norm)(last)
        return last, found.attentions if attention else ()

    def _given(self, pixels: Tensor) -> JsonObject:
        """Return the model's arguments for photos (B, 3, H, W)."""
        if not self.family.packed:
            return {"pixel_values": pixels,
                    **({"interpolate_pos_encoding": True} if self.family.resampled else {})}
        side = int(self.config["values"].get("patch_size", 16))
        grid = (pixels.shape[2] // side, pixels.shape[3] // side)
        # Patches as rows; in each, the colours of a pixel side by side.
        patches = pixels.unflatten(3, (grid[1], side)).unflatten(2, (grid[0], side)).permute(
            0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        return {"pixel_values": patches,
                "pixel_attention_mask": patches.new_ones(patches.shape[:2], dtype=torch.long),
                "spatial_shapes": torch.tensor([grid] * len(pixels), device=pixels.device)}

    @torch.no_grad()
    def _probe(self, name: str) -> tuple[list[Level], int]:
        """Return the model's levels, and the number of tokens before patches, on a small photo."""
        values: Any = self.config["values"]
        side = values.get("patch_size") or 32
        side = side[0] if isinstance(side, (list, tuple)) else int(side)
        size = (2 * side, 3 * side)
        outputs: dict[int, Tensor] = {}
        try:
            last, _ = self._pass(self.weight.new_zeros(1, 3, *size), outputs, None, False)
        except (RuntimeError, ValueError, TypeError) as error:
            raise VplError(f"{name} takes only photos of one size ({first_line(error)})",
                           "a model with `interpolate_pos_encoding` takes any size") from error
        found = [outputs[index] for index in sorted(outputs)]
        prefix = last.shape[1] - 6
        return [Level(tokens.shape[-1], side) if tokens.ndim == 3
                else Level(tokens.shape[1], size[0] // tokens.shape[2]) for tokens in found], prefix


def described_transformers(config: Mapping[str, Any]) -> tuple[
        JsonObject, Callable[[], nn.Module], Callable[[Any], TransformersTower]]:
    """Read a file's description of a model of transformers.

    Returns the values of its configuration, a function that builds it, and one that makes a tower
    of it. Raises a ValueError if it describes no such model, a VplError if transformers is not
    installed or lacks the model.
    """
    kind, name, values = (config.get(key) for key in ("model", "name", "values"))
    if kind not in FAMILIES or not isinstance(values, dict) or not isinstance(name, str):
        raise ValueError(f"{kind} is no vision model of transformers")
    own = _clean(values)
    config_class, model_class = _classes(kind)
    return (own, lambda: model_class._from_config(config_class.from_dict(own), dtype=torch.float32),
            lambda model: TransformersTower(model, kind, own, name))


def _classes(kind: str) -> tuple[Any, Any]:
    transformers = import_library("transformers")
    name = FAMILIES[kind].name
    try:
        return getattr(transformers, f"{name}Config"), getattr(transformers, f"{name}Model")
    except (AttributeError, ImportError):
        raise VplError(f"transformers {transformers.__version__} has no {name}Model",
                       "pip install -U transformers") from None


def _vision_values(path: Path) -> tuple[str, JsonObject]:
    """Return `model_type` and values of the vision tower that a config.json describes."""
    content = read_model_file(path, WEIGHTS[0])
    kind = str(content.get("model_type"))
    if kind in WHOLE:
        content = {**(content.get("vision_config") or {})}
        kind = WHOLE[kind]
    if kind not in FAMILIES:
        raise VplError(f"{path}: vpltool does not know the vision models of `{kind}`",
                       near_name(kind, [*FAMILIES, *WHOLE]))
    return kind, _clean(content)


def _clean(content: Mapping[str, object]) -> JsonObject:
    return {key: value for key, value in content.items()
            if not key.startswith(_LEFT_OUT) and key not in ("model_type", "name_or_path")}


def _layers(model: nn.Module) -> nn.ModuleList:
    """Return the blocks or stages of a model: its outermost list of modules."""
    lists = [(name.count("."), module) for name, module in model.named_modules()
             if isinstance(module, nn.ModuleList)]
    return min(lists, key=lambda entry: entry[0])[1]


def _colours(folder: Path, family: Family) -> Colours:
    """Return mean and standard deviation of RGB, of the folder or otherwise the family."""
    path = next((folder / name for name in _COLOURS if (folder / name).is_file()), None)
    if path is None:
        return family.colours
    content = read_model_file(path, WEIGHTS[0])
    content = content.get("image_processor", content)
    if content.get("do_normalize") is False:
        return _PLAIN
    mean, std = content.get("image_mean"), content.get("image_std")
    try:
        return colours_of(mean, std) if mean else family.colours
    except (TypeError, ValueError):
        raise VplError(f"{path}: image_mean {json.dumps(mean)} and image_std {json.dumps(std)} "
                       "are not of RGB", "download it again") from None
