"""Overlays and sheets: colours, contours, legends of what occurs, failed panels, and sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFilter, ImageFont

from vpltool.pictures import overlays
from vpltool.pictures.colours import class_palette
from vpltool.pictures.overlays import (
    PANEL_WIDTH,
    Rgb,
    SheetPanel,
    blend_maps,
    cam_layer,
    cams_over,
    classes_in,
    fit_panel,
    heat_over,
    label_layer,
    labels_over,
    legend,
    overlay,
    sheet,
    shown_as,
)

COLOURS = np.asarray(class_palette(), dtype=float).reshape(-1, 3)
VOC = {index: f"name{index}" for index in range(1, 21)}
LONG = {1: "northern white rhinoceros, adult male, seen from the side in the last light of day",
        2: "northern white rhinoceros, adult male, seen from the side in the first light of day"}


def noise(height: int, width: int) -> Rgb:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def boxes(height: int = 120, width: int = 150) -> npt.NDArray[np.uint8]:
    """Labels 1 to 20, each in a box of its own on background."""
    labels = np.zeros((height, width), np.uint8)
    for index in range(20):
        row, column = divmod(index, 5)
        labels[row * 30 + 6:row * 30 + 24, column * 30 + 6:column * 30 + 24] = index + 1
    return labels


def pixels(image: Image.Image) -> npt.NDArray[np.int64]:
    return np.asarray(image).astype(np.int64)


def swatches(image: Image.Image) -> set[int]:
    """Classes with at least 100 pixels in exactly the colour of the palette."""
    found = {colour: count for count, colour in image.getcolors(1 << 24) or []}
    return {index for index, colour in enumerate(COLOURS) if index
            and found.get(tuple(int(part) for part in colour), 0) >= 100}


# Labels

def test_labels_keep_the_photo_on_the_background_and_tint_the_rest() -> None:
    photo = noise(120, 150)
    labels = boxes()
    labels[0:3] = 255
    result = labels_over(photo, labels).astype(float)
    for index in range(1, 21):
        row, column = divmod(index - 1, 5)
        inside = (slice(row * 30 + 8, row * 30 + 22), slice(column * 30 + 8, column * 30 + 22))
        wanted = 0.45 * photo[inside] + 0.55 * COLOURS[index]
        np.testing.assert_allclose(result[inside], wanted, atol=1)
    np.testing.assert_allclose(result[0:3], 0.45 * photo[0:3] + 0.55 * 255, atol=1)
    np.testing.assert_array_equal(result[3:5], photo[3:5], "255 has no contour")


def test_a_contour_is_white_inside_and_black_outside_on_any_photo() -> None:
    labels = np.zeros((40, 40), np.uint8)
    labels[10:30, 10:30] = 7
    labels[10:30, 20:30] = 15
    for grey in (0, 128, 255):
        photo = np.full((40, 40, 3), grey, np.uint8)
        plain = labels_over(photo, np.full_like(labels, 7))[20, 15].astype(int)
        line = labels_over(photo, labels)[20].astype(int)
        white, black = line[10], line[9]
        assert white.mean() > plain.mean() + 10
        assert white.min() - black.max() > 140
        assert line[20].min() - line[19].max() > 50, "also between two classes"
        np.testing.assert_array_equal(line[12:18], np.repeat(plain[None], 6, axis=0))
        np.testing.assert_array_equal(line[:9], grey)


def test_specks_are_coloured_without_a_contour() -> None:
    labels = np.zeros((40, 40), np.uint8)
    labels[::4, ::4] = 2
    result = labels_over(np.full((40, 40, 3), 200, np.uint8), labels)
    colours = {tuple(colour) for colour in result.reshape(-1, 3).tolist()}
    assert colours == {(200, 200, 200), (89, 152, 187)}


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (2, 2), (3, 4), (60, 70)])
@pytest.mark.parametrize(("values", "side"), [(2, 1), (4, 1), (5, 2), (256, 1), (6, 9)])
def test_labels_are_smoothed_as_by_pillow(shape: tuple[int, int], values: int, side: int) -> None:
    """Noise and regions, ties, and the border of the image."""
    drawn = np.random.default_rng(values).integers(0, values, shape, np.uint8)
    labels = np.kron(drawn, np.ones((side, side), np.uint8))
    wanted = Image.fromarray(labels).filter(ImageFilter.ModeFilter(3))
    np.testing.assert_array_equal(overlays._smooth(labels), np.asarray(wanted))


def test_labels_of_another_size_are_scaled() -> None:
    photo = noise(60, 90)
    np.testing.assert_array_equal(labels_over(photo, np.full((6, 9), 3, np.uint8)),
                                  labels_over(photo, np.full((60, 90), 3, np.uint8)))


def test_classes_in_labels() -> None:
    labels = np.array([[0, 3, 3], [255, 17, 0]], np.uint8)
    assert classes_in(labels) == [3, 17, 255]
    assert classes_in(np.zeros((4, 4), np.uint8)) == []


# CAMs

@pytest.mark.parametrize("grey", [0, 128, 255])
def test_the_colour_of_every_tag_shows_where_its_cam_is_strongest(grey: int) -> None:
    classes = list(range(1, 21))
    cams = np.stack([np.where(boxes() == index, 1.0, 0.1) for index in classes])
    cams = cams.astype(np.float32)
    photo = np.full((120, 150, 3), grey, np.uint8)
    result = cams_over(photo, cams, classes).astype(float)
    paper = cams_over(photo, cams * 0, classes).astype(float)
    for index, cam in zip(classes, cams, strict=True):
        wanted = 0.15 * paper + 0.85 * COLOURS[index]
        np.testing.assert_allclose(result[cam == 1], wanted[cam == 1], atol=2)
        assert np.abs(result - paper)[cam == 1].max(axis=-1).min() > 7, "also VOC's grey shows"


def test_a_map_is_as_opaque_as_it_is_strong() -> None:
    photo = np.full((8, 8, 3), 255, np.uint8)
    levels = [cams_over(photo, np.full((1, 2, 2), value, np.float32), [4])[4, 4, 0]
              for value in (0.0, 0.25, 0.5, 1.0)]
    assert levels == sorted(levels, reverse=True)
    assert len(set(levels)) == 4
    assert levels[0] == 255


def test_the_background_s_map_and_no_map_leave_the_photo_grey() -> None:
    photo = noise(20, 30)
    none = cams_over(photo, np.zeros((0, 5, 5), np.float32), [])
    assert (none == none[..., :1]).all()
    assert none.min() > 128
    maps = np.ones((2, 5, 5), np.float32)
    np.testing.assert_array_equal(cams_over(photo, maps[:1], [0]), none)
    np.testing.assert_array_equal(cams_over(photo, maps, [0, 3]),
                                  cams_over(photo, maps[:1], [3]))


def test_heat_is_brightest_where_the_map_is_one() -> None:
    cam = np.linspace(0, 1, 8, dtype=np.float32)[None].repeat(8, axis=0)
    result = heat_over(np.full((8, 8, 3), 90, np.uint8), cam)
    assert result[4].sum(axis=1).argmax() == 7


# Legends

def test_a_legend_names_exactly_the_classes_that_occur() -> None:
    names = {1: "cat", 2: "cow", 3: "dog"}
    drawn = legend([3, 1], names, 300)
    assert swatches(drawn) == {1, 3}
    assert drawn.tobytes() == legend([1, 3], {**names, 2: "other"}, 300).tobytes()
    assert drawn.tobytes() != legend([1, 3], {**names, 3: "other"}, 300).tobytes()


def test_a_sheet_names_the_classes_of_all_its_panels() -> None:
    photo, mask = fit_panel(noise(60, 90)), np.zeros((60, 90), np.uint8)
    mask[10:50, 10:40] = 15
    cam = cams_over(photo, np.ones((1, 3, 3), np.float32), [6])
    rows = [[SheetPanel("photo", photo), SheetPanel("cams", cam, [6])],
            [SheetPanel("photo", photo),
             SheetPanel("mask", labels_over(photo, mask), classes_in(mask))]]
    page, plain = sheet(rows, VOC), sheet(rows)
    strip = page.crop((0, plain.height - 8, page.width, page.height - 8))
    assert strip.tobytes() == legend([6, 15], VOC, page.width).tobytes()
    assert page.crop((0, 0, *plain.size)).tobytes()[:-8 * 3 * page.width] == (
        plain.tobytes()[:-8 * 3 * page.width])
    bare = [row[:1] for row in rows]
    assert sheet(bare, VOC).tobytes() == sheet(bare).tobytes(), "nothing to name"


def test_an_overlay_names_the_classes_of_its_labels() -> None:
    photo, labels = noise(120, 150).repeat(2, axis=0).repeat(2, axis=1), boxes()
    labels[labels > 3] = 0
    labels[labels == 2] = 255
    page = overlay(photo, labels, VOC)
    strip = page.crop((0, 240, *page.size))
    assert strip.tobytes() == legend([1, 3, 255], VOC, 300).tobytes()
    assert page.crop((0, 0, 300, 240)).tobytes() == labels_over(photo, labels).tobytes()


def test_twenty_classes_and_unnamed_ones_have_a_swatch_each() -> None:
    classes = [*range(1, 21), 77]
    assert swatches(legend(classes, VOC, 400)) == set(classes)
    assert legend([77], VOC, 200).tobytes() == (
        legend([77], {77: "class 77"}, 200).tobytes())
    assert legend([255], {}, 200).tobytes() == (
        legend([255], {255: "ignored"}, 200).tobytes())


def test_long_names_wrap_within_the_legend() -> None:
    drawn = legend([1, 2], LONG, 300)
    assert (pixels(drawn)[:, -6:] == 255).all()
    assert (pixels(drawn)[-3:] == 255).all()
    alike = legend([1, 2], {1: LONG[1], 2: LONG[1]}, 300)
    assert drawn.tobytes() != alike.tobytes(), "the words in which they differ are drawn"
    short = legend([1, 2], VOC, 300)
    assert drawn.height > 2 * short.height


def drawn_name(name: str) -> bytes:
    return legend([1], {1: name}, 200).tobytes()


def test_names_of_all_languages_are_drawn() -> None:
    if not overlays._fonts(15)[1:]:
        pytest.skip("without DejaVu Sans")
    names = ["Fuchse", "Füchse", "кот", "бык", "γάτα"]
    assert len({*map(drawn_name, names)}) == len(names)
    assert drawn_name("Fu\u0308chse") == drawn_name("Füchse")
    assert drawn_name("猫") == drawn_name("class 1"), "no font has it"


def test_accents_become_plain_letters_without_a_font_that_has_them(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlays, "_fonts", lambda size: (ImageFont.load_default(size),))
    assert drawn_name("Käse, Crème") == drawn_name("Kase, Creme")
    assert drawn_name("кот") == drawn_name("class 1"), "no empty boxes"
    photo = noise(60, 90)
    assert sheet([[SheetPanel("кот", photo)]]).tobytes() == (
        sheet([[SheetPanel("???", photo)]]).tobytes())


def test_an_overlay_of_background_says_so() -> None:
    page = overlay(noise(60, 240), np.zeros((60, 240), np.uint8), VOC)
    strip = pixels(page)[60:]
    assert swatches(page) == set()
    assert (strip < 100).any(), "there is a line of text"


# Sheets

def test_a_failed_panel_is_grey_with_its_reason_and_ends_nothing() -> None:
    photo = noise(300, 400)
    whole = sheet([[SheetPanel(title, photo) for title in pair] for pair in ("ab", "cd")])
    failed = sheet([[SheetPanel("a", photo), SheetPanel("b", "b.jpg: the file is empty")],
                    [SheetPanel("c", photo), SheetPanel("d", photo)]])
    assert failed.size == whole.size
    changed = np.argwhere((pixels(failed) != pixels(whole)).any(axis=-1))
    (top, left), (bottom, right) = changed.min(axis=0), changed.max(axis=0) + 1
    assert (right - left, bottom - top) == (PANEL_WIDTH, PANEL_WIDTH * 3 // 4)
    panel = pixels(failed)[top:bottom, left:right]
    grey = panel[-1, -1]
    assert grey.min() > 200
    assert (panel == grey).all(axis=-1).mean() > 0.9
    assert (panel < 100).all(axis=-1).any(), "the reason is written on it"
    other = sheet([[SheetPanel("a", photo), SheetPanel("b", "b.jpg: no image")],
                   [SheetPanel("c", photo), SheetPanel("d", photo)]])
    assert other.tobytes() != failed.tobytes()


@pytest.mark.parametrize("reason", ["", "x", "word " * 2000, "y" * 100_000])
def test_a_row_of_failures_keeps_its_text_inside(reason: str) -> None:
    page = pixels(sheet([[SheetPanel("a", reason)]]))
    assert page.shape[1] == PANEL_WIDTH + 16
    assert (page[:, :8] == 255).all()
    assert (page[:, -8:] == 255).all()
    body = page[-8 - PANEL_WIDTH * 3 // 4 - 8:-16, 8:-8]
    for edge in (body[:4], body[-4:], body[:, :4], body[:, -4:]):
        assert (edge == body[0, 0]).all()


@pytest.mark.parametrize("title", ["IMG_" + "0" * 500, "horse person dog cat " * 20])
def test_long_titles_do_not_reach_the_next_panel(title: str) -> None:
    photo = np.full((30, 40, 3), 255, np.uint8)
    one = pixels(sheet([[SheetPanel(title, photo), SheetPanel("b", photo)]]))
    assert (one[:, PANEL_WIDTH + 8:PANEL_WIDTH + 16] == 255).all()
    assert (one[:, :8] == 255).all()
    ink = np.flatnonzero((one[:, :PANEL_WIDTH + 8] < 128).any(axis=(1, 2)))
    assert 20 < ink.max() - ink.min() < 40, "two lines"
    assert one.shape == pixels(sheet([[SheetPanel("a\n" + title * 2, photo),
                                       SheetPanel("b", photo)]])).shape


SHAPES = [(300, 400), (400, 300), (64, 64), (120, 1200), (1200, 120), (3000, 4000)]


@pytest.mark.parametrize("shape", SHAPES)
def test_panels_fit_whatever_the_photo_s_shape(shape: tuple[int, int]) -> None:
    panel = fit_panel(np.zeros((*shape, 3), np.uint8))
    height, width = panel.shape[:2]
    assert width <= PANEL_WIDTH
    assert height <= 1.5 * PANEL_WIDTH
    assert width == PANEL_WIDTH or height == 1.5 * PANEL_WIDTH
    assert height / width == pytest.approx(shape[0] / shape[1], rel=0.02)
    assert fit_panel(panel) is panel


def test_a_sheet_of_six_shapes() -> None:
    rows = [[SheetPanel("photo", np.zeros((*shape, 3), np.uint8))] * 9 for shape in SHAPES]
    page = sheet(rows)
    heights = [fit_panel(row[0].picture).shape[0] for row in rows]
    assert page.width == 9 * PANEL_WIDTH + 10 * 8
    assert page.height == sum(height + 18 + 16 for height in heights) + 8 <= page.width
    assert sheet([]).height == 8


@pytest.mark.parametrize("count", [1, 2, 3, 7, 12])
def test_a_sheet_that_would_be_taller_than_wide_has_two_columns(count: int) -> None:
    rows = [[SheetPanel("photo", np.full((60, 80, 3), 10 * number, np.uint8))] * 3
            for number in range(count)]
    page = sheet(rows)
    width, height = 3 * PANEL_WIDTH + 4 * 8, 195 + 18 + 16
    if count * height <= width:
        assert page.size == (width, count * height + 8)
        return
    assert page.size == (2 * width + 16, -(-count // 2) * height + 8)
    # Down the first column, then down the second.
    shown = np.asarray(page)[100::height, (100, width + 16 + 100), 0]
    assert [*shown[:, 0], *shown[:, 1]][:count] == [10 * number for number in range(count)]


@pytest.mark.parametrize(("shape", "size"), [
    ((3000, 4000), (1024, 768)), ((4000, 3000), (768, 1024)), ((300, 400), (400, 300)),
    ((1024, 1000), (1000, 1024))])
def test_an_overlay_has_the_photo_s_own_size_within_bounds(shape: tuple[int, int],
                                                           size: tuple[int, int]) -> None:
    labels = np.zeros(shape, np.uint8)
    labels[100:200, 100:200] = 1
    page = overlay(np.zeros((*shape, 3), np.uint8), labels, VOC)
    strip = legend([1], VOC, size[0])
    assert page.size == (size[0], size[1] + strip.height)


def test_the_legend_of_a_narrow_photo_is_wider_than_it() -> None:
    page = overlay(noise(90, 30), np.ones((90, 30), np.uint8), VOC)
    assert page.width == 200
    assert swatches(page.crop((0, 90, *page.size))) == {1}


# Layers for a browser

def laid_over(photo: Rgb, layer: Image.Image) -> npt.NDArray[np.int64]:
    """A layer over a photo, as a browser lays it."""
    page = Image.fromarray(photo).convert("RGBA")
    page.alpha_composite(layer.convert("RGBA"))
    return pixels(page.convert("RGB"))


def test_a_layer_of_labels_is_what_is_drawn_over_a_photo() -> None:
    photo, labels = noise(120, 150), boxes()
    labels[:5, :40] = 255
    drawn = labels_over(photo, labels).astype(int)
    layer = np.asarray(label_layer(labels).convert("RGBA"))
    border = layer[..., 3] == round(0.7 * 255)
    there = laid_over(photo, label_layer(labels))
    assert np.abs(there - drawn)[~border].max() <= 2
    # A line lies on the photo here, on the tinted region there.
    lines = {tuple(colour) for colour in layer[border][:, :3].tolist()}
    assert lines == {(0, 0, 0), (255, 255, 255)}
    assert set(layer[labels == 0][:, 3].tolist()) == {0, round(0.7 * 255)}


def test_a_layer_of_noise_is_not_all_contour() -> None:
    noisy = np.where(np.random.default_rng(0).random((80, 80)) < 0.2, 3, 5).astype(np.uint8)
    layer = np.asarray(label_layer(noisy).convert("RGBA"))
    assert (layer[..., 3] == round(0.7 * 255)).mean() < 0.25
    plain = np.asarray(label_layer(np.full((80, 80), 254, np.uint8)).convert("RGBA"))
    assert (plain[..., :3] == COLOURS[254]).all(), "every number can be a class"


def test_a_layer_of_maps_is_what_is_drawn_over_grey() -> None:
    rng = np.random.default_rng(0)
    maps = rng.random((3, 40, 50)).astype(np.float32)
    photo = np.full((40, 50, 3), 255, np.uint8)
    classes = [0, 3, 7]
    drawn = cams_over(photo, maps, classes).astype(int)
    assert np.abs(laid_over(photo, cam_layer(maps, classes)) - drawn).max() <= 2
    assert cam_layer(maps[:1], [0]).getextrema()[3] == (0, 0)
    assert cam_layer(np.zeros((0, 4, 4), np.float32), []).getextrema()[3] == (0, 0)


def test_tags_of_a_panel_are_joined_by_commas(tmp_path: Path) -> None:
    """A name may have a space."""
    from vpltool.formats import Photo
    from vpltool.stages import show

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    photo = Photo("a", "a.png", ("human being", "dog"), ("train",), None)
    row = show._Row("a", tmp_path / "a.png", photo)
    workspace: Any = None
    panel = next(show._Sheet(workspace, [], show.ShowSettings()).panels_of(row))
    assert panel.title == "a: human being, dog"


def test_maps_of_classes_above_255_take_their_colours_again() -> None:
    """Found by make fuzz: there are 256 colours."""
    cams = np.full((1, 2, 3), 0.7, np.float32)
    again, _ = blend_maps(cams, [256])
    np.testing.assert_array_equal(again, blend_maps(cams, [shown_as(256)])[0])
