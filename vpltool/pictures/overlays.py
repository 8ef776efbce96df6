"""Pictures for people: maps and labels over photos or as layers, legends, sheets of panels."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from vpltool.core.classes import IGNORE
from vpltool.lazy import Image, ImageDraw, ImageFont, np, npt
from vpltool.pictures.colours import class_palette

Font: TypeAlias = "ImageFont.FreeTypeFont | ImageFont.ImageFont"
Rgb: TypeAlias = "npt.NDArray[np.uint8]"
Labels: TypeAlias = "npt.NDArray[np.uint8]"
Maps: TypeAlias = "npt.NDArray[np.float32]"

MAP_OPACITY, LABEL_OPACITY, LINE_OPACITY = 0.85, 0.55, 0.7
"""How much a map of 1, a region and a contour cover the photo."""

_INSIDE, _OUTSIDE = 254, 253
"""Labels that stand for the two lines of a contour, in a layer."""

_NOWHERE = 256
"""Stands for the label of what lies outside of an image."""

_NOISY = 0.12
"""Share of pixels on contours from which a layer's labels are smoothed first."""

PANEL_WIDTH = 260
"""Width of a panel of a sheet, in pixels."""

_TALLEST = 1.5
"""Largest height of a panel, as a multiple of its width."""

_GAP, _TITLE, _REASON, _LEGEND = 8, 14, 13, 15
"""Space around panels, and the sizes of text, in pixels."""

_TITLE_LINES, _REASON_LINES, _NAME_LINES = 2, 8, 3

_LONGEST = 1024
"""Longest side of an overlay, in pixels."""

_NARROWEST = 200
"""Smallest width of a legend: a narrower one would break most names."""

_DARKEST_PAPER = 140
"""Black becomes this grey under maps, so that dark colours are visible."""

_INK, _GREY = (30, 33, 38), (222, 224, 227)

_HEAT = ((13, 8, 135), (126, 3, 168), (204, 71, 120), (248, 149, 64), (240, 249, 33))
"""Five stops from dark blue through magenta to yellow, with evenly rising brightness."""

_HEAT_OPACITY = 0.6
"""How much a map of 1 covers the photo, where one map is drawn by its value."""


class SheetPanel(NamedTuple):
    """One panel of a sheet."""

    title: str  # the text above it
    picture: Rgb | str  # pixels (H, W, 3), preferably from `fit_panel`; or why there are none
    classes: Collection[int] = ()  # classes whose colours it shows, for the legend, without 0


def fit_panel(photo: Rgb, width: int = PANEL_WIDTH) -> Rgb:
    """Scale a photo (H, W, 3) to the size that it has in a sheet.

    It gets a panel's width; a tall photo gets 1.5 times that as its height, and is narrower. Draw
    labels and maps over the small result: their thin contours stay sharp.
    """
    return _scaled(photo, min(width / photo.shape[1], _TALLEST * width / photo.shape[0]))


def heat_over(photo: Rgb, cam: Maps) -> Rgb:
    """Blend a map in [0, 1] of any size over a photo (H, W, 3); at 0 the photo is unchanged."""
    value = _map_at(cam, photo)
    stops = np.linspace(0, 1, len(_HEAT))
    colour = np.stack([np.interp(value, stops, channel) for channel in zip(*_HEAT, strict=True)],
                      axis=-1)
    weight = _HEAT_OPACITY * (0.35 + 0.65 * value[..., None])
    return (photo * (1 - weight) + colour * weight).astype(np.uint8)


def cams_over(photo: Rgb, cams: Maps, classes: Sequence[int]) -> Rgb:
    """Blend maps (classes, h, w) in [0, 1] over a photo (H, W, 3), each in its class's colour.

    The photo becomes pale grey, like paper under ink: every colour in the picture is that of a
    class, and dark colours are visible. The strongest map gives a pixel's colour, its value the
    opacity. Near a tie the colours mix. The map of 0, the background, is left out.
    """
    grey = photo.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    paper = _DARKEST_PAPER + grey * (255 - _DARKEST_PAPER) / 255
    if not any(classes):
        return paper.astype(np.uint8)
    colour, value = blend_maps(np.stack([_map_at(cam, photo) for cam in cams]), classes)
    weight = MAP_OPACITY * value[..., None]
    return (paper * (1 - weight) + colour * weight).astype(np.uint8)


