"""A frozen encoder over windows of a photo: memory that does not grow with the photo's patches.

A transformer's attention costs memory and time that grow with the square of the patches. A window
is seen as a photo of its own, and each patch is taken from the window in whose middle it is nearest
to lie, so what comes out is a patch as the encoder gives it, not a mean of several.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from vpltool.core.calibration import Calibration
from vpltool.core.tower import Tower


@dataclass(frozen=True)
class Span:
    """A window along one axis, in patches: its first patch, and the part of the axis that it gives.

    Args:
        start: its first patch.
        first: the first patch that is taken from it.
        end: after the last one.
    """

    start: int
    first: int
    end: int


def spans(length: int, window: int, overlap: float) -> list[Span]:
    """Cover an axis with as few windows as overlap so much at least, evenly spread.

    Args:
        length: of the axis, in patches.
        window: side of a window, in patches.
        overlap: share of a window that it has in common with the next one.
    """
    if length <= window:
        return [Span(0, 0, length)]
    step = max(1, window - round(window * overlap))
    steps = -(-(length - window) // step)
    starts = [round(number * (length - window) / steps) for number in range(steps + 1)]
    # Two neighbours meet in the middle of what they share.
    borders = [0, *((one + window + other) // 2
                    for one, other in zip(starts, starts[1:], strict=False)), length]
    return [Span(*entry) for entry in zip(starts, borders, borders[1:], strict=False)]


def encode_windows(
    vision: Tower, pixels: Tensor, window: int, overlap: float, *, at_once: int,
    patches: str, layers: Sequence[int], calibration: Calibration, store: torch.dtype,
) -> dict[str, Tensor]:
    """Encode one photo window by window.

    Args:
        vision: the tower.
        pixels: a normalised photo (1, 3, H, W), H and W multiples of the patch size.
        window: side of a window in patches; a side that is shorter is seen whole.
        overlap: see `spans`.
        at_once: windows that are encoded together.
        patches: see `Tower.forward`.
        layers: see there.
        calibration: see there.
        store: number format of the result.

    Returns:
        `patches` (1, h·w, dim) unless they are `none`, and `layers` (1, L, h·w, width) if there are
        any; on the CPU.
    """
    unit = vision.patch
    grid = (pixels.shape[2] // unit, pixels.shape[3] // unit)
    sides = [min(window, length) for length in grid]
    found: dict[str, Tensor] = {}
    for part in _parts(list(product(*(spans(length, window, overlap) for length in grid))),
                       at_once):
        crops = torch.cat([
            pixels[:, :, down.start * unit : (down.start + sides[0]) * unit,
                   across.start * unit : (across.start + sides[1]) * unit]
            for down, across in part])
        seen = vision(crops, patches=patches, attention=False, layers=layers,
                      calibration=calibration)
        for name in ("patches", "layers"):
            values = getattr(seen, name)
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


def _parts(windows: Sequence[tuple[Span, ...]], most: int) -> Iterator[Sequence[tuple[Span, ...]]]:
    for first in range(0, len(windows), most):
        yield windows[first : first + most]
