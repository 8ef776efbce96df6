"""Towers without their model: configurations in bundles, and a cache of towers of open_clip.

Importing open_clip takes longer than encoding a photo. It is needed to build a model, and to check
our copy of its tower against the original (`towers`). An entry of the cache holds the outcome: the
tower's configuration, and which tensor of the weight file is which of the tower's. Weights are not
copied, only tensors computed from them: an entry has some kilobytes, of SigLIP some megabytes. It
is valid only for the very files that it was made from.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vpltool import __version__
from vpltool.clip.models import CONFIG, Colours, ModelSource, colours_of, find_weights
from vpltool.clip.timm_towers import TimmTower, described_timm
from vpltool.clip.transformers_towers import TransformersTower, described_transformers
from vpltool.clip.weights import WeightFile, read_weights, recognise, without_random_init
from vpltool.core.blocks import Block, BlockShape, rebuild
from vpltool.core.tower import Tower
from vpltool.core.vit import Head, Resampling, VisionTower
from vpltool.errors import VplError, first_line, silent
from vpltool.file_hashes import cache_folder, stamp_of
from vpltool.json_text import JsonObject, parse_json

_MOST = 1 << 20
"""Largest number in a configuration: a vocabulary has a quarter of it."""

_SAMPLE = 64
"""Numbers of two tensors that are compared before all are."""

_UNUSABLE = (SafetensorError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError,
             RuntimeError, OSError, VplError)
"""Errors of a damaged entry, and of a folder that cannot be read or written."""

Stamps = list[list[Any]]
"""Path, size, times and inode of each file."""


def tower_config(tower: Tower) -> JsonObject:
    """Return the JSON values that `tower_from_config` needs besides the state dict."""
    if isinstance(tower, (TimmTower, TransformersTower)):
        return tower.config
    assert isinstance(tower, VisionTower)
    norm = tower.ln_pre
    return {"patch": tower.patch, "grid": list(tower.grid), "width": tower.width,
            "blocks": [asdict(block.shape) for block in tower.blocks if isinstance(block, Block)],
            "head": tower.head.config, "by_token": tower.by_token,
            "ln_pre": norm.eps if isinstance(norm, nn.LayerNorm) else None,
            "resampling": asdict(tower.resampling)}


def tower_from_config(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Tower:
    """Rebuild a tower, frozen and in evaluation mode; see `tower_config`.

    Raises a ValueError if the state dict is of another tower, or the values are of none; a VplError
    if the package that runs it is not installed.
    """
    if config.get("library") not in ("timm", "transformers"):
        return _vit_from_config(config, state)
    described = described_timm if config["library"] == "timm" else described_transformers
    values, build, adapt = described(config)
    _check_numbers("", values, len(state))
    state = {key.removeprefix("model."): tensor for key, tensor in state.items()}
    # Checks of a configuration raise many types of errors.
    try:
        with silent(), without_random_init():
            with torch.device("meta"):
                wanted = build().state_dict()
            if {key: tensor.shape for key, tensor in wanted.items()} != {
                    key: tensor.shape for key, tensor in state.items()}:
                raise ValueError(f"the tensors are not those of {config['model']}")
            model = build()
            model.load_state_dict(state)
        return adapt(model.float().eval().requires_grad_(False))
    except Exception as error:
        raise ValueError(first_line(error)) from error


def _check_numbers(name: str, value: object, tensors: int) -> None:
    """Refuse numbers with which a model would take forever to build."""
    most = tensors if any(part in name for part in ("depth", "layers", "stages")) else _MOST
    if isinstance(value, (int, float)) and not abs(value) <= most:
        raise ValueError(f"{name} is {value}, which is more than the file holds")
    if isinstance(value, Mapping):
        for key, part in value.items():
            _check_numbers(str(key), part, tensors)
    elif isinstance(value, (list, tuple)):
        for part in value:
            _check_numbers(name, part, tensors)


def _vit_from_config(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> VisionTower:
    """Rebuild a tower that runs its blocks itself; see `tower_from_config`."""
    def build() -> VisionTower:
        width, eps = config["width"], config["ln_pre"]
        if len(config["blocks"]) > len(state):
            raise TypeError(f"{len(config['blocks'])} blocks are more than the file holds")
        return VisionTower(
            patch=config["patch"], grid=tuple(config["grid"]), width=width,
            blocks=[Block(BlockShape(**shape)) for shape in config["blocks"]],
            head=Head.from_config(config["head"]), by_token=config["by_token"],
            ln_pre=nn.Identity() if eps is None else nn.LayerNorm(width, eps=eps),
            resampling=Resampling(**config["resampling"]))

    with without_random_init():
        tower = rebuild(build, state)
    return tower.eval().requires_grad_(False)


def stamps(source: ModelSource, weights: WeightFile) -> Stamps:
    """Return the stamps of the files that a tower is made from, its weights first."""
    files = [weights.path]
    if source.form in ("folder", "hub"):
        files.append(weights.path.with_name(CONFIG))
    if weights.path.parent.parent.name == "snapshots":
        # The hub's client keeps old revisions; this file names the current one.
        files.append(weights.path.parents[2] / "refs" / "main")
    return [_stamp(file) for file in files]


def _stamp(path: Path) -> list[Any]:
    """Return a file's stamp; if it is missing, its path alone."""
    try:
        return [str(path.absolute()), *stamp_of(path)]
    except OSError:
        return [str(path.absolute())]


