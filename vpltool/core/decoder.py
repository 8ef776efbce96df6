"""The decoder: WeCLIP's multi-layer head over a frozen CLIP, with output in the joint space.

Its embeddings V are compared with the prototypes W, including the background's rows: the classifier
of the segmenter is the prototypes (VPL, eq. 12: A = Wᵀ V).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpltool.core.blocks import Block, BlockShape, Linear
from vpltool.core.distributed import ALONE, Group
from vpltool.core.segmenter import SegmenterNetwork


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a decoder, from which it can be rebuilt.

    Args:
        layers: indices of the CLIP blocks whose outputs it reads.
        input_width: width of these outputs.
        dim: dimension of the joint space.
        width: the decoder's own width.
        blocks: transformer blocks (WeCLIP: 3).
        heads: their attention heads.
        dropout: share of channels dropped in training (WeCLIP: 0.1).
        residual: add the output to CLIP's own patch embeddings, starting from zero: the untrained
            decoder is then the dense CAM, which helps if there are few photos.
    """

    layers: tuple[int, ...]
    input_width: int
    dim: int
    _: KW_ONLY
    width: int
    blocks: int = 3
    heads: int
    dropout: float = 0.1
    residual: bool


class ChannelDropout(nn.Dropout2d):
    """Dropout of whole channels, drawn for the crops of all processes of a group alike."""

    group: Group = ALONE

    def forward(self, crops: Tensor) -> Tensor:
        """Drop channels of this process's crops (B, C, h, w), as one process would that has all."""
        if not self.training or self.group.count == 1:
            return super().forward(crops)
        every = crops.new_empty(len(crops) * self.group.count, crops.shape[1], 1, 1)
        every.bernoulli_(1 - self.p).div_(1 - self.p)
        return crops * every.chunk(self.group.count)[self.group.rank]


def share_dropout(network: nn.Module, group: Group) -> None:
    """Have the dropout of a network drawn for the crops of all processes of a group."""
    for module in network.modules():
        if isinstance(module, ChannelDropout):
            module.group = group


class Decoder(SegmenterNetwork):
    """A network from frozen layers to embeddings in CLIP's joint space."""

    fuses = True

    def __init__(self, shape: DecoderShape, prototypes: Tensor, class_index: Tensor,
                 tau: float) -> None:
        """Make an untrained decoder.

        Args:
            shape: its sizes.
            prototypes: L2-normed rows (rows, dim); frozen.
            class_index: class of each row (rows,), 0 is the background.
            tau: temperature of the pixel classifier, V·W / τ.
        """
        super().__init__(prototypes, class_index, tau, layers=shape.layers,
                         reads_patches=shape.residual)
        self.shape = shape
        self.serves_untrained = shape.residual
        self.reduce = nn.ModuleList(
            nn.Sequential(Linear(shape.input_width, shape.width), nn.ReLU(),
                          Linear(shape.width, shape.width)) for _ in shape.layers)
        self.fuse = Linear(len(shape.layers) * shape.width, shape.width)
        self.dropout = ChannelDropout(shape.dropout)
        block = BlockShape(shape.width, 4 * shape.width, shape.heads, 1e-5, "quick_gelu")
        self.blocks = nn.ModuleList(Block(block) for _ in range(shape.blocks))
        self.project = Linear(shape.width, shape.dim)
        if shape.residual:
            nn.init.zeros_(self.project.weight)
            nn.init.zeros_(self.project.bias)

    @property
    def config(self) -> dict[str, object]:
        """What `Decoder.from_config` needs in addition to the state dict."""
        return {"shape": asdict(self.shape), "tau": self.tau, "rows": len(self.class_index)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Decoder:
        """Rebuild a decoder whose state dict is to be loaded next."""
        values = dict(config["shape"])
        shape = DecoderShape(**{**values, "layers": tuple(values["layers"])})
        rows = int(config["rows"])
        return cls(shape, torch.zeros(rows, shape.dim), torch.zeros(rows, dtype=torch.long),
                   float(config["tau"]))

    def embeddings(self, layers: Tensor | None, patches: Tensor | None, grid: tuple[int, int]
                   ) -> Tensor:
        """Return pixel embeddings V, L2-normed (B, h·w, dim); see `SegmenterNetwork.embeddings`."""
        return self.embeddings_and_fused(layers, patches, grid)[0]

    def embeddings_and_fused(self, layers: Tensor | None, patches: Tensor | None,
                             grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return pixel embeddings, and the fused layers (B, h·w, width), after the dropout."""
        assert layers is not None
        fused = self._reduce_folded(layers) if self.training else self._reduce(layers)
        channels = fused.transpose(1, 2).unflatten(2, grid)
        x = fused = self.dropout(channels).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        embedding = self.project(x)
        if self.shape.residual:
            assert patches is not None
            embedding = patches + embedding
        return F.normalize(embedding, dim=-1), fused

    def _reduce(self, layers: Tensor) -> Tensor:
        """Reduce each layer (B, L, n, input width), and fuse all of them: (B, n, width)."""
        parts = [reduce(layers[:, index]) for index, reduce in enumerate(self.reduce)]
        return self.fuse(torch.cat(parts, dim=-1))

    def _reduce_folded(self, layers: Tensor) -> Tensor:
        """`_reduce`, with the second linear map of each layer folded into the fusing one.

        The tokens of a step are many more than the rows of a weight: one product over them is
        saved forwards, and two backwards.
        """
        stacks: Any = self.reduce
        firsts, lasts = [stack[0] for stack in stacks], [stack[2] for stack in stacks]
        hidden = torch.cat([F.relu(first(layers[:, index])) for index, first in enumerate(firsts)],
                           dim=-1)
        parts = self.fuse.weight.chunk(len(lasts), dim=1)
        weight = torch.cat([part @ last.weight for part, last in zip(parts, lasts, strict=True)],
                           dim=1)
        bias = self.fuse.bias + self.fuse.weight @ torch.cat([last.bias for last in lasts])
        return F.linear(hidden, weight, bias)
