"""The interface of a frozen vision encoder, and encoders that run by their own code.

A tower gives patch tokens of chosen layers on a grid. `vit.VisionTower` runs the blocks itself; an
`AdaptedTower` runs a library's model (`clip/timm_towers.py`, `clip/transformers_towers.py`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpltool.errors import VplError

ATTENTION_BLOCKS = 8
"""CLIP-ES averages the attention of the last 8 blocks."""

CPU_PATCHES = 1024
"""Number of patches that go through the blocks together on a CPU, at least a photo: the values
between two layers then stay in the cache, and larger batches are not faster."""

INSTEAD_OF = {
    "attention": "`refine(method='patches')` and CAMs of `cam(method='dense')` read patches alone",
    "tokens": "`cam(method='dense')` or `cam(method='salient')` read patches alone",
    "value": "`patches='block'` is what it gives",
}
"""What to do where an encoder cannot give something."""

FINEST = 16
"""Largest side of a patch, in pixels, where a model has several grids. Their last, of 32 pixels, is
too coarse for masks: 14×14 patches of 448 pixels."""


@dataclass(frozen=True)
class Calibration:
    """ExCEL's static visual calibration: a second path beside CLIP's last blocks, for the patches.

    The last blocks run as they are; the photo is embedded from them. The path beside them has no
    MLP: it begins with their input and adds up `Block.calibrated_output`, block by block.
    """

    blocks: int  # number of last blocks beside which the path runs
    heads: str  # see `Block.calibrated_output`


@dataclass(frozen=True)
class DenseFeatures:
    """Results of one pass of the encoder on a batch of equal size, on a grid of h·w = n patches.

    `tokens` are None for an encoder whose last block is not ours, the others if not asked for.
    """

    tokens: Tensor | None  # input of the last block, tokens before patches too (B, prefix+n, width)
    patches: Tensor | None  # L2-normed patch embeddings (B, n, dim)
    attention: Tensor | None  # mean head-averaged attention of the last blocks, no CLS (B, n, n)
    attentions: Tensor | None  # the attention of each of these blocks (B, blocks, n, n)
    layers: Tensor | None  # outputs of chosen blocks, no CLS (B, L, n, width)

    @classmethod
    def joined(cls, parts: Sequence[DenseFeatures]) -> DenseFeatures:
        """Join the results of the parts of a batch."""
        if len(parts) == 1:
            return parts[0]
        fields: dict[str, Any] = {}
        for name in vars(parts[0]):
            own = [getattr(part, name) for part in parts]
            fields[name] = None if own[0] is None else torch.cat(own)
        return cls(**fields)


class Tower(nn.Module):
    """A frozen vision encoder for photos whose sides are multiples of its patch."""

    patch: int  # side of a patch in pixels
    grid: tuple[int, int]  # (h, w) of the patches at the size that it was trained at
    able: frozenset[str] = frozenset({"patches", "layers"})  # tensors of features that it gives

    @property
    @abstractmethod
    def depth(self) -> int:
        """Number of layers that can be asked for."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Width of a token of a layer."""

    @property
    def weight(self) -> Tensor:
        """One of its weights, for their device and number format."""
        return next(self.parameters())

    def check_able(self, wanted: Collection[str], name: str) -> None:
        """Check that the encoder of this name gives the tensors that are wanted (see `able`).

        Raises:
            VplError: it does not.
        """
        missing = next((kind for kind in wanted if kind not in self.able), "")
        if missing:
            raise VplError(f"{name} gives no {missing}",
                           INSTEAD_OF["tokens" if missing == "tokens" else "attention"])

    @torch.no_grad()
    def forward(self, pixels: Tensor, *, patches: str = "block", attention: bool = True,
                attentions: bool = False, attention_blocks: int = ATTENTION_BLOCKS,
                layers: Sequence[int] = (), calibration: Calibration | None = None
                ) -> DenseFeatures:
        """Encode a batch; only what is asked for is computed.

        Args:
            pixels: normalised photos (B, 3, H, W), H and W multiples of the patch size.
            patches: source of the patch embeddings: `block`, the last block's output in the joint
                space, or without one after the final norm; `value`, only its value path;
                `calibrated`, ExCEL's second path beside the last blocks; `last`, the last block's
                output without a joint space; or `none`.
            attention: whether to average the attention of the last blocks.
            attentions: whether to keep the attention of each of them.
            attention_blocks: number of these blocks.
            layers: indices of the blocks whose outputs are wanted (0 is the first).
            calibration: how the second path is made; for `calibrated` alone.

        Raises:
            VplError: a model's own code does not give what is asked for.
        """
        blocks = min(attention_blocks, self.depth) if attention or attentions else 0
        return DenseFeatures.joined([
            self.encode(part, patches, blocks, attention, attentions, layers, calibration)
            for part in cache_parts(pixels, self.patch)])

    def encode(self, pixels: Tensor, patches: str, blocks: int, attention: bool, attentions: bool,
               layers: Sequence[int], calibration: Calibration | None) -> DenseFeatures:
        """Encode a part of a batch; `blocks` are the last ones whose attention is wanted."""
        raise NotImplementedError


