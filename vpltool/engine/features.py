"""Inputs of a split: stored features, CLIP's head, features of a second encoder, and CAMs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from vpltool.clip import encoders
from vpltool.core import blocks, grids, vit
from vpltool.engine.headers import check_same_model
from vpltool.errors import VplError, near_name
from vpltool.formats import Header, InputFolder, Workspace, find_folder, open_input, read_tensors
from vpltool.formats.input_folders import probabilities_beside
from vpltool.formats.kinds import FEATURE_TENSORS, SECOND_FOLDER, result_path
from vpltool.formats.workspace import relative_to
from vpltool.lazy import torch
from vpltool.parallel.batches import Batch

BEST_FIRST = ("vision-refined", "vision", "text-refined", "text",
              "tags-salient-refined", "tags-refined", "tags-salient", "tags")
"""Names of maps, masks and predictions, most refined first: the defaults of stages."""

SEEDING = tuple(name for name in BEST_FIRST if not name.startswith("vision"))
"""CAMs from which seeds are taken: those made without vision prototypes."""


def open_features(workspace: Workspace, choice: Path | None, split: str) -> InputFolder:
    """Open the features of a split, or of a given folder.

    Raises a VplError if they do not exist, or there is no such split.
    """
    workspace.photos(split)
    if choice and not choice.exists() and (workspace.path / choice).exists():
        choice = workspace.path / choice
    return open_input(choice or result_path(workspace.path, "features", split), ("features",),
                      f"`extract(split={split!r})`")


def check_kept(features: InputFolder, wanted: Sequence[str]) -> None:
    """Check that features contain these tensors, before the first photo is opened.

    Raises a VplError if they do not; the hint is the `extract` or `embed` call that adds them.
    """
    kept = features.header.options["keep"]
    missing = [name for name in wanted if name not in kept]
    if not missing:
        return
    header, names = features.header, list(dict.fromkeys([*kept, *missing]))
    split, every = header.options["split"], ",".join(names)
    if header.command == "extract":
        encoder = header.call.get("encoder")
        hint = (f"`extract(split={split!r}, keep={every!r}, "
                f"{f'encoder={encoder!r}, ' if encoder else ''}overwrite=True)`")
    else:
        carried = ",".join(name for name in names if name != "patches")
        hint = (f"`embed(method={header.options['method']!r}, split={split!r}, "
                f"carry={carried!r}, overwrite=True)`, where the features that it reads hold them")
    raise VplError(f"{features.path} holds {', '.join(kept)}, but no {missing[0]}", hint)


def parse_kept(setting_name: str, choice: str) -> tuple[str, ...]:
    """Parse `tokens,patches` into the order of `FEATURE_TENSORS`; VplError for other names."""
    names = [name.strip() for name in choice.split(",") if name.strip()]
    for name in names:
        if name not in FEATURE_TENSORS:
            raise VplError(f"`{setting_name}={choice!r}`: features have no `{name}`",
                           near_name(name, FEATURE_TENSORS))
    return tuple(name for name in FEATURE_TENSORS if name in names)


def parse_layers(choice: str, depth: int) -> list[int]:
    """Parse block numbers, `2,5,8`; empty: all but the last; `spread`: four, evenly spaced.

    Raises a VplError if the list is malformed, or the model has fewer blocks.
    """
    if not choice:
        return list(range(depth - 1))
    if choice == "spread":
        return sorted({round(quarter * depth / 4) - 1 for quarter in range(1, 5)} - {-1})
    layers = parse_numbers(choice)
    if layers[0] < 0 or layers[-1] >= depth:
        raise VplError(f"`layers={choice!r}`: this model has the blocks 0 to {depth - 1}",
                       "for example `layers='2,5,8,11'`")
    return layers


def parse_numbers(choice: str) -> list[int]:
    """Parse `2,5,8` into sorted unique numbers; VplError for anything else."""
    try:
        return sorted({int(part) for part in choice.split(",")})
    except ValueError:
        raise VplError(f"`layers={choice!r}` is not a list of block numbers",
                       "for example `layers='2,5,8,11'`") from None


def smaller_photos_hint(header: Header) -> str:
    """Return the hint for features of a single photo that do not fit into memory."""
    held = header.options
    if header.command != "extract":
        return f"`device='cpu'`, or smaller photos in `extract(split={held['split']!r})`"
    return (f"`extract(split={held['split']!r}, keep={','.join(held['keep'])!r}, "
            f"max_side={(held['max_side'] or 2048) // 2}, overwrite=True)`, or `device='cpu'`")


def smaller_side_hint(batch: Batch) -> str:
    """Return the hint for a single photo that does not fit into memory."""
    return f"`max_side={max(batch.pixels.shape[2:]) // 2}, overwrite=True`, or `device='cpu'`"


def find_cams(workspace: Workspace, choice: str, split: str, preferred: Sequence[str]
              ) -> InputFolder:
    """Find CAMs by NAME or path; without a choice, the first available of `preferred`.

    Raises a VplError if there are none, or they have other classes.
    """
    hint = f"`cam(split={split!r})`"
    if preferred == SEEDING:
        hint = (f"`cam(prototypes='tags', method='salient', split={split!r})`"
                if workspace.encoder else f"`cam(prototypes='text', split={split!r})`, then "
                                          f"`refine(cams='text', split={split!r})`")
    found = find_folder(workspace.path, ("cams",), choice, split, hint, preferred)
    workspace.check_classes(found.header, found.path)
    return found


def find_scores(workspace: Workspace, choice: str, split: str) -> InputFolder:
    """Find CAMs or predictions, as `find_cams`; of the latter prefer probabilities to labels."""
    source = find_folder(workspace.path, ("cams", "predictions"), choice, split,
                         f"`cam(split={split!r})`", BEST_FIRST,
                         kinds=("cams", "probabilities", "predictions"))
    workspace.check_classes(source.header, source.path)
    return probabilities_beside(workspace.path, source) or source


SECOND = {"second_patches": "patches", "second_attention": "attention"}
"""Tensors of the second encoder that a method may read: name in `READS` to name in the file."""


def load_second(workspace: Workspace, given: str, device: torch.device
                ) -> tuple[encoders.Encoder, str, dict[str, Path]]:
    """Load the second encoder that the setting `encoder` names.

    Returns:
        the encoder, the setting with a path relative to the workspace, and its weights file by
        role, if it is local.

    Raises:
        VplError: there is no such encoder, or its tower is not supported.
    """
    # Paths are relative to the current folder, or to the workspace if `update` read a header.
    source = encoders.find_encoder(given, (Path(), workspace.path))
    path = relative_to(source.path, workspace.path) if source.path else ""
    return (encoders.load_encoder(source, device), source.setting(path),
            {"weights": source.weights} if source.weights else {})


def open_second(workspace: Workspace, choice: Path | None, split: str, reads: Collection[str]
                ) -> InputFolder:
    """Open the features of a second encoder that a method reads.

    Raises a VplError if they do not exist, or lack a tensor.
    """
    folder = choice or workspace.path / SECOND_FOLDER / split
    found = open_input(folder, ("features",), f"`extract(split={split!r}, encoder='WEIGHTS')`")
    check_kept(found, [tensor for name, tensor in SECOND.items() if name in reads])
    return found


def read_second(second: InputFolder | None, key: str, reads: Collection[str],
                grid: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Read a photo's tensors of the second encoder in float32, resampled to CLIP's grid (h, w).

    Raises a VplError if the aspect ratios differ, so the grids show different parts of the photo.
    """
    if second is None:
        return {}
    names = {name: tensor for name, tensor in SECOND.items() if name in reads}
    tensors = second.read_tensors(key, "grid", *names.values())
    height, width = tensors["grid"].tolist()
    if not grids.is_same_view((height, width), grid):
        raise VplError(f"{key}: {second.path} has {height}×{width} patches (height×width), CLIP's "
                       f"features {grid[0]}×{grid[1]}: not of the same photo",
                       "make one of them again with `extract(overwrite=True)`")
    resample = {"patches": grids.resample_patches, "attention": grids.resample_attention}
    return {name: resample[tensor](tensors[tensor], (height, width), grid)
            for name, tensor in names.items()}


HEAD = ".head.safetensors"
"""Suffix of the head's file name, after the name of the features' folder."""


def head_path(features: Path) -> Path:
    """Return the path of the head, beside the features of the same split."""
    return features.parent / f"{features.name}{HEAD}"


def read_head(features: InputFolder) -> vit.Head:
    """Read the head that belongs to features, on the CPU.

    Raises a VplError if it is missing, damaged, or of another encoder than the features.
    """
    path = head_path(features.path)
    header, tensors = read_tensors(path, "head",
                                   made_by="`extract()` writes it beside the features")
    if header.model:
        check_same_model(header.model, features.header.model, f"{path} and {features.path}")
    try:
        head = blocks.rebuild(lambda: vit.Head.from_config(header.facts["config"]), tensors)
    except ValueError as error:
        raise VplError(f"{path} is damaged: {error}",
                       f"delete {features.path} and {path}, and run `extract()` again") from error
    return head.eval().requires_grad_(False)
