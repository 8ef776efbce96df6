"""The dense CRF's Gaussian filtering on one core of a CPU: loops that Numba compiles.

A loop reads each value once and keeps the rest in the processor's cache; the tensors of `crf` are
written to memory and read again at every step. The lattice is that of `permutohedral` (Adams, Baek,
Davis 2010), with its vertices in a hash table instead of sorted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numba
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]
Keys = npt.NDArray[np.int64]
Ranks = npt.NDArray[np.int8]

_Values = ParamSpec("_Values")
_Result = TypeVar("_Result")

_FREE = -1
"""Mark of an empty entry of the hash table."""


def compiled(loop: Callable[_Values, _Result]) -> Callable[_Values, _Result]:
    """Compile a function when it is first called, and keep the result on disk."""
    made: Callable[_Values, _Result] = numba.njit(cache=True, nogil=True)(loop)
    return made


class Lattice(NamedTuple):
    """A permutohedral lattice for N points of d dimensions, with M vertices that points touch."""

    slot: Integers  # vertices of each point's simplex (N, d + 1)
    weight: Floats  # barycentric coordinates of each point (N, d + 1)
    neighbours: Integers  # before and after each, by direction (d + 1, M + 1, 2); M: not touched


def build_lattice(features: Floats) -> Lattice:
    """Build the lattice of points (N, d), in units of the Gaussian's standard deviation.

    Raises a ValueError if they spread too far for vertices to be numbered.
    """
    place, rank, weight = _simplices(np.ascontiguousarray(features, dtype=np.float32))
    # A step of blurring is 1 along one axis, or −1 along all: two at most beyond the last vertex.
    low = place.min(axis=0).astype(np.int64) - 2
    radix = [int(side) for side in place.max(axis=0) + 3 - low]
    stride = [1]
    for side in radix[:0:-1]:
        stride.insert(0, stride[0] * side)
    if stride[0] * radix[0] >= 2**62:
        raise ValueError("the features spread too far for the lattice; raise the deviations")
    steps = np.array([*stride, -sum(stride)], dtype=np.int64)
    slot, keys, table = _number(place, rank, low, steps)
    return Lattice(slot, weight, _neighbours(keys, table, steps))


@compiled
def _simplices(features: Floats) -> tuple[Integers, Ranks, Floats]:
    """Find the simplex around each point: place (N, d), ranks (N, d + 1), weights (N, d + 1).

    The place is the nearest point of the lattice: the last of its d + 1 coordinates minus each of
    the others. Ranks and weights are those of `permutohedral._simplices`.
    """
    count, dims = features.shape
    axes = dims + 1
    place = np.empty((count, dims), np.int32)
    rank = np.empty((count, axes), np.int8)
    weight = np.empty((count, axes), np.float32)
    scale = np.empty(dims, np.float32)
    for axis in range(dims):
        # The lattice's blur has variance 2/3·(d + 1)²; features are scaled to match it.
        scale[axis] = axes * np.sqrt(2 / 3) / np.sqrt((axis + 1.0) * (axis + 2.0))
    offset = np.empty(axes, np.float32)
    nearest, order = np.empty(axes, np.int64), np.empty(axes, np.int64)
    for point in range(count):
        surplus = _round_to_lattice(features[point], scale, nearest, offset)
        _rank_offsets(offset, order)
        _return_to_hyperplane(surplus, nearest, offset, order)
        _weigh_corners(offset, order, weight[point])
        for axis in range(axes):
            rank[point, axis] = order[axis]
        for axis in range(dims):
            place[point, axis] = nearest[dims] - nearest[axis]
    return place, rank, weight


@compiled
def _round_to_lattice(feature: Floats, scale: Floats, nearest: Keys, offset: Floats) -> int:
    """Find a point's nearest multiples of d + 1, divided by that, and its offset to them (d + 1,).

    Returns the sum of the multiples, their distance from the hyperplane.
    """
    axes = len(offset)
    share, side = np.float32(1 / axes), np.float32(axes)
    beyond = np.float32(0)
    surplus = 0
    for axis in range(axes - 1, -1, -1):
        # Position on the hyperplane Σx = 0 in d + 1 dimensions.
        scaled = feature[axis - 1] * scale[axis - 1] if axis else np.float32(0)
        elevated = beyond - np.float32(axis) * scaled
        beyond += scaled
        multiple = np.rint(elevated * share)
        nearest[axis] = np.int64(multiple)
        surplus += nearest[axis]
        offset[axis] = elevated - multiple * side
    return surplus


@compiled
def _rank_offsets(offset: Floats, rank: Keys) -> None:
    """Rank the offsets (d + 1,), the largest first."""
    rank[:] = 0
    for lower in range(len(offset)):
        for upper in range(lower + 1, len(offset)):
            if offset[lower] < offset[upper]:
                rank[lower] += 1
            else:
                rank[upper] += 1


@compiled
def _return_to_hyperplane(surplus: int, nearest: Keys, offset: Floats, rank: Keys) -> None:
    """Round the coordinates with the largest offsets the other way: the multiples then sum to 0."""
    axes = len(offset)
    for axis in range(axes):
        rank[axis] += surplus
        if rank[axis] < 0:
            rank[axis] += axes
            nearest[axis] += 1
            offset[axis] -= np.float32(axes)
        elif rank[axis] >= axes:
            rank[axis] -= axes
            nearest[axis] -= 1
            offset[axis] += np.float32(axes)


@compiled
def _weigh_corners(offset: Floats, rank: Keys, weight: Floats) -> None:
    """Compute a point's barycentric coordinates in its simplex (d + 1,)."""
    last = len(offset) - 1
    share = np.float32(1 / len(offset))
    weight[:] = 0
    weight[0] = 1
    for axis in range(len(offset)):
        part = offset[axis] * share
        weight[last - rank[axis]] += part
        # The first corner follows the last.
        weight[last - rank[axis] + 1 if rank[axis] else 0] -= part


