"""`align` through the command line: the file, what takes it, resuming, refusals."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from as_methods import dense_cam
from as_methods import gradcam_of as gradcam
from conftest import LAYERED, Run, draw_scenes, prepare, run_chain, save_clip, write_scenes
from torch import Tensor

from vpltool.core import alignment
from vpltool.core.alignment import AlignedHead, AlignedSpace
from vpltool.core.vit import Head
from vpltool.formats import Header, describe, read_tensors

ALIGN = ("align", "--cams", "text", "--width", 8, "--iters", 12, "--refresh", 5, "--batch-size", 8,
         "--patches", 4)


def header_of(path: Path) -> Header:
    header = describe(path).header
    assert header is not None
    return header


@pytest.fixture
def aligned(run: Run, copied: Path) -> Path:
    """A workspace with prototypes/aligned."""
    work = copied / "work"
    result = run(*ALIGN, work=work)
    assert result.code == 0, result.err
    assert result.out.splitlines() == [str(work / "prototypes/aligned.safetensors")]
    return work


def parts_of(path: Path) -> tuple[Tensor, Tensor, AlignedSpace]:
    """Rows, their classes, and the map."""
    header, tensors = read_tensors(path, "prototypes")
    return (tensors["prototypes"], tensors["class_index"],
            AlignedSpace.from_tensors(tensors, header.facts["aligned"]["last_relu"]))


def test_the_file(aligned: Path) -> None:
    header = header_of(aligned / "prototypes/aligned.safetensors")
    rows, index, space = parts_of(aligned / "prototypes/aligned.safetensors")
    text = header_of(aligned / "prototypes/text.safetensors")
    assert header.command == "align"
    assert set(header.inputs) == {"features", "text", "tags", "cams", "photos", "photo-files"}
    assert header.facts["space"] == "text"
    assert header.facts["rows"] == text.facts["rows"]
    assert header.facts["aligned"] == {"last_relu": False, "patches": "block"}
    assert rows.shape == (len(index), 8)
    assert (space.first.shape, space.further.shape) == ((8, 16), (1, 8, 8))
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(len(rows)))
    assert [entry[0] for entry in header.facts["curve"]] == list(range(1, 13))
    assert header.facts["curve"][0][3] == 0.05
    assert header.facts["gap"]["aligned"]["cosine"] < header.facts["gap"]["text"]["cosine"]


def test_the_curve_falls(run: Run, ready: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    result = run(*ALIGN, "--iters", 150, "--refresh", 50, "--out", out, work=ready / "work")
    assert result.code == 0, result.err
    header = header_of(out)
    assert header.facts["curve"][-1][1] < header.facts["curve"][0][1] / 2
    assert header.facts["accuracy"]["aligned"] > header.facts["accuracy"]["text"]
    assert "% of the regions nearest to their tag" in result.err


def head_of(work: Path) -> Head:
    header, tensors = read_tensors(work / "features/train.head.safetensors", "head")
    head = Head.from_config(header.facts["config"])
    head.load_state_dict(tensors)
    return head.eval().requires_grad_(False)


@pytest.mark.parametrize("method", ["dense", "gradcam"])
def test_maps_are_those_of_the_alignment(method: str, run: Run, aligned: Path) -> None:
    result = run("cam", "--prototypes", "aligned", "--method", method, "--store", "fp32",
                 work=aligned)
    assert result.code == 0, result.err
    rows, index, space = parts_of(aligned / "prototypes/aligned.safetensors")
    folder = aligned / f"cams/aligned{'-dense' if method == 'dense' else ''}/train"
    paths = sorted(folder.glob("scene*"))
    assert paths
    for path in paths:
        made = read_tensors(path, "cams")[1]
        stored = read_tensors(aligned / "features/train" / path.name, "features")[1]
        grid = (int(stored["grid"][0]), int(stored["grid"][1]))
        if method == "dense":
            wanted = dense_cam(space(stored["patches"].float())[None], grid, rows, index,
                               [made["classes"]])
        else:
            wanted = gradcam(AlignedHead.of(head_of(aligned), space),
                             stored["tokens"].float()[None], grid, rows, index, [made["classes"]])
        torch.testing.assert_close(made["cam"], wanted[0], atol=3e-5, rtol=1e-4)


def test_other_commands_take_them(run: Run, aligned: Path) -> None:
    """What is made of them lies in the same space, and says so."""
    ours = read_tensors(aligned / "prototypes/aligned.safetensors", "prototypes")[1]
    for command, name in ((("seed-prototypes", "--text", "aligned", "--cams", "text"), "seeds"),
                          (("learn-prototypes", "--text", "aligned", "--iters", 2), "vision"),
                          (("shift-gap", "--text", "aligned"), "shifted")):
        result = run(*command, work=aligned)
        assert result.code == 0, result.err
        made = read_tensors(aligned / f"prototypes/{name}.safetensors", "prototypes")[1]
        assert made["prototypes"].shape[1] == 8
        assert made["space_first"].equal(ours["space_first"])
        result = run("cam", "--prototypes", name, "--method", "dense", work=aligned)
        assert result.code == 0, result.err
    result = run("gap", "--prototypes", "aligned", "--prototypes", "seeds", "--cams", "text",
                 work=aligned)
    assert result.code == 0, result.err
    assert run("update", work=aligned).err.strip().endswith("everything is up to date")


REFINER = '''"""Checks that patches and prototypes can be compared."""
from vpltool import settings

READS = ("patches", "prototypes")


class Settings(settings.Settings):
    """None."""


def refine(photo, settings):
    assert photo.tensors["patches"].shape[1] == photo.prototypes.shape[1] == 8
    assert abs(float(photo.tensors["patches"][0].norm()) - 1) < 1e-5
    return photo.cams
'''


def test_refiners_are_given_both_in_one_space(run: Run, aligned: Path, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "methods/refiners").mkdir(parents=True)
    (tmp_path / "methods/refiners/compare.py").write_text(REFINER)
    monkeypatch.setenv("VPLTOOL_METHODS", str(tmp_path / "methods"))
    result = run("refine", "--cams", "text", "--method", "compare", "--prototypes", "aligned",
                 "--out", tmp_path / "maps", work=aligned)
    assert result.code == 0, result.err


def test_seeds_are_means_of_mapped_patches(run: Run, aligned: Path) -> None:
    result = run("seed-prototypes", "--text", "aligned", "--cams", "text", "--phi", "0.6",
                 work=aligned)
    assert result.code == 0, result.err
    found, index, space = parts_of(aligned / "prototypes/seeds.safetensors")
    seeds: dict[int, list[Tensor]] = {}
    for path in sorted((aligned / "cams/text/train").glob("scene*")):
        cam = read_tensors(path, "cams")[1]
        patches = read_tensors(aligned / "features/train" / path.name, "features")[1]["patches"]
        for patch, scores in zip(patches.float(), cam["cam"].flatten(1).T.float(), strict=True):
            if float(scores.max()) >= 0.6:
                seeds.setdefault(int(cam["classes"][scores.argmax()]), []).append(space(patch))
    assert seeds
    # A GPU has the patches in half precision.
    atol = 5e-4 if torch.cuda.is_available() else 1e-4
    for owner, vectors in seeds.items():
        wanted = F.normalize(torch.stack(vectors).mean(dim=0), dim=0)
        torch.testing.assert_close(found[index.tolist().index(owner)], wanted, atol=atol, rtol=0)


def test_rows_of_regions(run: Run, ready: Path, tmp_path: Path) -> None:
    """Another row for classes with regions; the background's words stay mapped text."""
    for rows in ("text", "regions"):
        result = run(*ALIGN, "--rows", rows, "--out", tmp_path / f"{rows}.safetensors",
                     work=ready / "work")
        assert result.code == 0, result.err
    text, index, _ = parts_of(tmp_path / "text.safetensors")
    regions, _, _ = parts_of(tmp_path / "regions.safetensors")
    assert regions[index == 0].equal(text[index == 0])
    assert not torch.isclose(regions[index != 0], text[index != 0]).all(dim=-1).all()
    assert header_of(tmp_path / "regions.safetensors").facts["space"] == "vision"


