"""Refiners that read the attention of each block: a check of how many blocks there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vpltool.errors import VplError


def check_blocks(features: Mapping[str, Any], blocks: int) -> None:
    """Check that features hold the attention of so many of the last blocks.

    A model with fewer blocks gives the attention of all that it has.

    Args:
        features: options in the header of the features.
        blocks: number of blocks that a refiner reads.

    Raises:
        VplError: fewer blocks were asked of `extract`.
    """
    stored = features.get("attention_blocks", 8)
    if blocks > stored:
        keep, layers = (",".join(map(str, features[name])) for name in ("keep", "layers"))
        chosen = f"layers={layers!r}, " if layers else ""
        raise VplError(
            f"`blocks={blocks}`: the features hold the attention of {stored} blocks",
            f"`blocks={stored}`, or `extract(split={features['split']!r}, keep={keep!r}, {chosen}"
            f"attention_blocks={blocks}, overwrite=True)`")
