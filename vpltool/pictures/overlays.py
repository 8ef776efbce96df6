"""Pictures for people: heat maps over photos, label overlays, sheets of panels with titles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Rgb = npt.NDArray[np.uint8]

_HEAT = np.array([[13, 8, 135], [126, 3, 168], [204, 71, 120], [248, 149, 64], [240, 249, 33]])
"""Five stops from dark blue over magenta to yellow; brightness rises evenly, in grey too."""


def heat_over(photo: Rgb, cam: npt.NDArray[np.float32], opacity: float = 0.6) -> Rgb:
    """Lay a map in [0, 1] of any size over a photo (H, W, 3); where it is 0 the photo shows."""
    height, width = photo.shape[:2]
    scaled = Image.fromarray(cam.astype(np.float32)).resize(
        (width, height), Image.Resampling.BILINEAR)
    value = np.asarray(scaled).clip(0, 1)
    stops = np.linspace(0, 1, len(_HEAT))
    colour = np.stack([np.interp(value, stops, _HEAT[:, channel]) for channel in range(3)], axis=-1)
    weight = opacity * (0.35 + 0.65 * value[..., None])
    return (photo * (1 - weight) + colour * weight).astype(np.uint8)


def labels_over(photo: Rgb, labels: npt.NDArray[np.uint8], palette: Sequence[int],
                opacity: float = 0.6) -> Rgb:
    """Lay labels (H, W) over a photo in a palette's colours; background stays, 255 is white."""
    table = np.asarray(palette, dtype=np.float32).reshape(-1, 3).copy()
    table[255] = 255
    if labels.shape != photo.shape[:2]:
        labels = np.asarray(Image.fromarray(labels).resize(photo.shape[1::-1],
                                                           Image.Resampling.NEAREST))
    weight = np.where(labels == 0, 0.0, opacity)[..., None]
    return (photo * (1 - weight) + table[labels] * weight).astype(np.uint8)


def sheet(rows: Iterable[Sequence[tuple[str, Rgb]]], width: int = 220) -> Image.Image:
    """Put titled panels in rows; every panel gets the same width, every row its own height.

    Rows are asked for one by one, and only the small panels are kept.
    """
    font = ImageFont.load_default(11)
    gap, line = 6, 16
    scaled = [[(title, Image.fromarray(panel).resize(
        (width, max(1, round(panel.shape[0] * width / panel.shape[1]))),
        Image.Resampling.BILINEAR)) for title, panel in row] for row in rows]
    heights = [max(panel.height for _, panel in row) + line + gap for row in scaled]
    columns = max(len(row) for row in scaled)
    page = Image.new("RGB", (columns * (width + gap) + gap, sum(heights) + gap), "white")
    draw = ImageDraw.Draw(page)
    top = gap
    for row, height in zip(scaled, heights, strict=True):
        for column, (title, panel) in enumerate(row):
            left = gap + column * (width + gap)
            draw.text((left, top), title[: width // 6], fill="black", font=font)
            page.paste(panel, (left, top + line))
        top += height
    return page
