"""Value path of the last block: each patch sees only itself (MaskCLIP, ECCV 2022).

The result is more precise in location, but less certain about the class. `extract --patches value`
makes the same while it runs the encoder.
"""

from __future__ import annotations

from vpltool.lazy import Tensor
from vpltool.methods.inputs import EmbeddingBatch
from vpltool.settings import Settings

READS = ("tokens", "head")


def make_patches(batch: EmbeddingBatch, settings: Settings) -> Tensor:
    """Embed each patch by its value alone (B, h·w, dim), L2-normed."""
    head = batch.head
    assert head is not None
    return head.value_embeddings(batch.tensors["tokens"][:, head.prefix :])
