"""The space of an alignment: the map of patches into it, and the end of CLIP with that map after.

`alignment` trains the map.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpltool.core.vit import Head


class AlignedSpace(nn.Module):
    """The map from CLIP's joint space into an aligned space: linear layers with ReLU between.

    Weights are those of the first layer (width, dim) and of the further ones (depth − 1, width,
    width); the bias is that of all (depth, width). The last layer may have a ReLU, too.
    """

    first: Tensor
    further: Tensor
    bias: Tensor

    def __init__(self, first: Tensor, further: Tensor, bias: Tensor, *, last_relu: bool) -> None:
        super().__init__()
        for name, tensor in (("first", first), ("further", further), ("bias", bias)):
            self.register_buffer(name, tensor)
        self.last_relu = last_relu

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], last_relu: bool) -> AlignedSpace:
        """The map that `tensors` gave."""
        return cls(tensors["space_first"], tensors["space_further"], tensors["space_bias"],
                   last_relu=last_relu)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by which a file of prototypes carries the map."""
        return {f"space_{name}": tensor.cpu() for name, tensor in self.state_dict().items()}

    @classmethod
    def folded(cls, stack: nn.Sequential) -> AlignedSpace:
        """Fold a stack's BatchNorm, with its running statistics, into its linear layers."""
        weights, biases = [], []
        for linear, norm in zip(_layers(stack, nn.Linear), _layers(stack, nn.BatchNorm1d),
                                strict=True):
            scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            weights.append((scale[:, None] * linear.weight.double()).detach().float())
            biases.append((norm.bias.double() - scale * norm.running_mean.double()).detach()
                          .float())
        width = len(biases[0])
        further = torch.stack(weights[1:]) if len(weights) > 1 else weights[0].new_zeros(
            0, width, width)
        return cls(weights[0], further, torch.stack(biases),
                   last_relu=isinstance(stack[-1], nn.ReLU))

    def forward(self, vectors: Tensor) -> Tensor:
        """Map L2-normed vectors (..., dim) to L2-normed ones (..., width)."""
        vectors = F.linear(vectors, self.first, self.bias[0])
        for weight, bias in zip(self.further, self.bias[1:], strict=True):
            vectors = F.linear(vectors.relu(), weight, bias)
        return F.normalize(vectors.relu() if self.last_relu else vectors, dim=-1)


class AlignedHead(Head):
    """The end of CLIP, followed by the map into an aligned space.

    A photo is pooled there, too: its vector is the mean of its patches' v', as that of a region is.
    """

    space: AlignedSpace

    @classmethod
    def of(cls, head: Head, space: AlignedSpace) -> AlignedHead:
        """Put the map after a head; the head is left as it is."""
        made = cls(head.block.shape, **{key: value for key, value in head.config.items()
                                        if key != "shape"})
        made.load_state_dict(head.state_dict())
        made.space = space
        return made.to(next(head.parameters())).requires_grad_(False)

    def patch_embeddings(self, tokens: Tensor) -> Tensor:
        """Map the last block's output (B, N, width) to L2-normed aligned vectors (B, N, dim)."""
        aligned: Tensor = self.space(super().patch_embeddings(tokens))
        return aligned

    def pooled(self, tokens: Tensor) -> Tensor:
        """Pool the last block's output (B, N, width) to L2-normed (B, dim): the patches' mean."""
        patches = self.patch_embeddings(tokens[:, self.prefix :])
        return F.normalize(patches.mean(dim=1), dim=-1)


def _layers(stack: nn.Sequential, kind: type[nn.Module]) -> list[Any]:
    return [part for part in stack if isinstance(part, kind)]
