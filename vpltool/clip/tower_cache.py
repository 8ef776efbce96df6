"""A cache of how vision towers are made from weight files: open_clip is imported once a model.

Importing open_clip takes longer than encoding a photo. It is needed to build a model, and to check
that our copy of its tower gives what the original gives (`towers`). An entry holds the outcome:
the tower's configuration, and which tensor of the weight file is which of the tower's. Weights are
not copied: an entry has some kilobytes, and is good only for the very files that it was made from.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vpltool import __version__
from vpltool.clip.models import CONFIG, ModelSource
from vpltool.clip.stored_towers import tower_config, tower_from_config
from vpltool.clip.weights import WeightFile, read_weights, recognise
from vpltool.core.vit import VisionTower
from vpltool.errors import VplError
from vpltool.json_text import parse_json

FOLDER = "VPLTOOL_CACHE"
"""Environment variable with the folder of the cache; empty: there is none."""

_SAMPLE = 64
"""Numbers of two tensors that are compared before all are."""

_DAMAGED = (SafetensorError, ValueError, KeyError, TypeError, AttributeError, LookupError,
            RuntimeError)
"""What a damaged entry raises."""

Colour = tuple[float, float, float]
Colours = tuple[Colour, Colour]
"""Mean and standard deviation of RGB in [0, 1]."""


def cache_folder() -> Path | None:
    """The folder of the cache, `~/.cache/vpltool` unless the environment names another."""
    chosen = os.environ.get(FOLDER)
    if chosen is not None:
        return Path(chosen).expanduser() if chosen else None
    with contextlib.suppress(RuntimeError):
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vpltool"
    return None


def write_entry(source: ModelSource, weights: WeightFile, state: Mapping[str, Tensor],
                tower: VisionTower, colours: Colours, identity: Mapping[str, str]) -> None:
    """Remember how a tower was made; nothing happens where the folder cannot be written.

    Args:
        source: the model.
        weights: the file that the state was read from.
        state: its tensors.
        tower: made from it, and found equal to open_clip's.
        colours: how photos are normalised.
        identity: of the model, for headers.
    """
    path = _entry(source)
    if path is None:
        return
    names, computed = _match(tower.state_dict(), state)
    content = {"files": [_stamp(file) for file in _files(source, weights.path)],
               "config": tower_config(tower), "names": names, "colours": colours,
               "identity": dict(identity)}
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_vanished(path.parent)
        save_file(computed, part, {"tower": json.dumps(content)})
        part.replace(path)
    except (OSError, SafetensorError):
        with contextlib.suppress(OSError):
            part.unlink()


def read_entry(source: ModelSource) -> tuple[VisionTower, Colours, dict[str, str]] | None:
    """Make a tower as it was made before; None if it was not, or if a file is another one now.

    Returns:
        the tower, frozen and in evaluation mode; mean and standard deviation of RGB; the model's
        identity.
    """
    path = _entry(source)
    if path is None or not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            content = _content(file)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if content["files"] != [_stamp(Path(name)) for name, *_ in content["files"]]:
            return None
        names = {str(ours): str(theirs) for ours, theirs in content["names"].items()}
        weights = read_weights(recognise(Path(content["files"][0][0])), set(names.values()))
        mean, std = (tuple(map(float, colour)) for colour in content["colours"])
        # Fresh memory: how a file's tensors are aligned may change the last bits of a product.
        state |= {ours: weights[theirs].float().clone() for ours, theirs in names.items()}
        tower = tower_from_config(content["config"], state)
        identity = {str(name): str(value) for name, value in content["identity"].items()}
    except (*_DAMAGED, OSError, VplError):
        return None
    return tower, ((mean[0], mean[1], mean[2]), (std[0], std[1], std[2])), identity


def _content(file: Any) -> dict[str, Any]:
    """What an open entry says in addition to its tensors."""
    content = parse_json(file.metadata()["tower"])
    return dict(content)


def _drop_vanished(folder: Path) -> None:
    """Delete the entries of weights that are no longer there."""
    for path in folder.glob("*.safetensors"):
        with contextlib.suppress(*_DAMAGED, OSError):
            with safe_open(path, "pt") as file:
                weights = Path(_content(file)["files"][0][0])
            if not weights.exists():
                path.unlink()


def _entry(source: ModelSource) -> Path | None:
    """The file of a model's entry; a new vpltool or open_clip makes a new one."""
    folder = cache_folder()
    if folder is None:
        return None
    versions = [__version__, torch.__version__]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions.append(importlib.metadata.version("open_clip_torch"))
    where = str(source.path.absolute()) if source.path else ""
    key = json.dumps([versions, source.model, source.pretrained, source.form, where])
    return folder / "towers" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"


def _files(source: ModelSource, weights: Path) -> list[Path]:
    """The files that a tower is made from, its weights first."""
    config = weights.with_name(CONFIG)
    return [weights, config] if source.form in ("folder", "hub") else [weights]


def _stamp(path: Path) -> list[Any]:
    """What changes with a file's content: its path, bytes, and time of change."""
    found = path.stat()
    return [str(path.absolute()), found.st_size, found.st_mtime_ns]


def _match(tower: Mapping[str, Tensor], state: Mapping[str, Tensor]
           ) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Find the tensors of a tower in the state that it was made from.

    Returns:
        name in the tower to name in the state; the tensors that are not in it, since they were
        computed.
    """
    names, computed = {}, {}
    for ours, tensor in tower.items():
        found = next((theirs for theirs, other in state.items() if _is_same(tensor, other)), None)
        if found is None:
            computed[ours] = tensor.contiguous()
        else:
            names[ours] = found
    return names, computed


def _is_same(tensor: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors hold the same numbers; the first few tell most apart."""
    if tensor.shape != other.shape:
        return False
    ours, theirs = tensor.flatten(), other.flatten()
    return (torch.equal(ours[:_SAMPLE], theirs[:_SAMPLE].float())
            and torch.equal(ours, theirs.float()))