def labels_over(photo: Rgb, labels: Labels) -> Rgb:
    """Blend labels (h, w) over a photo (H, W, 3), with a contour around each region.

    The contour is white inside the region and black outside, one pixel each: visible on any
    photo and between any two colours. Specks have none, since a noisy mask would be all contour.
    The background keeps the photo; 255 is whitened and has no contour.
    """
    if labels.shape != photo.shape[:2]:
        labels = np.asarray(Image.fromarray(labels).resize(photo.shape[1::-1],
                                                           Image.Resampling.NEAREST))
    labels = _as_bytes(labels)
    weight = np.where(labels == 0, 0.0, LABEL_OPACITY)[..., None]
    result = photo * (1 - weight) + _colour_table()[labels] * weight
    border, inside = _contours(_smooth(_without_ignored(labels)))
    line = np.where(inside[border], 255, 0)[:, None]
    result[border] = result[border] * (1 - LINE_OPACITY) + line * LINE_OPACITY
    return result.astype(np.uint8)


def blend_maps(cams: Maps, classes: Sequence[int]) -> tuple[Maps, Maps]:
    """Return colour (H, W, 3) and strongest value (H, W) of maps (classes, H, W), 0's left out."""
    kept = [row for row, index in enumerate(classes) if index]
    values = cams[kept].clip(0, 1)
    share = values ** 4 + 1e-9
    colours = _colour_table()[[shown_as(classes[row]) for row in kept]]
    colour = np.einsum("khw,kc->hwc", share / share.sum(axis=0), colours)
    return colour, values.max(axis=0)


def cam_layer(cams: Maps, classes: Sequence[int]) -> Image.Image:
    """Draw the layer that `cams_over` puts over a photo, as RGBA of the maps' own size."""
    if not any(classes):
        return Image.new("RGBA", cams.shape[:0:-1] or (1, 1))
    colour, value = blend_maps(cams, classes)
    alpha = value * MAP_OPACITY * 255
    return Image.fromarray(np.dstack([colour, alpha]).round().astype(np.uint8))


def shown_as(label: int) -> int:
    """Return the label whose colour a label has: above 255 the colours of 1 to 254 repeat."""
    return label if label <= IGNORE else 1 + (label - 1) % (IGNORE - 1)


def _as_bytes(labels: Labels) -> Labels:
    """Map labels (H, W) to those whose colours they have."""
    if labels.dtype == np.uint8:
        return labels
    table = np.array([shown_as(label) for label in range(1 + int(labels.max(initial=0)))], np.uint8)
    return table[labels]


def label_layer(labels: Labels) -> Image.Image:
    """Draw the layer that `labels_over` puts over a photo, with a palette of colours and alphas.

    Labels so noisy that they would be all contour are smoothed. Two labels stand for the contours;
    if all labels are taken, there are none.
    """
    labels = _as_bytes(labels)
    colours = _colour_table().astype(np.uint8)
    alphas = np.full(256, round(LABEL_OPACITY * 255), np.uint8)
    alphas[0] = 0
    drawn, regions = labels, _without_ignored(labels)
    if labels.size and regions.max() < min(_OUTSIDE, _INSIDE):
        border, inside = _contours(regions)
        if border.mean() > _NOISY:
            border, inside = _contours(_smooth(regions))
        drawn = np.where(border, np.where(inside, np.uint8(_INSIDE), np.uint8(_OUTSIDE)), labels)
        colours[_INSIDE], colours[_OUTSIDE] = 255, 0
        alphas[[_INSIDE, _OUTSIDE]] = round(255 * LINE_OPACITY)
    layer = Image.fromarray(drawn)
    layer.putpalette(colours.ravel().tolist())
    layer.info["transparency"] = alphas.tobytes()
    return layer


