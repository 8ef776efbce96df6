"""From a trained `GroupNetwork` and words to labels: windows, groups, classes, background."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vpltool.core.group_maps import GroupMaps, class_maps, group_maps, name_groups, with_background
from vpltool.core.groups import GroupNetwork
from vpltool.core.segment import FINENESS
from vpltool.core.tiles import window_starts


@dataclass(frozen=True)
class GroupView:
    """How photos are seen, and when a group is the background.

    Args:
        window: pixels of a side of the windows, a multiple of the patch.
        stride: pixels from one window to the next, a multiple of the patch.
        threshold: a class below it gives way to the background.
        top: classes that a window as a whole is most like; the others are out. 0: all.
    """

    window: int
    stride: int
    threshold: float
    top: int = 5


@dataclass(frozen=True)
class GroupScores:
    """What is found in a photo.

    Args:
        probabilities: of the background and each class (1 + C, 4h, 4w); they sum to 1.
        maps: mean score of each class in each patch (C, h, w).
        groups: of the photo as a whole, for pictures; None where they are not asked for.
    """

    probabilities: Tensor
    maps: Tensor
    groups: GroupMaps | None = None


@torch.no_grad()
def segment_by_groups(network: GroupNetwork, pixels: Tensor, texts: Tensor, view: GroupView, *,
                      groups: bool = False) -> list[GroupScores]:
    """Cut photos into groups, window by window, and name these.

    A window is treated as a photo of its own, background and likeliest classes included; where
    windows overlap, the mean counts (GroupViT's evaluation).

    Args:
        network: in evaluation mode, on the device of the photos.
        pixels: normalised photos (B, 3, H, W), H and W multiples of the patch.
        texts: L2-normed vectors of the classes in the joint space (C, dim).
        view: how they are seen.
        groups: whether the groups of whole photos are wanted, too.
    """
    patch = network.shape.patch
    grid = (pixels.shape[2] // patch, pixels.shape[3] // patch)
    side, step = view.window // patch, max(view.stride // patch, 1)
    fine = pixels.new_zeros((len(pixels), 1 + len(texts), *(FINENESS * n for n in grid)),
                            dtype=torch.float32)
    count = pixels.new_zeros(grid, dtype=torch.float32)
    whole: list[GroupMaps] | None = None
    for top in window_starts(grid[0], side, step):
        for left in window_starts(grid[1], side, step):
            rows, columns = (slice(start, min(start + side, length))
                             for start, length in zip((top, left), grid, strict=True))
            seen = group_maps(network, pixels[:, :, _times(rows, patch), _times(columns, patch)])
            for number, maps in enumerate(seen):
                fine[number, :, _times(rows, FINENESS), _times(columns, FINENESS)] += _named(
                    maps, texts, network.log_scale, view)
            count[rows, columns] += 1
            whole = seen if count.shape == seen[0].first.shape[1:] else None
    if groups and whole is None:
        whole = group_maps(network, pixels)
    fine /= count.repeat_interleave(FINENESS, 0).repeat_interleave(FINENESS, 1)
    return [GroupScores(scores / scores.sum(dim=0).clamp_min(1e-12),
                        F.avg_pool2d(scores[1:], FINENESS),
                        whole[number] if groups and whole else None)
            for number, scores in enumerate(fine)]


def _times(part: slice, factor: int) -> slice:
    return slice(part.start * factor, part.stop * factor)


def _named(maps: GroupMaps, texts: Tensor, log_scale: Tensor, view: GroupView) -> Tensor:
    """Scores of background and classes (1 + C, 4h, 4w): those of the strongest group."""
    scores = name_groups(maps, texts, log_scale, view.top)
    size = tuple(FINENESS * length for length in maps.second.shape[1:])
    shares = F.interpolate(maps.second[None], size=size, mode="bilinear", align_corners=False)[0]
    return with_background(class_maps(shares, scores), view.threshold)
