"""Trained groups: making their network again, encoding words, and segmenting photos with both."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vpltool import console
from vpltool.clip import catalogue, load, weights
from vpltool.core import group_maps, segment
from vpltool.core import groups as networks
from vpltool.core.photos import PhotoSettings, to_pixels
from vpltool.core.text import text_prototypes
from vpltool.datasets.prompts import find_prompts
from vpltool.engine.checkpoints import trained_header
from vpltool.engine.models import check_words
from vpltool.engine.photo_work import Made, run_photos
from vpltool.engine.running import RunsSegmenter, Segmented
from vpltool.engine.tiles import TiledSegmenter
from vpltool.errors import VplError
from vpltool.formats import Header, Workspace, read_tensors
from vpltool.formats.header import is_same_model
from vpltool.lazy import Tensor, np, npt, torch
from vpltool.parallel import batches
from vpltool.settings import setting

_PANEL = "Groups"
GROUP_SETTINGS = ("classes", "prompts", "threshold", "top", "short_side", "window", "stride",
                  "maps")
"""Settings of `predict` that only groups have."""

NETWORK_SETTINGS = ("scales", "flip", "average", "source", "features", "max_side", "tile",
                    "overlap", "precision")
"""Settings of `predict` that groups do not have."""

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
    network: networks.GroupNetwork


def read_groups(path: Path) -> Groups:
    """Read trained groups, and make their network again; see `trained_header`."""
    header = trained_header(path, "groups")
    network = networks.GroupNetwork(networks.GroupShape.from_config(header.facts["config"]))
    network.load_state_dict(read_tensors(path, "groups")[1])
    return Groups(path, header, network.eval().requires_grad_(False))


def take_weights(network: networks.GroupNetwork, path: Path) -> None:
    """Begin with the weights of a file; what it lacks stays as it is, and is told.

    A projector or a text tower of another shape is left out: the joint space may be another.

    Args:
        network: changed in place.
        path: of `train-groups`, or GroupViT's in the names of the package transformers.

    Raises:
        VplError: it cannot be read, holds none of the network's weights, or of another shape.
    """
    state = weights.read_weights(weights.recognise(path))
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

    clip = load.load_clip(workspace.model, workspace.pretrained, device, base=workspace.path)
    if model and not is_same_model(clip.identity, model):
        raise VplError(f"the groups were trained with the text of another CLIP than "
                       f"{workspace.model}", "`train_groups(overwrite=True)`")
    return clip.encode_text, clip.identity


def caption_tokenizer(context: int) -> Callable[[Sequence[str]], Tensor]:
    """CLIP's tokenizer, of captions of `context` tokens at most: token numbers (n, context)."""
    tokenizer = catalogue.import_open_clip().SimpleTokenizer(context_length=context)
    return lambda texts: tokenizer(list(texts))


_BLOCK = (
    (r"layer_norm1", "ln_1"), (r"layer_norm2", "ln_2"), (r"mlp\.fc1", "fc"), (r"mlp\.fc2", "proj"),
    (r"self_attn\.out_proj", "out"), (r"self_attn\.([qkv])_proj", r"qkv.\1"))

_STAGES = {"0": "first.", "1": "second.", "2": ""}

_STAGE = (
    (r"group_token", "tokens"), (r"group_projector\.0", "carry.norm"),
    (r"group_projector\.1\.fc1", "carry.fc"), (r"group_projector\.1\.fc2", "carry.proj"))

_DOWN = (
    (r"norm_tokens", "mixer.norm"), (r"mlp_inter\.fc1", "mixer.fc"),
    (r"mlp_inter\.fc2", "mixer.proj"), (r"norm_post_tokens", "norm_groups"),
    (r"norm_x", "norm_patches"), (r"pre_assign_attn\.attn\.q_proj", "look.query"),
    (r"pre_assign_attn\.attn\.k_proj", "look.key"),
    (r"pre_assign_attn\.attn\.v_proj", "look.value"),
    (r"pre_assign_attn\.attn\.out_proj", "look.out"), (r"pre_assign_attn\.norm2", "look.mlp.0"),
    (r"pre_assign_attn\.mlp\.fc1", "look.mlp.1"), (r"pre_assign_attn\.mlp\.fc2", "look.mlp.3"),
    (r"pre_assign_attn\.norm_post", "look.norm"), (r"assign\.q_proj", "query"),
    (r"assign\.k_proj", "key"), (r"assign\.v_proj", "value"), (r"assign\.proj", "out"),
    (r"norm_new_x", "mlp.0"), (r"mlp_channels\.fc1", "mlp.1"), (r"mlp_channels\.fc2", "mlp.3"))