def _without_ignored(labels: Labels) -> Labels:
    """Return labels (H, W) without ignored pixels, which have no contours."""
    return np.where(labels == IGNORE, np.uint8(0), labels)


def _smooth(regions: Labels) -> Labels:
    """Give each pixel the commonest label of the 3×3 around it, if three have it; else its own.

    As Pillow's ModeFilter, which also counts where all are the same: it takes ten times as long.
    """
    result, border = regions.copy(), _contours(regions)[0]
    padded = np.pad(regions.astype(np.int16), 1, constant_values=_NOWHERE)
    near = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))[border].reshape(-1, 9)
    counts = np.stack([(near == near[:, [place]]).sum(axis=1) for place in range(9)], axis=1)
    counts[near == _NOWHERE] = 0
    # Of labels that are equally common, the smallest.
    best = np.arange(len(near)), (256 * counts - near).argmax(axis=1)
    result[border] = np.where(counts[best] > 2, near[best], regions[border])
    return result


def _contours(regions: Labels) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Mark the pixels that touch another region, and of all pixels the inner ones (both H, W)."""
    padded = np.pad(regions, 1, mode="edge")
    extremes = []
    for step in (np.maximum, np.minimum):
        rows = step(step(padded[:-2], padded[1:-1]), padded[2:])
        extremes.append(step(step(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:]))
    return extremes[0] != extremes[1], regions == extremes[0]


def _colour_table() -> Maps:
    """Return the colours of classes (256, 3); ignored pixels are white."""
    table = np.asarray(class_palette(), np.float32).reshape(-1, 3)
    table[IGNORE] = 255
    return table


def classes_in(labels: Labels) -> list[int]:
    """List the labels that occur in an image of labels (H, W), sorted, without 0."""
    return [label for label in np.unique(labels).tolist() if label]


def legend(classes: Collection[int], names: Mapping[int, str], width: int) -> Image.Image:
    """Draw the colours and the names of classes, in lines of a width in pixels.

    255 is named `ignored`; 0 is named without a colour, since the background has none. A class
    without a name, or with one that no font can draw, gets its number.
    """
    table = _colour_table().astype(int)
    known = {IGNORE: "ignored", **names}
    line, swatch = _LEGEND + 5, _LEGEND - 1
    indent = swatch + 6
    page = Image.new("RGB", (width, line * (_NAME_LINES + 1) * (len(classes) + 1)), "white")
    draw = ImageDraw.Draw(page)
    left, top, height = _GAP, _GAP // 2, 0
    for index in sorted(classes):
        number = f"class {index}"
        name, font = _drawable(known.get(index, number), _LEGEND, number)
        lines = _wrap(name, width - indent - 2 * _GAP, font, _NAME_LINES)
        wide = indent + max(font.getlength(text) for text in lines)
        if left > _GAP and left + wide > width - _GAP:
            left, top, height = _GAP, top + height, 0
        if index:
            draw.rectangle([left, top + 3, left + swatch, top + 3 + swatch],
                           fill=tuple(table[shown_as(index)]), outline=_INK)
        draw.multiline_text((left + indent, top), "\n".join(lines), _INK, font, spacing=4)
        left, height = left + round(wide) + 2 * _GAP, max(height, line * len(lines))
    return page.crop((0, 0, width, top + height + _GAP // 2))


def overlay(photo: Rgb, labels: Labels, names: Mapping[int, str]) -> Image.Image:
    """Draw a photo (H, W, 3) with its labels (h, w), and below it a legend of its classes.

    A photo whose longer side has more than 1024 pixels is scaled down to that.
    """
    photo = _scaled(photo, min(1.0, _LONGEST / max(photo.shape[:2])))
    picture = Image.fromarray(labels_over(photo, labels))
    width = max(picture.width, _NARROWEST)
    strip = legend(classes_in(labels) or [0], {**names, 0: "background only"}, width)
    page = Image.new("RGB", (width, picture.height + strip.height), "white")
    page.paste(picture, ((width - picture.width) // 2, 0))
    page.paste(strip, (0, picture.height))
    return page


def sheet(rows: Iterable[Sequence[SheetPanel]], names: Mapping[int, str] | None = None,
          width: int = PANEL_WIDTH) -> Image.Image:
    """Draw rows of titled panels, and below them a legend of the classes that occur.

    All panels have the same width in pixels; each row has its own height. A panel without a picture
    is grey and shows the reason. Rows are consumed one by one, and only their small panels are
    kept. If the sheet would be taller than wide, the second half of the rows is beside the first.
    Without names of class indices there is no legend.
    """
    strips: list[Image.Image] = []
    shown: set[int] = set()
    for row in rows:
        strips.append(_row(row, width))
        shown.update(*(panel.classes for panel in row))
    parts = [_in_columns(strips)]
    shown.discard(0)
    if names is not None and shown:
        parts.append(legend(shown, names, parts[0].width))
    return _stacked([*parts, Image.new("RGB", (1, _GAP), "white")])


def _in_columns(strips: Sequence[Image.Image]) -> Image.Image:
    """Stack strips; in two columns of like height where one would be taller than wide."""
    page = _stacked(strips)
    if len(strips) < 2 or page.height <= page.width:
        return page
    tops = [sum(strip.height for strip in strips[:count]) for count in range(1, len(strips))]
    half = 1 + min(range(len(tops)), key=lambda index: (abs(2 * tops[index] - page.height), -index))
    first, second = _stacked(strips[:half]), _stacked(strips[half:])
    left = first.width + 2 * _GAP
    beside = Image.new("RGB", (left + second.width, max(first.height, second.height)), "white")
    beside.paste(first, (0, 0))
    beside.paste(second, (left, 0))
    return beside


def _stacked(strips: Sequence[Image.Image]) -> Image.Image:
    page = Image.new("RGB", (max((strip.width for strip in strips), default=1),
                             sum(strip.height for strip in strips)), "white")
    top = 0
    for strip in strips:
        page.paste(strip, (0, top))
        top += strip.height
    return page


def _row(panels: Sequence[SheetPanel], width: int) -> Image.Image:
    """Draw panels side by side, each below its title."""
    drawable = [_drawable(panel.title, _TITLE) for panel in panels]
    titles = [_wrap(title, width, font, _TITLE_LINES) for title, font in drawable]
    pictures = [panel.picture if isinstance(panel.picture, str)
                else Image.fromarray(fit_panel(panel.picture, width)) for panel in panels]
    size = next((picture.size for picture in pictures if not isinstance(picture, str)),
                (width, width * 3 // 4))
    images = [_failed(picture, size) if isinstance(picture, str) else picture
              for picture in pictures]
    head = (_TITLE + 4) * max((len(lines) for lines in titles), default=0) + _GAP
    page = Image.new("RGB", (len(panels) * (width + _GAP) + _GAP,
                             head + max((image.height for image in images), default=0) + _GAP),
                     "white")
    draw = ImageDraw.Draw(page)
    for column, (lines, image) in enumerate(zip(titles, images, strict=True)):
        left, font = _GAP + column * (width + _GAP), drawable[column][1]
        # The last line of a title is next to its picture.
        draw.multiline_text((left, head - 4), "\n".join(lines), _INK, font, anchor="ld", spacing=4)
        page.paste(image, (left + (width - image.width) // 2, head))
    return page


def _failed(reason: str, size: tuple[int, int]) -> Image.Image:
    """Draw a grey panel of (width, height) with the reason why there is no picture."""
    image = Image.new("RGB", size, _GREY)
    (text, font), line = _drawable(reason, _REASON), _REASON + 5
    most = max(1, min(_REASON_LINES, (size[1] - 2 * _GAP) // line))
    lines = _wrap(text, size[0] - 2 * _GAP, font, most)
    ImageDraw.Draw(image).multiline_text((_GAP, _GAP), "\n".join(lines), _INK, font, spacing=4)
    return image


def _wrap(text: str, width: int, font: Font, most: int) -> list[str]:
    """Break a text into lines of at most `width` pixels.

    Lines end at spaces if there are any. A text that needs more than `most` lines ends in "…".
    """
    left = text
    lines: list[str] = []
    while left and len(lines) < most:
        last = len(lines) == most - 1
        # No letter is narrower than a pixel, so a long text need not be measured as a whole.
        end = max(1, min(len(left), width))
        while end > 1 and font.getlength(left[:end]) > width:
            end -= 1
        if end < len(left) and last:
            while end > 1 and font.getlength(left[:end].rstrip() + "…") > width:
                end -= 1
            return [*lines, left[:end].rstrip() + "…"]
        if end < len(left) and " " in left[:end + 1]:
            end = left.rindex(" ", 0, end + 1)
        lines.append(left[:end])
        left = left[end:].lstrip()
    return lines or [""]


def _scaled(photo: Rgb, factor: float) -> Rgb:
    """Scale a photo (H, W, 3) by a factor; the photo itself is returned if its size stays."""
    height, width = (max(1, round(side * factor)) for side in photo.shape[:2])
    if (height, width) == photo.shape[:2]:
        return photo
    # The reducing gap is several times as fast for large photos, without visible loss.
    return np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BILINEAR,
                                                    reducing_gap=2.0))


def _map_at(cam: Maps, photo: Rgb) -> Maps:
    """Scale a map (h, w) to a photo's height and width, within [0, 1]."""
    image = Image.fromarray(cam.astype(np.float32)).resize(photo.shape[1::-1],
                                                           Image.Resampling.BILINEAR)
    return np.asarray(image).clip(0, 1)