@compiled
def _entry(table: Integers, keys: Keys, key: np.int64) -> np.int64:
    """Return the entry of the hash table that holds a key, or that is free for it."""
    last = len(table) - 1
    # Fibonacci hashing; the upper bits are the better mixed ones.
    mixed = np.int64(key) * np.int64(-7046029254386353131)
    entry = (mixed ^ (mixed >> 29)) & last
    while table[entry] != _FREE and keys[table[entry]] != key:
        entry = (entry + 1) & last
    return entry


@compiled
def _number(place: Integers, rank: Ranks, low: Keys, steps: Keys
            ) -> tuple[Integers, Keys, Integers]:
    """Number the vertices in the order of the points: slots (N, d + 1), keys (M,), hash table."""
    count, dims = place.shape
    slot = np.empty((count, dims + 1), np.int32)
    keys = np.empty(2**14, np.int64)
    table = np.full(2**16, _FREE, np.int32)
    path = np.empty(dims + 1, np.int64)
    known = 0
    for point in range(count):
        key = np.int64(0)
        for axis in range(dims):
            key += (place[point, axis] - low[axis]) * steps[axis]
        # From each vertex to the next it is a step along one axis, that of the smallest rank last.
        for axis in range(dims + 1):
            path[dims - rank[point, axis]] = steps[axis]
        for corner in range(dims + 1):
            # Neighbouring pixels mostly share their simplex.
            if point and keys[slot[point - 1, corner]] == key:
                slot[point, corner] = slot[point - 1, corner]
            else:
                entry = _entry(table, keys, key)
                if table[entry] == _FREE:
                    if known == len(keys):
                        keys = np.concatenate((keys, np.empty_like(keys)))
                        table = np.full(2 * len(table), _FREE, np.int32)
                        for vertex in range(known):
                            table[_entry(table, keys, keys[vertex])] = vertex
                        entry = _entry(table, keys, key)
                    keys[known] = key
                    table[entry] = known
                    known += 1
                slot[point, corner] = table[entry]
            key += path[corner]
    return slot, keys[:known].copy(), table


@compiled
def _neighbours(keys: Keys, table: Integers, steps: Keys) -> Integers:
    """Find the vertices next to each, along each direction (d + 1, M + 1, 2)."""
    missing = len(keys)
    found = np.full((len(steps), missing + 1, 2), missing, np.int32)
    for axis in range(len(steps)):
        for vertex in range(missing):
            other = table[_entry(table, keys, keys[vertex] + steps[axis])]
            if other != _FREE:
                found[axis, vertex, 1] = other
                found[axis, other, 0] = vertex
    return found


_UNROLLED = 4
"""Number of columns up to which loops are unrolled: photos have few tags."""

