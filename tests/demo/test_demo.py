"""The demo: its workspace, the CLIP that comes with it, and the tutorial written against it."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from conftest import Run
from test_docs import blocks, commands

import vpltool.demo
from vpltool.clip.load import load_clip
from vpltool.core.photos import fit_size, read_photo, to_pixels
from vpltool.demo.scenes import CLASSES, draw_scene
from vpltool.formats import open_workspace, read_labels

CLIP = Path(vpltool.demo.__path__[0]) / "clip"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    work = tmp_path_factory.mktemp("demo") / "work"
    result = run("demo", "--images", 12, work=work)
    assert result.code == 0, result.err
    assert result.out.strip() == str(work / "workspace.json")
    return work


def test_the_workspace_holds_what_was_drawn(world: Path) -> None:
    workspace = open_workspace(world)
    assert workspace.classes == CLASSES
    photos = workspace.photos("")
    assert [len(workspace.photos(split)) for split in ("train", "val")] == [12, 4]
    for number, photo in enumerate(photos):
        scene = draw_scene(0, number)
        assert photo.tags == scene.tags
        assert photo.captions == tuple(dict.fromkeys(scene.captions))
        assert photo.mask is not None
        assert (read_labels(world / photo.mask) == scene.labels).all()
        shown = read_photo(workspace.image_path(photo)).astype(int)
        assert abs(shown - scene.image).mean() < 6, "JPEG changes a little, not more"


def test_tags_csv_is_a_plain_one(world: Path, run: Run, tmp_path: Path) -> None:
    """`prepare folder` takes the very files: they are an example of one's own."""
    with (world / "tags.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16
    result = run("prepare", "folder", world / "photos", "--labels", world / "tags.csv", "--masks",
                 world / "truth", "--pretrained", world / "clip", "--captions",
                 world / "captions.csv", work=tmp_path / "work")
    assert result.code == 0, result.err
    own, drawn = ({photo.id: (photo.tags, photo.captions)
                   for photo in open_workspace(path).photos("")}
                  for path in (tmp_path / "work", world))
    assert own == drawn


def test_again_does_nothing_and_another_seed_is_refused(world: Path, run: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in world.rglob("*") if path.is_file()}
    assert run("demo", "--images", 12, work=world).code == 0
    refused = run("demo", "--images", 12, "--seed", 1, work=world)
    assert refused.code == 1
    assert "16 photos such as s0-0000, not 16 such as s1-0000" in refused.lines("error:")[0]
    assert "vpltool demo --images 12 --seed 1 --overwrite replaces it" in refused.err
    after = {path: path.stat().st_mtime_ns for path in world.rglob("*") if path.is_file()}
    assert after == before


def test_a_lost_photo_is_drawn_again(world: Path, run: Run, tmp_path: Path) -> None:
    lost = next((world / "photos").iterdir())
    content = lost.read_bytes()
    lost.unlink()
    assert run("demo", "--images", 12, work=world).code == 0
    assert lost.read_bytes() == content


def test_the_clip_is_small_and_says_how_it_was_trained() -> None:
    assert sum(path.stat().st_size for path in CLIP.iterdir()) <= 12_000_000
    facts = json.loads((CLIP / "training.json").read_text())
    assert facts["after"]["top1"] > facts["before"]["top1"]
    assert {"seed", "steps", "device", "minutes"} <= set(facts)


@torch.no_grad()
def test_the_clip_knows_unseen_scenes() -> None:
    """Zero-shot by `a photo of a CLASS`, 36 scenes of one class; chance is 1 in 12."""
    clip = load_clip("clip", str(CLIP), torch.device("cpu"))
    words = clip.encode_text([f"a photo of a {name}" for name in CLASSES])
    right, number = 0, 0
    seen = []
    while len(seen) < 36:
        scene = draw_scene(31, number)
        number += 1
        if len(scene.tags) == 1:
            size = fit_size(scene.labels.shape, clip.vision.patch)
            seen.append((to_pixels(scene.image, size, clip.mean, clip.std), scene.tags[0]))
    tokens = clip.vision.head.block(clip.vision(torch.stack([pixels for pixels, _ in seen]),
                                                patches="none", attention=False).tokens)
    best = (clip.vision.head.pooled(tokens) @ words.T).argmax(dim=1).tolist()
    right = sum(CLASSES[place] == tag for place, (_, tag) in zip(best, seen, strict=True))
    assert right >= 27, f"{right} of 36"


def test_the_tutorial_runs(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of the page, from top to bottom, on twelve scenes and with three iterations."""
    lines = [line for block in blocks(ROOT / "docs/tutorial.md") for line in commands(block)]
    assert len(lines) > 20
    monkeypatch.setattr("vpltool.parallel.device.default_workers", lambda: 0)
    monkeypatch.chdir(tmp_path)
    for line in lines:
        quick = re.sub(r"--iters [1-9]\d*", "--iters 3", line)
        quick = re.sub(r"vpltool demo", "vpltool demo --images 12", quick)
        result = run(*shlex.split(quick)[1:], work=tmp_path / "work/demo")
        assert result.code == 0, f"{line}: {result.err}"
