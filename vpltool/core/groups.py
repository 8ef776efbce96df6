"""PGSeg: an image encoder whose group tokens segment a photo into parts, and a text encoder.

    patches → blocks → 64 groups → blocks → 8 groups → blocks → mean → joint space

The eight parts are projected like the mean, so any words can classify them. With NPR, each of the
first two stages has prototypes (see `npr`); without it, this is GroupViT (CVPR 2022). The text
tower resembles CLIP's and is trained together with the image encoder.

In a grouping block, group tokens attend to the patches, then each patch is assigned to one group
(GroupViT, section 3.1):

    a_gn = exp(q_g·k_n + γ_g) / Σ_g' exp(q_g'·k_n + γ_g'),      γ Gumbel noise, in training only
    s_g  = ĝ_g + W_o Σ_n â_gn W_v x_n / (Σ_n â_gn + 1),         â one-hot, with the gradient of a

The softmax runs over the groups, so they compete for a patch. The 1 in the denominator keeps an
empty group finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpltool.core.blocks import Block, BlockShape
from vpltool.core.npr import Prototypes, Reconstruction, batch_normed
from vpltool.core.vit import Resampling, resample_positions

EPS = 1e-5
"""Epsilon of every LayerNorm."""


class TokenBlock(Block):
    """A trainable transformer block with drop-path and optional causal attention.

    If `causal`, a token attends only to itself and earlier tokens. `drop_path` is the share of
    photos that skip the block in training (stochastic depth).
    """

    def __init__(self, shape: BlockShape, *, causal: bool = False, drop_path: float = 0.0) -> None:
        super().__init__(shape)
        self.causal = causal
        self.drop_path = drop_path
        self.gamma_1.requires_grad_(False)
        self.gamma_2.requires_grad_(False)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Mix values (B, heads, N, head width) by attention."""
        return F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, N, width) to tokens (B, N, width)."""
        done = super().forward(x)
        if not self.training or not self.drop_path:
            return done
        kept = torch.rand(len(x), 1, 1, device=x.device) >= self.drop_path
        return x + (done - x) * kept / (1 - self.drop_path)


class Mixer(nn.Module):
    """An MLP over the token axis: each output token mixes all input tokens (MLP-Mixer)."""

    def __init__(self, width: int, before: int, after: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.fc = nn.Linear(before, width // 2)
        self.proj = nn.Linear(width // 2, after)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, before, width) to (B, after, width)."""
        return self.proj(F.gelu(self.fc(self.norm(tokens).transpose(1, 2)))).transpose(1, 2)


