"""Gaussian filtering on the permutohedral lattice (Adams, Baek, Davis 2010) in plain torch.

The same approximation as in Krähenbühl and Koltun's dense CRF: splat to the vertices of a simplex,
blur along d + 1 directions, slice back. Sorted vertex keys replace the hash table. Each of the
three steps sums a few rows for each row of its result (`embedding_bag`): on any device, without
storing the terms, and in a fixed order, so that the result has the same bits each time.
"""

from __future__ import annotations

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor


class Lattice:
    """A lattice for a set of points, or for several sets that do not interact.

    Args:
        features: coordinates of each point, in units of the Gaussian's standard deviation (N, d),
            float32.
        sets: number of sets, with N / sets points each, one after another.
    """

    def __init__(self, features: Tensor, sets: int = 1) -> None:
        count, dims = features.shape
        corner, rank, weights = _simplices(features)
        low, high = corner.amin(dim=1)[:dims] - dims, corner.amax(dim=1)[:dims] + dims
        # One step of blurring moves a key by at most d; the margin keeps packed keys unique.
        radix = (high - low + 2 * dims + 3).tolist()
        size = reduce(lambda product, side: product * side, radix, 1)
        if size * sets >= 2**62:
            raise ValueError("the features spread too far for the lattice; raise the deviations")
        stride = torch.ones(dims, dtype=torch.long, device=features.device)
        for axis in range(dims - 2, -1, -1):
            stride[axis] = stride[axis + 1] * radix[axis + 1]
        first = ((corner[:dims] - (low - dims - 1)[:, None]) * stride[:, None]).sum(dim=0)
        first += torch.arange(sets, device=features.device).repeat_interleave(count // sets) * size
        packed = _vertex_keys(first, rank, stride)
        ordered, order = packed.flatten().sort(stable=True)
        fresh = torch.ones_like(ordered, dtype=torch.bool)
        fresh[1:] = ordered[1:] != ordered[:-1]
        vertices = ordered[fresh]
        slot = torch.empty_like(order)
        slot[order] = fresh.cumsum(0) - 1
        self.count, self.dims, self.vertices = count, dims, len(vertices)
        # Rows that each vertex sums over points, and each point over vertices, with their weights.
        self._splat = (order // (dims + 1)).int()
        self._splat_share = weights.flatten()[order]
        self._splat_start = fresh.nonzero()[:, 0].int()
        self._slice = slot.view(count, dims + 1).int()
        self._slice_share = weights / (1 + 2.0**-dims)
        self._blur = self._neighbourhoods(vertices, stride)
        self._blur_share = features.new_tensor([1, 0.5, 0.5]).repeat(self.vertices + 1, 1)

    def _neighbourhoods(self, vertices: Tensor, stride: Tensor) -> Tensor:
        """Return each vertex and both its neighbours along each direction (d + 1, M + 1, 3).

        Missing neighbours have index M, a row that stays zero.
        """
        device = vertices.device
        steps = torch.ones((self.dims + 1, self.dims), dtype=torch.long, device=device)
        steps[range(self.dims), range(self.dims)] = -self.dims
        found = torch.full((self.dims + 1, self.vertices + 1, 3), self.vertices,
                           dtype=torch.int32, device=device)
        found[:, :, 0] = torch.arange(self.vertices + 1, device=device)
        own = found[0, :-1, 0]
        for direction, step in enumerate((steps * stride).sum(dim=-1)):
            target = vertices + step
            index = torch.searchsorted(vertices, target).clamp_(max=self.vertices - 1)
            hit = vertices[index] == target
            found[direction, :-1, 1][hit] = index[hit].int()
            found[direction, :, 2][index[hit]] = own[hit]
        return found

    def filter(self, values: Tensor) -> Tensor:
        """Return the weighted sums Σ_j k(i, j) v_j of values (N, C), including the point itself."""
        lattice = F.embedding_bag(self._splat, values, self._splat_start, mode="sum",
                                  per_sample_weights=self._splat_share)
        lattice = F.pad(lattice, (0, 0, 0, 1))
        for around in self._blur:
            lattice = F.embedding_bag(around, lattice, mode="sum",
                                      per_sample_weights=self._blur_share)
        return F.embedding_bag(self._slice, lattice, mode="sum",
                               per_sample_weights=self._slice_share)

    def rescale(self, before: Tensor, after: Tensor) -> None:
        """Make `filter` multiply values by `before` and the sums by `after`, both (N,)."""
        self._splat_share = self._splat_share * before[self._splat]
        self._slice_share = self._slice_share * after[:, None]


def _simplices(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the simplex around each point.

    Returns:
        nearest point of the lattice (d + 1, N); rank of each coordinate of the offset to it, the
        largest first (d + 1, N); barycentric weights (N, d + 1).
    """
    count, dims = features.shape
    axes = torch.arange(1, dims + 1, device=features.device, dtype=torch.float32)[:, None]
    # The lattice's blur has variance 2/3·(d + 1)²; features are scaled to match it.
    scale = (dims + 1) * (2 / 3) ** 0.5 / (axes * (axes + 1)).sqrt()
    scaled = features.float().T * scale
    # Position on the hyperplane Σx = 0 in d + 1 dimensions.
    elevated = F.pad(scaled.flip(0).cumsum(0).flip(0), (0, 0, 0, 1))
    elevated[1:] -= axes * scaled
    # Nearest point whose coordinates are multiples of d + 1; their sum tells how far it is from
    # the hyperplane.
    multiple = (elevated / (dims + 1)).round()
    excess = multiple.sum(dim=0).long()
    corner = multiple.long() * (dims + 1)
    remainder = elevated - corner
    rank = excess.repeat(dims + 1, 1)
    for lower in range(dims + 1):
        for upper in range(lower + 1, dims + 1):
            behind = remainder[lower] < remainder[upper]
            rank[lower] += behind
            rank[upper] += ~behind
    shift = ((rank < 0).long() - (rank > dims).long()) * (dims + 1)
    rank, corner = rank + shift, corner + shift
    offset = ((elevated - corner) / (dims + 1)).T
    weights = elevated.new_zeros(count, dims + 2)
    weights.scatter_add_(1, (dims - rank).T, offset)
    weights.scatter_add_(1, (dims + 1 - rank).T, -offset)
    weights[:, 0] += 1 + weights[:, dims + 1]
    return corner, rank, weights[:, : dims + 1].contiguous()


def _vertex_keys(first: Tensor, rank: Tensor, stride: Tensor) -> Tensor:
    """Return packed keys of the simplex's vertices (N, d + 1) from its nearest point's key (N,).

    Vertex k is k steps along each axis, less d + 1 if the rank of the axis exceeds d − k.
    """
    dims = len(stride)
    by_rank = torch.empty_like(rank).scatter_(
        0, rank, F.pad(stride, (0, 1))[:, None].expand_as(rank))
    farthest = F.pad(by_rank.flip(0).cumsum(0)[:-1], (0, 0, 1, 0))
    steps = torch.arange(dims + 1, device=rank.device)[:, None] * stride.sum()
    return (first + steps - (dims + 1) * farthest).T
