"""Prototypes read and written by stages: their rows, and the space of these."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vpltool.core import alignment
from vpltool.engine import headers, models
from vpltool.errors import VplError
from vpltool.formats import Header, InputFolder, JsonObject, Workspace, read_tensors, write_tensors
from vpltool.formats.kinds import result_path, results_of
from vpltool.formats.manifest import UPDATE_HINT
from vpltool.lazy import Tensor, torch
from vpltool.settings import Settings

OF_TAGS = "tags"
"""Name of the prototypes made from tags alone."""


def choice_of(workspace: Workspace, settings: Settings, name: str = "prototypes") -> str:
    """Return the NAME or path of prototypes in a stage's setting called `name`.

    A vision encoder has no text to compare patches with; in its workspaces, the default is
    prototypes from tags.
    """
    choice: str = getattr(settings, name)
    return OF_TAGS if workspace.encoder and not settings.is_given(name) else choice


@dataclass(frozen=True)
class Prototypes:
    """Prototypes read from a file.

    Args:
        rows: L2-normed vectors (rows, dim).
        class_index: class of each row (rows,); 0 is the background.
        of_rows: further tensors with one entry per row, see `formats.kinds`.
        of_space: parameters of the map into an aligned space; empty: CLIP's joint space.
    """

    path: Path
    header: Header
    rows: Tensor
    class_index: Tensor
    of_rows: Mapping[str, Tensor]
    of_space: Mapping[str, Tensor]

    @property
    def photos(self) -> Sequence[str]:
        """Photo ids that `photo_of` indexes."""
        return tuple(self.header.facts.get("photos", ()))

    def to(self, device: torch.device) -> Prototypes:
        """Return a copy with its rows on a device."""
        return replace(self, rows=self.rows.to(device), class_index=self.class_index.to(device),
                       of_rows={name: tensor.to(device) for name, tensor in self.of_rows.items()})


def read_prototypes(workspace: Workspace, choice: str, *, aligned: bool = False) -> Prototypes:
    """Read prototypes of the workspace's classes by NAME (`text`, `vision`) or path.

    `aligned` declares that the caller maps patches into the aligned space, if there is one.

    Raises a VplError if they do not exist, have other classes, or lie in an aligned space; the hint
    is the call that makes them.
    """
    path = find_prototypes(workspace.path, choice)
    if choice == "text" and not path.exists():
        models.check_words(workspace, "`prototypes='tags'`, which `tag_prototypes()` makes")
    hint = prototypes_hint(workspace, choice)
    header, tensors = read_tensors(path, "prototypes", made_by=hint)
    owners = tensors["class_index"].tolist()
    named = dict(zip(owners, header.facts.get("rows", []), strict=False))
    named.pop(0, None)
    wanted = dict(enumerate(workspace.classes, 1))
    if named != wanted:
        old, new = set(named.values()), set(wanted.values())
        reasons = [f"class `{name}` is new" for name in sorted(new - old)]
        reasons += [f"class `{name}` is gone" for name in sorted(old - new)]
        raise VplError(f"{path} has other classes than the workspace: "
                       f"{'; '.join(reasons) or 'their order has changed'}",
                       f"{UPDATE_HINT}{hint}, with `overwrite=True`, replaces it")
    rows, index = tensors.pop("prototypes"), tensors.pop("class_index")
    of_space = {name: tensors.pop(name) for name in list(tensors) if name.startswith("space_")}
    if of_space and not aligned:
        raise VplError(f"{path} lies in an aligned space, but prototypes in CLIP's joint "
                       "space are needed", "name others, such as `text` or `vision`; `cam`, "
                       "`seed_prototypes` and `gap` take aligned ones")
    return Prototypes(path, header, rows, index, tensors, of_space)


_ROW_MAKERS = {"context_of": ("whose context its rows are", "lpcam"),
               "photo_of": ("which photos its rows come from", "bank"),
               "scale": ("how its rows are weighed", "discriminant"),
               "bias": ("how its rows are weighed", "discriminant")}


def check_rows(prototypes: Prototypes, reads: Collection[str]) -> None:
    """Raise a VplError unless prototypes have the row attributes that a method reads.

    The hint is the estimator that stores the missing one.
    """
    for name, (what, maker) in _ROW_MAKERS.items():
        if name in reads and name not in prototypes.of_rows:
            raise VplError(f"{prototypes.path} does not say {what}",
                           f"`seed_prototypes(method={maker!r}, out='{maker}.safetensors')`, then "
                           f"`prototypes='{maker}.safetensors'`")


def find_prototypes(work: Path, choice: str) -> Path:
    """Return the path of prototypes given by NAME or path."""
    named = result_path(work, "prototypes", choice)
    return Path(choice) if not named.exists() and choice.endswith(".safetensors") else named


_MAKERS = {"text": "`text_prototypes()`", OF_TAGS: "`tag_prototypes()`",
           "vision": "`learn_prototypes()`", "shifted": "`shift_gap()`",
           "seeds": "`seed_prototypes()`", "aligned": "`align()`"}


def prototypes_hint(workspace: Workspace, choice: str) -> str:
    """Return the call that makes prototypes of a name, or the nearest name if it is unknown."""
    there = [path.stem for path in results_of(workspace.path, "prototypes")]
    makers = {name: call for name, call in _MAKERS.items()
              if workspace.has_words or name in (OF_TAGS, "seeds")}
    listed = f"there are {', '.join(there)}" if there else next(iter(makers.values()))
    near = difflib.get_close_matches(choice, {*there, *_MAKERS}, n=1)
    if choice in _MAKERS or not near:
        return makers.get(choice, listed)
    made = f" {makers[near[0]]} makes it" if near[0] in makers else f" It needs words; {listed}"
    return f"did you mean `{near[0]}`?{'' if near[0] in there else made}"


def space_of(prototypes: Prototypes) -> alignment.AlignedSpace | None:
    """Return the map from CLIP's joint space to an aligned one; None for the joint space."""
    if not prototypes.of_space:
        return None
    return alignment.AlignedSpace.from_tensors(prototypes.of_space,
                                                   _facts(prototypes)["last_relu"])


