"""Maps of groups from a trained `GroupNetwork`, and with words class probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vpltool.core.grids import window_starts
from vpltool.core.groups import GroupNetwork
from vpltool.core.npr import MAX_SCALE
from vpltool.core.segment import FINENESS


@dataclass(frozen=True)
class GroupMaps:
    """The groups of one photo, on its grid of patches, without classes.

    In each patch, the shares of a stage's groups sum to 1.
    """

    first: Tensor  # share of each group of the first stage in each patch (G1, h, w)
    second: Tensor  # the same of the second stage (G2, h, w): the product of both assignments
    groups: Tensor  # vectors of the second stage's groups in the joint space, L2-normed (G2, dim)
    photo: Tensor  # vector of the whole photo, L2-normed (dim,)


@torch.no_grad()
def group_maps(network: GroupNetwork, pixels: Tensor) -> list[GroupMaps]:
    """Cut normalised photos (B, 3, H, W) into groups; H and W are multiples of the patch.

    Each patch belongs to one group where features are merged; the maps hold the soft shares,
    float32. The network is in evaluation mode, on the device of the photos.
    """
    patch = network.shape.patch
    grid = (pixels.shape[2] // patch, pixels.shape[3] // patch)
    encoded = network.vision(pixels)
    one, two = encoded.stages
    second = (two.soft @ one.soft).unflatten(2, grid)
    parts = F.normalize(network.embed_parts(encoded).float(), dim=-1)
    photos = network.embed_photos(encoded)
    return [GroupMaps(*each) for each in zip(one.soft.unflatten(2, grid), second, parts, photos,
                                             strict=True)]


def name_groups(maps: GroupMaps, texts: Tensor, log_scale: Tensor, top: int) -> Tensor:
    """Return groups' class probabilities (G2, C): softmax over the top classes times that over all.

    Texts are L2-normed vectors of the classes in the joint space (C, dim). `top` is the number of
    classes most similar to the whole photo, which alone are possible; 0: all.
    """
    scale = log_scale.exp().clamp_max(MAX_SCALE)
    logits = scale * maps.groups @ texts.T
    likely = (maps.photo @ texts.T).topk(min(top or len(texts), len(texts))).indices
    unlikely = torch.ones(len(texts), dtype=torch.bool, device=texts.device)
    unlikely[likely] = False
    return logits.masked_fill(unlikely, -torch.inf).softmax(dim=-1) * logits.softmax(dim=-1)


def class_maps(maps: Tensor, scores: Tensor) -> Tensor:
    """Return class scores (C, h, w), in [0, 1]: at each patch those of its strongest group.

    Maps are shares of the groups (G, h, w) on any grid, scores those of `name_groups` (G, C).
    """
    return scores[maps.argmax(dim=0)].movedim(-1, 0)


def with_background(scores: Tensor, threshold: float) -> Tensor:
    """Prepend a background to class scores (C, h, w): it wins where all are below a threshold.

    A threshold above the photo's highest score is lowered to just below it, so that some class is
    left. PGSeg's thresholds: VOC 0.95, COCO 0.85, Context 0.36.
    """
    # A little below it: of equals, the background would win.
    highest = scores.max() * (1 - 1e-4)
    return torch.cat([highest.clamp_max(threshold).expand_as(scores[:1]), scores])


def group_use(maps: Tensor) -> tuple[int, float]:
    """Return the paper's richness and compactness of a photo, from its groups' shares (G, h, w).

    Richness is the number of groups that are the strongest somewhere; compactness their overlap,
    the mean over pairs of Σ min(a, b) / Σ max(a, b) of their shares, 0 if they do not overlap.
    """
    shares = maps.flatten(1)
    strongest = shares.argmax(dim=0).unique()
    kept = shares[strongest]
    if len(kept) < 2:
        return len(kept), 0.0
    common = torch.minimum(kept[:, None], kept).sum(dim=-1)
    both = torch.maximum(kept[:, None], kept).sum(dim=-1)
    pairs = torch.triu(torch.ones_like(common, dtype=torch.bool), diagonal=1)
    return len(kept), float((common / both)[pairs].mean())


@dataclass(frozen=True)
class GroupView:
    """Windows of a photo, and the naming of groups."""

    window: int  # side in pixels, a multiple of the patch
    stride: int  # step between windows in pixels, a multiple of the patch
    threshold: float  # see `with_background`
    top: int  # see `name_groups`


@dataclass(frozen=True)
class GroupScores:
    """Class scores of a photo."""

    probabilities: Tensor  # of the background and each class (1 + C, 4h, 4w); they sum to 1
    maps: Tensor  # mean score of each class in each patch (C, h, w)
    groups: GroupMaps | None = None  # of the whole photo, if asked for


@torch.no_grad()
def segment_by_groups(network: GroupNetwork, pixels: Tensor, texts: Tensor, view: GroupView, *,
                      groups: bool = False) -> list[GroupScores]:
    """Return class scores of photos from their groups, window by window.

    A window is treated as a photo of its own, background and likeliest classes included; where
    windows overlap, scores are averaged (GroupViT's evaluation). Photos and network are as in
    `group_maps`, texts as in `name_groups`; `groups` adds the groups of whole photos.
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
            found = group_maps(network, pixels[:, :, _times(rows, patch), _times(columns, patch)])
            for number, maps in enumerate(found):
                fine[number, :, _times(rows, FINENESS), _times(columns, FINENESS)] += _named(
                    maps, texts, network.log_scale, view)
            count[rows, columns] += 1
            whole = found if count.shape == found[0].first.shape[1:] else None
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
    """Return scores of background and classes (1 + C, 4h, 4w): those of the strongest group."""
    scores = name_groups(maps, texts, log_scale, view.top)
    size = tuple(FINENESS * length for length in maps.second.shape[1:])
    shares = F.interpolate(maps.second[None], size=size, mode="bilinear", align_corners=False)[0]
    return with_background(class_maps(shares, scores), view.threshold)
