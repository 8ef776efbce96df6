"""CLIP's head, which lies beside the features of a split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vpltool.errors import VplError
from vpltool.formats import InputFolder, read_tensors
from vpltool.stages._inputs import check_same_model

if TYPE_CHECKING:
    from vpltool.core.vit import Head


HEAD = ".head.safetensors"
"""End of its name, after that of the features' folder."""


def head_path(features: Path) -> Path:
    """Where the head lies: beside the features of the same split."""
    return features.parent / f"{features.name}{HEAD}"


def read_head(features: InputFolder) -> Head:
    """Read the head beside features, on the CPU.

    Raises:
        VplError: it is not there, is damaged, or is another encoder's than the features.
    """
    from vpltool.core.meta_device import rebuild
    from vpltool.core.vit import Head

    path = head_path(features.path)
    header, tensors = read_tensors(path, "head",
                                   made_by="`extract()` writes it beside the features")
    if header.model:
        check_same_model(header.model, features.header.model, f"{path} and {features.path}")
    try:
        head = rebuild(lambda: Head.from_config(header.facts["config"]), tensors)
    except ValueError as error:
        raise VplError(f"{path} is damaged: {error}",
                       f"delete {features.path} and {path}, and run `extract()` again") from error
    return head.eval().requires_grad_(False)
