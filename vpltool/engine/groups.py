"""Trained groups (GroupViT, PGSeg): loading, text encoding, and segmenting photos."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vpltool import console
from vpltool.clip import catalogue, load, weights
from vpltool.core import group_maps, prototypes, segment
from vpltool.core import groups as networks
from vpltool.core.photos import PhotoSettings, to_pixels
from vpltool.datasets.words import find_prompts
from vpltool.engine import checkpoints, models, running
from vpltool.engine.photo_work import Made, run_photos
from vpltool.errors import VplError
from vpltool.formats import Header, Workspace, read_tensors
from vpltool.formats.header import is_same_model
from vpltool.lazy import Tensor, np, npt, torch
from vpltool.parallel import batches
from vpltool.settings import setting

_PANEL = "Groups"
NETWORK_SETTINGS = ("scales", "flip", "average", "source", "features", "max_side", "tile",
                    "overlap", "precision")
"""Settings of `predict` that do not apply to groups."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's mean and std of RGB in [0, 1], used to normalise GroupViT's inputs."""


def read_groups(path: Path) -> tuple[Header, networks.GroupNetwork]:
    """Read trained groups, see `trained_header`; the network is on the CPU, in evaluation mode.

    `header.model` is the CLIP whose text tower was used in training; empty: the groups' own tower.
    """
    header = checkpoints.trained_header(path, "groups")
    network = networks.GroupNetwork(networks.GroupShape.from_config(header.facts["config"]))
    network.load_state_dict(read_tensors(path, "groups")[1])
    return header, network.eval().requires_grad_(False)


def take_weights(network: networks.GroupNetwork, path: Path) -> None:
    """Load initial weights from a file; missing tensors keep their values and are reported.

    The file comes from `train-groups` or is a GroupViT with transformers' names. Projections and
    text towers of another shape are skipped, because the joint space may differ.

    Raises a VplError if the file is unreadable, or holds none of the weights, or other shapes.
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


def text_encoder(workspace: Workspace, network: networks.GroupNetwork, model: Mapping[str, str],
                 device: torch.device) -> Callable[[Sequence[str]], Tensor]:
    """Return a function that encodes prompts as L2-normed vectors (n, dim) in the groups' space.

    The network is on the device; `model` is that of its header.

    Raises a VplError if the workspace's CLIP is unavailable, or is not that of the groups.
    """
    if network.shape.caption is None:
        return clip_encoder(workspace, device, model)[0]
    tokenize = caption_tokenizer(network.shape.caption.context)

    def encode(prompts: Sequence[str]) -> Tensor:
        with torch.no_grad():
            return network.embed_captions(tokenize(prompts).to(device))

    return encode


def clip_encoder(workspace: Workspace, device: torch.device,
                 model: Mapping[str, str] | None = None
                 ) -> tuple[Callable[[Sequence[str]], Tensor], dict[str, str]]:
    """Return the text encoder of the workspace's CLIP, and that CLIP's identity.

    Raises a VplError if it is unavailable, or differs from `model`.
    """
    models.check_words(workspace, "`text='own'`")
    clip = load.load_clip(workspace.model, workspace.pretrained, device, base=workspace.path)
    if model and not is_same_model(clip.identity, model):
        raise VplError(f"the groups were trained with the text of another CLIP than "
                       f"{workspace.model}", "`train_groups(overwrite=True)`")
    return clip.encode_text, clip.identity


def caption_tokenizer(context: int) -> Callable[[Sequence[str]], Tensor]:
    """Return CLIP's tokenizer for up to `context` tokens; it yields token ids (n, context)."""
    tokenizer = catalogue.import_open_clip().SimpleTokenizer(context_length=context)
    return lambda texts: tokenizer(list(texts))


_NAMES = (
    ("vision_model.encoder.stages.0.", "vision.first."),
    ("vision_model.encoder.stages.1.", "vision.second."),
    ("vision_model.encoder.stages.2.", "vision."), ("vision_model.layernorm", "vision.norm"),
    ("vision_model.embeddings.patch_embeddings.projection", "vision.conv"),
    ("vision_model.embeddings.layernorm", "vision.norm_patches"),
    ("vision_model.embeddings.position_embeddings", "vision.positions"),
    ("text_model.encoder.", "text."), ("text_model.final_layer_norm", "text.norm"),
    ("text_model.embeddings.token_embedding", "text.words"),
    ("text_model.embeddings.position_embedding.weight", "text.positions"),
    ("visual_projection.", "project_vision."), ("text_projection.", "project_text."),
    ("logit_scale", "log_scale"),
    (".group_token", ".tokens"), (".group_projector.0", ".carry.norm"),
    (".group_projector.1.fc1", ".carry.fc"), (".group_projector.1.fc2", ".carry.proj"),
    (".downsample.", ".grouping."), (".norm_tokens", ".mixer.norm"),
    (".mlp_inter.fc1", ".mixer.fc"), (".mlp_inter.fc2", ".mixer.proj"),
    (".norm_post_tokens", ".norm_groups"), (".norm_x", ".norm_patches"),
    (".pre_assign_attn.attn.", ".look."), (".look.q_proj", ".look.query"),
    (".look.k_proj", ".look.key"), (".look.v_proj", ".look.value"), (".look.out_proj", ".look.out"),
    (".pre_assign_attn.norm2", ".look.mlp.0"), (".pre_assign_attn.mlp.fc1", ".look.mlp.1"),
    (".pre_assign_attn.mlp.fc2", ".look.mlp.3"), (".pre_assign_attn.norm_post", ".look.norm"),
    (".assign.q_proj", ".query"), (".assign.k_proj", ".key"), (".assign.v_proj", ".value"),
    (".assign.proj", ".out"), (".norm_new_x", ".mlp.0"), (".mlp_channels.fc1", ".mlp.1"),
    (".mlp_channels.fc2", ".mlp.3"),
    (".layers.", ".blocks."), (".layer_norm1", ".ln_1"), (".layer_norm2", ".ln_2"),
    (".mlp.fc1", ".fc"), (".mlp.fc2", ".proj"), (".self_attn.out_proj", ".out"),
    (".self_attn.q_proj", ".qkv.q"), (".self_attn.k_proj", ".qkv.k"),
    (".self_attn.v_proj", ".qkv.v"))
