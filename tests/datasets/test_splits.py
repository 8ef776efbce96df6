"""Photos that are held out from training: every Nth, but never the last of a class."""

from __future__ import annotations

import csv
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import Run, prepare

from vpltool.datasets.splits import hold_out, hold_out_files
from vpltool.formats import Photo


def photos_of(*labels: str) -> list[Photo]:
    return [Photo(f"p{number}", f"p{number}.png", tuple(names.split()), ("train",))
            for number, names in enumerate(labels)]


def held(photos: Sequence[Photo]) -> list[str]:
    return [photo.id for photo in photos if photo.splits == ("val",)]


def test_every_nth_where_all_classes_are_frequent() -> None:
    assert held(hold_out(photos_of(*["cat", "dog"] * 10), 5, ())) == ["p0", "p5", "p10", "p15"]


def test_the_last_photo_of_a_class_stays_and_the_next_goes() -> None:
    photos = photos_of("emu", "cat", "cat", "cat emu fox", "gnu", "cat", "cat", "cat")
    assert held(hold_out(photos, 4, ())) == ["p0", "p5"]
    assert held(hold_out(photos[1:], 4, ())) == ["p1", "p5"]


def test_a_class_that_every_nth_photo_misses_is_scored_too() -> None:
    photos = photos_of(*["cat", "dog", "cat", "cat emu", "cat"] * 6)
    first = hold_out(photos, 5, ())
    assert held(first) == ["p0", "p1", "p3", "p5", "p10", "p15", "p20", "p25"]
    assert hold_out(photos, 5, first) == first
    # A rarer one stays.
    assert held(hold_out(photos[:20], 5, ())) == ["p0", "p5", "p10", "p15"]


def test_no_photo_can_be_spared() -> None:
    assert held(hold_out(photos_of("cat", "dog", "emu"), 2, ())) == []


@pytest.mark.parametrize("seed", range(20))
def test_each_class_keeps_a_photo_and_the_same_call_changes_nothing(seed: int) -> None:
    rng = random.Random(seed)
    names = "abcdefgh"
    tags = [" ".join(sorted({rng.choice(names[: 1 + number % 8])
                             for _ in range(rng.randint(1, 3))})) for number in range(30)]
    photos, more = photos_of(*tags[:20]), photos_of(*tags)
    first = hold_out(photos, 3, ())
    assert hold_out(photos, 3, first) == first == hold_out(photos, 3, ())
    later = hold_out(more, 3, first)
    assert set(held(first)) <= set(held(later))
    for some in (first, later):
        there = {label for photo in some if photo.splits == ("train",) for label in photo.tags}
        assert there == {label for photo in some for label in photo.tags}


def test_a_photo_returns_where_it_has_become_the_last_of_its_class() -> None:
    photos = photos_of("emu", "emu", "cat", "cat", "cat", "cat")
    first = hold_out(photos, 6, ())
    assert held(first) == ["p0"]
    tagged_otherwise = [photos[0], Photo("p1", "p1.png", ("cat",), ("train",)), *photos[2:]]
    again = hold_out(tagged_otherwise, 6, first)
    assert "p0" not in held(again)
    assert hold_out(tagged_otherwise, 6, again) == again


def test_photos_without_a_tag_are_held_out_as_well() -> None:
    photos = photos_of(*["cat", ""] * 10)
    first = hold_out(photos, 5, ())
    assert held(first) == ["p0", "p1", "p10", "p11"]
    # Tagged photos are held out as they are alone, and the last without a tag stays.
    assert held(hold_out(photos[::2], 5, ())) == ["p0", "p10"]
    assert held(hold_out([*photos[::2], photos[1]], 5, ())) == ["p0", "p10"]
    assert held(hold_out(photos, 5, (), unlisted=True)) == ["p0", "p10"]
    # What an earlier workspace has keeps its split; new photos fill up `val`.
    more = photos_of(*["cat", ""] * 20)
    for before, kept in ((first, ["p1", "p11", "p21", "p31"]), (hold_out(
            photos, 5, (), unlisted=True), ["p21", "p31"])):
        assert hold_out(photos, 5, before) == before
        later = hold_out(more, 5, before)
        assert [key for key in held(later) if int(key[1:]) % 2] == kept
        assert hold_out(more, 5, later, unlisted=True) == later
    # Without tagged photos to spare, `val` could not be compared with anything.
    assert held(hold_out(photos_of("cat", "dog", "", ""), 2, ())) == []
    assert held(hold_out(photos_of("", "", "", ""), 2, ())) == []