_WHOLE = (
    (r"logit_scale", "log_scale"), (r"visual_projection\.", "project_vision."),
    (r"text_projection\.", "project_text."), (r"vision_model\.layernorm", "vision.norm"),
    (r"vision_model\.embeddings\.patch_embeddings\.projection", "vision.conv"),
    (r"vision_model\.embeddings\.layernorm", "vision.norm_patches"),
    (r"vision_model\.embeddings\.position_embeddings", "vision.positions"),
    (r"text_model\.embeddings\.token_embedding", "text.words"),
    (r"text_model\.embeddings\.position_embedding\.weight", "text.positions"),
    (r"text_model\.final_layer_norm", "text.norm"))
"""Beginnings of names and ours. The order of a table does not matter: a name is either whole or
ends in a dot, before `weight`, `bias` or a statistic."""

_LAYER = re.compile(r"(?:vision_model\.encoder\.stages\.(\d)|text_model\.encoder)"
                    r"\.layers\.(\d+)\.(.+)")
_OF_STAGE = re.compile(r"vision_model\.encoder\.stages\.(\d)\.(downsample\.)?(.+)")


def is_groupvit(names: Mapping[str, Tensor]) -> bool:
    """Tell by its names whether a file holds GroupViT as transformers writes it."""
    return any(name.startswith("vision_model.encoder.stages.") for name in names)


def from_groupvit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name GroupViT's weights as a `GroupNetwork` does; queries, keys and values become one.

    Names that it does not know are left out, such as indices of positions.
    """
    named: dict[str, Tensor] = {}
    for name, tensor in state.items():
        ours = _our_name(name)
        if ours:
            named[ours] = tensor
    if "vision.positions" in named:
        named["vision.positions"] = named["vision.positions"].squeeze(0)
    joined = sorted({re.sub(r"\.qkv\.[qkv]\.", ".qkv.", name) for name in named
                     if ".qkv." in name})
    for name in joined:
        start, _, kind = name.rpartition(".")
        named[name] = torch.cat([named.pop(f"{start}.{part}.{kind}") for part in "qkv"])
    return named


def _our_name(name: str) -> str:
    """Our name of one of transformers'; empty if we have none."""
    if layer := _LAYER.fullmatch(name):
        stage, number, rest = layer.groups()
        prefix = "text." if stage is None else f"vision.{_STAGES[stage]}"
        return _translated(rest, _BLOCK, f"{prefix}blocks.{number}.")
    if part := _OF_STAGE.fullmatch(name):
        stage, down, rest = part.groups()
        prefix = f"vision.{_STAGES[stage]}"
        return _translated(rest, _DOWN, f"{prefix}grouping.") if down else _translated(
            rest, _STAGE, prefix)
    return _translated(name, _WHOLE, "")


def _translated(name: str, table: tuple[tuple[str, str], ...], prefix: str) -> str:
    for pattern, ours in table:
        if found := re.match(pattern + r"(?=\.|$|(?<=\.))", name):
            return prefix + found.expand(ours) + name[found.end() :]
    return ""


@dataclass(frozen=True, kw_only=True)
class GroupSettings(RunsSegmenter):
    """Settings that say how any segmenter sees photos, with those that only groups have."""

    classes: Path | None = setting(
        None, "Class names for the groups, one per line; default: the workspace's classes.",
        metavar="FILE", panel=_PANEL, record="never")
    prompts: str = setting("single", "Prompts for the class names; see text-prototypes.",
                           metavar="NAME-OR-PATH", panel=_PANEL, record="changed")
    threshold: float = setting(
        0.95, "Background threshold: where all classes are below it; 0: no background.", low=0,
        high=1, panel=_PANEL, record="changed", source="PGSeg, VOC")
    top: int = setting(5, "Most likely classes per window; the others are dropped. 0: keep all.",
                       low=0, panel=_PANEL, record="changed", source="PGSeg, official code")
    short_side: int = setting(
        0, "Shorter side of a photo, in pixels; 0: twice the side in training.", low=0,
        metavar="PIXELS", panel=_PANEL, record="changed", source="GroupViT: 448 for 224")
    window: int = setting(0, "Side of a window, in pixels; 0: the photo's shorter side.", low=0,
                          metavar="PIXELS", panel=_PANEL, record="changed", source="GroupViT: 448")
    stride: int = setting(0, "Stride between windows, in pixels; 0: half a window.", low=0,
                          metavar="PIXELS", panel=_PANEL, record="changed", source="GroupViT: 224")
    maps: bool = setting(
        True, "Also store maps of the classes, as cam does, and of the groups, for show.",
        off="--no-maps", panel=_PANEL, record="never")


