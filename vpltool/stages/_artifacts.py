"""What commands that write or read single files share: resume, refusal, and model checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpltool import console
from vpltool.errors import VplError
from vpltool.formats import Header, Photo, Workspace, expect_header
from vpltool.formats.header import difference

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def is_done(
    path: Path, header: Header, *, overwrite: bool, by_model_name: bool = False
) -> bool:
    """Tell whether a single file is there already, made with the same configuration.

    Args:
        path: the file.
        header: as it would be written now.
        overwrite: never done; the caller replaces it.
        by_model_name: compare models without their fingerprints, when it is not loaded yet.

    Raises:
        VplError: it is there, made with other settings.
    """
    if overwrite or not path.exists():
        return False
    found = expect_header(path, header.kind)
    if by_model_name:
        found = replace(found, model={key: value for key, value in found.model.items()
                                      if key != "fingerprint"})
    if found.config_hash != header.config_hash:
        raise VplError(f"{path} was made with other settings: {difference(header, found)}",
                       "add --overwrite to replace it, or --out FILE to keep both")
    console.note(f"{path} is there already, made with the same settings")
    return True


def check_same_model(first: Mapping[str, str], second: Mapping[str, str], what: str) -> None:
    """Check that two artifacts come from the same CLIP.

    Raises:
        VplError: they do not; `what` says which two, `features/train and prototypes/text`.
    """
    if any(first.get(key) != second.get(key) for key in ("fingerprint", "normalise")):
        names = [f"{model.get('name', '?')} ({model.get('pretrained', '?')}, "
                 f"{model.get('fingerprint', '?')[:6]}"
                 f"{', ' + model['normalise'] if 'normalise' in model else ''})"
                 for model in (first, second)]
        raise VplError(f"{what} come from different models: {names[0]} and {names[1]}",
                       "make one of them again with the workspace's model: "
                       "vpltool text-prototypes --overwrite, or vpltool extract --overwrite")


def smaller_features_hint(header: Header) -> str:
    """What to do where the features of one photo do not fit into memory: a hint."""
    held = header.options
    return (f"vpltool extract --split {held['split']} --keep {','.join(held['keep'])} "
            f"--max-side {(held['max_side'] or 2048) // 2} --overwrite, or --device cpu")


def read_prototypes(workspace: Workspace, choice: str) -> tuple[Path, Header, dict[str, Any]]:
    """Read prototypes by NAME (`text`, `vision`) or path.

    Raises:
        VplError: they are not there, or are of other classes; the hint is what makes them.
    """
    from vpltool.formats import read_tensors

    path = find_prototypes(workspace.path, choice)
    hint = prototypes_hint(choice)
    header, tensors = read_tensors(path, "prototypes", made_by=hint)
    owners = tensors["class_index"].tolist()
    named = dict(zip(owners, header.facts.get("rows", []), strict=False))
    named.pop(0, None)
    if named != {place + 1: name for place, name in enumerate(workspace.classes)}:
        raise VplError(f"{path} is of the classes {', '.join(map(str, named.values()))[:80]}, "
                       f"the workspace has {', '.join(workspace.classes)[:80]}",
                       f"{hint} --overwrite")
    return path, header, tensors


def read_known_photo(workspace: Workspace, photo: Photo) -> npt.NDArray[np.uint8]:
    """Read a photo that an earlier command could read: RGB (H, W, 3).

    Raises:
        VplError: it cannot be read any more; the photo is named.
    """
    from vpltool.core.photos import describe_failure, read_photo

    path = workspace.image_path(photo)
    try:
        return read_photo(path)
    except OSError as error:
        raise VplError(f"{photo.id}: {describe_failure(path, error)}",
                       "mend it and run the same command again") from error


def find_prototypes(work: Path, choice: str) -> Path:
    """Path of prototypes given by NAME or path."""
    named = work / "prototypes" / f"{choice}.safetensors"
    return Path(choice) if not named.exists() and choice.endswith(".safetensors") else named


def prototypes_hint(choice: str) -> str:
    """Command that makes prototypes of this name."""
    if choice == "shifted":
        return "vpltool shift-gap"
    if choice == "vision":
        return "vpltool learn-prototypes"
    return "vpltool text-prototypes"
