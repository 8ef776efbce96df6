"""A linear segmenter: classifier rows of its own over layers of a frozen CLIP.

The usual probe of frozen features (DINOv2, Oquab et al., TMLR 2024): what a patch shows is read off
its tokens by one affine map. Here pseudo masks teach it, not true ones. In use, a patch's scores
are averaged over the patches of the photo that look like it: the walk of `refine --method patches`,
which needs no tags.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vpltool.core.affinity import patch_walk
from vpltool.core.segmenter import SegmenterNetwork, side_by_side

_MOST_ROWS = 10_000_000


class LinearSegmenter(SegmenterNetwork):
    """Class scores as an affine map of normalised layers; no embedding in CLIP's joint space."""

    in_joint_space = False

    def __init__(self, layers: tuple[int, ...], input_width: int, prototypes: Tensor,
                 class_index: Tensor, walk: float) -> None:
        """Make an untrained classifier: all its scores are 0.

        Args:
            layers: indices of the CLIP blocks whose outputs it reads.
            input_width: width of these outputs.
            prototypes: L2-normed rows (rows, dim); only which classes there are is read of them.
            class_index: class of each row (rows,), 0 is the background.
            walk: temperature of the walk between patches; 0: none is made.
        """
        super().__init__(prototypes, class_index, layers=layers)
        self.walk = walk
        self.input_width = input_width
        self.classifier = nn.Linear(len(layers) * input_width, len(self.classes))
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    @property
    def config(self) -> dict[str, object]:
        """What `LinearSegmenter.from_config` needs in addition to the state dict."""
        return {"layers": list(self.layers), "input_width": self.input_width,
                "rows": list(self.prototypes.shape), "classes": len(self.classes),
                "walk": self.walk}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LinearSegmenter:
        """Rebuild a classifier whose state dict is to be loaded next."""
        if not 0 < config["rows"][0] <= _MOST_ROWS:
            raise ValueError(f"{config['rows']} are no prototypes")
        # It decides how large the network is, so it has values even where nothing else has any.
        index = torch.zeros(config["rows"][0], dtype=torch.long, device="cpu")
        index[-1] = config["classes"] - 1
        return cls(tuple(config["layers"]), config["input_width"], torch.zeros(config["rows"]),
                   index, config["walk"])

    def embeddings(self, layers: Tensor | None, patches: Tensor | None, grid: tuple[int, int]
                   ) -> Tensor:
        """Return the layers side by side (B, h·w, L·width); not L2-normed, nor in a joint space."""
        return side_by_side(layers)

    def logits(self, embeddings: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return class logits (B, classes, h, w), after the walk unless it is training.

        Crops are too small for a walk, and their padding would take part in it.
        """
        scores: Tensor = self.classifier(embeddings)
        if self.walk and not self.training:
            last = embeddings[..., -self.input_width :]
            # Photo by photo: a walk is h·w × h·w.
            scores = torch.cat([patch_walk(tokens, self.walk) @ own for tokens, own in zip(
                last.split(1), scores.split(1), strict=True)])
        return scores.transpose(1, 2).unflatten(2, grid)