def tiles_of(*labels: str) -> tuple[list[Photo], dict[str, str]]:
    """Four tiles of each file, of which every second has its tags."""
    photos = [Photo(f"f{number}/t{tile}", "", tuple(names.split()) * (tile % 2 == 0), ("train",))
              for number, names in enumerate(labels) for tile in range(4)]
    return photos, {photo.id: photo.id[:2] for photo in photos}


def test_tiles_are_held_out_file_by_file() -> None:
    photos, file_of = tiles_of("cat", "dog", "cat emu", "dog", "cat", "dog")
    first, remarks = hold_out_files(photos, 3, (), file_of)
    assert not remarks
    assert held(first) == [f"{file}/t{tile}" for file in ("f0", "f3") for tile in range(4)]
    assert hold_out_files(photos, 3, first, file_of) == (first, [])
    more, file_of = tiles_of("cat", "dog", "cat emu", "dog", "cat", "dog", "cat", "dog", "dog")
    later, _ = hold_out_files(more, 3, first, file_of)
    assert held(later) == [*held(first), *(f"f6/t{tile}" for tile in range(4))]


def test_tiles_of_few_files_are_held_out_with_a_remark() -> None:
    photos, file_of = tiles_of("cat", "cat")
    divided, (remark,) = hold_out_files(photos, 3, (), file_of)
    assert "scores will be too good" in remark
    assert held(divided) == held(hold_out(photos, 3, ())) != []
    # What was divided stays so when there are more files.
    more, file_of = tiles_of("cat", "cat", "cat", "cat")
    later, remarks = hold_out_files(more, 3, divided, file_of)
    assert remarks and set(held(divided)) <= set(held(later))
    assert hold_out_files(photos, 0, (), file_of) == (photos, [])


def test_files_that_cannot_be_spared_are_divided_with_a_remark() -> None:
    photos, file_of = tiles_of("cat", "dog", "emu")
    divided, (remark,) = hold_out_files(photos, 3, (), file_of)
    assert "since each file is the only one with some class" in remark
    assert held(divided) == held(hold_out(photos, 3, ())) != []


def test_copies_of_a_photo_are_held_out_together(copied: Path, run: Run) -> None:
    """Also one that comes later; and the CSV of the splits holds out the same photos elsewhere."""
    rows = [f"scene{number},{('bar', 'box')[number % 2]}" for number in range(8)]
    for key in ("scene6", "scene3"):
        shutil.copy(copied / f"photos/{key}.png", copied / f"photos/copy-of-{key}.png")
    for listed in (rows, [*rows, "copy-of-scene6,bar"],
                   ["copy-of-scene3,box", *rows, "copy-of-scene6,bar"]):
        (copied / "tags.csv").write_text("\n".join(["id,labels", *listed]))
        assert prepare(copied, "--hold-out", 4).code == 0
        assert run("inspect", copied / "work", "--csv", copied / "splits.csv").code == 0
        found = {row["id"]: row["split"] for row in csv.DictReader((copied / "splits.csv").open())}
        assert len(found) == len(listed) and found["scene6.png"] == "val;"
        assert all(found[f"{key}.png"] == found.get(f"copy-of-{key}.png", found[f"{key}.png"])
                   for key in ("scene6", "scene3"))
    shutil.copy(copied / "splits.csv", copied / "tags.csv")
    assert prepare(copied, "--hold-out", 2, "--overwrite").code == 0
    assert run("inspect", copied / "work", "--csv", copied / "again.csv").code == 0
    assert (copied / "again.csv").read_bytes() == (copied / "splits.csv").read_bytes()


def test_copies_that_were_divided_before_are_warned_of() -> None:
    photos, alone = photos_of("cat", "cat", "cat", "cat"), photos_of("cat", "cat", "cat")
    before = hold_out(alone, 2, ())
    assert held(before) == ["p0", "p2"]
    together, remarks = hold_out_files(photos, 2, before, {"p3": "p0"})
    assert held(together) == ["p0", "p2", "p3"] and not remarks
    divided, (remark,) = hold_out_files(alone, 2, before, {"p1": "p0"})
    assert divided == before and "copies of the same files are in `train` and `val`" in remark


def test_photos_that_are_no_parts_are_held_out_as_ever() -> None:
    photos = photos_of(*["cat", "dog"] * 2)
    assert hold_out_files(photos, 5, (), {}) == (hold_out(photos, 5, ()), [])
