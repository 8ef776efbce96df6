"""Segmentation networks on frozen CLIP features: base class, decoder, linear and light heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpltool.core.affinity import patch_walk
from vpltool.core.blocks import Block, BlockShape, Linear
from vpltool.core.classes import ClassRows, class_rows, join_rows
from vpltool.core.distributed import ALONE, Group

FINER = 2
"""Output values per patch side of a `LightHead`."""

_MOST_ROWS = 10_000_000


class SegmenterNetwork(nn.Module):
    """A network on a frozen CLIP that classifies pixels by the prototypes (VPL, eq. 12).

    A subclass calls `__init__(prototypes, class_index, tau, layers=…, reads_patches=…)`, defines
    `embeddings` and `config`, and may override the rest. Only its state dict and `config` are
    saved.

    Attributes:
        config: JSON values, of which `rebuild(config)` makes the same network without its weights.
        embeddings: embeddings V (B, h·w, dim), L2-normed, of the frozen layers that it reads (B, L,
            h·w, input width) and of CLIP's L2-normed patches (B, h·w, dim); each is None if it is
            not read.
        logits: class logits (B, classes, h', w') of embeddings, of any resolution; by default
            (B, classes, h, w), the log-sum-exp over each class's rows of V·W / τ.
        embeddings_and_fused: embeddings and None; or, if it `fuses`, features (B, h·w, width) whose
            dot products are affinities of patches.
        prototypes: L2-normed rows W (rows, dim); frozen.
        class_index: class of each row (rows,); 0 is the background.
        classes: class indices 0, 1, …, the order of the logits.
        layers: indices of the CLIP blocks whose output it reads.
        reads_patches: whether it reads CLIP's own patch embeddings.
        serves_untrained: whether the untrained network already segments.
        fuses: whether it has fused features, for WeCLIP's affinity loss and refining module.
        in_joint_space: whether embeddings share the prototypes' space, as contrast requires.
    """

    prototypes: Tensor
    class_index: Tensor
    layers: tuple[int, ...]
    reads_patches: bool
    serves_untrained: bool = False
    fuses: bool = False
    in_joint_space: bool = True

    def __init__(self, prototypes: Tensor, class_index: Tensor, tau: float = 0.07, *,
                 layers: tuple[int, ...] = (), reads_patches: bool = False) -> None:
        """Set up the parts that all segmenters share.

        Args:
            prototypes: L2-normed rows (rows, dim); frozen.
            class_index: class of each row (rows,); 0 is the background.
            tau: temperature of the pixel classifier, V·W / τ.
            layers: indices of the CLIP blocks whose output the network reads.
            reads_patches: whether the network reads CLIP's own patch embeddings.
        """
        super().__init__()
        self.tau = tau
        self.layers = layers
        self.reads_patches = reads_patches
        # Soft masks of the regional contrast: sigmoid(scale·cos + shift), as in TCL (CVPR 2023).
        self.mask_scale = nn.Parameter(torch.tensor(10.0))
        self.mask_shift = nn.Parameter(torch.tensor(-2.5))
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        self.register_buffer("prototypes", prototypes.clone())
        self.register_buffer("class_index", class_index.clone())
        self._rows: tuple[Tensor, int, ClassRows] | None = None

    @property
    def config(self) -> dict[str, object]:
        """JSON values from which `from_config` rebuilds the network, without its weights."""
        raise NotImplementedError(f"{type(self).__name__} has no `config`")

    def embeddings(self, layers: Tensor | None, patches: Tensor | None, grid: tuple[int, int]
                   ) -> Tensor:
        """Return pixel embeddings V, L2-normed (B, h·w, dim).

        Args:
            layers: frozen layers (B, L, h·w, input width); None if the network reads none.
            patches: L2-normed patch embeddings (B, h·w, dim); None unless `reads_patches`.
            grid: (h, w).
        """
        raise NotImplementedError(f"{type(self).__name__} has no `embeddings`")

    def embeddings_and_fused(self, layers: Tensor | None, patches: Tensor | None,
                             grid: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """Return `embeddings` and fused features, whose dot products are patch affinities.

        A subclass that overrides this sets `fuses`; fused features (B, h·w, width) are not
        L2-normed.
        """
        return self.embeddings(layers, patches, grid), None

    def logits(self, embeddings: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return class logits (B, classes, h, w): log-sum-exp over each class's rows of V·W / τ."""
        rows = embeddings @ self.prototypes.T / self.tau
        scores = join_rows(rows, self.class_rows)
        return scores.transpose(1, 2).unflatten(2, grid)

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the frozen features that the network reads: `layers`, `patches`."""
        return (*(("layers",) if self.layers else ()),
                *(("patches",) if self.reads_patches else ()))

    @property
    def scalars(self) -> list[nn.Parameter]:
        """Parameters of the regional contrast: scale and shift of soft masks, and log scale."""
        return [self.mask_scale, self.mask_shift, self.log_scale]

    @property
    def classes(self) -> Tensor:
        """Class indices 0, 1, …, the order of the logits."""
        return torch.arange(int(self.class_index.max()) + 1, device=self.class_index.device)

    @property
    def class_rows(self) -> ClassRows:
        """Prototype rows of each class, cached until `to` or `load_state_dict`.

        `to` replaces the buffer, `load_state_dict` increases its version; other reads need no GPU
        synchronization.
        """
        index = self.class_index
        if self._rows is not None and torch.compiler.is_compiling():
            # While exporting, buffers are fake tensors without values.
            return self._rows[2]
        if self._rows is None or self._rows[0] is not index or self._rows[1] != index._version:
            self._rows = (index, index._version, class_rows(index, self.classes))
        return self._rows[2]


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a decoder.

    If `residual`, the output, initially zero, is added to CLIP's own patch embeddings: the
    untrained decoder then gives the dense CAM, which helps if there are few photos.
    """

    layers: tuple[int, ...]  # indices of the CLIP blocks whose outputs the decoder reads
    input_width: int  # width of these outputs
    dim: int  # dimension of the joint space
    _: KW_ONLY
    width: int  # hidden width of the decoder
    blocks: int = 3  # number of transformer blocks (WeCLIP: 3)
    heads: int  # attention heads of each block
    dropout: float = 0.1  # share of channels dropped in training (WeCLIP: 0.1)
    residual: bool


