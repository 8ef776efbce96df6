"""Which CLIP is meant, where its weights come from, and whether its tower can be used.

Only names, configurations and the first bytes of files are read, and nothing heavy is imported, so
that `prepare` is fast.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpltool.clip.weights import WeightFile, recognise
from vpltool.errors import VplError, near_name
from vpltool.file_hashes import hashes_of
from vpltool.json_text import JsonObject, parse_json

HUB = "hf-hub:"
"""Prefix of a name on the Hugging Face hub, as in open_clip."""

CONFIG = "open_clip_config.json"

WEIGHT_NAMES = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth", "model.safetensors",
    "pytorch_model.bin", "pytorch_model.pth", "model.pth")
"""File names of a model's weights in its folder or on the hub, best first, as in open_clip."""

Colour = tuple[float, float, float]
Colours = tuple[Colour, Colour]
"""Mean and standard deviation of RGB in [0, 1]."""

IF_MOVED = "; if the workspace was moved, `doctor()` prints the line that repairs it"
"""End of the hint where a file is not there: paths are stored relative to the workspace."""

IMAGENET: Colours = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

INSTEAD = "choose a ViT, such as `model='ViT-B-16-quickgelu', pretrained='openai'`"

TIMM_TOWERS = {
    "convnext": "is a convolutional network", "fastvit": "begins as a convolutional network",
    "vit_base_mci": "begins with convolutions", "vitamin": "begins with convolutions",
    "swin": "attends within windows", "eva": "has EVA's blocks",
    "vit_pe_core": "has rotary positions", "vit_relpos": "has relative positions",
}
"""Why a tower of timm cannot be used, by the first letters of its name."""

BLOCK_SWITCHES = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner",
                  "scale_attn", "scale_fc")
"""Settings of open_clip's CustomResidualAttentionBlock; none of its published models has one."""


def colours_of(mean: Iterable[float], std: Iterable[float]) -> Colours:
    """Return mean and standard deviation of RGB; a ValueError or TypeError if they are none."""
    first, second = ((float(red), float(green), float(blue)) for red, green, blue in (mean, std))
    return first, second


@dataclass(frozen=True)
class ModelSource:
    """Where a CLIP comes from."""

    model: str  # open_clip's name; of a folder or a repository on the hub, its name
    pretrained: str  # as given: a tag, `hf-hub:org/name`, or a path
    form: str  # `tag`, `hub`, `file` or `folder`
    path: Path | None = None  # the file or folder; None for a tag or a repository

    @property
    def names(self) -> dict[str, str]:
        """`name` and `pretrained` as headers have them, without folders."""
        return {"name": self.model,
                "pretrained": self.path.name if self.path else self.pretrained}


def find_source(model: str, pretrained: str, base: Path = Path()) -> ModelSource:
    """Parse the settings `model` and `pretrained`; check files on this machine.

    Args:
        model: open_clip's name such as `ViT-B-16-quickgelu`, or `hf-hub:org/name`; not used if
            `pretrained` is a folder or `hf-hub:org/name`.
        pretrained: a tag (`openai`), `hf-hub:org/name`, a weights file, or a folder with
            `open_clip_config.json`.
        base: folder that a relative path is relative to.

    Raises:
        VplError: there is no such model, file or folder, it holds no weights, or its tower cannot
            be used.
    """
    for given in (model, pretrained):
        if given.startswith("hf:"):
            raise VplError(f"`{given}`: of transformers' models vpltool takes the vision tower, "
                           "not the text", f"`prepare(encoder={given!r})` needs no words")
        if given.startswith(HUB):
            return ModelSource(repository_of(given, HUB, given).split("/")[1], given, "hub")
    path = base / pretrained
    if path.is_dir():
        check_tower(path.name, read_config(path))
        find_weights(path)
        return ModelSource(path.name, pretrained, "folder", path)
    if path.is_file():
        recognise(path)
        _check_name(model)
        return ModelSource(model, pretrained, "file", path)
    if "/" in pretrained or path.suffix in (".pt", ".pth", ".bin", ".safetensors"):
        raise VplError(f"no weights at {path}",
                       "give a tag of open_clip, hf-hub:ORGANISATION/NAME, a weights file, or a "
                       f"folder with open_clip_config.json{IF_MOVED}")
    _check_name(model)
    return ModelSource(model, pretrained, "tag")


