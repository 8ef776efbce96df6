"""Photos segmented by trained groups and words: the settings of `predict` for it, and the work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpltool.core.photos import PhotoSettings
from vpltool.core.text import text_prototypes
from vpltool.datasets.classes import read_classes
from vpltool.datasets.prompts import find_prompts
from vpltool.engine.groups import read_groups, text_encoder
from vpltool.engine.photo_work import Made, count_sizes, run_batches
from vpltool.engine.running import Segmented
from vpltool.errors import VplError
from vpltool.formats import Header, Workspace
from vpltool.lazy import torch
from vpltool.parallel.device import find_device, worker_count
from vpltool.settings import Settings, setting

if TYPE_CHECKING:
    from vpltool.core.group_maps import GroupMaps, GroupScores, GroupView
    from vpltool.core.groups import GroupNetwork
    from vpltool.parallel.photos import Batch

_PANEL = "Groups"
GROUP_SETTINGS = ("classes", "prompts", "threshold", "top", "short_side", "window", "stride",
                  "maps")
"""Settings that only groups have."""

DECODER_SETTINGS = ("scales", "flip", "average", "source", "features", "max_side", "tile",
                    "overlap", "precision")
"""Settings that groups do not have."""


@dataclass(frozen=True, kw_only=True)
class GroupSettings(Settings):
    """Settings of `predict` that only groups have."""

    classes: Path | None = setting(
        None, "Class names for the groups, one per line; default: the workspace's classes.",
        metavar="FILE", panel=_PANEL, record="never")
    prompts: str = setting("single", "Prompts for the class names; see text-prototypes.",
                           metavar="NAME-OR-PATH", panel=_PANEL, record="changed")
    threshold: float = setting(
        0.95, "Background threshold: where all classes are below it; 0: no background.", low=0,
        high=1,
        panel=_PANEL, record="changed", source="PGSeg, VOC")
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

    maps: torch.Tensor
    groups: GroupMaps | None


def named_workspace(workspace: Workspace, file: Path | None) -> Workspace:
    """The workspace with the classes that a file names, if one is given.

    Raises:
        VplError: the file cannot be read, or there is no class at all.
    """
    named = replace(workspace, classes=read_classes(file).names) if file else workspace
    if not named.classes:
        raise VplError(f"{workspace.path / 'workspace.json'} names no class",
                       "`classes='FILE'` has the words, one class per line")
    return named


def view_of(network: GroupNetwork, settings: GroupSettings) -> tuple[int, GroupView]:
    """How photos are seen: pixels of their shorter side, and the windows.

    Raises:
        VplError: a size is no multiple of the patch.
    """
    from vpltool.core.group_maps import GroupView

    patch = network.shape.patch
    short = settings.short_side or 2 * network.shape.side
    window = settings.window or -(-short // patch) * patch
    stride = settings.stride or max(window // patch // 2, 1) * patch
    for name, value in (("window", window), ("stride", stride)):
        if value % patch:
            raise VplError(f"`{name}={value}` is not a multiple of the groups' patches of {patch} "
                           "pixels", f"`{name}={-(-value // patch) * patch}`")
    return short, GroupView(window, stride, settings.threshold, settings.top)


@dataclass(frozen=True)
class GroupSegmenter:
    """Trained groups with the words that name them, ready for photos.

    Args:
        network: in evaluation mode, on the device.
        texts: vectors of the words (C, dim).
        view: the windows.
        photos: how photos become its input.
        device: where the work is done.
    """

    network: GroupNetwork
    texts: torch.Tensor
    view: GroupView
    photos: PhotoSettings
    device: torch.device

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
                   device)

    def segment(self, pixels: torch.Tensor, *, groups: bool = False) -> list[GroupScores]:
        """Segment photos (B, 3, H, W) that were made as `photos` says; see `segment_by_groups`."""
        from vpltool.core.group_maps import segment_by_groups

        return segment_by_groups(self.network, pixels.to(self.device, non_blocking=True),
                                 self.texts, self.view, groups=groups)


def from_groups(workspace: Workspace, path: Path, paths: Mapping[str, Path], settings: Any
                ) -> Iterator[Made]:
    """Segment photos with trained groups.

    Args:
        workspace: see `GroupSegmenter.of`.
        path: of the groups.
        paths: id to path of each photo.
        settings: `GroupSettings`, and how the work is done.

    Returns:
        yields a `SegmentedByGroups` for each photo, or why there is none.

    Raises:
        VplError: see `GroupSegmenter.of`.
    """
    from vpltool.parallel.photos import load_batches

    segmenter = GroupSegmenter.of(workspace, path, settings, find_device(settings.device))

    def segment_batch(batch: Batch) -> Iterator[Made]:
        found = segmenter.segment(batch.pixels, groups=settings.maps)
        for key, size, photo in zip(batch.ids, batch.sizes, found, strict=True):
            yield key, SegmentedByGroups(photo.probabilities, size, photo.maps, photo.groups)

    batches = load_batches(
        list(paths.items()), segmenter.photos, batch_size=settings.batch_size,
        workers=worker_count(settings.workers), device=segmenter.device,
        sized=count_sizes(len(paths)))
    return run_batches(batches, segment_batch, lambda _: (
        f"`short_side={segmenter.photos.short_side // 2}, overwrite=True`"))


def write_maps(output: Any, key: str, seen: SegmentedByGroups) -> None:
    """Write maps of the classes that are likely somewhere, or of the groups."""
    from vpltool.core.segment import likely_classes

    if output.header.kind == "cams":
        kept = likely_classes(seen.maps)
        output.write_tensors(key, {"cam": seen.maps[kept].half().cpu(), "classes": 1 + kept.cpu()})
    else:
        assert seen.groups is not None
        output.write_tensors(key, {"first": seen.groups.first.half().cpu(),
                                   "second": seen.groups.second.half().cpu()})


def check_words(settings: Any, header: Header, path: Path) -> None:
    """Check that words are given to groups, not to a decoder.

    Raises:
        VplError: they are given to a decoder.
    """
    if settings.classes and header.kind != "groups":
        raise VplError(f"{path} is a decoder, and knows its classes; `classes` is for groups",
                       "`train_groups()` makes what any word can name")


def without_effect(header: Header) -> dict[str, str]:
    """Settings that have no effect with a segmenter, and why."""
    if header.kind == "groups":
        return dict.fromkeys(DECODER_SETTINGS, "groups see photos by windows, in float32")
    return dict.fromkeys(GROUP_SETTINGS, "only groups have it")
