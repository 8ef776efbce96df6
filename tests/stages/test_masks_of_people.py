"""Masks from people: by their colours, of any depth, checked against tags, and as backups."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from conftest import Result, Run, run_in_process
from drawn_masks import draw_made, masks_of
from PIL import Image

from vpltool.errors import VplError
from vpltool.formats import read_drawn_labels, read_labels, voc_palette
from vpltool.formats.labels import size_of_labels

Labels = npt.NDArray[np.uint8]
VOC = voc_palette()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_made(tmp_path_factory.mktemp("made"))


@pytest.fixture
def work(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made.parent, tmp_path / "base")
    return tmp_path / "base/work"


def painted(work: Path, key: str, value: int = 0) -> Labels:
    """Labels as large as a photo, with a class in their upper half."""
    with Image.open(work.parent / f"photos/{key}.png") as photo:
        labels = np.zeros(photo.size[::-1], np.uint8)
    labels[: len(labels) // 2] = value
    return labels


def save_indexed(path: Path, indices: Labels, colours: list[list[int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(indices)
    image.putpalette([value for colour in colours for value in colour])
    image.save(path)


def voc(*labels: int) -> list[list[int]]:
    return [VOC[3 * label : 3 * label + 3] for label in labels]


def take(work: Path, path: Path, *more: object) -> Result:
    return run_in_process("prepare", "folder", work.parent / "photos", "--labels",
                          work.parent / "tags.csv", "--corrections", path, *more, work=work)


def png(depth: int, row: bytes, width: int) -> bytes:
    """A greyscale PNG of one row, with values of so many bits."""
    def chunk(name: bytes, content: bytes) -> bytes:
        whole = name + content
        return struct.pack(">I", len(content)) + whole + struct.pack(">I", zlib.crc32(whole))

    header = struct.pack(">IIBBBBB", width, 1, depth, 0, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
            + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b""))


# Colours.

def test_a_palette_in_another_order_is_read_by_its_colours(work: Path, tmp_path: Path) -> None:
    """Editors sort the colours of a palette, by use or by brightness."""
    labels = painted(work, "scene2", 3)
    labels[-2:] = 255
    indices = np.choose(np.searchsorted([0, 3, 255], labels), [2, 0, 1]).astype(np.uint8)
    save_indexed(tmp_path / "back/scene2.png", indices, voc(3, 255, 0))
    result = take(work, tmp_path / "back")
    assert result.code == 0, result.err
    assert (masks_of(work / "corrections")["scene2"] == labels).all()


def test_another_palette_is_refused_by_name(work: Path, tmp_path: Path) -> None:
    save_indexed(tmp_path / "back/scene2.png", painted(work, "scene2", 1),
                 [[0, 0, 0], [250, 20, 30]])
    result = take(work, tmp_path / "back")
    assert result.code == 1
    assert "scene2.png has a palette of its own: index 1 is #fa141e" in result.lines("error:")[0]
    assert not (work / "corrections").exists()


@pytest.mark.parametrize(("colours", "wanted"), [
    ([[2, 2, 2], [0, 0, 0], [9, 9, 9]], [2, 0]),       # greys in another order
    ([[0, 0, 0], [1, 1, 1], [2, 2, 2]], [0, 1]),       # greys in order
])
def test_greys_are_values(colours: list[list[int]], wanted: list[int], tmp_path: Path) -> None:
    save_indexed(tmp_path / "a.png", np.array([[0, 1]], np.uint8), colours)
    assert read_drawn_labels(tmp_path / "a.png").tolist() == [wanted]


def test_black_and_white_is_not_unlabelled(tmp_path: Path) -> None:
    """In a data set's own palette the index counts; in a correction it must be said."""
    save_indexed(tmp_path / "a.png", np.array([[0, 1]], np.uint8), [[0, 0, 0], [255, 255, 255]])
    assert read_drawn_labels(tmp_path / "a.png", other_palettes=True).tolist() == [[0, 1]]
    with pytest.raises(VplError, match="#ffffff"):
        read_drawn_labels(tmp_path / "a.png")