def repository_of(given: str, prefix: str, named: str) -> str:
    """Return ORGANISATION/NAME of a name on the Hugging Face hub, after a prefix.

    Raises a VplError, whose message quotes `named`, if it has another form.
    """
    name = given.removeprefix(prefix)
    if name.count("/") != 1 or not all(name.split("/")):
        raise VplError(f"`{named}` is not a name on the hub",
                       f"write it as {prefix}ORGANISATION/NAME")
    return name


def _check_name(model: str) -> None:
    listed = config_files()
    if model not in listed:
        raise VplError(f"open_clip has no model `{model}`", near_name(model, listed))
    check_tower(model, json.loads(listed[model].read_text("utf-8")))


def config_files() -> dict[str, Path]:
    """Map model names to open_clip's configuration files, without importing it (slow)."""
    spec = importlib.util.find_spec("open_clip")
    folders = spec.submodule_search_locations if spec else None
    return {file.stem: file for folder in folders or ()
            for file in (Path(folder) / "model_configs").glob("*.json")}


def read_config(folder: Path) -> JsonObject:
    """Read `model_cfg` from the open_clip_config.json of a model folder.

    Raises a VplError if the file is missing or damaged, or does not describe a model.
    """
    content = read_model_file(folder / CONFIG, f"{WEIGHT_NAMES[0]}, or a weights file")
    config = content.get("model_cfg")
    if not isinstance(config, dict) or "embed_dim" not in config or not all(
            isinstance(config.get(part), dict) for part in ("vision_cfg", "text_cfg")):
        raise VplError(f"{folder / CONFIG} has no model_cfg with embed_dim, vision_cfg and "
                       "text_cfg",
                       "name the model and the weights file: `model='NAME', pretrained='FILE'`")
    return config


