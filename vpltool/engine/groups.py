"""Trained groups: finding a file, making its network again, and encoding words for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vpltool import console
from vpltool.engine.checkpoints import trained_header
from vpltool.engine.models import check_words
from vpltool.errors import VplError, near_name
from vpltool.formats import Header, Workspace, read_tensors
from vpltool.formats.header import is_same_model
from vpltool.formats.kinds import folder_of, place, results_of
from vpltool.lazy import Tensor, torch

if TYPE_CHECKING:
    from vpltool.core.groups import GroupNetwork

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of RGB in [0, 1], ImageNet's, as GroupViT's photos are normalised."""


@dataclass(frozen=True)
class Groups:
    """A `train-groups` file that was read.

    Args:
        path: the file.
        header: its header; `model` is the CLIP whose text tower it was trained with, empty: its
            own.
        network: on the CPU, in evaluation mode.
    """

    path: Path
    header: Header
    network: GroupNetwork


def find_groups(work: Path, choice: str) -> Path:
    """Path of trained groups given by NAME or path; if none is named, the only ones.

    Raises:
        VplError: there are none, or several.
    """
    names = [path.stem for path in results_of(work, "groups")]
    if not choice:
        if len(names) != 1:
            raise VplError(f"{folder_of(work, 'groups')} holds "
                           f"{'several files' if names else 'no groups'}",
                           " or ".join(f"`groups={name!r}`" for name in names)
                           or "`train_groups()`")
        return place(work, "groups", names[0])
    for path in (place(work, "groups", choice), Path(choice), work / choice):
        if path.is_file():
            return path
    raise VplError(f"no groups called `{choice}`",
                   near_name(choice, names) if names else "`train_groups()`")


def read_groups(path: Path) -> Groups:
    """Read trained groups, and make their network again; see `trained_header`."""
    from vpltool.core.groups import GroupNetwork, GroupShape

    header = trained_header(path, "groups")
    network = GroupNetwork(GroupShape.from_config(header.facts["config"]))
    network.load_state_dict(read_tensors(path, "groups")[1])
    return Groups(path, header, network.eval().requires_grad_(False))


def take_weights(network: GroupNetwork, path: Path) -> None:
    """Begin with the weights of a file; what it lacks stays as it is, and is told.

    A projector or a text tower of another shape is left out: the joint space may be another.

    Args:
        network: changed in place.
        path: of `train-groups`, or GroupViT's in the names of the package transformers.

    Raises:
        VplError: it cannot be read, holds none of the network's weights, or of another shape.
    """
    from vpltool.clip.groupvit import from_groupvit, is_groupvit
    from vpltool.clip.weights import read_weights, recognise

    state = read_weights(recognise(path))
    if is_groupvit(state):
        state = from_groupvit(state)
    wanted = network.state_dict()
    taken = {}
    for name in sorted(wanted.keys() & state.keys()):
        if state[name].shape == wanted[name].shape:
            taken[name] = state[name]
        elif name.startswith("vision."):
            found, wanted_shape = ("×".join(map(str, part.shape))
                                   for part in (state[name], wanted[name]))
            raise VplError(f"{path}: its `{name}` is {found}, not {wanted_shape}",
                           "give the sizes of its network, such as `width`, `depths`, `groups`")
    if not any(name.startswith("vision.") for name in taken):
        raise VplError(f"{path} holds no weights of a grouping encoder",
                       "a file of `train_groups()`, or GroupViT's model.safetensors")
    network.load_state_dict(taken, strict=False)
    missing = sorted({name.split(".")[0] if not name.startswith("vision.") else
                      ".".join(name.split(".")[:3]) for name in wanted.keys() - taken.keys()
                      if "gamma_" not in name})
    console.note(f"{len(taken)} of {len(wanted)} tensors from {path}"
                 + (f"; randomly initialised: {', '.join(missing)}" if missing else ""))


def text_encoder(workspace: Workspace, groups: Groups, device: torch.device
                 ) -> Callable[[Sequence[str]], Tensor]:
    """What encodes prompts as L2-normed vectors (n, dim), which groups can be compared with.

    Raises:
        VplError: the CLIP of the workspace cannot be had, or is not that of the groups.
    """
    if groups.network.shape.caption is None:
        return clip_encoder(workspace, device, groups.header.model)[0]

    tokenize = caption_tokenizer(groups.network.shape.caption.context)
    network = groups.network.to(device)

    def encode(prompts: Sequence[str]) -> Tensor:
        with torch.no_grad():
            return network.embed_captions(tokenize(prompts).to(device))

    return encode


def clip_encoder(workspace: Workspace, device: torch.device,
                 model: Mapping[str, str] | None = None
                 ) -> tuple[Callable[[Sequence[str]], Tensor], dict[str, str]]:
    """The text tower of the workspace's CLIP, and the identity of that CLIP.

    Args:
        workspace: names the CLIP.
        device: of the tower.
        model: identity that it must have; None: any.

    Raises:
        VplError: it cannot be had, or is another one.
    """
    check_words(workspace, "`text='own'`")

    from vpltool.clip.load import load_clip

    clip = load_clip(workspace.model, workspace.pretrained, device, base=workspace.path)
    if model and not is_same_model(clip.identity, model):
        raise VplError(f"the groups were trained with the text of another CLIP than "
                       f"{workspace.model}", "`train_groups(overwrite=True)`")
    return clip.encode_text, clip.identity


def caption_tokenizer(context: int) -> Callable[[Sequence[str]], Tensor]:
    """CLIP's tokenizer, of captions of `context` tokens at most: token numbers (n, context)."""
    from vpltool.clip.catalogue import import_open_clip

    tokenizer = import_open_clip().SimpleTokenizer(context_length=context)
    return lambda texts: tokenizer(list(texts))
