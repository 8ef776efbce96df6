"""A light segmentation head: a few small convolutions over layers of an encoder, side by side.

It is what students end in: it has no prototypes and no walk between patches, and its output has
2×2 values a patch (sub-pixel convolution, Shi et al., CVPR 2016), so that a small encoder's coarse
grid costs less of the outlines.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpltool.core.segmenter import SegmenterNetwork, side_by_side

FINER = 2
"""Values a side of a patch that the head gives."""


class LightHead(SegmenterNetwork):
    """Class scores of normalised layers by a small convolutional network."""

    in_joint_space = False

    def __init__(self, layers: tuple[int, ...], input_width: int, classes: int, width: int) -> None:
        """Make an untrained head.

        Args:
            layers: indices of the levels of the encoder whose outputs it reads.
            input_width: width of these outputs.
            classes: number of classes, with the background.
            width: of its hidden layers.
        """
        super().__init__(torch.zeros(classes, 1), torch.arange(classes), layers=layers)
        self.input_width, self.width = input_width, width
        self.squeeze = nn.Linear(len(layers) * input_width, width)
        self.around = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.mix = nn.Linear(width, width)
        self.classifier = nn.Linear(width, classes * FINER**2)

    @property
    def config(self) -> dict[str, object]:
        """What `LightHead.from_config` needs in addition to the state dict."""
        return {"layers": list(self.layers), "input_width": self.input_width,
                "classes": len(self.prototypes), "width": self.width}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LightHead:
        """Rebuild a head whose state dict is to be loaded next."""
        return cls(tuple(config["layers"]), config["input_width"], config["classes"],
                   config["width"])

    @property
    def classes(self) -> Tensor:
        """Class indices 0, 1, …, the order of the logits."""
        return torch.arange(len(self.prototypes), device=self.prototypes.device)

    def embeddings(self, layers: Tensor | None, patches: Tensor | None, grid: tuple[int, int]
                   ) -> Tensor:
        """Return the layers side by side (B, h·w, L·width)."""
        return side_by_side(layers)

    def logits(self, embeddings: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return class logits (B, classes, 2h, 2w)."""
        hidden = F.gelu(self.squeeze(embeddings))
        maps = hidden.transpose(1, 2).unflatten(2, grid)
        around = self.around(maps).flatten(2).transpose(1, 2)
        hidden = hidden + F.gelu(self.mix(around))
        scores: Tensor = self.classifier(hidden).transpose(1, 2).unflatten(2, grid)
        return F.pixel_shuffle(scores, FINER)
