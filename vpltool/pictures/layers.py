"""What lies over a photo: maps and labels in the colours of their classes, for sheets and pages."""

from __future__ import annotations

from collections.abc import Sequence

from vpltool.lazy import Image, ImageFilter, np, npt

IGNORED = 255
"""The label of pixels that belong to no class."""

MAP_OPACITY, LABEL_OPACITY, LINE_OPACITY = 0.85, 0.55, 0.7
"""How much a map of 1, a region and a contour cover the photo."""

_INSIDE, _OUTSIDE = 254, 253
"""Labels that stand for the two lines of a contour, in a layer."""

_NOISY = 0.12
"""Share of pixels on contours from which a layer's labels are smoothed first."""


def blend_maps(cams: npt.NDArray[np.float32], classes: Sequence[int], palette: Sequence[int]
             ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Colour (H, W, 3) and strongest value (H, W) of maps (classes, H, W), without that of 0."""
    kept = [row for row, index in enumerate(classes) if index]
    values = cams[kept].clip(0, 1)
    share = values ** 4 + 1e-9
    colours = colour_table(palette)[[shown_as(classes[row]) for row in kept]]
    colour = np.einsum("khw,kc->hwc", share / share.sum(axis=0), colours)
    return colour, values.max(axis=0)


def cam_layer(cams: npt.NDArray[np.float32], classes: Sequence[int], palette: Sequence[int]
              ) -> Image.Image:
    """Draw what `cams_over` puts over a photo, as RGBA of the maps' own size."""
    if not any(classes):
        return Image.new("RGBA", cams.shape[:0:-1] or (1, 1))
    colour, value = blend_maps(cams, classes, palette)
    alpha = value * MAP_OPACITY * 255
    return Image.fromarray(np.dstack([colour, alpha]).round().astype(np.uint8))


def shown_as(label: int) -> int:
    """The label whose colour a label has: above 255 the colours of 1 to 254 come again."""
    return label if label <= IGNORED else 1 + (label - 1) % (IGNORED - 1)


def as_bytes(labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Labels (H, W) as those whose colours they have."""
    if labels.dtype == np.uint8:
        return labels
    table = np.array([shown_as(label) for label in range(1 + int(labels.max(initial=0)))], np.uint8)
    return table[labels]


def label_layer(labels: npt.NDArray[np.uint8], palette: Sequence[int]) -> Image.Image:
    """Draw what `labels_over` puts over a photo, as an image with a palette of colours and alphas.

    Noise is smoothed where it would be all contour. Two labels stand for the contours; where all
    are taken there are none.
    """
    labels = as_bytes(labels)
    colours = colour_table(palette).astype(np.uint8)
    alphas = np.full(256, round(LABEL_OPACITY * 255), np.uint8)
    alphas[0], colours[IGNORED] = 0, 255
    drawn, regions = labels, without_ignored(labels)
    if labels.size and regions.max() < min(_OUTSIDE, _INSIDE):
        border, inside = contours(regions)
        if border.mean() > _NOISY:
            border, inside = contours(np.asarray(
                Image.fromarray(regions).filter(ImageFilter.ModeFilter(3))))
        drawn = np.where(border, np.where(inside, np.uint8(_INSIDE), np.uint8(_OUTSIDE)), labels)
        colours[_INSIDE], colours[_OUTSIDE] = 255, 0
        alphas[[_INSIDE, _OUTSIDE]] = round(255 * LINE_OPACITY)
    layer = Image.fromarray(drawn)
    layer.putpalette(colours.ravel().tolist())
    layer.info["transparency"] = alphas.tobytes()
    return layer


def without_ignored(labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Labels (H, W) whose regions have contours: what is ignored has none."""
    return np.where(labels == IGNORED, np.uint8(0), labels)


def contours(regions: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.bool_],
                                                       npt.NDArray[np.bool_]]:
    """Which pixels touch another region, and which of all lie inside of theirs (both H, W)."""
    padded = np.pad(regions, 1, mode="edge")
    extremes = []
    for step in (np.maximum, np.minimum):
        rows = step(step(padded[:-2], padded[1:-1]), padded[2:])
        extremes.append(step(step(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:]))
    return extremes[0] != extremes[1], regions == extremes[0]


def colour_table(palette: Sequence[int]) -> npt.NDArray[np.float32]:
    """Convert a flat palette to a new array of colours (256, 3); missing ones are black."""
    table = np.zeros((256, 3), dtype=np.float32)
    given = np.asarray(palette, dtype=np.float32).reshape(-1, 3)
    table[:len(given)] = given
    return table
