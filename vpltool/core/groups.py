"""PGSeg: a photo encoder whose group tokens cut it into parts, and a text encoder beside it.

    patches → blocks → 64 groups → blocks → 8 groups → blocks → mean → joint space

The eight parts, mapped as the mean is, can be named by any words. With NPR each of the first two
stages has prototypes, see `npr`; without, this is GroupViT (CVPR 2022). The text tower is like
CLIP's, and is trained along with the photos.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpltool.core.blocks import BlockShape
from vpltool.core.grouping import EPS, Grouped, GroupingBlock, Mixer, TokenBlock
from vpltool.core.npr import Prototypes, Reconstruction, batch_normed


@dataclass(frozen=True)
class CaptionShape:
    """Sizes of a text tower.

    Args:
        width: of a token.
        depth: number of blocks.
        heads: of the attention.
        context: tokens of a caption at most.
        vocabulary: number of tokens that there are; CLIP's.
    """

    width: int
    depth: int
    heads: int
    context: int
    vocabulary: int = 49408


class CaptionTower(nn.Module):
    """A causal transformer; the end token, which has the highest number, speaks for the caption."""

    def __init__(self, shape: CaptionShape) -> None:
        super().__init__()
        self.words = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = nn.Parameter(torch.empty(shape.context, shape.width))
        block = BlockShape(shape.width, 4 * shape.width, shape.heads, EPS, "quick_gelu")
        self.blocks = nn.ModuleList(TokenBlock(block, causal=True) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, eps=EPS)
        nn.init.normal_(self.words.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token numbers (B, length) to vectors (B, width), not normed."""
        x = self.words(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        ends = tokens.argmax(dim=1)
        last: Tensor = self.norm(x[torch.arange(len(x), device=x.device), ends])
        return last


@dataclass(frozen=True)
class NprShape:
    """How prototypes are estimated.

    Args:
        rounds: rounds of EM, T.
        momentum: γ of the moving average.
        tau: temperature of EM over a photo's tokens.
        text_tau: temperature of EM over captions, whose vectors are L2-normed.
        reconstruct: whether what the prototypes say is added to the tokens.
        hidden: width of the MLP that adds it.
    """

    rounds: int
    momentum: float
    tau: float
    text_tau: float
    reconstruct: bool
    hidden: int


@dataclass(frozen=True)
class GroupShape:
    """Sizes of a `GroupNetwork`, and which parts it has.

    Args:
        side: pixels of a side of the photos in training, a multiple of the patch.
        patch: pixels of a side of a patch.
        width: of a token.
        heads: of the attention; the width is a multiple.
        depths: blocks before the first grouping, before the second, and after it.
        groups: number of groups of both stages.
        dim: of the joint space.
        hidden: width of the projectors' MLP.
        drop_path: share of the photos that skip a block in training.
        caption: the text tower; None: vectors of a frozen one are given.
        npr: how prototypes are estimated.
        of_photos: whether both stages have prototypes.
        of_text: whether there are prototypes of text.
    """

    side: int
    patch: int
    width: int
    heads: int
    depths: tuple[int, int, int]
    groups: tuple[int, int]
    dim: int
    hidden: int
    drop_path: float
    caption: CaptionShape | None
    npr: NprShape
    of_photos: bool
    of_text: bool

    def to_config(self) -> dict[str, object]:
        """As JSON can hold it."""
        config = asdict(self)
        return config | {"depths": list(self.depths), "groups": list(self.groups)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> GroupShape:
        """Read what `to_config` gave."""
        caption = config["caption"]
        return cls(**{
            **config, "depths": tuple(config["depths"]), "groups": tuple(config["groups"]),
            "caption": CaptionShape(**caption) if caption else None,
            "npr": NprShape(**config["npr"])})


@dataclass(frozen=True)
class EncodedPhotos:
    """What the photo encoder makes of a batch.

    Args:
        segments: the parts of the last stage, before the projector (B, G, width).
        stages: what both groupings have made.
        prototypes: of both stages' input, L2-normed (B, G, width); empty without NPR.
    """

    segments: Tensor
    stages: tuple[Grouped, Grouped]
    prototypes: tuple[Tensor, ...]


class GroupStage(nn.Module):
    """Blocks over tokens and group tokens, then a grouping.

    Args:
        shape: sizes.
        number: 0 or 1.
        drops: drop-path of each block.
    """

    def __init__(self, shape: GroupShape, number: int, drops: list[float]) -> None:
        super().__init__()
        width, count = shape.width, shape.groups[number]
        self.tokens = nn.Parameter(torch.empty(1, count, width))
        self.carry = (Mixer(width, shape.groups[number - 1], width // 2, count) if number
                      else None)
        self.blocks = make_blocks(shape, drops)
        npr = shape.npr
        self.prototypes = Prototypes(
            count, width, tau=npr.tau, rounds=npr.rounds, momentum=npr.momentum,
        ) if shape.of_photos else None
        self.reconstruction = Reconstruction(
            width, npr.hidden, npr.tau) if shape.of_photos and npr.reconstruct else None
        self.grouping = GroupingBlock(width, shape.heads, count)

    def forward(self, x: Tensor, before: Tensor | None
                ) -> tuple[Grouped, Tensor, Tensor | None]:
        """Group tokens (B, N, width).

        Args:
            x: the stage's input.
            before: group tokens of the stage before (B, G', width).

        Returns:
            what was grouped, the group tokens for the next stage, the prototypes.
        """
        groups = self.tokens.expand(len(x), -1, -1)
        if self.carry is not None and before is not None:
            groups = groups + self.carry(before)
        y = torch.cat([x, groups], dim=1)
        for block in self.blocks:
            y = block(y)
        patches, groups = y.split([x.shape[1], groups.shape[1]], dim=1)
        prototypes = None if self.prototypes is None else self.prototypes.estimate(x)
        if self.reconstruction is not None and prototypes is not None:
            patches = patches + self.reconstruction(x, prototypes)
        return self.grouping(groups, patches), groups, prototypes


def make_blocks(shape: GroupShape, drops: list[float]) -> nn.ModuleList:
    """Make a transformer block of each drop-path."""
    block = BlockShape(shape.width, 4 * shape.width, shape.heads, EPS, "gelu")
    return nn.ModuleList(TokenBlock(block, drop_path=drop) for drop in drops)


class GroupEncoder(nn.Module):
    """Photos to the parts that two stages of grouping cut them into."""

    def __init__(self, shape: GroupShape) -> None:
        super().__init__()
        grid = shape.side // shape.patch
        self.grid = (grid, grid)
        self.conv = nn.Conv2d(3, shape.width, shape.patch, stride=shape.patch)
        self.norm_patches = nn.LayerNorm(shape.width, eps=EPS)
        self.positions = nn.Parameter(torch.empty(grid * grid, shape.width))
        first, second, last = shape.depths
        last_block = max(sum(shape.depths) - 1, 1)
        drops = [shape.drop_path * number / last_block for number in range(sum(shape.depths))]
        self.first = GroupStage(shape, 0, drops[:first])
        self.second = GroupStage(shape, 1, drops[first : first + second])
        self.blocks = make_blocks(shape, drops[first + second : first + second + last])
        self.norm = nn.LayerNorm(shape.width, eps=EPS)

    def forward(self, pixels: Tensor) -> EncodedPhotos:
        """Encode photos (B, 3, H, W); H and W are multiples of the patch."""
        patches = self.conv(pixels)
        grid = (patches.shape[2], patches.shape[3])
        x = self.norm_patches(patches.flatten(2).mT) + self.positions_for(grid)
        one, groups, first = self.first(x, None)
        two, _, second = self.second(one.segments, groups)
        y = two.segments
        for block in self.blocks:
            y = block(y)
        kept = tuple(part for part in (first, second) if part is not None)
        return EncodedPhotos(self.norm(y), (one, two), kept)

    def positions_for(self, grid: tuple[int, int]) -> Tensor:
        """Position embedding of a grid, resampled: (h·w, width)."""
        if grid == self.grid:
            return self.positions
        table = self.positions.view(1, *self.grid, -1).permute(0, 3, 1, 2)
        return F.interpolate(table, size=grid, mode="bicubic", align_corners=False
                             ).flatten(2)[0].mT


class GroupNetwork(nn.Module):
    """Both encoders, and what maps them into one space.

    Without a text tower of its own (`shape.caption` None) it is given the vectors of a frozen one,
    whose space is the joint space.
    """

    def __init__(self, shape: GroupShape) -> None:
        super().__init__()
        self.shape = shape
        self.vision = GroupEncoder(shape)
        self.project_vision = batch_normed(shape.width, shape.hidden, shape.dim)
        if shape.caption is not None:
            self.text = CaptionTower(shape.caption)
            self.project_text = batch_normed(shape.caption.width, shape.hidden, shape.dim)
        npr = shape.npr
        self.text_prototypes = Prototypes(
            shape.groups[1], shape.dim, tau=npr.text_tau, rounds=npr.rounds, momentum=npr.momentum,
        ) if shape.of_text else None
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        self.log_npr_scales = nn.Parameter(torch.full((3,), 10.0).log(),
                                           requires_grad=shape.of_photos or shape.of_text)
        self.apply(_begin)
        for stage in (self.vision.first, self.vision.second):
            nn.init.trunc_normal_(stage.tokens, std=0.02)
        nn.init.trunc_normal_(self.vision.positions, std=0.02)

    def embed_parts(self, seen: EncodedPhotos) -> Tensor:
        """The parts of photos in the joint space, by the projector as it is at test (B, G, dim)."""
        trained = self.project_vision.training
        # The statistics of BatchNorm are those of whole photos.
        self.project_vision.eval()
        parts: Tensor = self.project_vision(seen.segments.flatten(0, 1))
        self.project_vision.train(trained)
        return parts.unflatten(0, seen.segments.shape[:2])

    def embed_photos(self, seen: EncodedPhotos) -> Tensor:
        """Photos in the joint space, L2-normed (B, dim)."""
        return F.normalize(self.project_vision(seen.segments.mean(dim=1)).float(), dim=-1)

    def embed_captions(self, texts: Tensor) -> Tensor:
        """Captions in the joint space, L2-normed (B, dim).

        Args:
            texts: token numbers (B, length); of a frozen tower, its vectors (B, dim).
        """
        if self.shape.caption is None:
            return F.normalize(texts.float(), dim=-1)
        return F.normalize(self.project_text(self.text(texts)).float(), dim=-1)


def _begin(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
