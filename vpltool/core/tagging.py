"""Tags of photos from CLIP alone (TagCLIP, Lin et al., AAAI 2024).

CLIP's embedding of a whole photo describes its most striking object. Here each patch is classified
on its own, the scores are refined along the attention of earlier blocks, and a class's best patch
counts. The region that a class claims is then cropped and classified again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vpltool.core.affinity import box_mask
from vpltool.core.classes import ClassRows, class_rows, join_rows
from vpltool.core.grids import min_max
from vpltool.core.vit import VisionTower

VOTES_OF = 12
"""Blocks of TagCLIP's tower; the number of votes is scaled to the depth of others."""

SHARE = 0.5
"""Share of a photo's range of scores above which a class is classified again (TagCLIP's code)."""


@dataclass(frozen=True)
class TagSettings:
    """Parameters of tagging.

    `patches` names what is classified: `alone`, the last block's output if each patch attended only
    to itself; `value`, its value path alone; `block`, its output as it is.
    """

    tau: float  # temperature of the softmax over the classes
    blocks: int  # blocks before the last whose attention refines the scores
    votes: int  # of 12 blocks, those that must attend to a patch more than on average
    crop: int  # side in pixels to which a candidate's region is scaled; 0: no second pass
    patches: str


@dataclass(frozen=True)
class Vocabulary:
    """The words that compete for a patch, with those of the background if they take part."""

    rows: Tensor  # L2-normed vectors (R, dim)
    classes: ClassRows  # rows of each class, from class 1 on

    @classmethod
    def of(cls, rows: Tensor, class_index: Tensor, *, background: bool = True) -> Vocabulary:
        """Make it of prototypes (rows, dim) and their classes (rows,), 0 is the background."""
        if not background:
            rows, class_index = rows[class_index > 0], class_index[class_index > 0]
        wanted = torch.arange(1, int(class_index.max()) + 1)
        return cls(rows, class_rows(class_index, wanted))

    def probabilities(self, embeddings: Tensor, tau: float) -> Tensor:
        """Return L2-normed vectors' (..., dim) softmax over all rows, summed by class (..., C)."""
        logits = (embeddings @ self.rows.to(embeddings).T).float() / tau
        return (join_rows(logits, self.classes) - logits.logsumexp(dim=-1, keepdim=True)).exp()


@torch.no_grad()
def tag_scores(vision: VisionTower, pixels: Tensor, words: Vocabulary, settings: TagSettings
               ) -> Tensor:
    """Score every class in every normalised photo (B, 3, H, W): (B, C) float32, in [0, 1]."""
    height, width = (side // vision.patch for side in pixels.shape[2:])
    alone = settings.patches == "alone"
    encoded = vision(pixels, patches="none" if alone else settings.patches, attention=False,
                     attentions=True, attention_blocks=vision.depth)
    embeddings = (vision.head.lone_embeddings(encoded.tokens[:, vision.head.prefix :]) if alone
                  else encoded.patches)
    assert encoded.attentions is not None and embeddings is not None
    coarse = words.probabilities(embeddings, settings.tau)
    attention = voted_attention(encoded.attentions, settings.blocks, settings.votes)
    maps = refine_scores(coarse, attention, (height, width))
    scores = maps.amax(dim=(2, 3))
    if settings.crop:
        pairs = candidates(scores, SHARE).nonzero()
        again = _rescored(vision, pixels, words, settings, maps, pairs)
        photo, column = pairs.unbind(1)
        scores[photo, column] = (scores[photo, column] + again) / 2
    return scores


def voted_attention(attentions: Tensor, blocks: int, votes: int) -> Tensor:
    """Return the mean attention of `blocks` before the last (B, n, n), where enough agree on it.

    Attentions are those of each block in order (B, depth, n, n). A patch attends to another where
    at least `votes` of 12 blocks (of another depth, the same share, rounded up), the last included,
    do so more than the mean of their map. Rows sum to 1, or to 0 where a patch attends to none.
    """
    depth = attentions.shape[1]
    needed = math.ceil(votes * depth / VOTES_OF)
    agreed = (attentions > attentions.mean(dim=(2, 3), keepdim=True)).sum(dim=1) >= needed
    first = max(depth - 1 - blocks, 0)
    chosen = attentions[:, first : max(depth - 1, 1)].float().mean(dim=1) * agreed
    return chosen / chosen.sum(dim=-1, keepdim=True).clamp_min(1e-12)


def refine_scores(coarse: Tensor, attention: Tensor, grid: tuple[int, int]) -> Tensor:
    """Refine patches' class probabilities (B, n, C) by attention (B, n, n), to maps (B, C, h, w).

    The first pass gives each class a map; its boxes are those of the regions above the map's mean.
    The second pass adds up only what lies in the boxes.
    """
    first = (attention @ coarse).transpose(1, 2).unflatten(2, grid)
    boxes = torch.stack([box_mask(maps, maps.mean(dim=(1, 2), keepdim=True))
                         for maps in min_max(first)])
    inside = coarse * boxes.flatten(2).transpose(1, 2)
    return (attention @ inside).transpose(1, 2).unflatten(2, grid)


def candidates(scores: Tensor, share: float) -> Tensor:
    """Mark the classes whose scores reach min + share·(max − min) of their photo's (B, C)."""
    low, high = scores.amin(dim=1, keepdim=True), scores.amax(dim=1, keepdim=True)
    return scores >= low + share * (high - low)


def _rescored(vision: VisionTower, pixels: Tensor, words: Vocabulary, settings: TagSettings,
              maps: Tensor, pairs: Tensor) -> Tensor:
    """Return each (photo, class) pair's probability in the crop that the class claims (P,)."""
    side = math.ceil(settings.crop / vision.patch) * vision.patch
    crops = []
    for photo, column in pairs.tolist():
        top, left, bottom, right = claimed_box(maps[photo, column])
        cut = pixels[photo, :, top * vision.patch : bottom * vision.patch,
                     left * vision.patch : right * vision.patch]
        crops.append(F.interpolate(cut[None].float(), size=(side, side), mode="bilinear",
                                   align_corners=False)[0].to(pixels))
    found = words.probabilities(vision.embed_photos(torch.stack(crops)), settings.tau)
    return found.gather(1, pairs[:, 1:])[:, 0]


def claimed_box(field: Tensor) -> Sequence[int]:
    """Return the box around the pixels of a map (h, w), stretched to [0, 1], that are above ½.

    The box is (top, left, bottom, right), the last two exclusive; of a flat map it is the whole.
    """
    claimed = min_max(field) > 0.5
    if not bool(claimed.any()):
        return 0, 0, field.shape[0], field.shape[1]
    rows, columns = (claimed.any(dim=axis).nonzero()[:, 0] for axis in (1, 0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