def test_a_mask_that_was_edited_in_place_is_read_by_its_colours(work: Path, run: Run) -> None:
    path = work / "masks/drawn/train/scene2.png"
    labels = painted(work, "scene2", 2)
    save_indexed(path, (labels == 0).astype(np.uint8), voc(2, 0))
    result = run("export", "masks", "--what", "masks/drawn", "--split", "train", work=work)
    assert result.code == 0, result.err
    assert (read_labels(Path(result.out.strip()) / "scene2.png") == labels).all()


def test_label_images_of_tools_too(work: Path, run: Run) -> None:
    result = run("export", "mmseg", "--what", "drawn", "--split", "train", work=work)
    path = Path(result.out.strip())
    labels = painted(work, "scene2", 2)
    save_indexed(path / "ann_dir/train/scene2.png", (labels == 0).astype(np.uint8),
                 [[2, 2, 2], [0, 0, 0]])
    assert take(work, path).code == 0
    assert (masks_of(work / "corrections")["scene2"] == labels).all()


# Depths.

@pytest.mark.parametrize(("depth", "row"), [
    (1, bytes([0b01100000])), (2, bytes([0b00010100])), (4, bytes([0x01, 0x10])),
    (8, bytes([0, 1, 1, 0])), (16, bytes([0, 0, 0, 1, 0, 1, 0, 0]))])
def test_each_depth_means_what_it_says(depth: int, row: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(depth, row, 4))
    assert read_labels(tmp_path / "a.png").tolist() == [[0, 1, 1, 0]]


def test_four_bits_hold_fifteen_and_sixteen_bits_hold_more(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(4, bytes([0x3f]), 2))
    assert read_labels(tmp_path / "a.png").tolist() == [[3, 15]]
    (tmp_path / "b.png").write_bytes(png(16, bytes([0, 1, 1, 1]), 2))
    assert read_labels(tmp_path / "b.png").tolist() == [[1, 257]]


