"""Gaussian filtering on the permutohedral lattice (Adams, Baek, Davis 2010) in plain torch.

The same approximation as Krähenbühl and Koltun's dense CRF: splat to the vertices of a simplex,
blur along d + 1 directions, slice back. Sorting unique vertex keys takes the place of a hash table,
so it runs on any device.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor


class Lattice:
    """A lattice built for a set of points; filters any values at these points.

    Args:
        features: position of each point, in units of the Gaussian's deviation (N, d), float32.
    """

    def __init__(self, features: Tensor) -> None:
        count, dims = features.shape
        keys, weights = _simplices(features)
        low, high = keys.amin(dim=(0, 1)), keys.amax(dim=(0, 1))
        # One step of blurring moves a key by d at most; the margin keeps packed keys unique.
        radix = (high - low + 2 * dims + 3).tolist()
        if reduce(lambda product, size: product * size, radix, 1) >= 2**62:
            raise ValueError("the features spread too far for the lattice; raise the deviations")
        stride = torch.ones(dims, dtype=torch.long, device=features.device)
        for axis in range(dims - 2, -1, -1):
            stride[axis] = stride[axis + 1] * radix[axis + 1]
        packed = ((keys - low + dims + 1) * stride).sum(dim=-1)
        vertices, slot = torch.unique(packed.flatten(), return_inverse=True)
        self.count, self.dims, self.vertices = count, dims, len(vertices)
        self._slot = slot.view(count, dims + 1)
        self._weight = weights
        self._neighbours = self._find_neighbours(vertices, stride)

    def _find_neighbours(self, vertices: Tensor, stride: Tensor) -> Tensor:
        """Index of both neighbours of each vertex along each direction (d + 1, 2, M); M: none."""
        steps = torch.ones((self.dims + 1, self.dims), dtype=torch.long, device=vertices.device)
        steps[range(self.dims), range(self.dims)] = -self.dims
        found = torch.full((self.dims + 1, 2, self.vertices), self.vertices,
                           device=vertices.device)
        own = torch.arange(self.vertices, device=vertices.device)
        for direction, step in enumerate((steps * stride).sum(dim=-1)):
            target = vertices + step
            place = torch.searchsorted(vertices, target).clamp_(max=self.vertices - 1)
            hit = vertices[place] == target
            found[direction, 0, hit] = place[hit]
            found[direction, 1, place[hit]] = own[hit]
        return found

    def filter(self, values: Tensor) -> Tensor:
        """Weighted sums Σ_j k(i, j) v_j of values (N, C), the point itself included."""
        # The last row stays zero: it is the neighbour of vertices that have none.
        lattice = values.new_zeros((self.vertices + 1, values.shape[1]))
        for corner in range(self.dims + 1):
            lattice.index_add_(0, self._slot[:, corner], values * self._weight[:, corner, None])
        for first, second in self._neighbours:
            blurred = lattice[:-1] + 0.5 * (lattice[first] + lattice[second])
            lattice[:-1] = blurred
        result = torch.zeros_like(values)
        for corner in range(self.dims + 1):
            result += lattice[self._slot[:, corner]] * self._weight[:, corner, None]
        return result / (1 + 2.0**-self.dims)


def _simplices(features: Tensor) -> tuple[Tensor, Tensor]:
    """Simplex around each point: vertex keys (N, d + 1, d), barycentric weights (N, d + 1)."""
    count, dims = features.shape
    device = features.device
    axes = torch.arange(1, dims + 1, device=device, dtype=torch.float32)
    # The blur of the lattice has variance 2/3·(d + 1)²; features are scaled to match it.
    scale = (dims + 1) * (2 / 3) ** 0.5 / (axes * (axes + 1)).sqrt()
    scaled = features.float() * scale
    # Position on the hyperplane Σx = 0 in d + 1 dimensions.
    tail = scaled.flip(1).cumsum(1).flip(1)
    elevated = torch.cat([tail, tail.new_zeros(count, 1)], dim=1)
    elevated[:, 1:] -= axes * scaled
    # Nearest point whose coordinates are multiples of d + 1; its sum says how far off it is.
    multiple = (elevated / (dims + 1)).round()
    excess = multiple.sum(dim=1, keepdim=True).long()
    corner = multiple.long() * (dims + 1)
    remainder = elevated - corner
    order = remainder.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(dims + 1, device=device).expand(count, -1)) + excess
    shift = (rank < 0).long() - (rank > dims).long()
    rank, corner = rank + shift * (dims + 1), corner + shift * (dims + 1)
    offset = (elevated - corner) / (dims + 1)
    weights = elevated.new_zeros(count, dims + 2)
    weights.scatter_add_(1, dims - rank, offset)
    weights.scatter_add_(1, dims + 1 - rank, -offset)
    weights[:, 0] += 1 + weights[:, dims + 1]
    vertex = torch.arange(dims + 1, device=device)
    canonical = vertex[:, None] - (dims + 1) * (vertex > dims - vertex[:, None])
    keys = corner[:, None, :dims] + canonical[:, rank[:, :dims]].transpose(0, 1)
    return keys, weights[:, : dims + 1].contiguous()