def cache_parts(pixels: Tensor, patch: int) -> tuple[Tensor, ...]:
    """Split photos (B, 3, H, W) into parts that fit a CPU's cache; on a GPU return them whole.

    A single photo is whole: of a graph that is exported, the sizes are not known.
    """
    if len(pixels) == 1 or pixels.device.type != "cpu":
        return (pixels,)
    each = pixels.shape[2] * pixels.shape[3] // patch**2
    return pixels.split(max(1, CPU_PATCHES // each))


@dataclass(frozen=True)
class Level:
    """One layer that can be asked for."""

    width: int  # of its tokens
    stride: int  # side of its patches in pixels


@dataclass(frozen=True)
class Passed:
    """Results of one pass of a model."""

    last: Tensor  # the last level after the final norm (B, n, width), patches only
    outputs: Mapping[int, Tensor]  # of wanted levels, before any norm, on their grids (B, n, width)
    attentions: Sequence[Tensor] = ()  # of the last blocks, heads averaged (B, N, N), all tokens


def grid_of(levels: Sequence[Level]) -> tuple[int, tuple[int, ...]]:
    """Return the side of a patch, and the levels that are joined as patches: the last of each grid.

    A plain transformer has one grid. Otherwise it is the coarsest of at most `FINEST` pixels a
    patch; it and all coarser ones are joined, since only the last knows what the photo shows.
    """
    last = levels[-1].stride
    if last <= FINEST:
        return last, (len(levels) - 1,)
    patch = max((level.stride for level in levels if level.stride <= FINEST), default=last)
    return patch, tuple(
        max(index for index, level in enumerate(levels) if level.stride == stride)
        for stride in sorted({level.stride for level in levels if level.stride >= patch}))


class AdaptedTower(Tower):
    """A model with its own forward.

    If it has several grids, as Swin and ConvNeXt do, `patches` join the levels that `grid_of`
    chooses, each L2-normed first, coarser ones resampled bilinearly; `layers` are all levels on
    this grid, narrower ones padded with zero channels. Photos are extended at their edges to a
    multiple of the coarsest patch.
    """

    name: str
    prefix: int
    levels: tuple[Level, ...]
    joins: tuple[int, ...]

    def describe(self, name: str, levels: Sequence[Level], prefix: int,
                 grid: tuple[int, int], attention: bool) -> None:
        """Set what the model gives; a subclass calls this before the tower is used.

        `grid` is that of the training size; `attention` says whether the model gives that of its
        blocks, with `prefix` tokens before the patches.
        """
        self.name = name
        self.levels = tuple(levels)
        self.patch, self.joins = grid_of(self.levels)
        self.prefix = prefix
        self.grid = grid
        self.able = frozenset({"patches", "layers", *(
            ("attention", "attentions") if attention else ())})

    @property
    def depth(self) -> int:
        """Number of levels."""
        return len(self.levels)

    @property
    def width(self) -> int:
        """Width of the widest level."""
        return max(level.width for level in self.levels)

    @abstractmethod
    def run(self, pixels: Tensor, levels: Sequence[int], attention_blocks: int) -> Passed:
        """Run the model once on normalised photos (B, 3, H, W).

        `levels`, ascending, are those whose outputs are wanted; `attention_blocks` is the number of
        last blocks whose attention is wanted.
        """

    def encode(self, pixels: Tensor, patches: str, blocks: int, attention: bool, attentions: bool,
               layers: Sequence[int], calibration: Calibration | None) -> DenseFeatures:
        """Encode a part of a batch; see `Tower.encode`."""
        if patches in ("value", "calibrated"):
            raise VplError(f"{self.name} has no {patches} patches: its blocks run by its own code",
                           INSTEAD_OF["value"])
        if attention or attentions:
            self.check_able(["attention"], self.name)
        grid = (pixels.shape[2] // self.patch, pixels.shape[3] // self.patch)
        unit = max(level.stride for level in self.levels)
        if unit != self.patch:
            down, across = (-side % unit for side in pixels.shape[2:])
            pixels = F.pad(pixels, (0, across, 0, down), mode="replicate")
        size = (pixels.shape[2], pixels.shape[3])
        joins = self.joins[:-1] if patches != "none" else ()
        passed = self.run(pixels, sorted({*layers, *joins}), blocks)
        weights = [part[:, self.prefix:, self.prefix:] for part in passed.attentions]
        embedded = stacked = None
        if patches != "none":
            parts = zip(self.joins, [*(passed.outputs[index] for index in joins), passed.last],
                        strict=True)
            found = [self._on_grid(F.normalize(tokens, dim=-1), index, size, grid)
                     for index, tokens in parts]
            embedded = F.normalize(torch.cat(found, dim=-1) if len(found) > 1 else found[0], dim=-1)
        if layers:
            found = [self._on_grid(passed.outputs[index], index, size, grid) for index in layers]
            stacked = torch.stack([F.pad(tokens, (0, self.width - tokens.shape[-1]))
                                   for tokens in found], dim=1)
        return DenseFeatures(
            None, embedded, sum(weights[1:], weights[0]) / len(weights) if attention else None,
            torch.stack(weights, dim=1) if attentions else None, stacked)

    def _on_grid(self, tokens: Tensor, index: int, size: tuple[int, int], grid: tuple[int, int]
                 ) -> Tensor:
        """Bring tokens (B, n, width) of a level to the grid of the patches."""
        stride = self.levels[index].stride
        own, whole = ((size[0] // side, size[1] // side) for side in (stride, self.patch))
        if own == grid:
            return tokens
        maps = tokens.transpose(1, 2).unflatten(2, own)
        if own != whole:
            finer = stride < self.patch
            maps = F.interpolate(maps, whole, mode="area" if finer else "bilinear",
                                 align_corners=None if finer else False)
        return maps[:, :, :grid[0], :grid[1]].flatten(2).transpose(1, 2)
