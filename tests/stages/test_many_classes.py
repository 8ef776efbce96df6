"""More than 254 classes: labels of 16 bits from the true masks to the scores; 255 stays ignored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import SHAPES, Run, draw_scenes, write_scenes
from PIL import Image

from vpltool.core.crf import labels_at
from vpltool.core.metrics import confusion
from vpltool.engine.scored import Scores, read_scored, refined_in_tiles
from vpltool.formats import Header, open_input, open_workspace, read_labels, write_labels
from vpltool.formats.kinds import RESERVED, numbered

COUNT = 1200
LINES = {"bar": 100, "box": 255, "disc": 1200}
"""Line of each shape in the class file, counted from 1: its value in the true masks."""

LABELS = {"bar": 100, "box": 256, "disc": 1201}
"""Its label: 255 is left out."""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path, run: Run) -> Path:
    base = tmp_path_factory.mktemp("many")
    write_scenes(base, draw_scenes())
    for path in (base / "masks").glob("*.png"):
        with Image.open(path) as image:
            shown = np.asarray(image)
        table = np.zeros(256, np.uint16)
        table[1:4], table[255] = [LINES[shape] for shape in SHAPES], 65535
        Image.fromarray(table[shown]).save(path)
    names = {number: shape for shape, number in LINES.items()}
    (base / "names.txt").write_text("".join(
        f"{names.get(line, f'thing {line}')}\n" for line in range(1, COUNT + 1)))
    for line in (
            ("prepare", "folder", base / "photos", "--labels", base / "tags.csv", "--masks",
             base / "masks", "--classes", base / "names.txt", "--pretrained", tiny_clip),
            ("text-prototypes",), ("extract", "--keep", "tokens,patches,layers", "--workers", 0),
            ("extract", "--split", "val", "--keep", "tokens,patches,layers", "--workers", 0),
            ("cam",), ("cam", "--split", "val"),
            ("crf", "--what", "text", "--alpha", 8, "--confidence", 0.5),
            ("train-decoder", "--masks", "text", "--prototypes", "text", "--name", "many",
             "--iters", 20, "--crop", 3, "--width", 8, "--batch-size", 2),
            ("predict", "--decoder", "many", "--workers", 0),
            ("eval", "--what", "cams/text", "--split", "val", "--threshold", 0.4),
            ("eval", "--what", "masks/text-full", "--split", "train"),
            ("eval", "--what", "predictions/many", "--split", "val"),
            ("show", "masks/text", "--split", "train", "--limit", 2,
             "--out", base / "sheet.png")):
        result = run(*line, work=base / "work")
        assert result.code == 0, f"{line}: {result.err}"
    return base / "work"


def test_255_is_no_class(work: Path) -> None:
    classes = open_workspace(work).classes
    assert len(classes) == COUNT + 1 and classes[254] == RESERVED
    assert {shape: classes.index(shape) + 1 for shape in SHAPES} == LABELS
    assert numbered(classes) == classes and numbered(SHAPES) == SHAPES


def test_masks_have_16_bits_and_the_labels_of_their_tags(work: Path) -> None:
    seen = set()
    for photo in open_workspace(work).photos("train"):
        path = work / f"masks/text/train/{photo.id}.png"
        found = set(np.unique(read_labels(path)).tolist())
        assert found <= {0, 255, *(LABELS[tag] for tag in photo.tags)}
        if max(found) > 255:
            with Image.open(path) as image:
                assert image.mode == "I;16"
        seen |= found
    assert {256, 1201} <= seen, "a random CLIP need not find all, but labels above 255"


def test_scores_are_of_the_true_classes(work: Path) -> None:
    """What CAMs and masks score cannot come from classes that are cut to bytes."""
    files = {path.name: json.loads(path.read_text()) for path in (work / "scores").glob("*.json")}
    scored = next(content for name, content in files.items() if "full" in name)
    truth = {photo.id: np.asarray(Image.open(work / open_workspace(work).root / str(photo.mask)))
             for photo in open_workspace(work).photos("train")}
    value = {LINES[shape]: label for shape, label in LABELS.items()}
    right = counted = 0
    for key, values in truth.items():
        labels = np.zeros(values.shape, int)
        for line, label in value.items():
            labels[values == line] = label
        made = read_labels(work / f"masks/text-full/train/{key}.png")
        right += int((labels == made)[values != 65535].sum())
        counted += int((values != 65535).sum())
    accuracy = 100 * right / counted
    assert round(accuracy, 1) in {round(float(number), 1) for number in _numbers(scored)}, accuracy


def _numbers(content: object) -> list[float]:
    if isinstance(content, dict):
        return [number for value in content.values() for number in _numbers(value)]
    if isinstance(content, list):
        return [number for value in content for number in _numbers(value)]
    if isinstance(content, (int, float)):
        return [content, 100 * content]
    return []


def test_wide_labels_survive_a_file(tmp_path: Path) -> None:
    labels = np.array([[0, 255, 256], [65534, 1, 300]], np.uint16)
    write_labels(tmp_path / "a.png", labels, Header(kind="masks", command="crf"))
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), labels)
    low = labels.clip(0, 255)
    write_labels(tmp_path / "b.png", low, Header(kind="masks", command="crf"))
    assert read_labels(tmp_path / "b.png").dtype == np.uint8


def test_confusion_and_argmax_of_many_classes() -> None:
    rng = np.random.default_rng(0)
    truth, made = (rng.choice([0, 3, 255, 256, 1202], (40, 50)).astype(np.uint16)
                   for _ in range(2))
    counts = confusion(truth, made, 1203).matrix()
    seen = np.where(made == 255, 0, made)
    for one in (0, 3, 256, 1202):
        for other in (0, 3, 256, 1202):
            assert counts[one, other] == ((truth == one) & (seen == other)).sum()
    assert counts.sum() == (truth != 255).sum()
    with pytest.raises(ValueError, match="1202"):
        confusion(truth, made, 300)
    marginals = rng.random((3, 4, 5)).astype(np.float32)
    labels = labels_at(marginals, np.array([0, 7, 900]), confidence=0.7)
    assert labels.dtype == np.uint16
    assert set(np.unique(labels).tolist()) <= {0, 7, 900, 255}


def test_a_photo_s_tags_alone_take_part_in_the_crf(work: Path) -> None:
    """Of 1,201 classes; as in each tile of it."""
    workspace = open_workspace(work)
    source = open_input(work / "cams/text/train", ("cams",))
    for photo in workspace.photos("train"):
        for tile in (0, 16):
            read = read_scored(Scores(source, 1.0, 0, workspace.classes, tile=tile),
                               (photo.id, workspace.image_path(photo)))
            assert read.classes.tolist() == [0, *sorted(LABELS[tag] for tag in photo.tags)]
            assert len(read.scored.scores) == (0 if tile else len(read.classes))
            rows = list(refined_in_tiles(read, tile, lambda one: one.scores)) if tile else []
            assert all(len(row) == len(read.classes) for row in rows)


def test_scores_of_so_many_have_no_confusion_matrix(work: Path, run: Run) -> None:
    """A report of them is made all the same."""
    for path in (work / "scores").glob("*.json"):
        content = json.loads(path.read_text())
        assert "confusion" not in content and len(content["iou"]) == COUNT + 2
    assert run("report", "--limit", 1, "--split", "val", work=work).code == 0


def test_review_refuses_so_many(work: Path, run: Run) -> None:
    result = run("review", "--port", 0, work=work)
    assert result.code == 1 and "254 classes" in result.err