class ChannelDropout(nn.Dropout2d):
    """Channel dropout whose mask is drawn for the crops of all processes of a group."""

    group: Group = ALONE

    def forward(self, crops: Tensor) -> Tensor:
        """Drop channels of this process's crops (B, C, h, w), as one process with all would."""
        if not self.training or self.group.count == 1:
            return super().forward(crops)
        every = crops.new_empty(len(crops) * self.group.count, crops.shape[1], 1, 1)
        every.bernoulli_(1 - self.p).div_(1 - self.p)
        return crops * every.chunk(self.group.count)[self.group.rank]


class Decoder(SegmenterNetwork):
    """WeCLIP's multi-layer decoder, from frozen layers to embeddings in CLIP's joint space.

    The prototypes, with the background's rows, are the classifier (VPL, eq. 12: A = Wᵀ V).
    """

    fuses = True

    def __init__(self, shape: DecoderShape, prototypes: Tensor, class_index: Tensor,
                 tau: float) -> None:
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
        """See `SegmenterNetwork.config`."""
        return {"shape": asdict(self.shape), "tau": self.tau, "rows": len(self.class_index)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Decoder:
        """Rebuild a decoder; load its state dict next."""
        values = dict(config["shape"])
        shape = DecoderShape(**{**values, "layers": tuple(values["layers"])})
        rows = int(config["rows"])
        return cls(shape, torch.zeros(rows, shape.dim), torch.zeros(rows, dtype=torch.long),
                   float(config["tau"]))

    def embeddings(self, layers: Tensor | None, patches: Tensor | None, grid: tuple[int, int]
                   ) -> Tensor:
        """See `SegmenterNetwork.embeddings`."""
        return self.embeddings_and_fused(layers, patches, grid)[0]

    def embeddings_and_fused(self, layers: Tensor | None, patches: Tensor | None,
                             grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return pixel embeddings and the fused layers (B, h·w, width) after dropout."""
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
        """Reduce each layer (B, L, n, input width) and fuse them into (B, n, width)."""
        parts = [reduce(layers[:, index]) for index, reduce in enumerate(self.reduce)]
        return self.fuse(torch.cat(parts, dim=-1))

    def _reduce_folded(self, layers: Tensor) -> Tensor:
        """Compute `_reduce` with each layer's second linear map folded into the fusing one.

        A step has many more tokens than a weight has rows, so this saves one large product in the
        forward pass and two in the backward pass.
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


class LayerSegmenter(SegmenterNetwork):
    """Base of segmenters with a classifier of their own on normalised layers of any encoder.

    The prototypes only determine the classes. `layers` are the indices of the blocks or levels that
    are read, `input_width` is their width.
    """

    in_joint_space = False

    def __init__(self, layers: tuple[int, ...], input_width: int, prototypes: Tensor,
                 class_index: Tensor) -> None:
        super().__init__(prototypes, class_index, layers=layers)
        self.input_width = input_width

    def embeddings(self, layers: Tensor | None, patches: Tensor | None, grid: tuple[int, int]
                   ) -> Tensor:
        """Concatenate frozen layers (B, L, h·w, width) to (B, h·w, L·width), not L2-normed.

        Each token of each layer is normalised to mean 0 and variance 1.
        """
        assert layers is not None
        normed = F.layer_norm(layers.float(), layers.shape[-1:])
        return normed.transpose(1, 2).flatten(2)


class LinearSegmenter(LayerSegmenter):
    """Class scores as an affine map of normalised layers.

    The usual linear probe of frozen features (DINOv2, Oquab et al., TMLR 2024), trained on pseudo
    masks instead of true ones. At inference, a patch's scores are averaged over similar patches of
    the photo by the random walk of `refine --method patches`, which needs no tags.
    """

    def __init__(self, layers: tuple[int, ...], input_width: int, prototypes: Tensor,
                 class_index: Tensor, walk: float) -> None:
        """Make an untrained classifier, whose scores are all 0.

        `walk` is the temperature of the random walk between patches; 0: no walk.
        """
        super().__init__(layers, input_width, prototypes, class_index)
        self.walk = walk
        self.classifier = nn.Linear(len(layers) * input_width, len(self.classes))
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    @property
    def config(self) -> dict[str, object]:
        """See `SegmenterNetwork.config`."""
        return {"layers": list(self.layers), "input_width": self.input_width,
                "rows": list(self.prototypes.shape), "classes": len(self.classes),
                "walk": self.walk}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LinearSegmenter:
        """Rebuild a classifier; load its state dict next."""
        if not 0 < config["rows"][0] <= _MOST_ROWS:
            raise ValueError(f"{config['rows']} are no prototypes")
        # The index determines the network's size, so it needs values even on the meta device.
        index = torch.zeros(config["rows"][0], dtype=torch.long, device="cpu")
        index[-1] = config["classes"] - 1
        return cls(tuple(config["layers"]), config["input_width"], torch.zeros(config["rows"]),
                   index, config["walk"])

    def logits(self, embeddings: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return class logits (B, classes, h, w), after the walk except in training.

        Training crops are too small for a walk, and their padding would take part in it.
        """
        scores: Tensor = self.classifier(embeddings)
        if self.walk and not self.training:
            last = embeddings[..., -self.input_width :]
            # Photo by photo, since a walk's matrix is h·w × h·w.
            scores = torch.cat([patch_walk(tokens, self.walk) @ own for tokens, own in zip(
                last.split(1), scores.split(1), strict=True)])
        return scores.transpose(1, 2).unflatten(2, grid)


class LightHead(LayerSegmenter):
    """A small convolutional head on normalised layers, the last part of students.

    It uses no prototypes and no walk. Its output has 2×2 values per patch (sub-pixel convolution,
    Shi et al., CVPR 2016), which recovers outlines that a small encoder's coarse grid loses.
    """

    def __init__(self, layers: tuple[int, ...], input_width: int, classes: int, width: int) -> None:
        """Make an untrained head of hidden width `width`; `classes` includes the background."""
        super().__init__(layers, input_width, torch.zeros(classes, 1), torch.arange(classes))
        self.width = width
        self.squeeze = nn.Linear(len(layers) * input_width, width)
        self.around = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.mix = nn.Linear(width, width)
        self.classifier = nn.Linear(width, classes * FINER**2)

    @property
    def config(self) -> dict[str, object]:
        """See `SegmenterNetwork.config`."""
        return {"layers": list(self.layers), "input_width": self.input_width,
                "classes": len(self.prototypes), "width": self.width}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LightHead:
        """Rebuild a head; load its state dict next."""
        return cls(tuple(config["layers"]), config["input_width"], config["classes"],
                   config["width"])

    @property
    def classes(self) -> Tensor:
        """Class indices 0, 1, …, the order of the logits."""
        return torch.arange(len(self.prototypes), device=self.prototypes.device)

    def logits(self, embeddings: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return class logits (B, classes, 2h, 2w)."""
        hidden = F.gelu(self.squeeze(embeddings))
        maps = hidden.transpose(1, 2).unflatten(2, grid)
        around = self.around(maps).flatten(2).transpose(1, 2)
        hidden = hidden + F.gelu(self.mix(around))
        scores: Tensor = self.classifier(hidden).transpose(1, 2).unflatten(2, grid)
        return F.pixel_shuffle(scores, FINER)