def write_prototypes(path: Path, header: Header, tensors: Mapping[str, Tensor], facts: JsonObject,
                     start: Prototypes) -> None:
    """Write prototypes derived from `start`, which lie in the same space."""
    aligned = _facts(start)
    write_tensors(path, replace(header, facts=facts | ({"aligned": aligned} if aligned else {})),
                  {**tensors, **start.of_space})


def _facts(prototypes: Prototypes) -> Mapping[str, Any]:
    return prototypes.header.facts.get("aligned", {})


def patch_source(features: InputFolder) -> str:
    """Return the kind of patches in features, as in `extract`: `block` or `value`."""
    return str(features.header.options.get("patches", "block"))


def check_fits(features: InputFolder, prototypes: Prototypes, *, head: bool = False) -> None:
    """Raise a VplError unless features and prototypes come from one CLIP and fit the same space.

    `head` declares that patches come from CLIP's head, and so are of the kind `block`.
    """
    headers.check_same_model(features.header.model, prototypes.header.model,
                             f"{features.path} and {prototypes.path}")
    wanted = _facts(prototypes).get("patches")
    found = "block" if head else patch_source(features)
    if wanted not in (None, found):
        whose = "those of the last block are read" if head else f"{features.path} holds `{found}`"
        raise VplError(f"{prototypes.path} was aligned with patches of the kind `{wanted}`, and "
                       f"{whose}",
                       f"`extract(patches={found!r}, overwrite=True)`, then "
                       "`align(overwrite=True)`" + ("; or `method='dense'`" if head else ""))


def check_one_space(first: Prototypes, second: Prototypes) -> None:
    """Raise a VplError unless the rows of two files lie in the same space."""
    ours, theirs = first.of_space, second.of_space
    if (_facts(first) != _facts(second) or set(ours) != set(theirs)
            or not all(ours[name].equal(theirs[name]) for name in ours)):
        raise VplError(f"{first.path} and {second.path} lie in different spaces",
                       "each alignment has its own space: name prototypes of one space only")


def read_patches(features: InputFolder, key: str, space: alignment.AlignedSpace | None
                 ) -> Tensor:
    """Read a photo's patches (h·w, dim) as stored, or mapped into an aligned space."""
    patches = features.read_tensors(key, "patches")["patches"]
    return patches if space is None else space(patches.float())
