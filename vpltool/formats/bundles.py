"""Bundles: one .safetensors with a segmenter and, on request, the vision tower of its CLIP."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vpltool.formats.header import Header
from vpltool.formats.storage import describe, read_tensors, write_tensors
from vpltool.lazy import Tensor

PARTS = ("decoder", "tower")
"""State dicts in a bundle; their names begin its tensors' names."""


def write_bundle(path: Path, header: Header, decoder: Mapping[str, Tensor],
                 tower: Mapping[str, Tensor]) -> None:
    """Write a bundle.

    Args:
        path: the file.
        header: its `facts` say how decoder and tower are rebuilt.
        decoder: state dict of the network, stored as it is.
        tower: state dict of the tower; empty: the header names the CLIP. What half precision holds
            without loss is stored in it: CLIP's weights were published so.

    Raises:
        VplError: the file cannot be written.
    """
    write_tensors(path, header, {
        **{f"decoder.{name}": tensor for name, tensor in decoder.items()},
        **{f"tower.{name}": without_loss(tensor) for name, tensor in tower.items()}})


def read_part(path: Path, part: str) -> tuple[Header, dict[str, Tensor]]:
    """Read the header of a bundle and one of its `PARTS`, half precision as float32.

    Raises:
        VplError: the file is missing, damaged, or no bundle.
    """
    names = tuple(name for name in describe(path).shapes if name.startswith(f"{part}."))
    header, tensors = read_tensors(path, "bundle", names)
    return header, {name.removeprefix(f"{part}."): tensor.float() if tensor.dtype.itemsize == 2
                    else tensor for name, tensor in tensors.items()}


def without_loss(tensor: Tensor) -> Tensor:
    """Return a tensor in half precision, if that holds all of its values."""
    half = tensor.half()
    return half if bool((half.to(tensor.dtype) == tensor).all()) else tensor