@pytest.mark.parametrize("options", [
    ("--background", "none"), ("--background", "words"),
    ("--last-relu",), ("--fixed-tau",), ("--depth", 1), ("--init", "independent"),
    ("--max-pixels", 120), ("--phi", 0, "--phi-background", 1)],
    ids=lambda options: " ".join(map(str, options)))
def test_each_setting_changes_the_result(options: tuple[object, ...], run: Run, ready: Path,
                                         tmp_path: Path) -> None:
    result = run(*ALIGN, "--out", tmp_path / "plain.safetensors", work=ready / "work")
    assert result.code == 0, result.err
    result = run(*ALIGN, *options, "--out", tmp_path / "other.safetensors", work=ready / "work")
    assert result.code == 0, result.err
    ours, theirs = (parts_of(tmp_path / f"{name}.safetensors")[0] for name in ("plain", "other"))
    assert not ours.equal(theirs)
    if options == ("--fixed-tau",):
        curve = header_of(tmp_path / "other.safetensors").facts["curve"]
        assert {entry[3] for entry in curve} == {0.05}


def stop_in_step(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while a step is at work."""
    step, done = alignment._step, []

    def interrupted(*args: Any) -> Any:
        done.append(1)
        if len(done) == number:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*args)

    monkeypatch.setattr(alignment, "_step", interrupted)


@pytest.mark.parametrize("number", [3, 5, 7])
@pytest.mark.parametrize("labels", ["tags", "clusters"])
def test_stopped_and_gone_on_is_uninterrupted(
    number: int, labels: str, run: Run, ready: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before, at and behind a refresh; the step at work is finished first."""
    options, work = (*ALIGN, "--labels", labels), ready / "work"
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    assert run(*options, "--out", whole, work=work).code == 0
    with monkeypatch.context() as patched:
        stop_in_step(number, patched)
        result = run(*options, "--out", parts, work=work)
    assert result.code == 130
    checkpoint = tmp_path / "parts.checkpoint.safetensors"
    assert header_of(checkpoint).facts["checkpoint"] == number
    assert header_of(checkpoint).kind == "alignment"
    assert not parts.exists()
    again = run(*options, "--out", parts, work=work)
    assert again.code == 0, again.err
    assert f"resuming from step {number} of 12" in again.err
    assert parts.read_bytes() == whole.read_bytes()
    assert not checkpoint.exists()


def test_a_checkpoint_disturbs_nobody(run: Run, copied: Path, monkeypatch: pytest.MonkeyPatch
                                      ) -> None:
    work = copied / "work"
    with monkeypatch.context() as patched:
        stop_in_step(4, patched)
        assert run(*ALIGN, work=work).code == 130
    assert "checkpoint" not in run("status", work=work).out
    checkpoint = work / "prototypes/aligned.checkpoint.safetensors"
    assert "kind: alignment" in run("inspect", checkpoint, work=work).out
    refused = run(*ALIGN, "--lr", "0.5", work=work)
    assert refused.code == 1
    assert "lr" in refused.lines("error:")[0]
    assert "--out FILE" in refused.lines("hint:")[0]
    refused = run("cam", "--prototypes", "aligned", work=work)
    assert refused.lines("hint:") == ["vpltool align"]
    assert run(*ALIGN, "--lr", "0.5", "--overwrite", work=work).code == 0


def test_it_is_stale_with_its_inputs(run: Run, aligned: Path) -> None:
    assert run("cam", "--prototypes", "aligned", "--method", "dense", work=aligned).code == 0
    assert run(*ALIGN, work=aligned).code == 0, "the same settings: nothing to do"
    run("text-prototypes", "--prompts", "origami", "--overwrite", work=aligned)
    said = run("status", work=aligned).out
    assert "prototypes/text.safetensors has changed" in said
    assert "prototypes/aligned.safetensors is not up to date" in said
    result = run("update", work=aligned)
    assert result.code == 0, result.err
    assert "is not up to date" not in run("status", work=aligned).out


REFUSED: dict[str, tuple[tuple[object, ...], str, str]] = {
    "aligned twice": ((*ALIGN, "--text", "aligned", "--overwrite"), "lies in an aligned space",
                      "text"),
    "a decoder": (("train-decoder", "--masks", "text-refined", "--prototypes", "aligned"),
                  "lies in an aligned space", "vision"),
    "two spaces": (("gap", "--prototypes", "text", "--prototypes", "aligned"),
                   "different spaces", "one space"),
    "a start of another space": (("learn-prototypes", "--start", "aligned", "--iters", 2),
                                 "different spaces", "one space"),
    "no such cams": ((*ALIGN, "--cams", "none", "--overwrite"), "none", "cams/text"),
    "nothing reaches phi": ((*ALIGN, "--phi", "1", "--cams", "text-flat", "--overwrite"),
                            "--phi 1", "--phi 0.5"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, run: Run, aligned: Path) -> None:
    if "flat" in str(REFUSED[case][0]):
        assert run("cam", "--method", "dense", "--name", "text-flat", work=aligned).code == 0
    command, error, hint = REFUSED[case]
    result = run(*command, work=aligned)
    assert result.code == 1, result.err
    assert error in result.lines("error:")[0]
    assert hint in result.lines("hint:")[0]


def test_another_clip_is_refused(run: Run, aligned: Path, tmp_path: Path) -> None:
    """Its patches would be mapped by a map that was made for others."""
    base = tmp_path / "other"
    write_scenes(base, draw_scenes())
    save_clip(base / "clip", seed=1)
    assert prepare(base).code == 0
    run_chain(base, (("text-prototypes", "--prompts", "single"),
                     ("extract", "--split", "train", "--workers", 0)))
    result = run("cam", "--prototypes", aligned / "prototypes/aligned.safetensors",
                 work=base / "work")
    assert result.code == 1
    assert "come from different models" in result.lines("error:")[0]


def test_patches_of_another_kind_are_refused(run: Run, aligned: Path) -> None:
    assert run("extract", "--patches", "value", "--overwrite", "--workers", 0,
               work=aligned).code == 0
    result = run("cam", "--prototypes", "aligned", "--method", "dense", work=aligned)
    assert result.code == 1
    assert "`block`" in result.lines("error:")[0]
    assert "vpltool align --overwrite" in result.lines("hint:")[0]
    out = aligned / "prototypes/value.safetensors"
    assert run(*ALIGN, "--out", out, work=aligned).code == 0
    assert run("cam", "--prototypes", "value", "--method", "dense", work=aligned).code == 0
    refused = run("cam", "--prototypes", "value", work=aligned)
    assert refused.code == 1
    assert "last block" in refused.lines("error:")[0]
    assert "--method dense" in refused.lines("hint:")[0]


def test_features_without_patches_are_refused(run: Run, copied: Path) -> None:
    work = copied / "work"
    assert run("extract", "--keep", "tokens", "--overwrite", "--workers", 0, work=work).code == 0
    result = run(*ALIGN, work=work)
    assert result.code == 1
    assert "no patches" in result.lines("error:")[0]
    assert "--keep tokens,patches" in result.lines("hint:")[0]


@pytest.mark.parametrize(("tags", "said"), [(("box",), "only the tag `box`"), ((), "no tag")])
def test_too_few_tags_are_refused(tags: tuple[str, ...], said: str, run: Run, copied: Path) -> None:
    work = copied / "work"
    path = work / "images.jsonl"
    lines = [json.loads(line) | {"labels": list(tags)} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run("update", work=work).code == 0
    result = run(*ALIGN, work=work)
    assert result.code == 1
    assert said in result.lines("error:")[0]
    assert "--split NAME" in result.lines("hint:")[0]


def test_a_class_without_regions_is_named(run: Run, copied: Path) -> None:
    work = copied / "work"
    path = work / "images.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["labels"] = [name for name in line["labels"] if name != "disc"] or ["bar"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run_chain(copied, (("cam", "--split", "train", "--update"),))
    result = run(*ALIGN, work=work)
    assert result.code == 0, result.err
    assert result.lines("warning:") == ["no regions of disc: the text is mapped, not aligned"]


def test_layers_beside_patches_change_nothing(run: Run, copied: Path, tmp_path: Path) -> None:
    work = copied / "work"
    assert run(*ALIGN, "--out", tmp_path / "a.safetensors", work=work).code == 0
    run_chain(copied, LAYERED[:1])
    assert run(*ALIGN, "--out", tmp_path / "b.safetensors", work=work).code == 0
    ours, theirs = (parts_of(tmp_path / f"{name}.safetensors")[0] for name in "ab")
    assert ours.equal(theirs)
