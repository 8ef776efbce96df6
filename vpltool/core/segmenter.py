"""The base class of networks that segment: what training and prediction need of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpltool.core.classes import ClassRows, class_rows, join_rows


class SegmenterNetwork(nn.Module):
    """A network over a frozen CLIP whose pixel classifier is the prototypes (VPL, eq. 12).

    A subclass defines `embeddings` and `config`, and may override `logits`. Only its state dict and
    `config` are stored.
    """

    prototypes: Tensor
    class_index: Tensor

    serves_untrained = False
    """Whether it segments without any training, since it starts as something that does."""

    fuses = False
    """Whether it has fused features, for WeCLIP's affinity loss and refining module."""

    in_joint_space = True
    """Whether its embeddings lie where the prototypes do, for the regional contrast."""

    def __init__(self, prototypes: Tensor, class_index: Tensor, tau: float = 0.07, *,
                 layers: tuple[int, ...] = (), reads_patches: bool = False) -> None:
        """Set up what all segmenters have in common.

        Args:
            prototypes: L2-normed rows (rows, dim); frozen.
            class_index: class of each row (rows,), 0 is the background.
            tau: temperature of the pixel classifier, V·W / τ.
            layers: indices of the CLIP blocks whose output it reads; empty: none.
            reads_patches: whether it reads CLIP's own patch embeddings.
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
        """What is needed in addition to the state dict to rebuild it, as values for JSON."""
        raise NotImplementedError

    def embeddings(self, layers: Tensor | None, patches: Tensor | None, grid: tuple[int, int]
                   ) -> Tensor:
        """Return pixel embeddings V.

        Args:
            layers: frozen layers (B, L, h·w, input width); None if it reads none.
            patches: L2-normed patch embeddings (B, h·w, dim); None unless `reads_patches`.
            grid: (h, w).

        Returns:
            L2-normed (B, h·w, dim).
        """
        raise NotImplementedError

    def embeddings_and_fused(self, layers: Tensor | None, patches: Tensor | None,
                             grid: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """Return `embeddings`, and fused features whose products say which patches belong together.

        A subclass that overrides this sets `fuses`.

        Returns:
            L2-normed (B, h·w, dim); and (B, h·w, width), not normed, or None if it has none.
        """
        return self.embeddings(layers, patches, grid), None

    def logits(self, embeddings: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return class logits (B, classes, h, w): log-sum-exp over each class's rows of V·W / τ."""
        rows = embeddings @ self.prototypes.T / self.tau
        scores = join_rows(rows, self.class_rows)
        return scores.transpose(1, 2).unflatten(2, grid)

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the features that it reads of the frozen CLIP: `layers`, `patches`."""
        return (*(("layers",) if self.layers else ()),
                *(("patches",) if self.reads_patches else ()))

    @property
    def scalars(self) -> list[nn.Parameter]:
        """The regional contrast's own parameters: scale and shift of soft masks, and log scale."""
        return [self.mask_scale, self.mask_shift, self.log_scale]

    @property
    def classes(self) -> Tensor:
        """Class indices 0, 1, …, the order of the logits."""
        return torch.arange(int(self.class_index.max()) + 1, device=self.class_index.device)

    @property
    def class_rows(self) -> ClassRows:
        """Rows of each class; read from a GPU again only after `to` or `load_state_dict`.

        `to` replaces the buffer, and `load_state_dict` increases its version.
        """
        index = self.class_index
        if self._rows is not None and torch.compiler.is_compiling():
            # Export puts stand-ins without values in the buffers' place.
            return self._rows[2]
        if self._rows is None or self._rows[0] is not index or self._rows[1] != index._version:
            self._rows = (index, index._version, class_rows(index, self.classes))
        return self._rows[2]


def side_by_side(layers: Tensor | None) -> Tensor:
    """Return frozen layers (B, L, h·w, width) side by side: (B, h·w, L·width).

    Each token of each layer has mean 0 and variance 1, as after a LayerNorm without weights.
    """
    assert layers is not None
    normed = F.layer_norm(layers.float(), layers.shape[-1:])
    return normed.transpose(1, 2).flatten(2)
