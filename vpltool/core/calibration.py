"""ExCEL's static visual calibration: a second path beside CLIP's last blocks, for the patches.

The last blocks run as they are. Beside them goes a path that begins with their input and collects,
block by block, the values under another attention: that of queries to queries, keys to keys and
values to values. It has no MLP. Patches are embedded from this path, the photo from CLIP's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vpltool.core import blocks as vit_blocks
from vpltool.lazy import Tensor, no_grad


@dataclass(frozen=True)
class Calibration:
    """How the second path is made.

    Args:
        blocks: number of last blocks beside which it goes.
        heads: how the heads' attention becomes the one that they share: `sum`, or `mean`.
    """

    blocks: int
    heads: str


@no_grad
def calibrated_path(blocks: Sequence[vit_blocks.Block], inputs: Sequence[Tensor], heads: str
                    ) -> Tensor:
    """Return the end of the second path: the first input, and what each block adds to it.

    Args:
        blocks: CLIP's last blocks.
        inputs: the input of each of them on CLIP's own path (B, N, width).
        heads: see `Calibration`.

    Returns:
        x₀ + Σ γ₁·out(A v) (B, N, width); A is the attention that all heads of a block share.
    """
    path = inputs[0]
    for block, tokens in zip(blocks, inputs, strict=True):
        parts = block.heads(block.ln_1(tokens))
        shared = vit_blocks.self_attention(parts)
        if heads == "mean":
            shared /= block.shape.heads
        value = parts[2]
        path = path + block.attention_output(shared.to(value)[:, None] @ value)
    return path
