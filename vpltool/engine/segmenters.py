"""Segmenters: building one, finding a trained one, and making its network again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vpltool import formats
from vpltool.core import meta_device
from vpltool.engine.checkpoints import is_checkpoint, trained_header
from vpltool.engine.features import BEST_FIRST
from vpltool.engine.groups import find_groups
from vpltool.errors import VplError, near_name
from vpltool.formats import Header, InputFolder, Workspace
from vpltool.formats.kinds import place
from vpltool.formats.manifest import again
from vpltool.formats.storage import read_part
from vpltool.lazy import Tensor
from vpltool.methods import load_method
from vpltool.methods.interfaces import SegmenterMethod

if TYPE_CHECKING:
    from vpltool.core.segmenter import SegmenterNetwork


TOWER = "tower."
"""Beginning of the names of an encoder's tensors in the file of a segmenter trained with it."""


def has_tower(header: Header) -> bool:
    """Tell whether the file of a segmenter holds an encoder of its own."""
    return bool(header.facts.get("tower"))


def read_tower(path: Path) -> dict[str, Tensor]:
    """Read the state dict of the encoder that a decoder or bundle holds, in float32.

    Raises:
        VplError: the file is damaged.
    """
    if is_bundle(path):
        return read_part(path, "tower")[1]
    names = tuple(name for name in formats.describe(path).shapes if name.startswith(TOWER))
    return {name.removeprefix(TOWER): tensor.float() if tensor.dtype.itemsize == 2 else tensor
            for name, tensor in formats.read_tensors(path, "decoder", names)[1].items()}


def find_decoder(work: Path, choice: str) -> Path:
    """Path of a decoder given by NAME or path; if none is named, the only one or the furthest.

    Raises:
        VplError: there is none, or there are several.
    """
    names = sorted(path.stem for path in (work / "decoder").glob("*.safetensors")
                   if not path.stem.endswith(".checkpoint"))
    if not choice:
        if not names:
            raise VplError(f"no decoder in {work / 'decoder'}", "`train_decoder()`")
        preferred = [name for name in BEST_FIRST if name in names]
        if len(names) > 1 and not preferred:
            raise VplError(f"{work / 'decoder'} holds several decoders",
                           " or ".join(f"`decoder={name!r}`" for name in names))
        return place(work, "decoder", (preferred or names)[0])
    for path in (place(work, "decoder", choice), Path(choice), work / choice):
        if path.is_file():
            return path
    raise VplError(f"no decoder called `{choice}`",
                   near_name(choice, names) if names else "`train_decoder()`")


def find_segmenter(work: Path, choice: str) -> Path:
    """Path of a decoder, or of trained groups, given by NAME or path; see `find_decoder`.

    Raises:
        VplError: there is none, or there are several.
    """
    here = [path for path in (place(work, folder, choice)
                              for folder in ("decoder", "groups")) if path.is_file()]
    if choice and len(here) > 1:
        raise VplError(f"both {here[0]} and {here[1]} are called `{choice}`",
                       f"name one by its path, such as {here[0]}")
    decoders, groups = ([path for path in (work / folder).glob("*.safetensors")
                         if not is_checkpoint(path)] for folder in ("decoder", "groups"))
    if here or (groups and not choice and not decoders):
        return here[0] if here else find_groups(work, "")
    try:
        return find_decoder(work, choice)
    except VplError as error:
        names = [path.stem for path in (*decoders, *groups)]
        raise VplError(error.message.replace("no decoder", "no segmenter"),
                       near_name(choice, names) if choice and names else
                       f"{error.hint}, or `train_groups()`") from error


def segmenter_header(path: Path) -> Header:
    """Read the header of a decoder, a bundle, or trained groups.

    Raises:
        VplError: the file is none of them, or only the checkpoint of one.
    """
    found = formats.describe(path).header
    if found and found.kind in ("groups", "bundle"):
        return trained_header(path, found.kind)
    return trained_header(path, "decoder")


def read_segmenter(path: Path) -> tuple[Header, SegmenterNetwork]:
    """Make the network of a decoder or bundle again, as it was kept, on the CPU.

    Raises:
        VplError: the file is neither, or its method is not there.
    """
    if is_bundle(path):
        header, tensors = read_part(path, "decoder")
    else:
        header = trained_header(path, "decoder")
        tensors = {name: tensor for name, tensor in formats.read_tensors(path, "decoder")[1].items()
                   if not name.startswith(TOWER)}

    if "segmenter" not in header.facts:
        raise VplError(f"{path} does not name the method of its network", again(header))
    method = load_method(SegmenterMethod, str(header.facts["segmenter"]))
    try:
        network: SegmenterNetwork = meta_device.rebuild(
            lambda: method.rebuild(header.facts["config"]), tensors)
    except ValueError as error:
        raise VplError(f"{path} does not hold the network that its header names ({error})",
                       again(header)) from error
    return header, network.eval().requires_grad_(False)


def is_bundle(path: Path) -> bool:
    """Tell whether a file is a bundle, by its header.

    Raises:
        VplError: the file is damaged.
    """
    header = formats.describe(path).header if path.is_file() else None
    return header is not None and header.kind == "bundle"


def reads_of(header: Header) -> tuple[set[str], set[int]]:
    """What a decoder reads of the frozen CLIP: `layers` and `patches`, and which layers."""
    return (set(header.facts.get("reads", ("layers", "patches"))),
            set(header.options.get("layers", ())))


def open_probabilities(workspace: Workspace, segmenter: Path, split: str, again: str = ""
                       ) -> InputFolder:
    """Open the class probabilities that `predict` has stored of a split or folder.

    Args:
        workspace: where they are.
        segmenter: its file.
        split: name of the split, or of the folder of photos.
        again: the call that stores them, up to its last bracket; default: that for the split.

    Raises:
        VplError: there are none, they are of other classes, or of another segmenter of this name.
    """
    path = place(workspace.path, "probabilities", segmenter.stem, split)
    again = again or f"predict(split={split!r}, decoder={segmenter.stem!r}"
    if not (path / "artifact.json").exists():
        raise VplError(f"there are no probabilities in {path}", f"`{again})`")
    found = formats.open_input(path, ("probabilities",))
    workspace.check_classes(found.header, found.path)
    said_by = found.header.inputs.get("decoder", found.header.inputs.get("segmenter", ""))
    if said_by != formats.identity_of_file(segmenter):
        raise VplError(f"{path} is of an earlier {segmenter.stem}", f"`{again}, update=True)`")
    return found
