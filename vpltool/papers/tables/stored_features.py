"""Features that a workspace has already, and the disk space that new ones take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vpltool import console
from vpltool.clip import models
from vpltool.core.photos import fit_size, photo_size
from vpltool.formats import Header, InputFolder, Photo, Workspace, open_input
from vpltool.formats.kinds import place
from vpltool.settings import Settings, values_of


def find_stored_features(source: Workspace, own: Path, split: str, wanted: Settings) -> Path | None:
    """Find features of a split in the workspace that the photos come from.

    Args:
        source: that workspace.
        own: folder of the tables' own workspace; features that are there already win.
        split: of the photos.
        wanted: settings of `extract` that the protocol asks for.

    Returns:
        their folder, if they are those of the protocol; None: they are to be extracted.
    """
    folder = place(source.path, "features", split)
    if not (folder / "artifact.json").exists() or place(own, "features", split).exists():
        return None
    reason = _unfit(source, open_input(folder, ("features",)), source.photos(split), wanted)
    if reason:
        console.note(f"  {folder} does not serve here: {reason}")
        return None
    console.note(f"  features of `{split}` are read from {folder}")
    return folder


def _unfit(source: Workspace, features: InputFolder, photos: Sequence[Photo], wanted: Settings
           ) -> str:
    """Why features are not those that settings ask for; empty if they are."""
    header, values = features.header, values_of(wanted)
    held = header.options
    absent = {*_listed(values["keep"])} - {*held["keep"]}
    if absent:
        return f"they lack {', '.join(sorted(absent))}"
    for name in ("scale", "patches", "calibrated_blocks", "calibrated_heads", "precision", "store"):
        found = held.get(name, _default(wanted, name))
        if found != values[name]:
            return f"{name} is {found}, not {values[name]}"
    sides = {held["max_side"], values["max_side"]}
    if len(sides) > 1 and not _all_below(source, photos, min(sides - {0})):
        return f"max_side is {held['max_side']}, not {values['max_side']}"
    if "layers" in _listed(values["keep"]) and not _same_layers(header, values["layers"]):
        return f"they hold the layers {', '.join(map(str, held['layers']))}"
    if not _same_model(header, source):
        return "they are of another CLIP than the workspace"
    missing = [photo.id for photo in photos if not features.holds(photo.id)]
    return f"they lack {len(missing)} of {len(photos)} photos" if missing else ""


def _listed(choice: str) -> list[str]:
    return [part.strip() for part in choice.split(",") if part.strip()]


def _default(settings: Settings, name: str) -> Any:
    """What a setting is where a header does not have it."""
    return getattr(type(settings), name)


def _same_layers(header: Header, choice: str) -> bool:
    """Whether the stored layers are those that are asked for; empty: all but the last."""
    if choice in ("", "spread"):
        return header.call.get("layers", "") == choice
    return sorted(map(int, _listed(choice))) == header.options["layers"]


def _same_model(header: Header, workspace: Workspace) -> bool:
    """Whether features are of the CLIP that a workspace names, as far as names tell.

    Stages compare the weights themselves, and refuse what is of others.
    """
    names = models.find_source(workspace.model, workspace.pretrained, workspace.path).names
    return (all(header.model.get(key) == value for key, value in names.items())
            and header.model.get("normalise", "model") == workspace.normalise)


def _all_below(workspace: Workspace, photos: Iterable[Photo], side: int) -> bool:
    """Whether no photo is longer than this: then the limit changes nothing."""
    for photo in photos:
        try:
            if max(photo_size(workspace.image_path(photo))) > side:
                return False
        except OSError:
            return False
    return True


def bytes_a_photo(keep: Sequence[str], patches: int, *, width: int = 768, dim: int = 512,
                  layers: int = 11) -> int:
    """Bytes of a features file, but for its header of about a kilobyte.

    Args:
        keep: what is stored.
        patches: number of patches h·w.
        width: of the encoder; ViT-B/16's by default.
        dim: of the joint space.
        layers: number of layers, if they are stored.
    """
    values = {"tokens": (1 + patches) * width, "patches": patches * dim, "attention": patches**2,
              "layers": layers * patches * width}
    numbers = 8 * (2 + layers * ("layers" in keep))
    return 2 * sum(values[name] for name in keep) + numbers


def expected_bytes(workspace: Workspace, photos: Sequence[Photo], wanted: Settings) -> float:
    """About how many bytes the features of photos take, for ViT-B/16, from the first of them."""
    values = values_of(wanted)
    some = photos[:20]
    sizes = [bytes_a_photo(_listed(values["keep"]),
                           _patches_of(workspace.image_path(photo), values["max_side"]))
             for photo in some]
    return sum(sizes) / max(len(some), 1) * len(photos)


def _patches_of(path: Path, max_side: int) -> int:
    """Patches of a photo, 16 pixels a side; 0 if it cannot be read."""
    try:
        height, width = fit_size(photo_size(path), 16, max_side=max_side)
    except OSError:
        return 0
    return height * width // 256