_Columns = tuple[int, ...]
"""A tuple of one item per column, since the compiler knows its length; empty: any number."""


def are_compiled() -> bool:
    """Return whether an earlier process has left the compiled loops on disk."""
    loop: Any = compare
    return any(Path(loop.stats.cache_path).glob("crf_numba.compare-*.nbi"))


class Kernel(NamedTuple):
    """weight·N·K·N of a Gaussian kernel K, with the symmetric normalisation N = diag(1/√(K·1))."""

    lattice: Lattice  # of K
    norm: Floats  # diagonal of N (N,)
    weight: np.float32


def build_kernel(features: Floats, weight: float) -> Kernel:
    """Build the kernel of points, see `build_lattice`."""
    lattice = build_lattice(features)
    count = len(lattice.slot)
    plain = Kernel(lattice, np.ones(count, np.float32), np.float32(1))
    total = np.zeros((count, 1), np.float32)
    add_filtered(plain, np.ones_like(total), total)
    return Kernel(lattice, (total[:, 0] + np.float32(1e-20)) ** np.float32(-0.5),
                  np.float32(weight))


def add_filtered(kernel: Kernel, values: Floats, sums: Floats) -> None:
    """Add the products of a kernel with values (N, C), including the point itself, to sums."""
    columns = values.shape[1]
    unrolled = (0,) * (columns if columns <= _UNROLLED else 0)
    vertices = np.zeros((kernel.lattice.neighbours.shape[1], columns), np.float32)
    _splat(kernel, values, vertices, unrolled)
    _slice(kernel, _blur(kernel.lattice.neighbours, vertices, unrolled), sums, unrolled)


@compiled
def _splat(kernel: Kernel, values: Floats, vertices: Floats, unrolled: _Columns) -> None:
    """Add each point's values to the corners of its simplex (M + 1, C)."""
    lattice, columns = kernel.lattice, len(unrolled) or values.shape[1]
    for point in range(len(values)):
        for corner in range(lattice.slot.shape[1]):
            vertex = lattice.slot[point, corner]
            weight = kernel.norm[point] * lattice.weight[point, corner]
            for column in range(columns):
                vertices[vertex, column] += weight * values[point, column]


@compiled
def _blur(neighbours: Integers, vertices: Floats, unrolled: _Columns) -> Floats:
    """Add to each vertex half of both its neighbours, along each direction (M + 1, C)."""
    columns = len(unrolled) or vertices.shape[1]
    blurred = np.zeros_like(vertices)
    for axis in range(len(neighbours)):
        # The last vertex stands for missing ones, and stays 0.
        for vertex in range(len(vertices) - 1):
            before, behind = neighbours[axis, vertex]
            for column in range(columns):
                blurred[vertex, column] = vertices[vertex, column] + np.float32(0.5) * (
                    vertices[before, column] + vertices[behind, column])
        vertices, blurred = blurred, vertices
    return vertices


@compiled
def _slice(kernel: Kernel, vertices: Floats, sums: Floats, unrolled: _Columns) -> None:
    """Add the values of its simplex's corners to each point's sum (N, C)."""
    lattice, columns = kernel.lattice, len(unrolled) or sums.shape[1]
    corners = lattice.slot.shape[1]
    gain = kernel.weight / np.float32(1 + 2.0 ** -(corners - 1))
    for point in range(len(sums)):
        for corner in range(corners):
            vertex = lattice.slot[point, corner]
            weight = gain * kernel.norm[point] * lattice.weight[point, corner]
            for column in range(columns):
                sums[point, column] += weight * vertices[vertex, column]


@compiled
def shift(margins: Floats, scores: Floats) -> None:
    """Write the scores (N, L) of all labels, at most 0, from their margins over the first label."""
    for point in range(len(margins)):
        top = np.float32(0)
        for label in range(margins.shape[1]):
            top = max(top, margins[point, label])
        scores[point, 0] = -top
        for label in range(margins.shape[1]):
            scores[point, label + 1] = margins[point, label] - top


@compiled
def compare(likely: Floats, over: Floats) -> None:
    """Write each label's probability minus the first's (N, L − 1), from likelihoods (N, L)."""
    for point in range(len(likely)):
        total = np.float32(0)
        for label in range(likely.shape[1]):
            total += likely[point, label]
        for label in range(over.shape[1]):
            over[point, label] = (likely[point, label + 1] - likely[point, 0]) / total
