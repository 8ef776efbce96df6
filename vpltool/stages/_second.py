"""Features of a second encoder, for methods that read them beside CLIP's."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpltool.errors import VplError
from vpltool.formats import InputFolder, Workspace, open_input
from vpltool.lazy import torch
from vpltool.parallel.batches import FeatureBatch
from vpltool.settings import setting
from vpltool.stages import _inputs

if TYPE_CHECKING:
    from vpltool.clip.encoders import Encoder

SECOND = {"second_patches": "patches", "second_attention": "attention"}
"""What a method may read of the second encoder: name in `READS` to the tensor's."""


def second() -> Any:
    """Folder of features of a second encoder."""
    return setting(None, "Features of a second encoder, for a method that reads them; default: "
                         "features-second/SPLIT.", metavar="DIR", record="never", brief=False)


@dataclass(frozen=True)
class FoundEncoder:
    """Where a second encoder was found.

    Args:
        setting: the setting `encoder`, with its path as seen from the workspace.
        inputs: role to its file of weights, if they are on this machine.
    """

    setting: str
    inputs: Mapping[str, Path]


def load_second(workspace: Workspace, given: str, device: torch.device
                ) -> tuple[Encoder, FoundEncoder]:
    """Load the second encoder that the setting `encoder` names.

    Raises:
        VplError: there is no such encoder, or its tower cannot be used.
    """
    from vpltool.clip.encoders import find_encoder, load_encoder

    # A path as typed here, or as `update` has it from a header.
    source = find_encoder(given, (Path(), workspace.path))
    setting = source.setting(_inputs.relative_path(source.path, workspace.path)
                             if source.path else "")
    inputs = {"weights": source.weights} if source.weights else {}
    return load_encoder(source, device), FoundEncoder(setting, inputs)


def open_second(workspace: Workspace, choice: Path | None, split: str, reads: Collection[str]
                ) -> InputFolder | None:
    """Open what a method reads of a second encoder; None if it reads nothing of one.

    Raises:
        VplError: it is not there, or lacks a tensor.
    """
    wanted = [tensor for name, tensor in SECOND.items() if name in reads]
    if not wanted:
        return None
    folder = choice or workspace.path / "features-second" / split
    found = open_input(folder, ("features",), f"`extract(split={split!r}, encoder='WEIGHTS')`")
    _inputs.check_kept(found, wanted)
    return found


def read_second(second: InputFolder | None, key: str, reads: Collection[str],
                grid: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Read a photo's tensors of the second encoder, resampled to CLIP's grid (h, w), float32.

    Raises:
        VplError: they are of another part of the photo: the aspect ratios differ.
    """
    from vpltool.core.grids import is_same_view, resample_attention, resample_patches

    if second is None:
        return {}
    names = {name: tensor for name, tensor in SECOND.items() if name in reads}
    tensors = second.read_tensors(key, "grid", *names.values())
    height, width = tensors["grid"].tolist()
    if not is_same_view((height, width), grid):
        raise VplError(f"{key}: {second.path} has {height}×{width} patches (height×width), CLIP's "
                       f"features {grid[0]}×{grid[1]}: not of the same photo",
                       "make one of them again with `extract(overwrite=True)`")
    resample = {"patches": resample_patches, "attention": resample_attention}
    return {name: resample[tensor](tensors[tensor], (height, width), grid)
            for name, tensor in names.items()}


def read_batch(second: InputFolder | None, batch: FeatureBatch, reads: Collection[str]
               ) -> dict[str, torch.Tensor]:
    """Read the tensors of a second encoder for a batch of photos, stacked; see `read_second`."""
    photos = [read_second(second, key, reads, batch.grid) for key in batch.ids]
    return {name: torch.stack([photo[name] for photo in photos]) for name in photos[0]}
