"""From a trained `GroupNetwork` to maps of groups, and to scores of classes that words name."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vpltool.core.groups import GroupNetwork
from vpltool.core.npr import MAX_SCALE


@dataclass(frozen=True)
class GroupMaps:
    """The groups of one photo, on its grid of patches; they know no classes.

    Args:
        first: share of each group of the first stage in each patch (G1, h, w); sums to 1 over them.
        second: the same of the second stage (G2, h, w): the product of both assignments.
        groups: vectors of the second stage's groups in the joint space, L2-normed (G2, dim).
        photo: that of the whole photo, L2-normed (dim,).
    """

    first: Tensor
    second: Tensor
    groups: Tensor
    photo: Tensor


@torch.no_grad()
def group_maps(network: GroupNetwork, pixels: Tensor) -> list[GroupMaps]:
    """Cut photos into groups; the network is in evaluation mode.

    Each patch belongs to one group where features are merged; the maps hold the soft shares.

    Args:
        network: on the device of the photos.
        pixels: normalised photos (B, 3, H, W), H and W multiples of the patch.

    Returns:
        the groups of each photo, float32.
    """
    patch = network.shape.patch
    grid = (pixels.shape[2] // patch, pixels.shape[3] // patch)
    seen = network.vision(pixels)
    one, two = seen.stages
    second = (two.soft @ one.soft).unflatten(2, grid)
    parts = F.normalize(network.embed_parts(seen).float(), dim=-1)
    photos = network.embed_photos(seen)
    return [GroupMaps(*each) for each in zip(one.soft.unflatten(2, grid), second, parts, photos,
                                             strict=True)]


def name_groups(maps: GroupMaps, texts: Tensor, log_scale: Tensor, top: int = 5) -> Tensor:
    """Return class probabilities of groups: softmax over the top classes times that over all.

    Args:
        maps: groups of a photo.
        texts: L2-normed vectors of the classes in the joint space (C, dim).
        log_scale: `GroupNetwork.log_scale`.
        top: classes that the photo as a whole is most like; the others are out. 0: all.

    Returns:
        (G2, C), in [0, 1].
    """
    scale = log_scale.exp().clamp_max(MAX_SCALE)
    logits = scale * maps.groups @ texts.T
    likely = (maps.photo @ texts.T).topk(min(top or len(texts), len(texts))).indices
    out = torch.ones(len(texts), dtype=torch.bool, device=texts.device)
    out[likely] = False
    return logits.masked_fill(out, -torch.inf).softmax(dim=-1) * logits.softmax(dim=-1)


def class_maps(maps: Tensor, scores: Tensor, *, hard: bool = True) -> Tensor:
    """Scores of classes on a grid, from those of the groups.

    Args:
        maps: shares of the groups (G, h, w), on any grid.
        scores: of `name_groups` (G, C).
        hard: whether a patch takes the scores of its strongest group, or the shares weigh them.

    Returns:
        (C, h, w), in [0, 1].
    """
    if hard:
        return scores[maps.argmax(dim=0)].movedim(-1, 0)
    return torch.einsum("ghw,gc->chw", maps, scores)


def with_background(scores: Tensor, threshold: float) -> Tensor:
    """Put a background before the classes, which wins where all of them stay below a threshold.

    A threshold above the photo's highest score is lowered to just below it: some class is
    left.

    Args:
        scores: of classes (C, h, w).
        threshold: PGSeg: VOC 0.95, COCO 0.85, Context 0.36.

    Returns:
        (1 + C, h, w).
    """
    # A little below it: of equals, the background would win.
    highest = scores.max() * (1 - 1e-4)
    return torch.cat([highest.clamp_max(threshold).expand_as(scores[:1]), scores])


@dataclass(frozen=True)
class GroupUse:
    """How a photo uses the groups of a stage; the paper's richness and compactness, in numbers.

    Args:
        used: groups that are the strongest somewhere.
        overlap: mean over pairs of used groups of Σ min(a, b) / Σ max(a, b), of their shares; 0:
            they are apart.
    """

    used: int
    overlap: float


def group_use(maps: Tensor) -> GroupUse:
    """Measure how a photo uses groups, from their shares (G, h, w)."""
    shares = maps.flatten(1)
    strongest = shares.argmax(dim=0).unique()
    kept = shares[strongest]
    if len(kept) < 2:
        return GroupUse(len(kept), 0.0)
    common = torch.minimum(kept[:, None], kept).sum(dim=-1)
    both = torch.maximum(kept[:, None], kept).sum(dim=-1)
    pairs = torch.triu(torch.ones_like(common, dtype=torch.bool), diagonal=1)
    return GroupUse(len(kept), float((common / both)[pairs].mean()))