def read_model_file(path: Path, beside: str) -> JsonObject:
    """Read a JSON file of a model's folder; return an empty dict if it holds no object.

    Raises a VplError if it is missing or damaged; the hint names what else belongs `beside` it.
    """
    try:
        content = parse_json(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise VplError(f"{path.parent} has no {path.name}",
                       f"give a folder with {path.name} and {beside}") from None
    except (ValueError, OSError) as error:
        raise VplError(f"{path} cannot be read as JSON ({error})", "download it again") from error
    return content if isinstance(content, dict) else {}


def find_weights(folder: Path) -> WeightFile:
    """Find the weights in a model folder; raise a VplError if there are none."""
    for name in WEIGHT_NAMES:
        if (folder / name).is_file():
            return recognise(folder / name)
    raise VplError(f"{folder} has no weights", f"put {WEIGHT_NAMES[0]} next to {CONFIG}")


def weights_identity(source: ModelSource, weights: Path) -> str:
    """Return a hash of a model's file of weights and, if it has one, of its configuration."""
    config = (CONFIG,) if source.form in ("folder", "hub") else ()
    return "-".join(hashes_of(weights.parent, (weights.name, *config)).values())


def local_weights(model: str, pretrained: str, base: Path) -> str:
    """Return `weights_identity` of a file or folder; empty for a download, or if it is missing.

    The arguments are those of `find_source`.
    """
    if not (base / pretrained).exists():
        return ""
    try:
        source = find_source(model, pretrained, base)
        assert source.path is not None
        return weights_identity(source, find_weights(source.path).path
                                if source.form == "folder" else source.path)
    except VplError:
        return ""


def check_tower(name: str, config: Mapping[str, Any]) -> None:
    """Raise a VplError, with the reason, if open_clip's `model_cfg` is of an unusable model."""
    reason = _reason_against(config["vision_cfg"])
    if _asks_for_code(config):
        reason = "its configuration asks to run Python of its own (trust_remote_code)"
    if reason:
        raise VplError(f"{name} cannot be used: {reason}", INSTEAD)
    text = config["text_cfg"]
    if ((text.get("hf_tokenizer_name") or text.get("hf_model_name"))
            and importlib.util.find_spec("transformers") is None):
        raise VplError(f"{name} needs the package transformers for its tokenizer",
                       "pip install transformers sentencepiece")


def _asks_for_code(config: object) -> bool:
    """Return whether `trust_remote_code` is switched on anywhere in a configuration."""
    if isinstance(config, Mapping):
        return bool(config.get("trust_remote_code")) or any(map(_asks_for_code, config.values()))
    return isinstance(config, list) and any(map(_asks_for_code, config))


def _reason_against(vision: Mapping[str, object]) -> str:
    timm = str(vision.get("timm_model_name") or "")
    if timm:
        known = (why for start, why in TIMM_TOWERS.items() if timm.startswith(start))
        siglip = "_siglip_" in timm and vision.get("timm_pool") == "map" and (
            vision.get("timm_proj") == "none")
        return "" if siglip else f"its tower, timm's {timm}, " + next(
            known, "is not supported (of timm's towers, only SigLIP's is)")
    if isinstance(vision.get("layers"), list):
        return "its tower is a ResNet, which has no patch tokens"
    switches = [name for name in BLOCK_SWITCHES if vision.get(name)]
    if switches or vision.get("block_type") not in (None, "default"):
        return f"its blocks are not CLIP's ({', '.join(switches) or vision['block_type']})"
    pool = vision.get("attentional_pool")
    if isinstance(pool, str):
        return f"its tower has two attention poolers ({pool})"
    if not pool and vision.get("pool_type") == "none":
        return "its tower does not pool, so there is no embedding of a photo"
    return ""


_BY_TAG = {
    "openai": "MIT (OpenAI)", "laion": "MIT (LAION)", "datacomp": "MIT (DataComp)",
    "commonpool": "MIT (DataComp)", "webli": "Apache-2.0 (Google)",
    "metaclip": "CC-BY-NC-4.0 (Meta)",
}
"""Beginnings of open_clip's tags to their publishers' licences."""

_BY_NAME = {
    "eupe": "FAIR Noncommercial Research License (Meta)",
    "dinov3": "DINOv3 License (Meta)", "dinov2": "Apache-2.0 (Meta)",
    "lingbot": "Apache-2.0 (Robbyant)", "tipsv2": "Apache-2.0 (Google)",
    "vit_pe_": "Apache-2.0 (Meta)", "radio_v3": "NVIDIA Open Model License",
    "radio_v4": "NVIDIA Open Model License", "augreg": "Apache-2.0 (Google)",
    "aimv2": "Apple Sample Code License", "eva02": "MIT (BAAI)", "siglip": "Apache-2.0 (Google)",
    "sam2_hiera": "Apache-2.0 (Meta)", "samvit": "Apache-2.0 (Meta)",
}
"""Parts of names of timm or transformers to the licence, as timm states it."""

LIBRARIES = {"timm:": "timm", "hf:": "transformers"}
"""Prefixes of encoders' names to `pretrained` in the identity of a download."""


def licence_of(model: Mapping[str, str]) -> str:
    """Return the licence that an encoder's publisher states; empty if unknown.

    `model` is the encoder's identity in headers.
    """
    name, tag = model.get("name", "").lower(), model.get("pretrained", "")
    library = next((name for start, name in LIBRARIES.items()
                    if model.get("name", "").startswith(start)), "")
    if not library:
        return next((licence for start, licence in _BY_TAG.items() if tag.startswith(start)), "")
    found = next((licence for part, licence in _BY_NAME.items() if part in name), "")
    # A file may hold weights that somebody else has trained.
    return f"{found}, if {tag} is the published file" if found and tag and tag != library else found