def test_the_size_is_looked_at_before_a_pixel_is_decoded(work: Path, run: Run, tmp_path: Path
                                                         ) -> None:
    """The file says 14,000 × 14,000, and holds no pixel at all: decoding it would tell."""
    content = png(8, b"", 1)
    header = struct.pack(">IIBBBBB", 14_000, 14_000, 8, 0, 0, 0, 0)
    big = (content[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + content[33:])
    (tmp_path / "back").mkdir()
    (tmp_path / "back/scene2.png").write_bytes(big)
    assert size_of_labels(tmp_path / "back/scene2.png") == (14_000, 14_000)
    said = "14000×14000 (height×width), its photo"
    assert said in take(work, tmp_path / "back").lines("error:")[0]
    # As a true mask, and as a label image of a tool.
    shutil.copy(tmp_path / "back/scene2.png", work.parent / "masks/scene2.png")
    assert run_in_process("prepare", "folder", work.parent / "photos", "--labels", work.parent
                          / "tags.csv", "--masks", work.parent / "masks", work=work).code == 0
    scored = run("eval", "--what", "masks/drawn", "--split", "train", work=work)
    assert "14000×14000 (height×width), " in scored.lines("error:")[0]
    path = Path(run("export", "mmseg", "--what", "drawn", "--split", "train", work=work
                    ).out.strip())
    shutil.copy(tmp_path / "back/scene2.png", path / "ann_dir/train/scene2.png")
    assert "14000×14000 (height×width), its photo scene2 is" in take(work, path).lines("error:")[0]


def test_python_beside_masks_is_not_run(work: Path, run: Run, tmp_path: Path) -> None:
    """mmsegmentation's export has a Python file, from which the names of classes are read."""
    result = run("export", "mmseg", "--what", "drawn", "--split", "train", work=work)
    path, mark = Path(result.out.strip()), tmp_path / "mark"
    labels = painted(work, "scene2", 2)
    Image.fromarray(labels).save(path / "ann_dir/train/scene2.png")
    with (path / "dataset.py").open("a") as file:
        file.write(f"\nopen({str(mark)!r}, 'w')\n")
    assert take(work, path).code == 0
    assert (masks_of(work / "corrections")["scene2"] == labels).all()
    assert not mark.exists()


# Tags, and backups.

def test_a_class_outside_the_tags_is_warned_of(work: Path, tmp_path: Path) -> None:
    photo = next(entry for entry in map(json.loads, (work / "images.jsonl").open())
                 if len(entry["labels"]) == 1 and "train" in entry["splits"])
    other = next(index for index, name in enumerate(("bar", "box", "disc"), 1)
                 if name not in photo["labels"])
    path = tmp_path / f"back/{photo['id']}.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(painted(work, photo["id"], other)).save(path)
    result = take(work, tmp_path / "back")
    assert result.code == 0, result.err
    assert any(f"1 mask shows a class that is not among the photo's tags: {photo['id']}" in line
               for line in result.lines("warning:"))


def test_a_backup_of_corrections_is_taken(work: Path, tmp_path: Path) -> None:
    labels = {"scene2": painted(work, "scene2", 1), "scene3": painted(work, "scene3", 3)}
    for key, values in labels.items():
        save_indexed(tmp_path / f"back/{key}.png", values, voc(*range(4)))
    assert take(work, tmp_path / "back").code == 0
    shutil.copytree(work / "corrections", tmp_path / "backup")
    shutil.rmtree(work / "corrections")
    result = take(work, tmp_path / "backup")
    assert result.code == 0, result.err
    found = masks_of(work / "corrections")
    assert all((found[key] == values).all() for key, values in labels.items())


def test_a_backup_is_taken_by_a_workspace_of_other_numbers(work: Path, tmp_path: Path) -> None:
    """The names of the classes count, which each mask brings with it."""
    save_indexed(tmp_path / "back/scene2.png", painted(work, "scene2", 1), voc(0, 1))
    assert take(work, tmp_path / "back").code == 0
    (tmp_path / "classes.txt").write_text("disc\nbox\nbar\n")
    new = work.parent / "new"
    again = run_in_process(
        "prepare", "folder", work.parent / "photos", "--labels", work.parent / "tags.csv",
        "--classes", tmp_path / "classes.txt", "--corrections", work / "corrections", work=new)
    assert again.code == 0, again.err
    assert (masks_of(new / "corrections")["scene2"] == painted(work, "scene2", 3)).all()
    (tmp_path / "classes.txt").write_text("disc\nbox\nbat\n")
    text = (work.parent / "tags.csv").read_text().replace("bar", "bat")
    (work.parent / "tags.csv").write_text(text)
    refused = run_in_process(
        "prepare", "folder", work.parent / "photos", "--labels", work.parent / "tags.csv",
        "--classes", tmp_path / "classes.txt", "--corrections", work / "corrections",
        work=work.parent / "other")
    assert refused.code == 1
    assert "scene2.png shows `bar`, which is not a class" in refused.lines("error:")[0]
    assert "did you mean `bat`?" in refused.lines("hint:")[0]


def test_tiffs_are_corrections_and_copies_of_photos_are_none(work: Path, tmp_path: Path) -> None:
    folder, (first, second, *_) = tmp_path / "tiffs", sorted(
        path.stem for path in (work.parent / "photos").iterdir())
    folder.mkdir()
    wanted = painted(work, first, 1)
    Image.fromarray(wanted.astype(np.uint16)).save(folder / f"{first}.tif")
    with Image.open(work.parent / f"photos/{second}.png") as photo:
        photo.save(folder / f"{second}.tif")
    result = take(work, folder)
    assert result.code == 0, result.err
    assert "1 corrected mask is imported" in result.err
    assert np.array_equal(read_labels(work / f"corrections/{first}.png"), wanted)
