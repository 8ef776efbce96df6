"""`gap` and `shift-gap` through the command line: numbers, files, pictures, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SHAPES, Run
from PIL import Image
from torch import Tensor

from vpltool.formats import describe, read_tensors

SEEDED = ("--pixels", "seeds", "--cams", "text", "--phi", "0.6", "--phi-background", "0.3")


def learned(run: Run, work: Path, *how: object) -> None:
    for command in (("seed-prototypes", *SEEDED, *how),
                    ("learn-prototypes", *SEEDED, "--start", "seeds", "--iters", 2)):
        result = run(*command, work=work)
        assert result.code == 0, result.err


def measure(run: Run, work: Path, *options: object) -> dict[str, Any]:
    result = run("gap", "--json", "--cams", "text", "--phi", "0.6", *options, work=work)
    assert result.code == 0, result.err
    report: dict[str, Any] = json.loads(result.out)
    return report


def rows_of(path: Path) -> tuple[Tensor, Tensor]:
    _, tensors = read_tensors(path, "prototypes")
    return tensors["prototypes"], tensors["class_index"]


def regions_of(work: Path, phi: float) -> list[tuple[int, Tensor]]:
    """Class and feature of each region, patch by patch."""
    found = []
    for number in range(6):
        name = f"scene{number}.safetensors"
        patches = read_tensors(work / "features/train" / name, "features")[1]["patches"].float()
        cam = read_tensors(work / "cams/text/train" / name, "cams")[1]
        for place, owner in enumerate(cam["classes"].tolist()):
            mine = [F.normalize(patch, dim=0)
                    for patch, scores in zip(patches, cam["cam"].flatten(1).T, strict=True)
                    if int(scores.argmax()) == place and scores[place] >= phi]
            if mine:
                found.append((owner, F.normalize(torch.stack(mine).mean(0), dim=0)))
    return found


def test_the_numbers_are_those_of_plain_loops(run: Run, copied: Path) -> None:
    work = copied / "work"
    report = measure(run, work)
    regions = regions_of(work, 0.6)
    text, index = rows_of(work / "prototypes/text.safetensors")
    assert (report["kind"], report["split"], report["photos"]) == ("gap", "train", 6)
    assert list(report["prototypes"]) == ["text"]
    ours, theirs, cosines = [], [], []
    for owner, name in enumerate(SHAPES, 1):
        if owner not in {other for other, _ in regions}:
            assert name not in report["classes"]
            continue
        row = text[index == owner][0]
        mine = torch.stack([feature for other, feature in regions if other == owner])
        assert report["classes"][name]["regions"] == len(mine)
        found = report["prototypes"]["text"]["classes"][name]
        assert found["cosine"] == pytest.approx(float((1 - mine @ row).mean()), abs=1e-5)
        assert found["centroid"] == pytest.approx(float((row - mine.mean(0)).norm()), abs=1e-5)
        cosines.append(found["cosine"])
        ours.append(row)
        theirs.append(mine.mean(0))
    assert len(cosines) > 1
    whole = report["prototypes"]["text"]
    assert whole["cosine"] == pytest.approx(np.mean(cosines), abs=1e-5)
    apart = torch.stack(ours).mean(0) - torch.stack(theirs).mean(0)
    assert whole["centroid"] == pytest.approx(float(apart.norm()), abs=1e-5)


@pytest.mark.parametrize("options", [(), ("--method", "kmeans", "--per-class", 2)])
def test_learn_prototypes_has_the_same_numbers_in_its_header(run: Run, copied: Path,
                                                             options: tuple[object, ...]) -> None:
    work = copied / "work"
    learned(run, work, *options)
    header = describe(work / "prototypes/vision.safetensors").header
    assert header is not None
    report = measure(run, work)
    assert set(report["prototypes"]) == {"text", "vision"}, "both by default, once both are there"
    for name, said in header.facts["gap"].items():
        found = report["prototypes"][name]
        assert {key: found[key] for key in said} == pytest.approx(said, abs=2e-5)
    assert report["prototypes"]["vision"]["cosine"] < report["prototypes"]["text"]["cosine"]


def test_the_table_says_what_the_file_says(run: Run, copied: Path) -> None:
    work = copied / "work"
    learned(run, work)
    result = run("gap", "--prototypes", "vision", "--prototypes", "text", "--cams", "text",
                 "--phi", "0.6", work=work)
    assert result.code == 0, result.err
    report = json.loads((work / "scores/gap.json").read_text())
    assert list(report["prototypes"]) == ["vision", "text"]
    lines = result.out.splitlines()
    assert lines[0].split() == ["vision", "text"]
    assert set(report["classes"]) < set(SHAPES), "one of them should be without a region here"
    for line, name in zip(lines[2:5], SHAPES, strict=True):
        if name not in report["classes"]:
            assert line.split() == [name, *"------"]
            continue
        cells = [f"{report['prototypes'][space]['classes'][name][key]:.3f}"
                 for space in ("vision", "text") for key in ("centroid", "cosine")]
        assert line.split() == [name, str(report["classes"][name]["regions"]),
                                f"{report['classes'][name]['spread']:.3f}", *cells]
    assert lines[5].startswith("all classes  ")
    assert "between the centroids of all classes" in lines[6]
    assert lines[-2:] == [str(work / "scores/gap.json"), str(work / "scores/gap.png")]
    assert "cams/text on `train` at phi 0.6, 6 photos" in lines[-3]


def test_the_same_again_is_the_same_bytes_and_needs_no_true_mask(run: Run, copied: Path,
                                                                 tmp_path: Path) -> None:
    work = copied / "work"
    learned(run, work)
    first = measure(run, work)
    shutil.rmtree(copied / "masks")
    assert measure(run, work, "--out", tmp_path / "again.json") == first
    for suffix in (".json", ".png"):
        assert (tmp_path / f"again{suffix}").read_bytes() == (
            work / f"scores/gap{suffix}").read_bytes()


def test_the_picture_shows_every_class(run: Run, copied: Path) -> None:
    from vpltool.pictures.scatter import class_colours

    report = measure(run, copied / "work")
    with Image.open(copied / "work/scores/gap.png") as page:
        shown = np.array([colour for _, colour in page.convert("RGB").getcolors(1 << 24) or []])
    for colour in class_colours(len(report["classes"])):
        assert np.abs(shown - 255 * np.array(colour)).max(axis=1).min() <= 1


def test_without_matplotlib_the_numbers_are_the_result(run: Run, copied: Path) -> None:
    work = copied / "work"
    first = measure(run, work)
    with mock.patch("vpltool.pictures.scatter.importlib.util.find_spec", return_value=None):
        result = run("gap", "--cams", "text", "--phi", "0.6", work=work)
    assert result.code == 0, result.err
    assert result.out.splitlines()[-1] == str(work / "scores/gap.json")
    assert "pip install 'vpltool[figures]'" in result.err
    assert json.loads((work / "scores/gap.json").read_text()) == first
    assert not (work / "scores/gap.png").exists(), "it would show the numbers of an earlier run"


def test_another_split_and_a_path(run: Run, copied: Path, tmp_path: Path) -> None:
    work = copied / "work"
    own = shutil.copy(work / "prototypes/text.safetensors", tmp_path / "mine.safetensors")
    report = measure(run, work, "--split", "val", "--prototypes", own, "--prototypes", "text")
    assert (report["split"], report["photos"]) == ("val", 2)
    mine, text = report["prototypes"].values()
    assert mine == text
    assert list(report["prototypes"]) == ["mine", "text"]


REFUSED: dict[str, tuple[tuple[object, ...], str, str]] = {
    "typo": (("gap", "--prototypes", "texd"), "texd", "did you mean `text`?"),
    "not made yet": (("gap", "--prototypes", "shifted"), "shifted", "vpltool shift-gap"),
    "no such CAMs": (("gap", "--cams", "visoin"), "visoin", ""),
    "twice": (("gap", "--prototypes", "text", "--prototypes", "text"), "`text`", "once"),
    "no split": (("gap", "--split", "tset"), "tset", "train"),
    "share": (("shift-gap", "--lambda", "nan"), "nan", "--lambda 1"),
    "no such text": (("shift-gap", "--text", "vision"), "vision", "vpltool learn-prototypes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, run: Run, ready: Path) -> None:
    command, said, hint = REFUSED[name]
    result = run(*command, work=ready / "work")
    assert result.code == 1, result.out
    assert said in result.lines("error:")[0]
    assert hint in result.lines("hint:")[0]
    assert not (ready / "work/scores").exists()


def test_an_unknown_centroid_is_a_usage_error(run: Run, ready: Path) -> None:
    result = run("shift-gap", "--centroid", "pixel", work=ready / "work")
    assert result.code == 2, result.err
    assert "--centroid" in result.err
    assert "'pixel'" in result.err
    assert "'pixels'" in result.err


def test_only_text_can_be_moved(run: Run, copied: Path) -> None:
    """Moved vision prototypes would be called `text shifted`."""
    work = copied / "work"
    learned(run, work)
    result = run("shift-gap", "--text", "vision", work=work)
    assert result.code == 1
    path = work / "prototypes/vision.safetensors"
    assert result.lines("error:") == [
        f"{path} holds vision prototypes, and text prototypes are needed"]
    assert result.lines("hint:") == ["--text text, which vpltool text-prototypes makes"]
    assert not (work / "prototypes/shifted.safetensors").exists()


@pytest.mark.parametrize("command", [("gap",), ("shift-gap", "--centroid", "regions")])
def test_no_region_reaches_phi(command: tuple[str, ...], run: Run, copied: Path) -> None:
    work = copied / "work"
    made = run("cam", "--method", "dense", "--tau", "5", work=work)
    assert made.code == 0, made.err
    result = run(*command, "--cams", "text-dense", "--phi", "1", work=work)
    assert result.code == 1
    assert "--phi 1" in result.lines("error:")[0]
    assert not (work / "scores").exists()
    assert not (work / "prototypes/shifted.safetensors").exists()


def test_prototypes_of_another_clip_are_refused(run: Run, copied: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from vpltool.formats import write_tensors

    header, tensors = read_tensors(copied / "work/prototypes/text.safetensors", "prototypes")
    other = replace(header, model=header.model | {"fingerprint": "other"})
    write_tensors(tmp_path / "other.safetensors", other, tensors)
    for command in (("gap", "--prototypes"), ("shift-gap", "--text")):
        result = run(*command, tmp_path / "other.safetensors", work=copied / "work")
        assert result.code == 1
        assert "different models" in result.lines("error:")[0]


def shift(run: Run, work: Path, *options: object) -> tuple[Tensor, dict[str, Any]]:
    result = run("shift-gap", *options, "--overwrite", work=work)
    assert result.code == 0, result.err
    path = work / "prototypes/shifted.safetensors"
    assert result.out.splitlines() == [str(path)]
    header = describe(path).header
    assert header is not None
    return rows_of(path)[0], header.facts


def test_shift_by_all_pixels(run: Run, copied: Path) -> None:
    work = copied / "work"
    text, index = rows_of(work / "prototypes/text.safetensors")
    pixels = torch.cat([F.normalize(read_tensors(path, "features")[1]["patches"].float(), dim=-1)
                        for path in sorted((work / "features/train").glob("scene*"))])
    gap = pixels.mean(0) - text.mean(0)
    moved, facts = shift(run, work)
    torch.testing.assert_close(moved, F.normalize(text + gap, dim=-1), atol=1e-5, rtol=0)
    assert facts["space"] == "text shifted"
    assert facts["rows"] == describe(work / "prototypes/text.safetensors").header.facts["rows"]
    assert facts["gap"]["text"]["centroid"] == pytest.approx(float(gap.norm()), abs=1e-4)
    half, _ = shift(run, work, "--shift", "0.5")
    torch.testing.assert_close(half, F.normalize(text + gap / 2, dim=-1), atol=1e-5, rtol=0)
    none, _ = shift(run, work, "--lambda", "0")
    torch.testing.assert_close(none, text)
    assert rows_of(work / "prototypes/shifted.safetensors")[1].tolist() == index.tolist()


def test_shift_by_regions_closes_the_distance_that_gap_measures(run: Run, copied: Path) -> None:
    work = copied / "work"
    _, facts = shift(run, work, "--centroid", "regions", "--cams", "text", "--phi", "0.6")
    found = measure(run, work, "--prototypes", "text", "--prototypes", "shifted")["prototypes"]
    assert found["shifted"]["space"] == "text shifted"
    assert found["shifted"]["centroid"] < 0.5 * found["text"]["centroid"]
    for name in ("text", "shifted"):
        assert facts["gap"][name]["centroid"] == pytest.approx(found[name]["centroid"], abs=2e-5)


@pytest.mark.parametrize("options", [("--phi", "0.7"), ("--cams", "text")])
def test_cams_play_no_part_in_a_shift_by_pixels(options: tuple[str, str], run: Run, copied: Path
                                                ) -> None:
    work = copied / "work"
    plain, _ = shift(run, work)
    result = run("shift-gap", *options, "--overwrite", work=work)
    assert result.code == 0, result.err
    assert result.lines("warning:") == [
        f"{' '.join(options)} has no effect with --centroid pixels: no CAM is read"]
    assert torch.equal(rows_of(work / "prototypes/shifted.safetensors")[0], plain)


def test_shifted_prototypes_serve_cam(run: Run, copied: Path) -> None:
    work = copied / "work"
    shift(run, work)
    for name in ("text", "shifted"):
        assert run("cam", "--prototypes", name, "--method", "dense", work=work).code == 0
    maps = [read_tensors(work / f"cams/{name}-dense/train/scene0.safetensors", "cams")[1]["cam"]
            for name in ("text", "shifted")]
    assert maps[0].shape == maps[1].shape
    assert not torch.equal(*maps)


def test_shift_again_does_nothing_and_another_share_is_refused(run: Run, copied: Path) -> None:
    work = copied / "work"
    shift(run, work)
    path = work / "prototypes/shifted.safetensors"
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    assert run("shift-gap", work=work).code == 0
    refused = run("shift-gap", "--lambda", "0.5", work=work)
    assert refused.code == 1
    assert "lambda was 1.0, now 0.5" in refused.lines("error:")[0]
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    shutil.rmtree(copied / "masks")
    shift(run, work)
    assert path.read_bytes() == before[0]


def test_scores_leaves_the_gap_out_and_inspect_knows_it(run: Run, copied: Path) -> None:
    work = copied / "work"
    measure(run, work)
    assert run("scores", work=work).code == 1, "there are no scores beside the gap"
    assert run("eval", "--split", "train", work=work).code == 0
    table = run("scores", work=work)
    assert table.code == 0, table.err
    assert len(table.out.splitlines()) == 2
    found = json.loads(run("inspect", work / "scores/gap.json", "--json").out)
    assert found["kind"] == "gap"