def write_entry(source: ModelSource, made_from: Stamps, state: Mapping[str, Tensor],
                tower: VisionTower, colours: Colours, identity: Mapping[str, str]) -> None:
    """Remember how a tower was made from the tensors of its weights.

    `made_from` are `stamps` from before the files were read; nothing is written if they have
    changed, or if the folder cannot be written. The tower was found equal to open_clip's.
    """
    path = _entry(source)
    if path is None:
        return
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        if made_from != [_stamp(Path(name)) for name, *_ in made_from]:
            return
        names, computed = _match(tower.state_dict(), state)
        content = {"files": made_from, "config": tower_config(tower), "names": names,
                   "colours": colours, "identity": dict(identity)}
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_vanished(path.parent)
        save_file(computed, part, {"tower": json.dumps(content)})
        part.replace(path)
    except _UNUSABLE:
        with contextlib.suppress(OSError):
            part.unlink()


def read_entry(source: ModelSource) -> tuple[VisionTower, Colours, dict[str, str]] | None:
    """Rebuild a tower from its cache entry; None if there is none, or if a file has changed.

    Returns the tower, frozen and in evaluation mode; mean and standard deviation of RGB; and the
    model's identity.
    """
    try:
        path = _entry(source)
        if path is None:
            return None
        with safe_open(path, "pt") as file:
            content = _content(file)
            # Fresh memory: the alignment of a file's tensors may change a product's last bits.
            state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        # For a folder or file, its weights of today; for a download, the remembered file.
        weights = (find_weights(source.path) if source.path and source.form == "folder"
                   else recognise(source.path or Path(content["files"][0][0])))
        names = {str(ours): str(theirs) for ours, theirs in content["names"].items()}
        held = read_weights(weights, set(names.values()))
        state |= {ours: held[theirs].float().clone() for ours, theirs in names.items()}
        if content["files"] != stamps(source, weights):
            return None
        tower = _vit_from_config(content["config"], state)
        identity = {str(name): str(value) for name, value in content["identity"].items()}
        return tower, colours_of(*content["colours"]), identity
    except _UNUSABLE:
        return None


def _content(file: Any) -> JsonObject:
    """Return the values of an open entry besides its tensors."""
    return dict(parse_json(file.metadata()["tower"]))


def _drop_vanished(folder: Path) -> None:
    """Delete the entries of weights that no longer exist."""
    for path in folder.glob("*.safetensors"):
        with contextlib.suppress(*_UNUSABLE):
            with safe_open(path, "pt") as file:
                weights = Path(_content(file)["files"][0][0])
            if not weights.exists():
                path.unlink()


def _entry(source: ModelSource) -> Path | None:
    """Return the file of a model's entry; it depends on the versions of all that makes a tower."""
    folder = cache_folder()
    if folder is None:
        return None
    # A checkout changes the code that makes towers without a new version.
    code = b"".join(Path(__file__).with_name(name).read_bytes()
                    for name in ("towers.py", "stored_towers.py"))
    versions = [__version__, torch.__version__, hashlib.sha256(code).hexdigest()]
    for package in ("open_clip_torch", "timm"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(importlib.metadata.version(package))
    where = str(source.path.absolute()) if source.path else ""
    key = json.dumps([versions, source.model, source.pretrained, source.form, where])
    return folder / "towers" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"


def _match(tower: Mapping[str, Tensor], state: Mapping[str, Tensor]
           ) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the tower's names to those in its weights, and tensors that were computed."""
    names, computed = {}, {}
    for ours, tensor in tower.items():
        found = next((theirs for theirs, other in state.items() if _is_same(tensor, other)), None)
        if found is None:
            computed[ours] = tensor.contiguous()
        else:
            names[ours] = found
    return names, computed


def _is_same(tensor: Tensor, other: Tensor) -> bool:
    """Return whether two tensors hold the same numbers; compare the first few first."""
    if tensor.shape != other.shape:
        return False
    ours, theirs = tensor.flatten(), other.flatten()
    return (torch.equal(ours[:_SAMPLE], theirs[:_SAMPLE].float())
            and torch.equal(ours, theirs.float()))
