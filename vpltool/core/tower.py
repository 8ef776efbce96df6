"""What a frozen vision encoder gives: patch tokens of chosen layers on a grid, whoever computes it.

`vit.VisionTower` runs the blocks itself; `adapted.AdaptedTower` runs a model by its own code.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
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


@dataclass(frozen=True)
class Calibration:
    """ExCEL's static visual calibration: a second path beside CLIP's last blocks, for the patches.

    The last blocks run as they are; the photo is embedded from them. The path beside them has no
    MLP: it begins with their input and collects what `Block.calibrated_output` says, block by
    block. `blocks` is the number of last blocks beside which it goes, `heads` is as there.
    """

    blocks: int
    heads: str


@dataclass(frozen=True)
class DenseFeatures:
    """Results of one pass of the encoder on a batch of equal size, on a grid of h·w = n patches.

    Args:
        tokens: input of the last block (B, prefix+n, width), with the tokens before the patches;
            None of an encoder whose last block is not ours.
        patches: L2-normed patch embeddings (B, n, dim), or None.
        attention: mean head-averaged attention of the last blocks, CLS removed (B, n, n), or None.
        attentions: the attention of each of these blocks (B, blocks, n, n), or None.
        layers: outputs of chosen blocks, CLS removed (B, L, n, width), or None.
    """

    tokens: Tensor | None
    patches: Tensor | None
    attention: Tensor | None
    attentions: Tensor | None
    layers: Tensor | None

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
    """A frozen vision encoder for photos of any size that is a multiple of its patch.

    Attributes:
        patch: sides of a photo are multiples of it; a patch of the grid has this side.
        grid: (h, w) of the patches at the size that it was trained at.
        able: what it gives, of the tensors of features.
    """

    patch: int
    grid: tuple[int, int]
    able: frozenset[str] = frozenset({"patches", "layers"})

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
        """One of its weights: says on which device it is, and in which number format."""
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

    @abstractmethod
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
        """


def cache_parts(pixels: Tensor, patch: int) -> tuple[Tensor, ...]:
    """Split photos (B, 3, H, W) into parts that fit a CPU's cache; on a GPU return them whole.

    A single photo is whole: of a graph that is exported, the sizes are not known.
    """
    if len(pixels) == 1 or pixels.device.type != "cpu":
        return (pixels,)
    each = pixels.shape[2] * pixels.shape[3] // patch**2
    return pixels.split(max(1, CPU_PATCHES // each))