class Mlp(nn.Sequential):
    """LayerNorm, then two layers over the width, four times that between, with GELU."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.LayerNorm(width, eps=EPS), nn.Linear(width, 4 * width), nn.GELU(),
                         nn.Linear(4 * width, width))


class CrossAttention(nn.Module):
    """Cross-attention from groups to patches: attention, residual, MLP, LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.mlp = Mlp(width)
        self.norm = nn.LayerNorm(width, eps=EPS)

    def forward(self, groups: Tensor, patches: Tensor) -> Tensor:
        """Map groups (B, G, width), attending to patches (B, N, width), to (B, G, width)."""
        query, key, value = (
            part(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part, tokens in ((self.query, groups), (self.key, patches), (self.value, patches)))
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        groups = groups + self.out(mixed)
        return self.norm(groups + self.mlp(groups))


@dataclass(frozen=True)
class Grouped:
    """The output of a grouping block."""

    segments: Tensor  # one vector per group (B, G, width)
    soft: Tensor  # soft assignment of tokens to groups (B, G, N), summing to 1 over the groups
    groups: Tensor  # group tokens before the assignment (B, G, width), which NPR regularises


class GroupingBlock(nn.Module):
    """Mixing of group tokens, cross-attention to the patches, and hard assignment of patches."""

    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.mixer = Mixer(width, groups, groups)
        self.norm_groups = nn.LayerNorm(width, eps=EPS)
        self.norm_patches = nn.LayerNorm(width, eps=EPS)
        self.look = CrossAttention(width, heads)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.mlp = Mlp(width)

    def forward(self, groups: Tensor, patches: Tensor) -> Grouped:
        """Group patches (B, N, width) by group tokens (B, G, width)."""
        patches = self.norm_patches(patches)
        groups = self.look(self.norm_groups(self.mixer(groups)), patches)
        logits = self.query(groups) @ self.key(patches).mT * groups.shape[-1] ** -0.5
        logits = logits.float()
        given = assign(logits, noisy=self.training)
        shares = given / (given.sum(dim=-1, keepdim=True) + 1)
        segments = groups + self.out(shares.to(groups.dtype) @ self.value(patches))
        return Grouped(segments + self.mlp(segments), logits.softmax(dim=1), groups)


def assign(logits: Tensor, *, noisy: bool) -> Tensor:
    """Assign each patch to its strongest group: one-hot over the groups, with the softmax gradient.

    Logits and result are (B, G, N). `noisy`, as in training, adds Gumbel noise first.
    """
    if noisy:
        return F.gumbel_softmax(logits, tau=1.0, hard=True, dim=1)
    soft = logits.softmax(dim=1)
    hard = torch.zeros_like(soft).scatter_(1, soft.argmax(dim=1, keepdim=True), 1.0)
    return hard + soft - soft.detach()


@dataclass(frozen=True)
class CaptionShape:
    """Sizes of a text tower."""

    width: int
    depth: int
    heads: int
    context: int  # maximum tokens of a caption
    vocabulary: int = 49408  # CLIP's


class CaptionTower(nn.Module):
    """A causal transformer; the output at the end token (the highest id) represents the caption."""

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
        """Map token ids (B, length) to vectors (B, width), not L2-normed."""
        x = self.words(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        ends = tokens.argmax(dim=1)
        return self.norm(x[torch.arange(len(x), device=x.device), ends])


@dataclass(frozen=True)
class NprShape:
    """Settings of the estimation of NPR's prototypes."""

    rounds: int  # EM iterations, T
    momentum: float  # γ of the moving average
    tau: float  # temperature of EM over a photo's tokens
    text_tau: float  # temperature of EM over captions, whose vectors are L2-normed
    reconstruct: bool  # whether the tokens' reconstruction from the prototypes is added to them
    hidden: int  # hidden width of the reconstruction's MLP


@dataclass(frozen=True)
class GroupShape:
    """Sizes of a `GroupNetwork` and its optional parts."""

    side: int  # of the training photos in pixels, a multiple of the patch
    patch: int  # side of a patch in pixels
    width: int  # token width
    heads: int  # attention heads; they divide the width
    depths: tuple[int, int, int]  # blocks before the first grouping, before the second, after it
    groups: tuple[int, int]  # number of groups of both stages
    dim: int  # dimension of the joint space
    hidden: int  # hidden width of the projectors' MLP
    drop_path: float  # share of the photos that skip a block in training
    caption: CaptionShape | None  # the text tower; None: a frozen one supplies the text vectors
    npr: NprShape
    of_photos: bool  # whether both stages have prototypes
    of_text: bool  # whether there are text prototypes

    def to_config(self) -> dict[str, object]:
        """Return the shape as JSON values."""
        return asdict(self) | {"depths": list(self.depths), "groups": list(self.groups)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> GroupShape:
        """Rebuild a shape from the values of `to_config`."""
        caption = config["caption"]
        return cls(**{
            **config, "depths": tuple(config["depths"]), "groups": tuple(config["groups"]),
            "caption": CaptionShape(**caption) if caption else None,
            "npr": NprShape(**config["npr"])})


@dataclass(frozen=True)
class EncodedPhotos:
    """The image encoder's output for a batch."""

    segments: Tensor  # the parts of the last stage, before the projector (B, G, width)
    stages: tuple[Grouped, Grouped]  # the outputs of both groupings
    prototypes: tuple[Tensor, ...]  # of each stage's input, L2-normed (B, G, width), if NPR is on


class GroupStage(nn.Module):
    """Stage 0 or 1: transformer blocks over tokens and group tokens, then a grouping block.

    `drops` is the drop-path rate of each block.
    """

    def __init__(self, shape: GroupShape, number: int, drops: list[float]) -> None:
        super().__init__()
        width, count = shape.width, shape.groups[number]
        self.tokens = nn.Parameter(torch.empty(1, count, width))
        self.carry = Mixer(width, shape.groups[number - 1], count) if number else None
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
        """Group tokens x (B, N, width), given the previous stage's group tokens (B, G', width).

        Returns the grouping, the group tokens for the next stage, and the prototypes.
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
    """Make one transformer block per drop-path rate."""
    block = BlockShape(shape.width, 4 * shape.width, shape.heads, EPS, "gelu")
    return nn.ModuleList(TokenBlock(block, drop_path=drop) for drop in drops)


class GroupEncoder(nn.Module):
    """An image encoder whose two grouping stages segment a photo into parts."""

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
        """Return the position embeddings (h·w, width), resampled to a grid (h, w)."""
        if grid == self.grid:
            return self.positions
        return resample_positions(self.positions, self.grid, grid, Resampling("bicubic"))


class GroupNetwork(nn.Module):
    """Both encoders and the projectors into their joint space.

    Without a text tower (`shape.caption` is None), the network receives the vectors of a frozen
    one, whose space is the joint space.
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

    def embed_parts(self, encoded: EncodedPhotos) -> Tensor:
        """Project parts into the joint space (B, G, dim), with the projector in evaluation mode."""
        trained = self.project_vision.training
        # BatchNorm's statistics are those of whole photos, not of parts.
        self.project_vision.eval()
        parts: Tensor = self.project_vision(encoded.segments.flatten(0, 1))
        self.project_vision.train(trained)
        return parts.unflatten(0, encoded.segments.shape[:2])

    def embed_photos(self, encoded: EncodedPhotos) -> Tensor:
        """Return the photos' embeddings in the joint space, L2-normed (B, dim)."""
        return F.normalize(self.project_vision(encoded.segments.mean(dim=1)).float(), dim=-1)

    def embed_captions(self, texts: Tensor) -> Tensor:
        """Return the captions' embeddings in the joint space, L2-normed (B, dim).

        `texts` are token ids (B, length); with a frozen tower, its vectors (B, dim).
        """
        if self.shape.caption is None:
            return F.normalize(texts.float(), dim=-1)
        return F.normalize(self.project_text(self.text(texts)).float(), dim=-1)


def _begin(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
