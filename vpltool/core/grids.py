"""Maps over a grid of patches: min-max scaling, stored layers, resampling to another encoder's."""

from __future__ import annotations

from collections.abc import Sequence

from vpltool.lazy import F, Tensor

LABELS_PER_PATCH = 4
"""The mask loss is taken on 4×4 labels a patch: finer than features, much cheaper than pixels."""

MOST_STRETCH = 1.25
"""Grids whose aspect ratios differ by more than this factor are not of the same photo."""


def min_max(maps: Tensor) -> Tensor:
    """Scale each map (..., h, w) to [0, 1] as in CLIP-ES: (x − min) / (1e-7 + max(x − min))."""
    shifted = maps - maps.amin(dim=(-2, -1), keepdim=True)
    return shifted / (shifted.amax(dim=(-2, -1), keepdim=True) + 1e-7)


def is_same_view(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Tell whether two grids (h, w) have nearly the same aspect ratio."""
    ratio = (first[0] * second[1]) / (first[1] * second[0])
    return 1 / MOST_STRETCH <= ratio <= MOST_STRETCH


def resample_patches(patches: Tensor, grid: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Resample patch vectors (n, dim) of a grid (h, w) bilinearly to another: (n', dim), float32.

    The same grid gives the same values. Vectors are not normalised again.
    """
    if grid == target:
        return patches.float()
    field = patches.float().T.reshape(1, -1, *grid)
    return F.interpolate(field, target, mode="bilinear", align_corners=False)[0].flatten(1).T


def resample_maps(maps: Tensor, target: tuple[int, int]) -> Tensor:
    """Resample maps (K, h, w) bilinearly to a grid; the same grid gives the same values."""
    if tuple(maps.shape[1:]) == target or not len(maps):
        return maps if len(maps) else maps.new_zeros(0, *target)
    return F.interpolate(maps.float()[None], target, mode="bilinear", align_corners=False)[0]


def resample_attention(attention: Tensor, grid: tuple[int, int], target: tuple[int, int]
                       ) -> Tensor:
    """Resample attention (n, n) of a grid (h, w) to another, rows and columns: (n', n'), float32.

    A patch of the new grid attends to another with the mean weight of the old patches there, times
    n / n', so that rows keep their sums up to the border's interpolation.
    """
    if grid == target:
        return attention.float()
    columns = resample_patches(attention.T, grid, target).T
    return resample_patches(columns, grid, target) * (len(attention) / (target[0] * target[1]))


def layers_of(stored: Tensor, index: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """Select the wanted layers from those stored (…, L, n, width).

    Raises:
        KeyError: one is not stored.
    """
    if list(index) == list(wanted):
        return stored
    positions = {layer: position for position, layer in enumerate(index)}
    return stored[..., [positions[layer] for layer in wanted], :, :]
