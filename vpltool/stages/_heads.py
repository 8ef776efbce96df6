"""CLIP's head, which lies beside the features of a split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vpltool.formats import read_tensors

if TYPE_CHECKING:
    from vpltool.core.vit import Head


HEAD = ".head.safetensors"
"""End of its name, after that of the features' folder."""


def head_path(features: Path) -> Path:
    """Where the head lies: beside the features of the same split."""
    return features.parent / f"{features.name}{HEAD}"


def read_head(features: Path) -> Head:
    """Read the head beside features, on the CPU.

    Raises:
        VplError: it is not there.
    """
    from vpltool.clip.weights import without_random_init
    from vpltool.core.vit import Head

    header, tensors = read_tensors(head_path(features), "head",
                                   made_by="`extract()` writes it beside the features")
    with without_random_init():
        head = Head.from_config(header.facts["config"])
    head.load_state_dict(tensors)
    return head.eval().requires_grad_(False)
