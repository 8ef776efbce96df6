"""Colours of classes in pictures for people. Label images keep VOC's palette, which tools know."""

from __future__ import annotations

import functools
from typing import TypeAlias

from vpltool.lazy import np, npt

Values: TypeAlias = "npt.NDArray[np.float64]"

_FIRST = ((213, 94, 0), (0, 114, 178), (240, 228, 66), (204, 121, 167), (0, 158, 115),
          (230, 159, 0), (86, 180, 233))
"""Okabe and Ito's colours, which colour-blind people tell apart (Wong, Nature Methods 2011). Those
of sky and of grass do not come first."""

_LEVELS = 12
"""Values of each channel among which later colours are chosen."""

_LIGHTNESS, _CHROMA = (0.45, 0.9), 0.08
"""Range of OKLab's lightness, and its least chroma: visible over photos, and never grey."""

_SEEN_BY = (
    ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216),
     (-0.003882, -0.048116, 1.051998)),
    ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413),
     (-0.011820, 0.042940, 0.968881)))
"""Linear RGB as it is seen by most people, by protanopes and by deuteranopes (Machado et al.,
IEEE TVCG 2009)."""

_CONES = ((0.4122214708, 0.5363325363, 0.0514459929),
          (0.2119034982, 0.6806995451, 0.1073969566),
          (0.0883024619, 0.2817188376, 0.6299787005))
_OKLAB = ((0.2104542553, 0.7936177850, -0.0040720468),
          (1.9779984951, -2.4285922050, 0.4505937099),
          (0.0259040371, 0.7827717662, -0.8086757660))
"""Linear RGB to cone responses, and their cube roots to OKLab (Ottosson 2020)."""


@functools.cache
def class_palette() -> list[int]:
    """Return 256 colours of class indices, flat (r, g, b, r, g, b, …); 0 and 255 have none.

    A class has the same colour however many there are: after the first seven, each is the one
    farthest from all before it, for the eyes that distinguish them worst.
    """
    candidates = _candidates()
    views = _views(candidates)
    chosen = list(np.array(_FIRST))
    nearest = _distances(views, _views(np.array(_FIRST))).min(axis=1)
    while len(chosen) < 254:
        best = int(nearest.argmax())
        chosen.append(candidates[best])
        nearest = np.minimum(nearest, _distances(views, views[:, best:best + 1])[:, 0])
    return [0, 0, 0, *np.stack(chosen).astype(int).ravel().tolist(), 0, 0, 0]


def _candidates() -> Values:
    """Return the colours of a grid that are not dark, pale or grey (n, 3), in 0 to 255."""
    steps = np.linspace(0, 255, _LEVELS).round()
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lightness, *plane = np.moveaxis(_views(grid)[0], -1, 0)
    low, high = _LIGHTNESS
    return grid[(low <= lightness) & (lightness <= high) & (np.hypot(*plane) >= _CHROMA)]


def _views(colours: Values) -> Values:
    """Return OKLab of colours (n, 3) as each kind of eyes sees them (3, n, 3)."""
    part = colours / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    seen = np.einsum("vij,nj->vni", np.array(_SEEN_BY), linear).clip(0, 1)
    return np.cbrt(seen @ np.array(_CONES).T) @ np.array(_OKLAB).T


def _distances(some: Values, others: Values) -> Values:
    """Return distances of colours (n, m), each for the eyes that distinguish them worst."""
    return np.linalg.norm(some[:, :, None] - others[:, None], axis=-1).min(axis=0)