@dataclass(frozen=True)
class SegmentedByGroups(Segmented):
    """A `Segmented` with maps of the classes (C, h, w), and the groups where they are wanted."""

    maps: Tensor
    groups: group_maps.GroupMaps | None

    def tensors(self, kind: str) -> dict[str, Tensor]:
        """Maps of the classes that are likely somewhere as `cams`, those of groups; or others."""
        if kind == "cams":
            kept = segment.likely_classes(self.maps)
            return {"cam": self.maps[kept].half().cpu(), "classes": 1 + kept.cpu()}
        if kind == "group-maps":
            assert self.groups is not None
            return {"first": self.groups.first.half().cpu(),
                    "second": self.groups.second.half().cpu()}
        return super().tensors(kind)


def view_of(network: networks.GroupNetwork, settings: GroupSettings
            ) -> tuple[int, group_maps.GroupView]:
    """How photos are seen: pixels of their shorter side, and the windows.

    Raises:
        VplError: a size is no multiple of the patch.
    """
    patch = network.shape.patch
    short = settings.short_side or 2 * network.shape.side
    window = settings.window or -(-short // patch) * patch
    stride = settings.stride or max(window // patch // 2, 1) * patch
    for name, value in (("window", window), ("stride", stride)):
        if value % patch:
            raise VplError(f"`{name}={value}` is not a multiple of the groups' patches of {patch} "
                           "pixels", f"`{name}={-(-value // patch) * patch}`")
    return short, group_maps.GroupView(window, stride, settings.threshold, settings.top)


@dataclass(frozen=True)
class GroupSegmenter:
    """Trained groups with the words that name them: a `RunningSegmenter`.

    Args:
        network: in evaluation mode, on the device.
        texts: vectors of the words (C, dim).
        view: the windows.
        seen: how photos become its input.
        device: where the work is done.
        maps: whether maps of the groups are wanted, too.
    """

    network: networks.GroupNetwork
    texts: Tensor
    view: group_maps.GroupView
    seen: PhotoSettings
    device: torch.device
    maps: bool

    @classmethod
    def of(cls, workspace: Workspace, path: Path, settings: GroupSettings, device: torch.device
           ) -> GroupSegmenter:
        """Read groups, and encode the words.

        Args:
            workspace: its CLIP, and the classes that the groups are named by.
            path: of the groups.
            settings: how photos are seen.
            device: where the work is done.

        Raises:
            VplError: the groups or their text tower cannot be had, or a size does not fit.
        """
        templates = find_prompts(settings.prompts)
        groups = read_groups(path)
        network = groups.network.to(device)
        short, view = view_of(network, settings)
        texts = text_prototypes(workspace.classes, templates,
                                text_encoder(workspace, groups, device))
        mean, std = groups.header.facts["mean"], groups.header.facts["std"]
        return cls(network, texts.to(device), view,
                   PhotoSettings(network.shape.patch, tuple(mean), tuple(std), short_side=short),
                   device, settings.maps)

    def segment(self, pixels: Tensor, *, groups: bool = False) -> list[group_maps.GroupScores]:
        """Segment photos (B, 3, H, W) that were made as `seen` says; see `segment_by_groups`."""
        return group_maps.segment_by_groups(
            self.network, pixels.to(self.device, non_blocking=True), self.texts, self.view,
            groups=groups)

    def tiled(self, settings: RunsSegmenter) -> TiledSegmenter | None:
        """See `RunningSegmenter`."""
        raise VplError("groups see photos by windows of their own, and no GeoTIFF",
                       "`decoder='NAME'` names a decoder")

    def photo(self, rgb: npt.NDArray[np.uint8], settings: RunsSegmenter) -> Tensor:
        """See `RunningSegmenter`."""
        if settings.factors != [1] or settings.flip or settings.tile:
            raise VplError("groups see a photo by windows of their own, at one scale, and not "
                           "mirrored", "leave out `scales`, `flip` and `tile`")
        size = self.seen.fit((rgb.shape[0], rgb.shape[1]))
        pixels = to_pixels(rgb, size, self.seen.mean, self.seen.std)
        return self.segment(pixels[None])[0].probabilities

    def photos(self, paths: Mapping[str, Path], settings: RunsSegmenter) -> Iterator[Made]:
        """See `RunningSegmenter`; yields a `SegmentedByGroups` for each photo."""
        def segment_batch(batch: batches.Batch) -> Iterator[Made]:
            found = self.segment(batch.pixels, groups=self.maps)
            for key, size, photo in zip(batch.ids, batch.sizes, found, strict=True):
                yield key, SegmentedByGroups(photo.probabilities, size, photo.maps, photo.groups)

        return run_photos(
            paths, self.seen, segment_batch, device=self.device, batch_size=settings.batch_size,
            workers=settings.workers,
            too_large=lambda _: f"`short_side={self.seen.short_side // 2}, overwrite=True`")
