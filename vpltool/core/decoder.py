"""The decoder: WeCLIP's multi-layer head over a frozen CLIP, with D-dimensional output.

Its embeddings V are compared with the prototypes W, so the segmenter's classifier is the prototypes
(VPL, eq. 12: A = Wᵀ V), the background's rows included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpltool.core.classes import ClassRows, class_rows, join_rows
from vpltool.core.vit import Block, BlockShape


@dataclass(frozen=True)
class DecoderShape:
    """What rebuilds a decoder.

    Args:
        layers: indices of the CLIP blocks whose output it reads.
        input_width: width of these outputs.
        dim: dimension of the joint space.
        width: the decoder's own width (WeCLIP: 256).
        blocks: transformer blocks (WeCLIP: 3).
        heads: their attention heads (WeCLIP: 8).
        dropout: share of channels dropped in training (WeCLIP: 0.1).
        residual: add the output to CLIP's own patch embeddings, beginning with nothing to add:
            then the untrained decoder is the dense CAM, which helps where photos are few.
    """

    layers: tuple[int, ...]
    input_width: int
    dim: int
    width: int = 256
    blocks: int = 3
    heads: int = 8
    dropout: float = 0.1
    residual: bool = False


class Decoder(nn.Module):
    """Maps frozen layers to embeddings in CLIP's joint space."""

    prototypes: Tensor
    class_index: Tensor

    def __init__(self, shape: DecoderShape, prototypes: Tensor, class_index: Tensor,
                 tau: float = 0.07) -> None:
        """Make an untrained decoder.

        Args:
            shape: its sizes.
            prototypes: L2-normed rows (rows, dim); frozen.
            class_index: class of each row (rows,), 0 is the background.
            tau: temperature of the pixel classifier, V·W / τ.
        """
        super().__init__()
        self.shape = shape
        self.tau = tau
        self.reduce = nn.ModuleList(
            nn.Sequential(nn.Linear(shape.input_width, shape.width), nn.ReLU(),
                          nn.Linear(shape.width, shape.width)) for _ in shape.layers)
        self.fuse = nn.Linear(len(shape.layers) * shape.width, shape.width)
        self.dropout = nn.Dropout2d(shape.dropout)
        block = BlockShape(shape.width, 4 * shape.width, shape.heads, 1e-5, "quick_gelu")
        self.blocks = nn.ModuleList(Block(block) for _ in range(shape.blocks))
        self.project = nn.Linear(shape.width, shape.dim)
        if shape.residual:
            nn.init.zeros_(self.project.weight)
            nn.init.zeros_(self.project.bias)
        # Soft masks of the regional contrast: sigmoid(scale·cos + shift), as TCL (CVPR 2023).
        self.mask_scale = nn.Parameter(torch.tensor(10.0))
        self.mask_shift = nn.Parameter(torch.tensor(-2.5))
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        self.register_buffer("prototypes", prototypes.clone())
        self.register_buffer("class_index", class_index.clone())
        self._rows: tuple[Tensor, int, ClassRows] | None = None

    @property
    def config(self) -> dict[str, object]:
        """What `Decoder.from_config` needs beside the state dict."""
        return {"shape": asdict(self.shape), "tau": self.tau, "rows": len(self.class_index)}

    @classmethod
    def from_config(cls, config: dict[str, object]) -> Decoder:
        """Rebuild an empty decoder; load its state dict next."""
        values = dict(config["shape"])  # type: ignore[call-overload]
        shape = DecoderShape(**{**values, "layers": tuple(values["layers"])})
        rows = int(config["rows"])  # type: ignore[call-overload]
        return cls(shape, torch.zeros(rows, shape.dim), torch.zeros(rows, dtype=torch.long),
                   float(config["tau"]))  # type: ignore[arg-type]

    @property
    def classes(self) -> Tensor:
        """Class indices 0, 1, …, the order of the logits."""
        return torch.arange(int(self.class_index.max()) + 1, device=self.class_index.device)

    @property
    def class_rows(self) -> ClassRows:
        """Rows of each class; a GPU is asked for them again only after `to` or `load_state_dict`.

        The one makes another tensor of the buffer, the other fills it: another version.
        """
        index = self.class_index
        if self._rows is None or self._rows[0] is not index or self._rows[1] != index._version:
            self._rows = (index, index._version, class_rows(index, self.classes))
        return self._rows[2]

    def embeddings(self, layers: Tensor, patches: Tensor | None, grid: tuple[int, int]) -> Tensor:
        """Pixel embeddings V.

        Args:
            layers: frozen layers (B, L, h·w, input width).
            patches: L2-normed patch embeddings (B, h·w, dim); None unless `residual`.
            grid: (h, w).

        Returns:
            L2-normed (B, h·w, dim).
        """
        parts = [reduce(layers[:, index]) for index, reduce in enumerate(self.reduce)]
        fused = self.fuse(torch.cat(parts, dim=-1))
        channels = fused.transpose(1, 2).unflatten(2, grid)
        x = self.dropout(channels).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        embedding = self.project(x)
        if self.shape.residual:
            assert patches is not None
            embedding = patches + embedding
        return F.normalize(embedding, dim=-1)

    def logits(self, embeddings: Tensor, grid: tuple[int, int]) -> Tensor:
        """Class logits (B, classes, h, w): log-sum-exp over each class's rows of V·W / τ."""
        rows = embeddings @ self.prototypes.T / self.tau
        scores = join_rows(rows, self.class_rows)
        return scores.transpose(1, 2).unflatten(2, grid)


def layers_of(stored: Tensor, index: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """Pick the wanted layers of those stored (…, L, n, width).

    Raises:
        KeyError: one is not there.
    """
    if list(index) == list(wanted):
        return stored
    place = {layer: position for position, layer in enumerate(index)}
    return stored[..., [place[layer] for layer in wanted], :, :]
