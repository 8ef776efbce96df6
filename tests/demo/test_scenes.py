"""The demo's drawn scenes: the same ones each time, with labels, tags and captions that agree."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from vpltool.demo.backgrounds import BACKGROUNDS as DRAWN_BACKGROUNDS
from vpltool.demo.canvas import Drawing, Pose, box, crop, ellipse, paint, stroke, tile
from vpltool.demo.captions import Thing, captions, plural
from vpltool.demo.scenes import BACKGROUNDS, CLASSES, HOME, OBJECTS, Scene, draw_scene

SMALL = (96, 128)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(7, number, SMALL) for number in range(170)]


def shown(scene: Scene) -> tuple[str, ...]:
    return tuple(sorted(CLASSES[value - 1] for value in np.unique(scene.labels) if value))


def test_the_same_arguments_draw_the_same_scene() -> None:
    first, again = draw_scene(3, 5, SMALL), draw_scene(3, 5, SMALL)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.labels, again.labels)
    assert (first.tags, first.background, first.captions) == (
        again.tags, again.background, again.captions)


@pytest.mark.parametrize("other", [(3, 6), (4, 5)])
def test_another_seed_or_number_draws_another_scene(other: tuple[int, int]) -> None:
    assert not np.array_equal(draw_scene(3, 5, SMALL).image, draw_scene(*other, SMALL).image)


@pytest.mark.parametrize("size", [(240, 320), (150, 130)])
def test_sizes_and_types(size: tuple[int, int]) -> None:
    scene = draw_scene(0, 1, size)
    assert scene.image.shape == (*size, 3)
    assert scene.labels.shape == size
    assert scene.image.dtype == scene.labels.dtype == np.uint8


def test_tags_are_the_classes_in_the_labels_and_each_is_visible(scenes: list[Scene]) -> None:
    for number, scene in enumerate(scenes):
        assert scene.tags == shown(scene), number
        assert scene.tags, number
        for tag in scene.tags:
            assert (scene.labels == CLASSES.index(tag) + 1).mean() >= 0.002, (number, tag)


def test_tables_name_the_same_classes_and_backgrounds() -> None:
    assert tuple(OBJECTS) == tuple(HOME) == CLASSES == tuple(sorted(CLASSES))
    assert tuple(DRAWN_BACKGROUNDS) == BACKGROUNDS
    assert {name for home in HOME.values() for name in home} <= set(BACKGROUNDS)


def test_every_class_and_background_occurs(scenes: list[Scene]) -> None:
    tags = Counter(tag for scene in scenes for tag in scene.tags)
    assert set(tags) == set(CLASSES)
    assert min(tags.values()) >= 5
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)


def test_most_but_not_all_scenes_are_at_home(scenes: list[Scene]) -> None:
    at_home = [any(scene.background in HOME[tag] for tag in scene.tags) for scene in scenes]
    assert 0.7 < np.mean(at_home) < 0.93


def test_some_railways_have_no_train_and_some_trains_no_railway() -> None:
    train = CLASSES.index("train") + 1
    wanted = {(True, False), (False, True)}
    for number in range(250):
        scene = draw_scene(1, number, (36, 48))
        wanted.discard((scene.background == "railway", train in scene.labels))
        if not wanted:
            break
    assert not wanted


def test_what_flies_stays_out_of_rooms_and_the_rest_out_of_the_sky(scenes: list[Scene]) -> None:
    flying = {"aeroplane", "balloon"}
    for scene in scenes:
        if scene.background == "sky":
            assert set(scene.tags) <= flying
        if scene.background == "room":
            assert not flying & set(scene.tags)


def test_objects_are_of_many_sizes_and_leave_background(scenes: list[Scene]) -> None:
    shares = np.array([(scene.labels > 0).mean() for scene in scenes])
    assert shares.min() < 0.06
    assert shares.max() > 0.3
    assert shares.max() < 0.8


def test_scenes_with_several_classes_touch_in_some(scenes: list[Scene]) -> None:
    several = [scene for scene in scenes if len(scene.tags) > 1]
    assert 0.15 < len(several) / len(scenes) < 0.45

    def touch(labels: np.ndarray) -> bool:
        left, right = labels[:, :-1], labels[:, 1:]
        return bool(((left != right) & (left > 0) & (right > 0)).any())

    assert any(touch(scene.labels) for scene in several)
    assert not all(touch(scene.labels) for scene in several)


def test_captions_name_every_tag_and_nothing_else(scenes: list[Scene]) -> None:
    words = {word: name for name in CLASSES for word in (name, plural(name))}
    for scene in scenes:
        assert len(scene.captions) == 6
        for caption in scene.captions:
            named = {words[word] for word in re.findall("[a-z]+", caption) if word in words}
            assert named == set(scene.tags), caption
            assert caption == caption.lower().strip()
            assert not caption.endswith(".")
            assert "  " not in caption


def test_captions_vary_and_some_are_bare(scenes: list[Scene]) -> None:
    everything = [caption for scene in scenes for caption in scene.captions]
    plain = re.compile(r"a photo of an? (potted )?\w+( (and|with) an? (potted )?\w+)?")
    of_few = [caption for scene in scenes for caption in scene.captions if len(scene.tags) < 3]
    assert 0.12 < np.mean([bool(plain.fullmatch(caption)) for caption in of_few]) < 0.45
    assert len(set(everything)) > 0.6 * len(everything)
    assert any(" on the tracks" in caption for caption in everything)


@pytest.mark.parametrize(("things", "expected"), [
    ((Thing("aeroplane", "red", 0.5, 0.5, True),), {"an aeroplane"}),
    ((Thing("bus", "red", 0.5, 0.2, False),) * 2, {"two buses", "buses"}),
    ((Thing("sheep", "white", 0.5, 0.2, False),) * 3, {"three sheep"}),
    ((Thing("cow", "brown", 0.5, 0.2, False), Thing("cat", "grey", 0.3, 0.8, False)),
     {"a cow and a cat", "a cow with a cat"})])
def test_bare_captions_count_and_take_the_right_article(
        things: tuple[Thing, ...], expected: set[str]) -> None:
    drawn = captions(np.random.default_rng(0), things, "grass", (), 200)
    bare = {caption.removeprefix("a photo of ") for caption in drawn}
    assert expected <= bare


@pytest.mark.parametrize("name", CLASSES)
def test_an_object_is_a_body_and_no_two_are_alike(name: str) -> None:
    rng = np.random.default_rng(2)
    covers = []
    for _ in range(4):
        drawing = OBJECTS[name](rng)
        corners = np.concatenate([part.shape for part in drawing.parts])
        left, low, right, high = *corners.min(0).tolist(), *corners.max(0).tolist()
        assert -0.3 * (high - low) < low < 0.2 * (high - low) or name == "aeroplane"
        scale = min(60 / (right - left), 60 / (high - low))
        layer = paint(drawing, Pose(32 - scale * (left + right) / 2, 62 + scale * low, scale),
                      (64, 64), (-0.5, -0.7), rng)
        assert layer is not None
        covers.append(layer.cover)
        wide, tall = scale * (right - left), scale * (high - low)
        assert (layer.cover >= 0.5).sum() > 0.2 * wide * tall
    assert len({cover.tobytes() for cover in covers}) == 4


def test_edges_are_soft_and_colours_stay_within_the_outline() -> None:
    drawing = Drawing("red")
    drawing.add(ellipse(0, 0, 1), (200, 40, 40), volume=0, grain=0)
    layer = paint(drawing, Pose(20.3, 20.6, 10), (40, 40), (-0.5, -0.7), np.random.default_rng(0))
    assert layer is not None
    cover = layer.cover
    assert ((cover > 0.05) & (cover < 0.95)).sum() > 20
    assert cover.sum() == pytest.approx(np.pi * 100, rel=0.05)
    # Colours are weighted by coverage: nothing may be brighter than its share.
    assert (layer.colours[..., 0] <= 1.2 * 200 * cover + 1e-3).all()


def test_marks_end_at_their_part() -> None:
    drawing = Drawing("red")
    drawing.add(box(-1, -1, 0, 1), (200, 0, 0), volume=0, grain=0).mark(
        box(-0.5, -1, 1, 1), (0, 0, 200))
    layer = paint(drawing, Pose(20, 20, 10), (40, 40), (0, 0), np.random.default_rng(0))
    assert layer is not None
    rows, columns = layer.window
    cover = np.zeros((40, 40))
    cover[rows, columns] = layer.cover
    assert cover[20, 16] == pytest.approx(1)
    assert cover[20, 24] == 0


def test_shading_is_brighter_on_the_side_of_the_light() -> None:
    drawing = Drawing("white")
    drawing.add(ellipse(0, 0, 1), (150, 150, 150), volume=0.8, grain=0)
    layer = paint(drawing, Pose(30, 30, 25), (60, 60), (-1, 0), np.random.default_rng(0))
    assert layer is not None
    middle = layer.colours.shape[1] // 2
    assert layer.colours[:, :middle].mean() > 1.15 * layer.colours[:, middle:].mean()


def test_nothing_is_painted_outside_the_photo() -> None:
    drawing = Drawing("red")
    drawing.add(ellipse(0, 0, 1), (200, 40, 40))
    assert paint(drawing, Pose(-50, 20, 10), (40, 40), (0, -1), np.random.default_rng(0)) is None


def test_a_stroke_is_as_wide_as_asked() -> None:
    low, high = (axis for axis in zip(*_extremes(stroke(((0, 0), (4, 0)), (1, 1))), strict=True))
    assert (low[1], high[1]) == pytest.approx((-0.5, 0.5))
    assert (low[0], high[0]) == pytest.approx((-0.5, 4.5), abs=0.05)


def _extremes(shape: np.ndarray) -> list[tuple[float, float]]:
    return [(float(shape[:, axis].min()), float(shape[:, axis].max())) for axis in (0, 1)]


def test_tiles_repeat_without_a_seam() -> None:
    for texture in ("cloud", "mottle", "wood"):
        made = tile(texture)
        seam = np.abs(made[0] - made[-1]).mean()
        inside = np.abs(np.diff(made, axis=0)).mean()
        assert seam < 3 * inside


def test_a_crop_has_the_size_asked_for() -> None:
    for zoom in (0.5, 1, 2.5):
        assert crop("fur", (70, 33), zoom, np.random.default_rng(0)).shape == (33, 70)


def test_only_what_floats_is_on_the_water() -> None:
    rng = np.random.default_rng(0)
    cow = Thing("cow", "brown", 0.5, 0.5, False)
    duck = Thing("duck", "white", 0.5, 0.5, False, floats=True)
    ashore = captions(rng, (cow, duck), "water", (), 99)
    assert not any("on a lake" in caption for caption in ashore)
    assert any("on a lake" in caption for caption in captions(rng, (duck,), "water", (), 99))