def _drawable(text: str, size: int, otherwise: str = "") -> tuple[str, Font]:
    """Return a text, in one line, as a font of a size in pixels can draw it; and the font.

    Where no font has its accents, they are left out. A text with other letters that no font has
    is replaced by `otherwise`, or these letters by question marks, not by empty boxes.
    """
    text = " ".join(text.split())
    parts = unicodedata.normalize("NFKD", text.replace("ß", "ss"))
    plain = "".join(sign for sign in parts if not unicodedata.combining(sign))
    fonts = _fonts(size)
    for spelled in (unicodedata.normalize("NFC", text), plain):
        for font in fonts:
            if all(_has(font, sign) for sign in spelled):
                return spelled, font
    if otherwise:
        return otherwise, fonts[0]
    return "".join(sign if _has(fonts[-1], sign) else "?" for sign in plain), fonts[-1]


@functools.cache
def _has(font: Font, sign: str) -> bool:
    """Return whether a font has a letter, and draws no box in its place."""
    if not isinstance(font, ImageFont.FreeTypeFont):
        return sign.isascii()
    return bytes(font.getmask(sign)) != bytes(font.getmask(_NO_LETTER))


_NO_LETTER = "\U0010ffff"


@functools.cache
def _fonts(size: int) -> tuple[Font, ...]:
    """Return Pillow's built-in font in a size in pixels, which has no accents; and DejaVu Sans.

    The latter is the system's or matplotlib's, if there is one.
    """
    found: list[Font] = [ImageFont.load_default(size)]
    names, plots = ["DejaVuSans.ttf"], importlib.util.find_spec("matplotlib")
    if plots and plots.origin:
        names.append(str(Path(plots.origin).parent / "mpl-data/fonts/ttf" / names[0]))
    for name in names:
        with contextlib.suppress(OSError, ImportError):
            return (*found, ImageFont.truetype(name, size))
    return tuple(found)
