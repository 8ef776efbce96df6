"""`embed` through the command line: what is made, what is told, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import Run, copy_workspace, save_clip

from vpltool.formats import open_input, read_tensors


@pytest.fixture(scope="module")
def root(layered: Path, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory, run: Run
         ) -> Path:
    """As `layered`, with features of a second encoder, of finer patches."""
    base = copy_workspace(layered, tmp_path_factory.mktemp("world") / "base", tiny_clip)
    fine = save_clip(base / "fine", seed=5, vision={"patch_size": 4})
    result = run("extract", "--encoder", fine, "--keep", "patches", work=base / "work")
    assert result.code == 0, result.err
    return base


@pytest.mark.parametrize("method", ["value", "naclip", "sclip", "proxyclip"])
def test_maps_are_made_of_its_patches(method: str, root: Path, run: Run) -> None:
    work = root / "work"
    made = run("embed", "--method", method, work=work)
    assert made.code == 0, made.err
    folder = work / f"features-{method}/train"
    assert Path(made.out.strip()) == folder
    first = {}
    for path in (work / "features/train").glob("scene*"):
        tensors = read_tensors(folder / path.name, "features")[1]
        assert set(tensors) == {"grid", "patches"}
        first = read_tensors(path, "features")[1]
        assert torch.equal(tensors["grid"], first["grid"])
        assert tensors["patches"].shape == first["patches"].shape
        torch.testing.assert_close(tensors["patches"].float().norm(dim=-1),
                                   torch.ones(len(tensors["patches"])), atol=1e-3, rtol=0)
        assert not torch.allclose(tensors["patches"], first["patches"], atol=0.05)
    cam = run("cam", "--method", "dense", "--features", folder, "--name", f"text-{method}",
              work=work)
    assert cam.code == 0, cam.err


def test_the_value_path_is_that_of_extract(root: Path, tmp_path: Path, run: Run) -> None:
    work = root / "work"
    assert run("extract", "--patches", "value", "--workers", 0, "--out", tmp_path / "value",
               work=work).code == 0
    assert run("embed", "--method", "value", "--out", tmp_path / "embedded", work=work).code == 0
    for path in (tmp_path / "value").glob("scene*"):
        found, wanted = (read_tensors(folder / path.name, "features")[1]["patches"].float()
                         for folder in (tmp_path / "embedded", tmp_path / "value"))
        # Stored tokens are in half precision.
        torch.testing.assert_close(F.cosine_similarity(found, wanted, dim=-1),
                                   torch.ones(len(found)), atol=1e-4, rtol=0)


def test_settings_are_recorded_and_status_knows_it(root: Path, run: Run) -> None:
    work = root / "work"
    command = ("embed", "--method", "naclip", "--sigma", 2, "--name", "near")
    assert run(*command, work=work).code == 0
    again = run(*command, work=work)
    assert again.code == 0 and "already" in again.err
    header = open_input(work / "features-near/train", ("features",)).header
    assert header.options == header.options | {
        "method": "naclip", "sigma": 2.0, "residual": False, "keep": ["patches"],
        "patches": "naclip", "split": "train", "scale": 1.0, "max_side": 1024, "layers": []}
    other = run(*command[:3], "--sigma", 3, "--name", "near", work=work)
    assert other.code == 1
    assert "sigma was 2.0, now 3" in other.lines("error:")[0]
    listed = {entry["name"]: entry for entry in json.loads(run("status", "--json", work=work).out)}
    assert listed["features-near/train"]["sources"] == ["features/train"]
    assert listed["features-near/train"]["stale"] == []
    assert "--sigma 2" in listed["features-near/train"]["line"]


def test_it_is_stale_when_its_features_are(root: Path, tmp_path: Path, tiny_clip: Path, run: Run
                                           ) -> None:
    base = copy_workspace(root, tmp_path / "base", tiny_clip)
    work = base / "work"
    assert run("embed", "--name", "mine", work=work).code == 0
    assert run("cam", "--method", "dense", "--features", work / "features-mine/train", "--name",
               "mine", work=work).code == 0
    assert run("extract", "--scale", 0.5, "--overwrite", "--workers", 0, work=work).code == 0
    stale = {entry["name"] for entry in json.loads(run("status", "--stale", "--json",
                                                       work=work).out)}
    assert {"features-mine/train", "cams/mine/train"} <= stale
    updated = run("update", work=work)
    assert updated.code == 0, updated.err
    assert "mine" not in run("status", "--stale", "--json", work=work).out
    assert open_input(work / "features-mine/train", ("features",)).header.options["scale"] == 0.5


def test_what_is_carried_is_copied(root: Path, run: Run) -> None:
    """With tokens goes the head, so that any map can be made."""
    work = root / "work"
    made = run("embed", "--carry", "tokens,layers,attention", "--name", "whole", work=work)
    assert made.code == 0, made.err
    folder = work / "features-whole/train"
    for path in (work / "features/train").glob("scene*"):
        first, found = (read_tensors(own / path.name, "features")[1]
                        for own in (path.parent, folder))
        assert set(found) == set(first)
        for name in set(first) - {"patches"}:
            assert torch.equal(found[name], first[name])
    for method in ("gradcam", "surgery"):
        result = run("cam", "--method", method, "--features", folder, "--name", f"whole-{method}",
                     work=work)
        assert result.code == 0, result.err


@pytest.mark.parametrize(("command", "said", "hint"), [
    (("embed", "--carry", "patches"), "patches are what is made", "leave them out"),
    (("embed", "--carry", "token"), "features have no `token`", "did you mean `tokens`?"),
    (("embed", "--carry", "attentions"), "but no attentions", "extract --split train --keep"),
    (("embed", "--out", "features/train"), "would replace the features", "--name NAME"),
    (("embed", "--method", "proxyclip", "--second", "none"), "no features in none", "extract"),
    (("cam", "--method", "surgery", "--features", "features-value/train"), "but no tokens",
     "vpltool embed --method value --carry tokens --split train --overwrite")])
def test_refusals(command: tuple[str, ...], said: str, hint: str, root: Path, run: Run,
                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root / "work")
    if "surgery" in command:
        assert run("embed", "--method", "value").code == 0
    result = run(*command)
    assert result.code == 1
    assert said in result.lines("error:")[0]
    assert hint in result.lines("hint:")[0]


def test_what_has_no_effect_is_told(root: Path, tmp_path: Path, run: Run) -> None:
    result = run("embed", "--second", tmp_path, "--out", tmp_path / "out", work=root / "work")
    assert result.code == 0, result.err
    assert result.lines("warning:") == [
        f"--second {tmp_path} has no effect: `naclip` reads no second encoder"]


def test_a_decoder_does_not_take_such_patches_for_the_last_blocks(root: Path, run: Run) -> None:
    work = root / "work"
    assert run("embed", "--carry", "layers", "--name", "layers", work=work).code == 0
    result = run("train-decoder", "--masks", "text-refined", "--prototypes", "text", "--crop", 3,
                 "--batch-size", 2, "--width", 16, "--iters", 2, "--residual", "--features",
                 work / "features-layers/train", "--name", "x", work=work)
    assert result.code == 1
    assert "reads the last block's patch embeddings" in result.lines("error:")[0]
