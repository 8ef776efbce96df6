"""An encoder that runs by its own code: its outputs as patch tokens of layers on one grid.

A library's model is a subclass here (`clip/timm_towers.py`, `clip/transformers_towers.py`) that
runs one pass; what towers owe to their callers is made of it here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vpltool.core.tower import (
    ATTENTION_BLOCKS,
    INSTEAD_OF,
    Calibration,
    DenseFeatures,
    Tower,
    cache_parts,
)
from vpltool.errors import VplError

FINEST = 16
"""Largest side of a patch, in pixels, where a model has several grids. Their last, of 32 pixels, is
too coarse for masks: 14×14 patches of 448 pixels."""


@dataclass(frozen=True)
class Level:
    """One layer that can be asked for: the width of its tokens, and the side of its patches."""

    width: int
    stride: int


@dataclass(frozen=True)
class Passed:
    """Results of one pass of a model.

    Args:
        last: the last level after the final norm (B, n, width), patches only.
        outputs: of each level that was asked for, before any norm (B, n, width), on its grid.
        attentions: of the last blocks, heads averaged (B, N, N), all tokens.
    """

    last: Tensor
    outputs: Mapping[int, Tensor]
    attentions: Sequence[Tensor] = ()


def grid_of(levels: Sequence[Level]) -> tuple[int, tuple[int, ...]]:
    """Choose the grid of a model with one or several.

    A plain transformer has one. Of others it is the coarsest of at most `FINEST` pixels a patch;
    it and all coarser ones are joined, since only the last knows what the photo shows.

    Returns:
        side of a patch; the levels that are joined as patches, the last one of each grid.
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

    Where it has several grids, as Swin and ConvNeXt do, `patches` are those of `grid_of`, each
    L2-normed first, coarser ones resampled bilinearly; `layers` are all levels on this grid, with
    zeros after the channels of narrower ones. Photos are continued at their edges to a multiple of
    its coarsest patch.
    """

    name: str
    prefix: int
    levels: tuple[Level, ...]
    joins: tuple[int, ...]

    def describe(self, name: str, levels: Sequence[Level], prefix: int,
                 grid: tuple[int, int], attention: bool) -> None:
        """Say what the model gives; a subclass does so before it is used.

        Its attention, if it gives that of its blocks, has `prefix` tokens before the patches. The
        grid (h, w) is that of its patches at the size that it was trained at.
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
        """Run the model once, on normalised photos (B, 3, H, W).

        The outputs of levels are wanted, ascending, and the attention of so many last blocks.
        """

    @torch.no_grad()
    def forward(self, pixels: Tensor, *, patches: str = "block", attention: bool = True,
                attentions: bool = False, attention_blocks: int = ATTENTION_BLOCKS,
                layers: Sequence[int] = (), calibration: Calibration | None = None
                ) -> DenseFeatures:
        """Encode a batch; see `Tower.forward`.

        Raises:
            VplError: its own code does not give what is asked for.
        """
        if patches in ("value", "calibrated"):
            raise VplError(f"{self.name} has no {patches} patches: its blocks run by its own code",
                           INSTEAD_OF["value"])
        if attention or attentions:
            self.check_able(["attention"], self.name)
        blocks = min(attention_blocks, self.depth) if attention or attentions else 0
        return DenseFeatures.joined([
            self._encode(part, patches != "none", tuple(layers), blocks, attention, attentions)
            for part in cache_parts(pixels, self.patch)])

    def _encode(self, pixels: Tensor, patches: bool, layers: Sequence[int], blocks: int,
                attention: bool, attentions: bool) -> DenseFeatures:
        grid = (pixels.shape[2] // self.patch, pixels.shape[3] // self.patch)
        unit = max(level.stride for level in self.levels)
        if unit != self.patch:
            down, across = (-side % unit for side in pixels.shape[2:])
            pixels = F.pad(pixels, (0, across, 0, down), mode="replicate")
        size = (pixels.shape[2], pixels.shape[3])
        joins = self.joins[:-1] if patches else ()
        seen = self.run(pixels, sorted({*layers, *joins}), blocks)
        weights = [part[:, self.prefix:, self.prefix:] for part in seen.attentions]
        embedded = stacked = None
        if patches:
            parts = zip(self.joins, [*(seen.outputs[index] for index in joins), seen.last],
                        strict=True)
            found = [self._on_grid(F.normalize(tokens, dim=-1), index, size, grid)
                     for index, tokens in parts]
            embedded = F.normalize(torch.cat(found, dim=-1) if len(found) > 1 else found[0], dim=-1)
        if layers:
            found = [self._on_grid(seen.outputs[index], index, size, grid) for index in layers]
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
