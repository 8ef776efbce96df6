"""ExCEL's and CD-CLIP's maps and affinities through the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from as_methods import refine
from conftest import Run, copy_workspace, run_chain

from vpltool.formats import open_input, read_tensors


@pytest.fixture(scope="module")
def root(ready: Path, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory, run: Run
         ) -> Path:
    """The workspace of `ready`, with calibrated patches and the attention of each block."""
    base = copy_workspace(ready, tmp_path_factory.mktemp("world") / "base", tiny_clip)
    result = run("extract", "--patches", "calibrated", "--calibrated-blocks", 2, "--keep",
                 "tokens,patches,attention,attentions", "--workers", 0, "--overwrite",
                 work=base / "work")
    assert result.code == 0, result.err
    return base / "work"


def maps_of(folder: Path, key: str = "scene3") -> torch.Tensor:
    return read_tensors(folder / f"{key}.safetensors", "cams")[1]["cam"].float()


def test_calibrated_patches_are_others(root: Path, ready: Path) -> None:
    header = open_input(root / "features/train", ("features",)).header
    assert header.options["patches"] == "calibrated"
    assert header.options["calibrated_blocks"] == 2
    first, found = (read_tensors(work / "features/train/scene0.safetensors", "features")[1]
                    for work in (ready / "work", root))
    assert torch.equal(first["tokens"], found["tokens"])
    assert not torch.allclose(first["patches"], found["patches"], atol=0.05)


@pytest.mark.parametrize("options", [(), ("--normalise", "channel"), ("--pool", "mean"),
                                     ("--scale", "0")], ids=" ".join)
def test_surgery_makes_maps_of_all_photos(options: tuple[object, ...], root: Path, tmp_path: Path,
                                          run: Run) -> None:
    result = run("cam", "--method", "surgery", *options, "--out", tmp_path / "cams", work=root)
    assert result.code == 0, result.err
    for key in ("scene0", "scene3"):
        maps = maps_of(tmp_path / "cams", key)
        assert len(maps) == (2 if key == "scene3" else 1)
        assert torch.equal(maps.amax(dim=(1, 2)), torch.ones(len(maps)))
        assert not maps.amin(dim=(1, 2)).any()


def test_excel_averages_so_many_blocks(root: Path, tmp_path: Path, run: Run) -> None:
    command = ("refine", "--cams", "text", "--method", "excel", "--store", "fp32", "--out",
               tmp_path / "cams")
    result = run(*command, "--blocks", 2, work=root)
    assert result.code == 0, result.err
    assert open_input(tmp_path / "cams", ("cams",)).header.options["lambda"] == 0.79
    each = read_tensors(root / "features/train/scene3.safetensors", "features")[1]["attentions"]
    wanted = refine(maps_of(root / "cams/text/train"), each[-2:].float().mean(dim=0),
                    threshold=0.79)
    torch.testing.assert_close(maps_of(tmp_path / "cams"), wanted, atol=2e-5, rtol=0)
    assert run(*command, "--overwrite", work=root).code == 0
    wanted = refine(maps_of(root / "cams/text/train"), each.float().mean(dim=0), threshold=0.79)
    assert len(each) == 3, "the default, six, is all that this model has"
    torch.testing.assert_close(maps_of(tmp_path / "cams"), wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("method", ["excel", "rfm"])
def test_more_blocks_than_features_hold(method: str, root: Path, layered: Path, tmp_path: Path,
                                        run: Run, tiny_clip: Path) -> None:
    """Both refuse it with the same words, before what is there is deleted."""
    if method == "rfm":
        made = copy_workspace(layered, tmp_path / "base", tiny_clip)
        run_chain(made, (("extract", "--overwrite", "--workers", 0, "--keep",
                          "tokens,patches,attentions,layers"),))
        root = made / "work"
    command = ("refine", "--cams", "text", "--method", method, "--out", tmp_path / "cams")
    assert run(*command, work=root).code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "cams").iterdir()}
    refused = run(*command, "--blocks", 9, "--overwrite", work=root)
    assert refused.code == 1
    assert refused.lines("error:") == ["--blocks 9: the features hold the attention of 8 blocks"]
    hint = refused.lines("hint:")[0]
    assert "--blocks 8, or vpltool" in hint
    assert "--attention-blocks 9" in hint
    assert {path.name: path.read_bytes() for path in (tmp_path / "cams").iterdir()} == before


CHANGES: tuple[tuple[object, ...], ...] = (
    ("--tau", 1), ("--steps", 3), ("--tau-text", 5), ("--classes", "all"), ("--stretch", "all"),
    ("--combine", "entries"), ("--mask", "box"), ("--keep-scale",))


def test_each_setting_of_divergence_counts(root: Path, tmp_path: Path, run: Run) -> None:
    command = ("refine", "--cams", "text", "--method", "divergence", "--prototypes", "text",
               "--store", "fp32")
    result = run(*command, "--out", tmp_path / "plain", work=root)
    assert result.code == 0, result.err
    header = open_input(tmp_path / "plain", ("cams",)).header
    assert header.options["mask"] == "none"
    assert "prototypes" in header.inputs
    plain = maps_of(tmp_path / "plain")
    assert not torch.allclose(plain, maps_of(root / "cams/text/train"), atol=0.01)
    for number, change in enumerate(CHANGES):
        made = run(*command, *change, "--out", tmp_path / str(number), work=root)
        assert made.code == 0, made.err
        assert not torch.allclose(maps_of(tmp_path / str(number)), plain, atol=1e-4), change


def test_divergence_wants_prototypes(root: Path, run: Run) -> None:
    result = run("refine", "--cams", "text", "--method", "divergence", "--out", "x", work=root)
    assert result.code == 1
    assert "vpltool learn-prototypes" in result.lines("hint:")[0]


def test_each_setting_of_transport_counts(root: Path, tmp_path: Path, run: Run) -> None:
    command = ("refine", "--cams", "text", "--method", "transport", "--second",
               root / "features/train", "--store", "fp32")
    result = run(*command, "--out", tmp_path / "plain", work=root)
    assert result.code == 0, result.err
    assert "second" in open_input(tmp_path / "plain", ("cams",)).header.inputs
    plain = maps_of(tmp_path / "plain")
    assert torch.equal(plain.amax(dim=(1, 2)).round(decimals=4), torch.ones(len(plain)))
    for change in (("--background", 0.9), ("--alike", -1), ("--epsilon", 1), ("--rounds", 1)):
        made = run(*command, *change, "--out", tmp_path / change[0], work=root)
        assert made.code == 0, made.err
        assert not torch.allclose(maps_of(tmp_path / change[0]), plain, atol=1e-4), change
