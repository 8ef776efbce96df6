"""The dense CRF's mean field on one core of a CPU: loops that Numba compiles.

A loop reads each value once and keeps the rest in the processor's cache; the tensors of `crf` are
written to memory and read again at every step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vpltool.core.crf_kernels import CrfSettings
from vpltool.core.lattice_numba import Floats, Integers, Lattice, build_lattice, compiled

_UNROLLED = 4
"""Columns up to which their loops are unrolled: photos have few tags."""


def are_compiled() -> bool:
    """Whether an earlier process has left the compiled loops on disk."""
    loop: Any = _compare
    return any(Path(loop.stats.cache_path).glob("crf_numba._compare_0-*.nbi"))


class Kernel(NamedTuple):
    """weight·N·K·N of a Gaussian kernel K, with the symmetric normalisation N = diag(1/√(K·1)).

    Args:
        lattice: of K.
        norm: the diagonal of N (N,).
        weight: what it is multiplied by.
    """

    lattice: Lattice
    norm: Floats
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
    width = columns if columns <= _UNROLLED else 0
    vertices = np.zeros((kernel.lattice.neighbours.shape[1], columns), np.float32)
    _splat(width)(kernel, values, vertices)
    _slice(width)(kernel, _blur(width)(kernel.lattice.neighbours, vertices), sums)


@cache
def _splat(width: int) -> Callable[[Kernel, Floats, Floats], None]:
    """Make the loop that adds each point's values to the corners of its simplex (M + 1, C).

    Args:
        width: number of columns C, whose loops are unrolled; 0: any.
    """

    def splat(kernel: Kernel, values: Floats, vertices: Floats) -> None:
        lattice, columns = kernel.lattice, width or values.shape[1]
        for point in range(len(values)):
            for corner in range(lattice.slot.shape[1]):
                vertex = lattice.slot[point, corner]
                weight = kernel.norm[point] * lattice.weight[point, corner]
                for column in range(columns):
                    vertices[vertex, column] += weight * values[point, column]

    return compiled(splat, width)


@cache
def _blur(width: int) -> Callable[[Integers, Floats], Floats]:
    """Make the loop that adds to each vertex half of both its neighbours, along each direction."""

    def blur(neighbours: Integers, vertices: Floats) -> Floats:
        columns = width or vertices.shape[1]
        blurred = np.zeros_like(vertices)
        for axis in range(len(neighbours)):
            # The last vertex stands for those that are missing, and stays 0.
            for vertex in range(len(vertices) - 1):
                before, behind = neighbours[axis, vertex]
                for column in range(columns):
                    blurred[vertex, column] = vertices[vertex, column] + np.float32(0.5) * (
                        vertices[before, column] + vertices[behind, column])
            vertices, blurred = blurred, vertices
        return vertices

    return compiled(blur, width)


@cache
def _slice(width: int) -> Callable[[Kernel, Floats, Floats], None]:
    """Make the loop that adds the values of its simplex's corners to each point's sum."""

    def slice_(kernel: Kernel, vertices: Floats, sums: Floats) -> None:
        lattice, columns = kernel.lattice, width or sums.shape[1]
        corners = lattice.slot.shape[1]
        gain = kernel.weight / np.float32(1 + 2.0 ** -(corners - 1))
        for point in range(len(sums)):
            for corner in range(corners):
                vertex = lattice.slot[point, corner]
                weight = gain * kernel.norm[point] * lattice.weight[point, corner]
                for column in range(columns):
                    sums[point, column] += weight * vertices[vertex, column]

    return compiled(slice_, width)


def mean_field(photo: npt.NDArray[np.uint8], unary: Floats, settings: CrfSettings) -> Floats:
    """Marginals of the dense CRF (L, H, W), as `crf.mean_field` has them.

    Args:
        photo: RGB (H, W, 3).
        unary: energy of each label (L, H, W).
        settings: kernels and iterations.
    """
    labels, height, width = unary.shape
    if labels == 1:
        return np.ones_like(unary)
    smooth = _smooth_kernel(height, width, settings.smooth_sxy, settings.smooth_weight)
    alike = build_kernel(np.concatenate(
        [_positions(height, width) / np.float32(settings.bilateral_sxy),
         photo.reshape(-1, 3) / np.float32(settings.bilateral_srgb)], axis=1),
        settings.bilateral_weight)
    # Only what labels have more than the first counts, so a column less is filtered.
    energy = unary.reshape(labels, -1)
    lead = np.ascontiguousarray((energy[:1] - energy[1:]).T, dtype=np.float32)
    more, over = lead.copy(), np.empty_like(lead)
    likely = np.empty((len(lead), labels), np.float32)
    for _ in range(settings.iterations):
        _shift(more, likely)
        _compare(np.exp(likely, out=likely), over)
        # Potts: agreeing with similar pixels is rewarded.
        more[:] = lead
        add_filtered(smooth, over, more)
        add_filtered(alike, over, more)
    _shift(more, likely)
    np.exp(likely, out=likely)
    likely /= likely.sum(axis=1, keepdims=True)
    return np.ascontiguousarray(likely.T).reshape(labels, height, width)


@lru_cache(maxsize=8)
def _smooth_kernel(height: int, width: int, sxy: float, weight: float) -> Kernel:
    """The smoothness kernel: the same for all photos of a size."""
    return build_kernel(_positions(height, width) / np.float32(sxy), weight)


def _positions(height: int, width: int) -> Floats:
    """(x, y) of each pixel (H·W, 2)."""
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return np.stack([x, y], axis=-1).reshape(-1, 2)


@compiled
def _shift(more: Floats, scores: Floats) -> None:
    """Write the scores (N, L) of all labels, 0 at most, from what each has more than the first."""
    for point in range(len(more)):
        top = np.float32(0)
        for label in range(more.shape[1]):
            top = max(top, more[point, label])
        scores[point, 0] = -top
        for label in range(more.shape[1]):
            scores[point, label + 1] = more[point, label] - top


@compiled
def _compare(likely: Floats, over: Floats) -> None:
    """Write by how much each label but the first is likelier than it (N, L − 1).

    The likelihoods (N, L) need not sum to 1.
    """
    for point in range(len(likely)):
        total = np.float32(0)
        for label in range(likely.shape[1]):
            total += likely[point, label]
        for label in range(over.shape[1]):
            over[point, label] = (likely[point, label + 1] - likely[point, 0]) / total
