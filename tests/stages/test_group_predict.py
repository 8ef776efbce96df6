"""`predict` with trained groups: any words, no tags; and what takes its results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run, copy_workspace
from PIL import Image
from torch import Tensor

from vpltool import Segmenter, VplError
from vpltool import Workspace as Notebook
from vpltool.core.grids import window_starts
from vpltool.core.group_maps import GroupView, segment_by_groups, with_background
from vpltool.core.groups import GroupNetwork
from vpltool.core.photos import PhotoSettings, read_photo, to_pixels
from vpltool.engine.groups import GroupSettings, read_groups, text_encoder, view_of
from vpltool.formats import describe, open_workspace, read_labels, read_tensors
from vpltool.preset import read_preset
from vpltool.stages.train_groups import TrainGroupsSettings, shape_of

SIZES = ("--side", 16, "--patch", 4, "--width", 12, "--heads", 2, "--depths", "1,1,1",
         "--groups", "6,3", "--hidden", 8, "--npr-hidden", 8)
TRAIN = ("train-groups", *SIZES, "--iters", 4, "--batch-size", 4, "--lr", 1e-2, "--workers", 0)
PREDICT = ("predict", "--segmenter", "groups", "--workers", 0)


@pytest.fixture(scope="module")
def grouped(ready: Path, tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path, run: Run
            ) -> Path:
    """As `ready`, with captions, groups/groups and predictions of `train`. Leave it as it is."""
    base = copy_workspace(ready, tmp_path_factory.mktemp("grouped") / "base", tiny_clip)
    work = base / "work"
    lines = [json.loads(line) for line in (work / "images.jsonl").read_text().splitlines()]
    (work / "images.jsonl").write_text("".join(json.dumps(
        line | {"captions": [f"a photo of a {line['labels'][0]}"]}) + "\n" for line in lines))
    for command in (TRAIN, (*PREDICT, "--split", "train", "--threshold", 0)):
        result = run(*command, work=work)
        assert result.code == 0, result.err
    return work


@pytest.fixture
def work(grouped: Path, tmp_path: Path, tiny_clip: Path) -> Path:
    """A copy that a test may change."""
    return copy_workspace(grouped.parent, tmp_path / "copy", tiny_clip) / "work"


def ok(run: Run, work: Path, *command: object) -> str:
    result = run(*command, work=work)
    assert result.code == 0, f"{command}: {result.err}"
    return result.err


def header_of(path: Path) -> Any:
    return describe(path).header


def stale(work: Path) -> dict[str, Any]:
    return {entry["name"]: entry["stale"] for entry in Notebook(work).status()
            if entry["stale"] and "groups" in entry["name"]}


def slow_scores(work: Path, photo: Path, view: GroupView, short: int, words: list[str]) -> Tensor:
    """Probabilities of a photo, written out window by window; (1 + C, 4h, 4w)."""
    header, network = read_groups(work / "groups/groups.safetensors")
    patch = network.shape.patch
    encode = text_encoder(open_workspace(work), network, header.model, torch.device("cpu"))
    texts = torch.cat([encode([f"a photo of a {word}."]) for word in words])
    rgb = read_photo(photo)
    height, width = (-(-round(side * short / min(rgb.shape[:2]), 6) // patch) * patch
                     for side in rgb.shape[:2])
    facts = header.facts
    pixels = to_pixels(rgb, (int(height), int(width)), facts["mean"], facts["std"])[None]
    total = torch.zeros(1 + len(words), int(height) // patch * 4, int(width) // patch * 4)
    count = torch.zeros(total.shape[1:])
    scale = network.log_scale.exp().clamp_max(100)
    for top in window_starts(pixels.shape[2], view.window, view.stride):
        for left in window_starts(pixels.shape[3], view.window, view.stride):
            crop = pixels[:, :, top : top + view.window, left : left + view.window]
            with torch.no_grad():
                seen = network.vision(crop)
                parts = torch.nn.functional.normalize(network.project_vision(seen.segments[0]),
                                                      dim=-1)
                whole = network.embed_photos(seen)[0]
            grid = (crop.shape[2] // patch, crop.shape[3] // patch)
            one, two = seen.stages
            shares = (two.soft @ one.soft)[0].unflatten(1, grid)
            fine = torch.nn.functional.interpolate(
                shares[None], size=(4 * grid[0], 4 * grid[1]), mode="bilinear")[0]
            logits = scale * parts @ texts.T
            allowed = (whole @ texts.T).argsort(descending=True)[: view.top or len(words)]
            best = torch.full_like(logits, -torch.inf)
            best[:, allowed] = logits[:, allowed]
            scores = best.softmax(-1) * logits.softmax(-1)
            maps = scores[fine.argmax(0)].permute(2, 0, 1)
            y, x = top // patch * 4, left // patch * 4
            place = (slice(y, y + 4 * grid[0]), slice(x, x + 4 * grid[1]))
            total[1:, place[0], place[1]] += maps
            total[0, place[0], place[1]] += min(float(maps.max()), view.threshold)
            count[place] += 1
    mean = total / count
    return mean / mean.sum(0)


@pytest.mark.parametrize(("window", "stride", "top", "threshold"), [
    (32, 16, 2, 0.0), (16, 8, 0, 0.3), (24, 12, 1, 0.95), (400, 400, 2, 0.2)])
def test_windows_groups_and_background_as_written_out(
        work: Path, window: int, stride: int, top: int, threshold: float) -> None:
    header, network = read_groups(work / "groups/groups.safetensors")
    workspace = open_workspace(work)
    texts = text_encoder(workspace, network, header.model, torch.device("cpu"))(
        [f"a photo of a {word}." for word in workspace.classes])
    view = GroupView(window, stride, threshold, top)
    photos = workspace.photos("train")[:4:2]
    facts = header.facts
    settings = PhotoSettings(4, tuple(facts["mean"]), tuple(facts["std"]), short_side=32)
    pixels = []
    for photo in photos:
        rgb = read_photo(workspace.image_path(photo))
        pixels.append(to_pixels(rgb, settings.fit(rgb.shape[:2]), settings.mean, settings.std))
    found = segment_by_groups(network, torch.stack(pixels), texts, view, groups=True)
    for photo, scores in zip(photos, found, strict=True):
        wanted = slow_scores(work, workspace.image_path(photo), view, 32, list(workspace.classes))
        assert scores.probabilities.shape == wanted.shape
        # A tie between groups may fall either way.
        close = (scores.probabilities - wanted).abs().amax(0) < 1e-3
        assert close.float().mean() > 0.99
        assert scores.groups is not None
        assert scores.groups.first.shape == (6, *scores.maps.shape[1:])
        most = scores.probabilities[1:].flatten(1).amax(1)
        assert ((scores.maps.flatten(1).amax(1) > 0) == (most > 0)).all()


def test_the_strongest_group_is_left_above_a_high_threshold() -> None:
    scores = torch.tensor([[[0.2, 0.3]], [[0.1, 0.4]]])
    for threshold, labels in ((0.95, [0, 2]), (0.25, [0, 2]), (0.15, [1, 2]), (0.4, [0, 2])):
        assert with_background(scores, threshold).argmax(0)[0].tolist() == labels


@pytest.mark.parametrize(("length", "side", "step", "starts"), [
    (448, 448, 224, [0]), (600, 448, 224, [0, 152]), (672, 448, 224, [0, 224]),
    (673, 448, 224, [0, 224, 225]), (300, 448, 224, [0]), (20, 4, 4, [0, 4, 8, 12, 16])])
def test_windows_cover_a_side(length: int, side: int, step: int, starts: list[int]) -> None:
    assert list(window_starts(length, side, step)) == starts


def test_what_is_written_of_a_split(grouped: Path) -> None:
    workspace = open_workspace(grouped)
    for kind in ("predictions", "probabilities", "cams", "group-maps"):
        header = header_of(grouped / kind / "groups/train" / (
            "scene0.png" if kind == "predictions" else "scene0.safetensors"))
        assert (header.kind, header.command) == (kind, "predict")
        assert header.inputs["classes"] == workspace.classes_identity
        assert header.options == {"split": "train", "threshold": 0.0}
    maps = read_tensors(grouped / "cams/groups/train/scene0.safetensors", "cams")[1]
    assert maps["cam"].min() >= 0
    assert maps["cam"].max() <= 1
    assert set(maps["classes"].tolist()) <= {1, 2, 3}
    groups = read_tensors(grouped / "group-maps/groups/train/scene0.safetensors", "group-maps")[1]
    for shares in groups.values():
        assert torch.allclose(shares.float().sum(0), torch.ones(1), atol=0.01)
    labels = read_labels(grouped / "predictions/groups/train/scene0.png")
    assert labels.shape == read_photo(workspace.image_path(workspace.photos("train")[0])).shape[:2]


def test_any_words_any_photo_no_tags(run: Run, work: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("a red thing\ngrass\nsky\nbar\n")
    images = tmp_path / "new"
    images.mkdir()
    for number in range(2):
        Image.fromarray(np.random.default_rng(number).integers(
            0, 255, (50, 70, 3)).astype(np.uint8)).save(images / f"{number}.jpg")
    words = ("--classes", tmp_path / "words.txt", "--threshold", 0)
    ok(run, work, *PREDICT, *words, "--overlay", images)
    folder = work / "predictions/groups/new"
    for number in range(2):
        labels = read_labels(folder / f"{number}.png")
        assert labels.shape == (50, 70)
        assert labels.max() <= 4
    assert len(list((work / "pictures/predictions/groups/new").iterdir())) == 2
    assert stale(work) == {}
    (tmp_path / "words.txt").write_text("a red thing\ngrass\nsky\ncloud\n")
    assert stale(work).keys() == {"predictions/groups/new"}
    (tmp_path / "words.txt").write_text("a red thing\ngrass\nsky\nbar\n")
    # Their numbers mean other names than the workspace's.
    for command in (("show", folder), ("crf", "--what", folder, "--workers", 0)):
        result = run(*command, work=work)
        assert result.code == 1
        assert "made with other classes than the workspace has" in result.err
    one = ok(run, work, *PREDICT, *words, images / "0.jpg", "--out", tmp_path / "one.png")
    assert one is not None
    assert (read_labels(tmp_path / "one.png") == read_labels(folder / "0.png")).all()


def test_other_words_of_a_split_are_other_predictions(run: Run, work: Path, tmp_path: Path
                                                      ) -> None:
    (tmp_path / "words.txt").write_text("bar\nbox\n")
    words = (*PREDICT, "--split", "train", "--threshold", 0, "--classes", tmp_path / "words.txt")
    refused = run(*words, work=work)
    assert refused.code == 1
    assert "classes" in refused.lines("error:")[0]
    ok(run, work, *words, "--overwrite")
    assert stale(work).keys() <= {"predictions/groups/new"}
    # The words that the workspace has, from a file, are the same.
    (tmp_path / "words.txt").write_text("bar\nbox\ndisc\n")
    ok(run, work, *words, "--overwrite")
    ok(run, work, "eval", "--what", "predictions/groups", "--split", "train")


@pytest.mark.parametrize("command", [
    ("eval", "--what", "predictions/groups", "--split", "train"),
    ("eval", "--what", "cams/groups", "--split", "train"),
    ("crf", "--what", "predictions/groups", "--split", "train", "--workers", 0),
    ("crf", "--what", "cams/groups", "--split", "train", "--workers", 0),
    ("refine", "--cams", "groups", "--split", "train"),
    ("seed-prototypes", "--cams", "groups", "--phi", 0.05, "--phi-background", 0.01),
    ("seed-prototypes", "--cams", "groups", "--pixels", "regions"),
    ("learn-prototypes", "--cams", "groups", "--phi", 0.05, "--pixels", "seeds", "--iters", 2),
    ("show", "predictions/groups", "cams/groups", "group-maps/groups", "--limit", 2),
], ids=lambda command: f"{command[0]} {command[2]}")
def test_they_go_on_like_any_others(command: tuple[object, ...], run: Run, work: Path) -> None:
    ok(run, work, *command)


def test_seeds_of_photos_without_tags(run: Run, work: Path) -> None:
    path = work / "images.jsonl"
    lines = [json.loads(line) | {"labels": []} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ok(run, work, "seed-prototypes", "--cams", "groups", "--phi", 0.05, "--phi-background", 0.01)
    header, tensors = read_tensors(work / "prototypes/seeds.safetensors", "prototypes")
    assert {1, 2, 3} <= set(tensors["class_index"].tolist())
    assert header.inputs["cams"]


def test_show_draws_the_groups_of_both_stages(run: Run, work: Path) -> None:
    ok(run, work, "show", "group-maps/groups", "--limit", 1, "--no-truth", "--out",
       work / "groups.png")
    ok(run, work, "show", "predictions/groups", "--limit", 1, "--no-truth", "--out",
       work / "one.png")
    with Image.open(work / "groups.png") as three, Image.open(work / "one.png") as two:
        assert three.width > two.width, "the photo and both stages"
    ok(run, work, "show")


def test_groups_are_taken_where_there_is_no_decoder(run: Run, work: Path) -> None:
    assert "`" not in ok(run, work, "predict", "--split", "val", "--workers", 0, "--limit", 1)
    assert (work / "predictions/groups/val/artifact.json").exists()


WRONG: dict[str, tuple[tuple[object, ...], str, str]] = {
    "name": (("--segmenter", "gruops"), "no segmenter called `gruops`", "groups"),
    "words": (("--segmenter", "groups", "--classes", "none.txt"), "none.txt", ""),
    "window": (("--segmenter", "groups", "--window", 30), "--window 30 is not a multiple",
               "--window 32"),
    "features": (("--segmenter", "tiny", "--classes", "words.txt"), "no segmenter called `tiny`",
                 ""),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_refused(case: str, run: Run, grouped: Path) -> None:
    options, said, hint = WRONG[case]
    result = run("predict", *options, "--split", "val", "--workers", 0, work=grouped)
    assert result.code == 1
    assert said in result.lines("error:")[0]
    assert hint in "".join(result.lines("hint:"))
    assert not (grouped / "predictions/groups/val").exists()


def test_settings_without_effect_are_warned_of(run: Run, work: Path) -> None:
    said = ok(run, work, *PREDICT, "--split", "val", "--flip", "--scales", "1,0.5", "--limit", 1)
    assert "--flip" in said
    assert "--scales 1,0.5" in said
    assert said.count("has no effect") == 2


def test_words_are_not_for_decoders(run: Run, layered: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("bar\n")
    result = run("predict", "--decoder", "tiny", "--classes", tmp_path / "words.txt",
                 work=layered / "work")
    assert result.code == 1
    assert "knows its classes" in result.lines("error:")[0]


@pytest.mark.parametrize(("data", "threshold"), [
    ("voc", 0.95), ("coco", 0.85), ("context", 0.36)])
def test_the_papers_protocol(data: str, threshold: float) -> None:
    found = read_preset(f"pgseg-{data}").defaults["predict"]
    assert {found[name] for name in ("short_side", "window")} == {448}
    assert (found["stride"], found["top"], found["threshold"]) == (224, 5, threshold)
    # A network of 224 pixels is seen so without a preset, too.
    shape = shape_of(TrainGroupsSettings(side=224, width=12, heads=2, depths="1,1,1", hidden=8,
                                         npr="none"))
    short, view = view_of(GroupNetwork(shape), GroupSettings())
    assert (short, view) == (448, GroupView(448, 224, 0.95, 5))


def test_in_memory_the_labels_are_those_of_predict(run: Run, work: Path, tmp_path: Path,
                                                   tiny_clip: Path) -> None:
    workspace, file = open_workspace(work), work / "groups/groups.safetensors"
    photo = workspace.image_path(workspace.photos("train")[0])
    segmenter = Segmenter.load(file, threshold=0)
    assert segmenter.classes == workspace.classes
    result = segmenter(photo)
    written = read_labels(work / "predictions/groups/train/scene0.png")
    assert (result.labels == written).mean() > 0.995
    np.testing.assert_allclose(result.probabilities.sum(axis=0), 1, atol=1e-4)
    shared = tmp_path / "shared.safetensors"
    shared.write_bytes(file.read_bytes())
    other = Segmenter.load(shared, classes=["grass", "a red bar"], pretrained=tiny_clip)
    assert other(photo).probabilities.shape[0] == 3
    with pytest.raises(VplError, match="none are given"):
        Segmenter.load(shared, pretrained=tiny_clip)
    with pytest.raises(VplError, match="not mirrored"):
        segmenter(photo, flip=True)


def test_a_decoder_in_memory_takes_no_other_words(layered: Path) -> None:
    with pytest.raises(VplError, match="is a decoder for .* only"):
        Segmenter.load(layered / "work/decoder/tiny.safetensors", classes=["cat"])