"""Substrings of transformers' names for GroupViT, and ours; replaced in this order."""


def is_groupvit(names: Mapping[str, Tensor]) -> bool:
    """Return whether tensor names are those of a GroupViT saved by transformers."""
    return any(name.startswith("vision_model.encoder.stages.") for name in names)


def from_groupvit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename GroupViT's weights to those of `GroupNetwork`; query, key and value are merged.

    Unknown names, such as position indices, are dropped.
    """
    named: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for theirs, ours in _NAMES:
            name = name.replace(theirs, ours)
        if "_model." not in name:
            named[name] = tensor
    if "vision.positions" in named:
        named["vision.positions"] = named["vision.positions"].squeeze(0)
    for name in [name for name in named if ".qkv.q." in name]:
        start, end = name.split(".qkv.q.")
        named[f"{start}.qkv.{end}"] = torch.cat([named.pop(f"{start}.qkv.{part}.{end}")
                                                 for part in "qkv"])
    return named


@dataclass(frozen=True, kw_only=True)
class GroupSettings(running.RunsSegmenter):
    """Settings of running any segmenter, and those that apply only to groups."""

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
    maps: bool = setting(True, "Also store maps of the classes, as cam does, and of the groups, "
                               "for show.", off="--no-maps", panel=_PANEL, record="never")


@dataclass(frozen=True)
class SegmentedByGroups(running.Segmented):
    """A `Segmented` with class maps (C, h, w), and group maps if requested."""

    maps: Tensor
    groups: group_maps.GroupMaps | None

    def tensors(self, kind: str) -> dict[str, Tensor]:
        """Return the tensors of a kind: `cams` of likely classes, `group-maps`, or the base's."""
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
    """Return the photos' shorter side in pixels, and the sliding windows.

    Raises a VplError if a size is not a multiple of the patch size.
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
    """Trained groups and encoded class names, with the interface of `RunningNetwork`.

    The network is in evaluation mode, on the device. `texts` are class vectors (C, dim), `view` the
    sliding windows, `preprocess` that of photos; `maps` requests group maps as well.
    """

    network: networks.GroupNetwork
    texts: Tensor
    view: group_maps.GroupView
    preprocess: PhotoSettings
    device: torch.device
    maps: bool

    @classmethod
    def of(cls, workspace: Workspace, path: Path, settings: GroupSettings, device: torch.device
           ) -> GroupSegmenter:
        """Read groups, and encode the workspace's class names.

        Raises a VplError if the groups or their text tower are unavailable, or a size does not fit.
        """
        templates = find_prompts(settings.prompts)
        header, network = read_groups(path)
        network = network.to(device)
        short, view = view_of(network, settings)
        texts = prototypes.text_prototypes(workspace.classes, templates,
                                           text_encoder(workspace, network, header.model, device))
        mean, std = header.facts["mean"], header.facts["std"]
        return cls(network, texts.to(device), view,
                   PhotoSettings(network.shape.patch, tuple(mean), tuple(std), short_side=short),
                   device, settings.maps)

    def segment(self, pixels: Tensor, *, groups: bool = False) -> list[group_maps.GroupScores]:
        """Segment photos (B, 3, H, W) preprocessed as in `seen`; see `segment_by_groups`."""
        return group_maps.segment_by_groups(
            self.network, pixels.to(self.device, non_blocking=True), self.texts, self.view,
            groups=groups)

    def tiled(self, settings: running.RunsSegmenter) -> running.TiledSegmenter | None:
        """Raise an error: groups see no tiles."""
        raise VplError("groups see photos by windows of their own, and no GeoTIFF",
                       "`decoder='NAME'` names a decoder")

    def photo(self, rgb: npt.NDArray[np.uint8], settings: running.RunsSegmenter) -> Tensor:
        """See `RunningNetwork`; raises an error if the settings do not apply to groups."""
        if settings.factors != [1] or settings.flip or settings.tile:
            raise VplError("groups see a photo by windows of their own, at one scale, and not "
                           "mirrored", "leave out `scales`, `flip` and `tile`")
        size = self.preprocess.fit((rgb.shape[0], rgb.shape[1]))
        pixels = to_pixels(rgb, size, self.preprocess.mean, self.preprocess.std)
        return self.segment(pixels[None])[0].probabilities

    def photos(self, paths: Mapping[str, Path], settings: running.RunsSegmenter) -> Iterator[Made]:
        """See `RunningNetwork`; yields a `SegmentedByGroups` for each photo."""
        def segment_batch(batch: batches.Batch) -> Iterator[Made]:
            found = self.segment(batch.pixels, groups=self.maps)
            for key, size, photo in zip(batch.ids, batch.sizes, found, strict=True):
                yield key, SegmentedByGroups(photo.probabilities, size, photo.maps, photo.groups)

        return run_photos(
            paths, self.preprocess, segment_batch, device=self.device,
            batch_size=settings.batch_size, workers=settings.workers,
            too_large=lambda _: f"`short_side={self.preprocess.short_side // 2}, overwrite=True`")
