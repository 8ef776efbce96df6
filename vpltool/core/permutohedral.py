"""Gaussian filtering on the permutohedral lattice (Adams, Baek, Davis 2010) in plain torch.

The same approximation as in Krähenbühl and Koltun's dense CRF: splat to the vertices of a simplex,
blur along d + 1 directions, slice back. Sorted vertex keys replace the hash table, which suits a
GPU; on a CPU the loops of `crf_numba` are faster. Each of the three steps sums a few rows for each
row of its result, without storing the terms, and in a fixed order, so that the result has the same
bits each time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce

from vpltool.lazy import F, Tensor, np, torch


@dataclass(frozen=True)
class _Sums:
    """A sparse matrix: each row of its product is a weighted sum of a few rows."""

    start: Tensor  # first term of each row, and the number of all terms (rows + 1,), int32
    index: Tensor  # row that each term reads (terms,), int32
    share: Tensor  # weight of each term (terms,), float32

    def __matmul__(self, values: Tensor) -> Tensor:
        """Return the sums over values (columns, C): (rows, C)."""
        return F.embedding_bag(self.index, values, self.start, mode="sum",
                               per_sample_weights=self.share, include_last_offset=True)


class Lattice:
    """A lattice for a set of points, or for several sets of N / sets points that do not interact.

    Points are (N, d), float32, in units of the Gaussian's standard deviation, set by set.
    """

    def __init__(self, features: Tensor, sets: int = 1) -> None:
        count, dims = features.shape
        nearest, rank, weights = _simplices(features)
        # In these coordinates a step of blurring is 1 along one axis, or −1 along all.
        place = nearest[-1] - nearest[:-1]
        low = place.amin(dim=1) - 2
        radix = (place.amax(dim=1) + 3 - low).tolist()
        size = reduce(lambda product, side: product * side, radix, 1)
        if size * sets >= 2**62:
            raise ValueError("the features spread too far for the lattice; raise the deviations")
        stride = torch.ones(dims + 1, dtype=torch.long, device=features.device)
        for axis in range(dims - 2, -1, -1):
            stride[axis] = stride[axis + 1] * radix[axis + 1]
        stride[-1] = -stride[:-1].sum()
        first = torch.arange(sets, device=features.device).repeat_interleave(count // sets) * size
        for axis in range(dims):
            first += (place[axis] - low[axis]) * stride[axis]
        ordered, order = _sorted(_vertex_keys(first, rank, stride).flatten(), size * sets)
        fresh = torch.ones_like(ordered, dtype=torch.bool)
        torch.ne(ordered[1:], ordered[:-1], out=fresh[1:])
        begin = fresh.nonzero()[:, 0]
        vertices = ordered.index_select(0, begin)
        slot = torch.empty(len(order), dtype=torch.int32, device=features.device)
        slot.scatter_(0, order, fresh.cumsum(0, dtype=torch.int32) - 1)
        self.count, self.vertices = count, len(vertices)
        # The last vertex has no points: it stands for all that are missing.
        self._splat = _Sums(F.pad(begin.int(), (0, 2), value=len(order)),
                            order.int() // (dims + 1),
                            weights.flatten().index_select(0, order))
        self._slice = _Sums(_every(dims + 1, count, slot), slot,
                            weights.flatten() / (1 + 2.0**-dims))
        self._blur = self._blurs(vertices, stride)

    def _blurs(self, vertices: Tensor, steps: Tensor) -> list[_Sums]:
        """Sum each vertex and half of both its neighbours, along each of the d + 1 directions."""
        missing = self.vertices
        own = torch.arange(missing + 1, device=vertices.device, dtype=torch.int32)
        start = _every(3, missing + 1, own)
        share = torch.tensor([1, 0.5, 0.5], device=vertices.device).repeat(missing + 1)
        blurs = []
        for step in steps:
            target = vertices + step
            index = torch.searchsorted(vertices, target).clamp_(max=missing - 1)
            index = index.where(vertices.index_select(0, index) == target, missing)
            found = torch.full((missing + 1, 3), missing, dtype=torch.int32, device=own.device)
            found[:, 0] = own
            found[:-1, 1] = index
            found[:, 2].scatter_(0, index, own[:-1])
            # Vertices without a neighbour wrote here; it must go on reading zeros.
            found[missing, 2] = missing
            blurs.append(_Sums(start, found.flatten(), share))
        return blurs

    def filter(self, values: Tensor) -> Tensor:
        """Return the weighted sums Σ_j k(i, j) v_j of values (N, C), including the point itself."""
        lattice = self._splat @ values.contiguous()
        for blur in self._blur:
            lattice = blur @ lattice
        return self._slice @ lattice

    def rescale(self, before: Tensor, after: Tensor) -> None:
        """Make `filter` multiply values by `before` and the sums by `after`, both (N,)."""
        self._splat = replace(self._splat, share=self._splat.share * before[self._splat.index])
        self._slice = replace(self._slice, share=(
            self._slice.share.view(self.count, -1) * after[:, None]).flatten())


def _every(terms: int, rows: int, like: Tensor) -> Tensor:
    """Return `_Sums.start` (rows + 1,) for rows of equally many terms."""
    return torch.arange(0, terms * rows + 1, terms, dtype=torch.int32, device=like.device)


def _sorted(keys: Tensor, span: int) -> tuple[Tensor, Tensor]:
    """Return keys in [0, span) in ascending order, and their places before; the sort is stable.

    If a key and its place fit into one number, these are sorted, on a CPU by numpy, in a fifth of
    the time.
    """
    bits = len(keys).bit_length()
    if span >= 2 ** (62 - bits):
        ordered, order = keys.sort(stable=True)
        return ordered, order
    joined = (keys << bits) + torch.arange(len(keys), device=keys.device)
    joined = joined.sort().values if keys.is_cuda else torch.from_numpy(np.sort(joined.numpy()))
    return joined >> bits, joined & (2**bits - 1)


def _simplices(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the simplex around each point.

    Returns the nearest point of the lattice, its coordinates divided by d + 1 (d + 1, N); the rank
    of each coordinate of the offset to it, the largest first (d + 1, N); and barycentric weights
    (N, d + 1).
    """
    dims = features.shape[1]
    axes = torch.arange(1, dims + 1, device=features.device, dtype=torch.float32)[:, None]
    # The lattice's blur has variance 2/3·(d + 1)²; features are scaled to match it.
    scale = (dims + 1) * (2 / 3) ** 0.5 / (axes * (axes + 1)).sqrt()
    scaled = features.float().T.contiguous() * scale
    # Position on the hyperplane Σx = 0 in d + 1 dimensions.
    elevated = F.pad(scaled, (0, 0, 0, 1))
    for axis in range(dims - 1, 0, -1):
        elevated[axis - 1] += elevated[axis]
    elevated[1:] -= axes * scaled
    # Nearest point whose coordinates are multiples of d + 1; their sum tells how far it is from
    # the hyperplane.
    nearest = (elevated / (dims + 1)).round()
    remainder = elevated - nearest * (dims + 1)
    # In bytes: these are many passes over memory.
    rank = nearest.sum(dim=0).to(torch.int8).repeat(dims + 1, 1)
    for lower in range(dims + 1):
        for upper in range(lower + 1, dims + 1):
            behind = remainder[lower] < remainder[upper]
            rank[lower] += behind
            rank[upper] += ~behind
    shift = (rank < 0).to(torch.int8) - (rank > dims).to(torch.int8)
    rank = (rank + shift * (dims + 1)).long()
    nearest += shift
    offset = (elevated - nearest * (dims + 1)) / (dims + 1)
    rising = torch.empty_like(offset).scatter_(0, dims - rank, offset)
    weights = torch.cat([rising[:1] + 1 - rising[-1:], rising.diff(dim=0)])
    return nearest.long(), rank, weights.T.contiguous()


def _vertex_keys(first: Tensor, rank: Tensor, stride: Tensor) -> Tensor:
    """Return packed keys of the simplex's vertices (N, d + 1) from its nearest point's key (N,).

    From each vertex to the next it is a step along one axis, that of the smallest rank last.
    """
    steps = torch.empty_like(rank).scatter_(
        0, len(stride) - 1 - rank, stride[:, None].expand_as(rank))
    return torch.cat([first[None], steps[:-1]]).cumsum(dim=0).T
