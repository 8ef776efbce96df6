"""The paper's figures: what is drawn is what was measured, and no true mask is needed."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SHAPES, TRAIN, Result, copy_workspace, run_chain
from PIL import Image

from vpltool.core.training import labels_at
from vpltool.engine.segmenters import open_segmenter
from vpltool.formats import open_input, open_workspace, read_tensors
from vpltool.papers import figure4, figures
from vpltool.papers.figures import main


@pytest.fixture(scope="module")
def drawn(layered: Path, tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    """As `layered`, without true masks, with vision CAMs and a decoder without the contrast."""
    base = copy_workspace(layered, tmp_path_factory.mktemp("drawn") / "base", tiny_clip)
    shutil.rmtree(base / "masks")
    run_chain(base, (
        ("seed-prototypes", "--cams", "text"),
        ("learn-prototypes", "--pixels", "seeds", "--cams", "text", "--start", "seeds",
         "--iters", 2),
        ("cam", "--prototypes", "vision"), ("cam", "--prototypes", "vision", "--split", "val"),
        (*TRAIN, "--name", "plain", "--lambda-rsc", 0),
        ("train-decoder", "--method", "linear", *TRAIN[1:7], "--lambda-rsc", 0, "--iters", 1,
         "--name", "linear")))
    return base / "work"


def call(*arguments: object) -> Result:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*map(str, arguments)])
    return Result(code, out.getvalue(), err.getvalue())


def test_figure1_takes_the_photos_in_which_the_text_strays_most(drawn: Path) -> None:
    result = call("figure1", drawn, "--split", "train", "--limit", 2)
    assert result.code == 0, result.err
    assert result.out.strip() == str(drawn / "figures/figure1.png")
    areas = {}
    for photo in open_workspace(drawn).photos("train"):
        text, vision = (read_tensors(drawn / f"cams/{name}/train/{photo.id}.safetensors", "cams")[1]
                        for name in ("text", "vision"))
        for place, owner in enumerate(text["classes"].tolist()):
            one, two = (tensors["cam"][place].float().numpy() for tensors in (text, vision))
            if two.max() >= 0.5:
                areas[photo.id, SHAPES[owner - 1]] = np.maximum(one - two, 0).mean()
    first, second = (tuple(line.split(": ")) for line in result.err.splitlines())
    best = max(areas, key=lambda pair: areas[pair])
    assert first == best
    rest = {pair: area for pair, area in areas.items() if pair[0] != best[0] and pair[1] != best[1]}
    assert second == max(rest, key=lambda pair: rest[pair])


def test_figure1_of_named_photos(drawn: Path, tmp_path: Path) -> None:
    """A photo, and the two maps over it, one below the other."""
    out = tmp_path / "one.png"
    tag = _tags(drawn, "scene3")[-1]
    result = call("figure1", drawn, "--split", "train", "--id",
                  f"scene3:{tag},scene0", "--out", out)
    assert result.code == 0, result.err
    assert result.err.splitlines() == [f"scene3: {tag}", f"scene0: {_tags(drawn, 'scene0')[0]}"]
    with Image.open(out) as page:
        widths = []
        for key in ("scene3", "scene0"):
            with Image.open(drawn.parent / f"photos/{key}.png") as photo:
                widths.append(round(photo.width * 300 / photo.height))
        assert page.size == (46 + sum(widths) + 16, 46 + 3 * 308)
        shown = np.asarray(page)[46:346, 46 : 46 + widths[0]]
    with Image.open(drawn.parent / "photos/scene3.png") as photo:
        wanted = np.asarray(photo.resize((widths[0], 300), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(shown, wanted)


def _tags(work: Path, key: str) -> tuple[str, ...]:
    return next(photo.tags for photo in open_workspace(work).photos() if photo.id == key)


def test_stray_area_by_hand() -> None:
    text, vision = torch.tensor([[1.0, 0.5], [0.2, 0]]), torch.tensor([[0.0, 0.4], [0.9, 0]])
    assert figures.stray_area(text, vision) == pytest.approx((1.0 + 0.1) / 4)


def test_region_embeddings_are_means_over_the_masks(drawn: Path) -> None:
    decoder = open_segmenter(drawn / "decoder/tiny.safetensors").network()
    features = open_input(drawn / "features/train", ("features",))
    masks = open_input(drawn / "masks/text-refined/train", ("masks",))
    ids = [photo.id for photo in open_workspace(drawn).photos("train")]
    found, classes = figure4.region_embeddings(decoder, features, masks, ids)
    wanted, owners = [], []
    for key in ids:
        tensors = features.read_tensors(key)
        height, width = tensors["grid"].tolist()
        layers = tensors["layers"][[tensors["layer_index"].tolist().index(layer)
                                    for layer in decoder.layers]]
        seen = decoder.embeddings(layers[None].float(), tensors["patches"][None].float(),
                                  (height, width))[0].reshape(height, width, -1)
        labels = labels_at(masks.read_labels(key), (height, width))
        for owner in (1, 2, 3):
            total, weight = torch.zeros(seen.shape[-1]), 0.0
            for row in range(height):
                for column in range(width):
                    patch = labels[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                    share = float((patch == owner).float().mean())
                    total, weight = total + share * seen[row, column], weight + share
            if weight >= 1:
                wanted.append(F.normalize(total, dim=0))
                owners.append(owner)
    assert classes.tolist() == owners
    torch.testing.assert_close(found, torch.stack(wanted), atol=1e-5, rtol=0)


def test_compactness_against_loops() -> None:
    pytest.importorskip("sklearn")
    embeddings = F.normalize(torch.randn(20, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    classes = torch.arange(20) % 3
    cosines, owners = (embeddings @ embeddings.T).double().tolist(), classes.tolist()
    pairs = [(i, j) for i in range(20) for j in range(20) if i != j]
    within = [cosines[i][j] for i, j in pairs if owners[i] == owners[j]]
    between = [cosines[i][j] for i, j in pairs if owners[i] != owners[j]]
    silhouettes = []
    for i in range(20):
        means = [np.mean([1 - cosines[i][j] for j in range(20) if j != i and owners[j] == owner])
                 for owner in range(3)]
        own = means.pop(owners[i])
        silhouettes.append((min(means) - own) / max(min(means), own))
    found = figure4.compactness(embeddings, classes)
    assert found == pytest.approx({"silhouette": np.mean(silhouettes), "within": np.mean(within),
                                   "between": np.mean(between)}, abs=1e-5)


def draw4(work: Path, *options: object) -> Result:
    return call("figure4", work, "--split", "train", "--decoders", "plain,tiny",
                "--phi", "0.2", *options)


def test_figure4_draws_what_it_says_and_the_same_again(drawn: Path,
                                                       tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    result = draw4(drawn)
    assert result.code == 0, result.err
    report: dict[str, Any] = json.loads((drawn / "figures/figure4.json").read_text())
    assert report["masks"] == "text-refined", "those that the decoder learned from"
    assert [row["lambda_rsc"] for row in report["decoders"].values()] == [0, 1]
    for line, (name, row) in zip(result.out.splitlines()[-2:], report["decoders"].items(),
                                 strict=True):
        assert line.split() == [
            name, f"{row['lambda_rsc']:g}", str(row["regions"]),
            *(f"{row[key]:.3f}" for key in ("silhouette", "within", "between"))]
    with Image.open(drawn / "figures/figure4.png") as page:
        assert page.width > 3 * 900
    again = draw4(drawn, "--out", tmp_path / "again.png")
    assert again.code == 0, again.err
    for suffix in (".png", ".json"):
        assert (tmp_path / f"again{suffix}").read_bytes() == (
            drawn / f"figures/figure4{suffix}").read_bytes()


def test_the_usual_pairs_of_decoders(tmp_path: Path) -> None:
    """Of the demo; where these are not there, of the tables; and those that are named."""
    (tmp_path / "decoder").mkdir()

    def add(*names: str) -> None:
        for name in names:
            (tmp_path / "decoder" / f"{name}.safetensors").touch()

    demo, tables = ["decoder-0-0", "decoder-1-0"], ["decoder-ce-0", "decoder-0"]
    assert figure4.pair_of(tmp_path, None) == demo
    add("decoder-ce-0", "decoder-0", "decoder-0-0")
    assert figure4.pair_of(tmp_path, None) == tables
    assert figure4.pair_of(tmp_path, "a,b") == ["a", "b"]
    add("decoder-1-0")
    assert figure4.pair_of(tmp_path, None) == demo


def test_figure4_of_features_beside_those_of_the_split(
    drawn: Path, tmp_path: Path, tiny_clip: Path
) -> None:
    """The hint makes them elsewhere, and the picture is that of features with layers."""
    pytest.importorskip("sklearn")
    base = copy_workspace(drawn.parent, tmp_path / "base", tiny_clip)
    for name, usual in (("plain", "decoder-ce-0"), ("tiny", "decoder-0")):
        (base / f"work/decoder/{name}.safetensors").rename(
            base / f"work/decoder/{usual}.safetensors")
    run_chain(base, (("extract", "--workers", 0, "--overwrite"),))
    before = {path: path.read_bytes() for path in (base / "work").rglob("*") if path.is_file()}
    arguments = ("figure4", base / "work", "--split", "train", "--phi", "0.2")
    refused = call(*arguments)
    assert refused.code == 1
    assert "lacks layers" in refused.lines("error:")[0]
    command, _, option = refused.lines("hint:")[0].partition(", and ")
    *_, where = option.split()
    assert command == (f"vpltool -C {base / 'work'} extract --split train --keep tokens,patches,"
                       f"attention,layers --layers 0,1 --out {where}")
    run_chain(base, (tuple(command.split()[3:]),))
    assert {path: path.read_bytes() for path in before} == before
    assert call(*arguments, *option.split()).code == 0
    wanted = draw4(drawn, "--out", tmp_path / "wanted.png")
    assert wanted.code == 0, wanted.err
    assert (base / "work/figures/figure4.png").read_bytes() == (
        tmp_path / "wanted.png").read_bytes()


REFUSED: dict[str, tuple[tuple[object, ...], str, str]] = {
    "photo": (("figure1", "--split", "train", "--id", "scene99"), "scene99", "scene"),
    "tag": (("figure1", "--split", "train", "--id", "scene0:cat"), "cat", ""),
    "cams": (("figure1", "--split", "train", "--text", "tekst", "--vision", "vision"), "tekst",
             "text"),
    "no pair": (("figure1", "--split", "tset"), "`tset`", "work cam"),
    "decoder": (("figure4", "--decoders", "plain,tyni"), "tyni", "tiny"),
    "a decoder without embeddings": (("figure4", "--decoders", "plain,linear"), "no embeddings",
                                     "train-decoder"),
    "masks of the split": (("figure4", "--decoders", "plain,tiny", "--split", "val"),
                           "masks/text-refined", "work crf --what text-refined --split val"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, drawn: Path, tmp_path: Path) -> None:
    (figure, *options), said, hint = REFUSED[name]
    if figure == "figure4":
        pytest.importorskip("sklearn")
    result = call(figure, drawn, *options, "--out", tmp_path / "none.png")
    assert result.code == 1, result.out
    assert said in result.lines("error:")[0]
    assert hint in result.lines("hint:")[0]
    assert list(tmp_path.iterdir()) == []


def test_without_scikit_learn(drawn: Path) -> None:
    with mock.patch.dict(sys.modules, {"sklearn": None}):
        result = draw4(drawn)
    assert result.code == 1
    assert "scikit-learn" in result.lines("error:")[0]
    assert "vpltool[figures]" in result.lines("hint:")[0]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("figure", ["figure1", "figure4"])
def test_make(figure: str) -> None:
    said = subprocess.run(["make", "--no-print-directory", "-n", figure, "WORKSPACE=some/dir",
                           "OPTIONS=--split train"], cwd=Path(__file__).parents[2],
                          capture_output=True, text=True, check=True)
    line = said.stdout.splitlines()[-1]
    assert line.endswith(f"python -m vpltool.papers.figures {figure} some/dir --split train")
