"""Grids of patches: maps on them, resampling to another encoder's grid, and overlapping tiles.

A transformer's attention costs memory and time that grow with the square of the patches, so large
photos are encoded in tiles, each as a photo of its own; the last of a side ends at the photo's
edge. Where tiles overlap, features are those of the tile in which the patch lies most central, so
that they are the encoder's unchanged output (`encode_windows`); a segmenter's scores are averaged
with weights that fall towards the rim of each tile (`blend`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from vpltool.core import tower
from vpltool.lazy import F, Tensor, torch

LABELS_PER_PATCH = 4
"""The mask loss uses 4×4 labels a patch: finer than features, much cheaper than pixels."""

MOST_STRETCH = 1.25
"""Largest factor between the aspect ratios of two grids of the same photo."""


def min_max(maps: Tensor) -> Tensor:
    """Scale each map (..., h, w) to [0, 1] as in CLIP-ES: (x − min) / (1e-7 + max(x − min))."""
    shifted = maps - maps.amin(dim=(-2, -1), keepdim=True)
    return shifted / (shifted.amax(dim=(-2, -1), keepdim=True) + 1e-7)


def is_same_view(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Return whether two grids (h, w) have nearly the same aspect ratio."""
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

    A new patch attends to another with the mean weight of the old patches there, times n / n', so
    that rows keep their sums up to interpolation at the border.
    """
    if grid == target:
        return attention.float()
    columns = resample_patches(attention.T, grid, target).T
    return resample_patches(columns, grid, target) * (len(attention) / (target[0] * target[1]))


def layers_of(stored: Tensor, index: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """Select the wanted layers from those stored (…, L, n, width); a KeyError if one is missing."""
    if list(index) == list(wanted):
        return stored
    positions = {layer: position for position, layer in enumerate(index)}
    return stored[..., [positions[layer] for layer in wanted], :, :]


@dataclass(frozen=True)
class Span:
    """A window along one axis, in patches: its start, and the part `first:end` that it covers."""

    start: int
    first: int
    end: int


def spans(length: int, window: int, overlap: float) -> list[Span]:
    """Cover an axis with as few evenly spread windows as have at least this overlap.

    Length and window are in patches; `overlap` is the share of a window that the next one covers.
    """
    starts = window_starts(length, window, max(1, window - round(window * overlap)), even=True)
    # Two neighbours meet in the middle of their overlap.
    borders = [0, *((one + window + other) // 2
                    for one, other in zip(starts, starts[1:], strict=False)), length]
    return [Span(*entry) for entry in zip(starts, borders, borders[1:], strict=False)]


def window_starts(length: int, window: int, step: int, *, even: bool = False) -> list[int]:
    """Return the starts of windows along an axis, at least one; the last window ends with it.

    `step` is the largest distance between two starts. If `even`, all distances are alike, up to
    one; otherwise the last is shorter.
    """
    left = max(length - window, 0)
    count = -(-left // step)
    return [round(number * left / count) if even and count else min(number * step, left)
            for number in range(count + 1)]


def encode_windows(
    vision: tower.Tower, pixels: Tensor, window: int, overlap: float, *, at_once: int,
    patches: str, layers: Sequence[int], calibration: tower.Calibration | None, store: torch.dtype,
) -> dict[str, Tensor]:
    """Encode one normalised photo (1, 3, H, W) window by window, `at_once` of them together.

    H and W are multiples of the patch size; a side shorter than a window is encoded whole. See
    `spans` and `Tower.forward`; `store` is the number format of the result. Returns `patches` (1,
    h·w, dim) unless they are `none`, and `layers` (1, L, h·w, width) if there are any; on the CPU.
    """
    unit = vision.patch
    grid = (pixels.shape[2] // unit, pixels.shape[3] // unit)
    sides = [min(window, length) for length in grid]
    found: dict[str, Tensor] = {}
    windows = list(product(*(spans(length, window, overlap) for length in grid)))
    for number in range(0, len(windows), at_once):
        part = windows[number : number + at_once]
        crops = torch.cat([
            pixels[:, :, down.start * unit : (down.start + sides[0]) * unit,
                   across.start * unit : (across.start + sides[1]) * unit]
            for down, across in part])
        encoded = vision(crops, patches=patches, attention=False, layers=layers,
                         calibration=calibration)
        for name in ("patches", "layers"):
            values = getattr(encoded, name)
            if values is None:
                continue
            maps = values.unflatten(-2, sides)
            if name not in found:
                found[name] = torch.empty(1, *maps.shape[1:-3], *grid, maps.shape[-1], dtype=store)
            for (down, across), own in zip(part, maps, strict=True):
                found[name][0, ..., down.first : down.end, across.first : across.end, :] = own[
                    ..., down.first - down.start : down.end - down.start,
                    across.first - across.start : across.end - across.start, :]
    return {name: values.flatten(-3, -2) for name, values in found.items()}


def rim_weights(side: int) -> Tensor:
    """Return weights (side,) in (0, 1] that fall linearly from a tile's middle to its rim."""
    places = torch.arange(side, dtype=torch.float32) + 0.5
    return torch.minimum(places, side - places) * 2 / side


def blend(
    grid: tuple[int, int], tile: int, overlap: float,
    see: Callable[[Sequence[tuple[int, int]]], Iterable[Tensor]], *, fineness: int, first: int = 0,
) -> Iterator[tuple[int, Tensor]]:
    """Yield the weighted mean of a photo's overlapping tiles, one row of tiles after another.

    Only the rows are held that the next row of tiles still overlaps.

    Args:
        grid: (h, w) of the photo, in patches.
        tile: side of a tile in patches; a shorter side of the photo is seen whole.
        overlap: see `spans`.
        see: given the first row and column, in patches, of each tile of a row, yields the field of
            each (C, fineness·th, fineness·tw), with tiles of (th, tw) patches.
        fineness: values a patch, along each side.
        first: number of the first wanted row of tiles; earlier ones are seen only if they overlap
            it, so that values are those of a whole run.

    Yields:
        the first row of a part, in patches, and its values (C, fineness·rows, fineness·w) float32,
        without gaps between the parts.
    """
    downs, acrosses = (spans(length, tile, overlap) for length in grid)
    sides = (min(tile, grid[0]), min(tile, grid[1]))
    weights = torch.outer(*(rim_weights(fineness * side) for side in sides))
    begin = next(number for number, down in enumerate(downs)
                 if down.start + sides[0] > downs[first].start)
    total = count = None
    for number in range(begin, len(downs)):
        top = downs[number].start
        corners = [(top, across.start) for across in acrosses]
        for (_, left), field in zip(corners, see(corners), strict=True):
            if total is None or count is None:
                total = torch.zeros(len(field), fineness * sides[0], fineness * grid[1],
                                    dtype=torch.float32)
                count = torch.zeros_like(total[0])
            columns = slice(fineness * left, fineness * (left + sides[1]))
            total[..., columns] += field.float().cpu() * weights
            count[..., columns] += weights
        assert total is not None and count is not None
        bottom = downs[number + 1].start if number + 1 < len(downs) else grid[0]
        done = fineness * (bottom - top)
        if number >= first:
            yield top, total[:, :done] / count[:done]
        total, count = (torch.cat([part[..., done:, :], torch.zeros_like(part[..., :done, :])], -2)
                        for part in (total, count))
