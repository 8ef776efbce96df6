"""True masks when they are read: what their values stand for, and what is said of wrong ones."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Result, Run, draw_scenes, prepare
from PIL import Image

from vpltool.formats.labels import known_numbers, objects_hint
from vpltool.stages._truth import warn_of_untagged_classes

EVAL = ("eval", "--split", "train", "--what", "masks/text-refined-full", "--json")


def change(base: Path, key: str, save: str, mode: str = "") -> Path:
    """Write a true mask anew: as `save` says, in another mode."""
    path = base / f"masks/{key}.png"
    image = Image.open(path)
    labels = np.asarray(image).copy()
    if save == "smaller":
        labels = labels[1:]
    if save == "label":
        labels[5, 7] = 9
    if save == "objects":
        labels[:] = np.arange(labels.shape[1]) // 5
    if save == "ignored":
        labels[:] = 255
    made = Image.fromarray(labels)
    if mode:
        made = made.convert(mode)
    made.save(path)
    return path


def score(run: Run, base: Path) -> dict[str, object]:
    result = run(*EVAL, work=base / "work")
    assert result.code == 0, result.err
    report: dict[str, object] = json.loads(result.out)
    return report


def refused(run: Run, base: Path, *command: object) -> Result:
    result = run(*(command or EVAL), work=base / "work")
    assert result.code == 1, result.err
    assert len(result.lines("error:")) == 1
    assert result.lines("hint:")
    return result


@pytest.mark.parametrize("command", [
    EVAL, ("eval", "--split", "train", "--what", "cams/text"), ("show", "cams/text")],
    ids=["masks", "cams", "show"])
@pytest.mark.parametrize(("save", "mode", "said"), [
    ("label", "", "the value 9 is not a class; the workspace has 1 to 3"),
    ("smaller", "", "39×48 (height×width), "),
    ("", "RGB", "not an index image (mode RGB)"), ("", "LA", "(mode LA)")])
def test_a_wrong_mask_is_named(command: tuple[object, ...], save: str, mode: str, said: str,
                               copied: Path, run: Run) -> None:
    path = change(copied, "scene2", save, mode)
    result = refused(run, copied, *command)
    assert path.name in result.lines("error:")[0]
    assert said in result.lines("error:")[0]
    assert ("40×48" in result.lines("error:")[0]) == (save == "smaller")


def test_a_mask_that_numbers_objects(copied: Path, run: Run) -> None:
    change(copied, "scene2", "objects")
    result = refused(run, copied)
    assert "seem to number objects" in result.lines("hint:")[0]
    assert "1, for the only class" in objects_hint(np.arange(4, dtype=np.uint8), 1)
    assert objects_hint(np.array([0, 1, 2, 255], np.uint8), 1) == "", "it may be another class"
    assert objects_hint(np.array([0, 1, 9], np.uint8), 1) == ""
    assert (known_numbers(1), known_numbers(3)) == ("only 1", "1 to 3")


def test_earlier_scores_are_kept(copied: Path, run: Run) -> None:
    score(run, copied)
    files = {path: path.read_bytes() for path in (copied / "work").rglob("*") if path.is_file()}
    change(copied, "scene5", "label")
    refused(run, copied)
    assert {path: path.read_bytes() for path in (copied / "work").rglob("*")
            if path.is_file()} == files


def test_a_mask_of_255_is_not_scored(copied: Path, run: Run) -> None:
    before = score(run, copied)["confusion"]
    change(copied, "scene2", "ignored")
    after = score(run, copied)["confusion"]
    assert np.sum(before) - np.sum(after) == 40 * 48


def test_masks_of_0_and_255_are_not_scored_as_background_alone(copied: Path, run: Run) -> None:
    """Fiji writes them; all would be right, with an mIoU of 100."""
    relabelled(copied, {1: 255, 2: 255, 3: 255})
    for command in (EVAL, ("eval", "--split", "train", "--what", "cams/text")):
        result = refused(run, copied, *command)
        assert "no true mask shows a class" in result.lines("error:")[0]
        assert "a class is painted with its number, and 255 is" in result.lines("error:")[0]
        assert "--classes FILE of prepare" in result.lines("hint:")[0]
        assert "255 bar" in result.lines("hint:")[0]
    classes = copied / "classes.txt"
    classes.write_text("255 bar\n1 box\n2 disc\n")
    assert prepare(copied, "--masks", copied / "masks", "--classes", classes).code == 0
    assert score(run, copied)["classes_in_mean"] == 2


def test_tiffs_are_true_masks_as_well(copied: Path, run: Run) -> None:
    before = score(run, copied)["confusion"]
    for number, path in enumerate(sorted((copied / "masks").iterdir())):
        # Fiji writes the higher byte first.
        labels = np.asarray(Image.open(path)).astype(("u1", "<u2", ">u2")[number % 3])
        path.unlink()
        Image.fromarray(labels).save(path.with_suffix(".tiff" if number % 2 else ".tif"))
    assert prepare(copied, "--masks", copied / "masks").code == 0
    assert score(run, copied)["confusion"] == before


@pytest.mark.parametrize(("mode", "more", "said"), [
    ("L", {"save_all": True, "append_images": [Image.new("L", (48, 40))]}, "has 2 pages"),
    ("L", {"tiffinfo": {262: 0}}, "shows 0 as white"), ("F", {}, "(mode F)"),
    ("RGB", {}, "(mode RGB)"), ("I", {}, "negative values"), ("", {}, "cannot be read as a TIFF")])
def test_a_wrong_tiff_is_named(mode: str, more: dict[str, Any], said: str, copied: Path,
                               run: Run) -> None:
    (copied / "masks/scene2.png").unlink()
    path = copied / "masks/scene2.tif"
    path.write_bytes(b"II*\0")
    if mode:
        Image.new(mode, (48, 40), -1 if mode == "I" else 0).save(path, **more)
    assert prepare(copied, "--masks", copied / "masks").code == 0
    line = refused(run, copied).lines("error:")[0]
    assert "scene2.tif" in line and said in line


def relabelled(base: Path, values: dict[int, int]) -> None:
    for path in (base / "masks").iterdir():
        labels = np.asarray(Image.open(path))
        table = np.arange(256, dtype=np.uint8)
        for label, value in values.items():
            table[label] = value
        Image.fromarray(table[labels]).save(path)


@pytest.mark.parametrize(("lines", "values"), [
    # Classes from 0, the background at 3.
    (["3 background", "0 bar", "1 box", "2 disc"], {0: 3, 1: 0, 2: 1, 3: 2}),
    (["7 bar", "17 box", "200 disc"], {1: 7, 2: 17, 3: 200}),
    (["1 bar", "2 box", "3 disc", "255 background"], {0: 255})])
def test_values_of_a_class_file(lines: list[str], values: dict[int, int], copied: Path,
                                run: Run) -> None:
    """Masks in other numbers and the class file that says so: the same scores, and no work lost."""
    before = score(run, copied)
    relabelled(copied, values)
    (copied / "classes.txt").write_text("\n".join(lines))
    again = prepare(copied, "--masks", copied / "masks", "--classes", copied / "classes.txt")
    assert again.code == 0, again.err
    assert score(run, copied) == before
    later = run("cam", work=copied / "work")
    assert later.code == 0
    assert "done already" in later.err


def test_zero_may_mean_that_nothing_is_known(copied: Path, run: Run) -> None:
    """As in ADE20K: a first line `ignore`."""
    before = np.array(score(run, copied)["confusion"])
    (copied / "classes.txt").write_text("ignore\nbar\nbox\ndisc\n")
    assert prepare(copied, "--masks", copied / "masks", "--classes",
                   copied / "classes.txt").code == 0
    after = np.array(score(run, copied)["confusion"])
    assert (after[1:] == before[1:]).all()
    assert not after[0].any()
    assert json.loads((copied / "work/workspace.json").read_text())["mask_values"]["0"] == 255


def test_a_value_that_the_class_file_does_not_name(copied: Path, run: Run) -> None:
    (copied / "classes.txt").write_text("1 bar\n2 box\n30 disc\n")
    assert prepare(copied, "--masks", copied / "masks", "--classes",
                   copied / "classes.txt").code == 0
    result = refused(run, copied)
    assert "the value 3 is not a class; the workspace has the values 0, 1, 2, 30, 255" in (
        result.lines("error:")[0])
    assert "`3 ignore`" in result.lines("hint:")[0]


@pytest.mark.parametrize("command", [EVAL, ("show", "cams/text", "--limit", 6)],
                         ids=["eval", "show"])
def test_masks_in_other_numbers_are_told(command: tuple[object, ...], copied: Path, run: Run
                                         ) -> None:
    """Their values are classes of the workspace, but not those that the photos are tagged with."""
    assert run(*command, work=copied / "work").lines("warning:") == []
    relabelled(copied, {1: 2, 2: 3, 3: 1})
    warning, = run(*command, work=copied / "work").lines("warning:")
    assert warning.startswith("6 of 6 true masks hold classes that their photos are not tagged with"
                              ", such as `box` in scene0")
    assert "--classes FILE of prepare" in warning


def test_one_forgotten_tag_is_no_warning() -> None:
    with pytest.warns(UserWarning, match="3 of 20"):
        warn_of_untagged_classes(dict.fromkeys("abc", "cat"), 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_untagged_classes({"a": "cat"}, 20)


def test_a_value_above_the_last_class_may_mean_another_order(copied: Path, run: Run) -> None:
    change(copied, "scene2", "label")
    result = refused(run, copied)
    assert "--classes FILE of prepare" in result.lines("hint:")[0]
    assert "photos/../masks" not in result.lines("error:")[0]
    assert "masks/scene2.png: " in result.lines("error:")[0]


def test_the_colours_of_a_palette_do_not_matter(copied: Path, run: Run) -> None:
    before = score(run, copied)
    for path in (copied / "masks").iterdir():
        image = Image.open(path)
        image.putpalette([17 * number % 256 for number in range(768)])
        image.save(path)
    assert score(run, copied) == before


def test_masks_under_other_names_are_told(copied: Path, run: Run) -> None:
    for path in (copied / "masks").iterdir():
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    (copied / "work/workspace.json").unlink()
    result = prepare(copied, "--masks", copied / "masks")
    assert result.code == 0
    warning, = result.lines("warning:")
    assert "scene0.png" in warning
    assert "scene0_mask.png" in warning


def test_masks_of_some_photos_are_told(copied: Path) -> None:
    for scene in draw_scenes()[:2]:
        (copied / f"masks/{scene.id}.png").unlink()
    result = prepare(copied, "--masks", copied / "masks")
    assert result.lines("warning:") == [
        "2 of 6 photos of `train` have no true mask; eval leaves them out"]
