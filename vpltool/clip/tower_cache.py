"""A cache of how vision towers are made from weight files: open_clip is imported once a model.

Importing open_clip takes longer than encoding a photo. It is needed to build a model, and to check
that our copy of its tower gives what the original gives (`towers`). An entry holds the outcome:
the tower's configuration, and which tensor of the weight file is which of the tower's. Weights are
not copied, only what is computed from them: an entry has some kilobytes, of SigLIP some megabytes.
It is good only for the very files that it was made from.
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
from vpltool.clip.models import CONFIG, ModelSource, find_weights
from vpltool.clip.stored_towers import tower_config, vit_from_config
from vpltool.clip.weights import WeightFile, read_weights, recognise
from vpltool.core.vit import VisionTower
from vpltool.errors import VplError
from vpltool.file_hashes import cache_folder, stamp_of
from vpltool.json_text import JsonObject, parse_json

_SAMPLE = 64
"""Numbers of two tensors that are compared before all are."""

_UNUSABLE = (SafetensorError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError,
             RuntimeError, OSError, VplError)
"""What a damaged entry raises, and a folder that cannot be read or written."""

Colour = tuple[float, float, float]
Colours = tuple[Colour, Colour]
"""Mean and standard deviation of RGB in [0, 1]."""

Stamps = list[list[Any]]
"""Of each file: what changes with its content."""


def stamps(source: ModelSource, weights: WeightFile) -> Stamps:
    """Path, size, times and inode of the files that a tower is made from, its weights first."""
    files = [weights.path]
    if source.form in ("folder", "hub"):
        files.append(weights.path.with_name(CONFIG))
    if weights.path.parent.parent.name == "snapshots":
        # The hub's client keeps old revisions beside the one that it would take now.
        files.append(weights.path.parents[2] / "refs" / "main")
    return [_stamp(file) for file in files]


def write_entry(source: ModelSource, made_from: Stamps, state: Mapping[str, Tensor],
                tower: VisionTower, colours: Colours, identity: Mapping[str, str]) -> None:
    """Remember how a tower was made; nothing happens where the folder cannot be written.

    Args:
        source: the model.
        made_from: `stamps` from before its files were read; nothing is written if they are others
            now.
        state: the tensors of the weights.
        tower: made from it, and found equal to open_clip's.
        colours: how photos are normalised.
        identity: of the model, for headers.
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

    Returns:
        the tower, frozen and in evaluation mode; mean and standard deviation of RGB; the model's
        identity.
    """
    try:
        path = _entry(source)
        if path is None:
            return None
        with safe_open(path, "pt") as file:
            content = _content(file)
            # Fresh memory: how a file's tensors are aligned may change a product's last bits.
            state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        file_now = _weights_now(source, Path(content["files"][0][0]))
        names = {str(ours): str(theirs) for ours, theirs in content["names"].items()}
        weights = read_weights(file_now, set(names.values()))
        state |= {ours: weights[theirs].float().clone() for ours, theirs in names.items()}
        if content["files"] != stamps(source, file_now):
            return None
        tower = vit_from_config(content["config"], state)
        identity = {str(name): str(value) for name, value in content["identity"].items()}
        mean, std = (_colour(values) for values in content["colours"])
    except _UNUSABLE:
        return None
    return tower, (mean, std), identity


def _weights_now(source: ModelSource, remembered: Path) -> WeightFile:
    """The file that a model's weights are in today; of a download, the one that is remembered.

    Raises:
        VplError: there is none.
    """
    if source.path is None:
        return recognise(remembered)
    return find_weights(source.path) if source.form == "folder" else recognise(source.path)


def _colour(values: Any) -> Colour:
    red, green, blue = map(float, values)
    return red, green, blue


def _content(file: Any) -> JsonObject:
    """What an open entry says in addition to its tensors."""
    content = parse_json(file.metadata()["tower"])
    return dict(content)


def _drop_vanished(folder: Path) -> None:
    """Delete the entries of weights that are no longer there."""
    for path in folder.glob("*.safetensors"):
        with contextlib.suppress(*_UNUSABLE):
            with safe_open(path, "pt") as file:
                weights = Path(_content(file)["files"][0][0])
            if not weights.exists():
                path.unlink()


def _entry(source: ModelSource) -> Path | None:
    """The file of a model's entry; another version of what made it, and it is another."""
    folder = cache_folder()
    if folder is None:
        return None
    versions = [__version__, torch.__version__, _conversion()]
    for package in ("open_clip_torch", "timm"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(importlib.metadata.version(package))
    where = str(source.path.absolute()) if source.path else ""
    key = json.dumps([versions, source.model, source.pretrained, source.form, where])
    return folder / "towers" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"


def _conversion() -> str:
    """A hash of the code that makes towers, which a checkout changes without a new version."""
    content = b"".join(Path(__file__).with_name(name).read_bytes()
                       for name in ("towers.py", "stored_towers.py", "tower_cache.py"))
    return hashlib.sha256(content).hexdigest()


def _stamp(path: Path) -> list[Any]:
    """What changes with a file's content; of one that is missing, its path alone."""
    try:
        return [str(path.absolute()), *stamp_of(path)]
    except OSError:
        return [str(path.absolute())]


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
