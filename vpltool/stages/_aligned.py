"""Prototypes in the space of an alignment: they carry the map into it, and patches follow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vpltool.errors import VplError
from vpltool.formats import InputFolder
from vpltool.lazy import Tensor
from vpltool.stages import _inputs

if TYPE_CHECKING:
    from vpltool.core.aligned_space import AlignedSpace
    from vpltool.core.vit import Head


def space_of(prototypes: _inputs.Prototypes) -> AlignedSpace | None:
    """The map from CLIP's joint space to that of the rows; None if they lie in the joint space."""
    if not prototypes.of_space:
        return None

    from vpltool.core.aligned_space import AlignedSpace

    return AlignedSpace.from_tensors(prototypes.of_space, _facts(prototypes)["last_relu"])


def head_in_space(head: Head, space: AlignedSpace | None) -> Head:
    """Put the map into a space after CLIP's head; without a space, it is the head itself."""
    if space is None:
        return head

    from vpltool.core.aligned_space import AlignedHead

    return AlignedHead.of(head, space).eval().requires_grad_(False)


def space_record(prototypes: _inputs.Prototypes) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """Tensors and facts that say in which space rows lie, for others that are made from them."""
    facts = _facts(prototypes)
    return prototypes.of_space, {"aligned": facts} if facts else {}


def _facts(prototypes: _inputs.Prototypes) -> Mapping[str, Any]:
    found: Mapping[str, Any] = prototypes.header.facts.get("aligned", {})
    return found


def patch_source(features: InputFolder) -> str:
    """Where the patches of features come from, as `extract` calls it: `block` or `value`."""
    return str(features.header.options.get("patches", "block"))


def check_fits(features: InputFolder, prototypes: _inputs.Prototypes, *, head: bool = False
               ) -> None:
    """Check that features and prototypes come from one CLIP, and can be taken to one space.

    Args:
        features: the features.
        prototypes: the prototypes.
        head: whether patches come from CLIP's head, which gives those of `block`.

    Raises:
        VplError: they do not, or cannot.
    """
    _inputs.check_same_model(features.header.model, prototypes.header.model,
                             f"{features.path} and {prototypes.path}")
    wanted = _facts(prototypes).get("patches")
    found = "block" if head else patch_source(features)
    if wanted not in (None, found):
        whose = "those of the last block are read" if head else f"{features.path} holds `{found}`"
        raise VplError(f"{prototypes.path} was aligned with patches of the kind `{wanted}`, and "
                       f"{whose}",
                       f"`extract(patches={found!r}, overwrite=True)`, then "
                       "`align(overwrite=True)`" + ("; or `method='dense'`" if head else ""))


def check_one_space(first: _inputs.Prototypes, second: _inputs.Prototypes) -> None:
    """Check that the rows of two files lie in one space.

    Raises:
        VplError: they do not.
    """
    ours, theirs = first.of_space, second.of_space
    if (_facts(first) != _facts(second) or set(ours) != set(theirs)
            or not all(ours[name].equal(theirs[name]) for name in ours)):
        raise VplError(f"{first.path} and {second.path} lie in different spaces",
                       "each alignment has its own space: name prototypes of one space only")


def read_patches(features: InputFolder, key: str, space: AlignedSpace | None) -> Tensor:
    """Read a photo's patches (h·w, dim) as they are stored; with a space, mapped into it."""
    patches = features.read_tensors(key, "patches")["patches"]
    return patches if space is None else space(patches.float())
