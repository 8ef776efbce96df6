"""`extract --encoder`, and the refiners that read what it makes or the photo's superpixels."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run, copy_workspace, save_clip
from PIL import Image
from reference import dino, ssr

from vpltool.core.grids import resample_attention
from vpltool.formats import open_input, read_tensors

needs_skimage = pytest.mark.skipif(importlib.util.find_spec("skimage") is None,
                                   reason="scikit-image is not installed")


@pytest.fixture(scope="module")
def root(ready: Path, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    """As `ready`, with a file dino.pth and its features of train. Leave these as they are."""
    base = copy_workspace(ready, tmp_path_factory.mktemp("second") / "base", tiny_clip)
    torch.save(dino.random_state(patch=4, scaled=True), base / "dino.pth")
    result = run("extract", "--encoder", base / "dino.pth", "--workers", 0, "--store", "fp32",
                 work=base / "work")
    assert result.code == 0, result.err
    assert result.out.strip() == str(base / "work/features-second/train")
    return base


@pytest.fixture
def changeable(root: Path, tiny_clip: Path, tmp_path: Path) -> Path:
    return copy_workspace(root, tmp_path / "world", tiny_clip)


def test_features_are_the_plain_forwards(root: Path) -> None:
    state = torch.load(root / "dino.pth")
    photo = Image.open(root / "photos/scene1.png").convert("RGB")
    assert photo.size == (40, 48)
    pixels = torch.tensor(np.asarray(photo), dtype=torch.float32).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(row).view(3, 1, 1) for row in (
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    patches, attention = dino.encode(state, (pixels - mean) / std)
    _, found = read_tensors(root / "work/features-second/train/scene1.safetensors", "features")
    assert found["grid"].tolist() == [12, 10]
    assert set(found) == {"grid", "patches", "attention"}
    torch.testing.assert_close(found["patches"], patches, atol=1e-4, rtol=0)
    torch.testing.assert_close(found["attention"], attention, atol=1e-5, rtol=0)


def test_the_header_says_which_encoder(root: Path, run: Run) -> None:
    header = open_input(root / "work/features-second/train", ("features",)).header
    assert header.model["name"] == header.options["encoder"] == "dino"
    assert header.call["encoder"] == "../dino.pth" == header.sources["weights"]
    assert not (root / "work/features-second/train.head.safetensors").exists()
    shown = run("inspect", "features-second/train", work=root / "work").out
    assert "name: dino" in shown and "../dino.pth (content" in shown


def test_again_is_done_already_and_other_weights_are_refused(changeable: Path, run: Run) -> None:
    work = changeable / "work"
    again = ("extract", "--encoder", changeable / "dino.pth", "--workers", 0, "--store", "fp32")
    path = work / "features-second/train/scene0.safetensors"
    before = path.stat().st_mtime_ns
    assert run(*again, work=work).code == 0
    assert path.stat().st_mtime_ns == before
    torch.save(dino.random_state(patch=4, scaled=True, seed=9), changeable / "dino.pth")
    result = run(*again, work=work)
    assert result.code == 1
    assert "the weights of the encoder dino (dino.pth) have changed" in result.lines("error:")[0]


def test_status_and_update_know_the_encoder(changeable: Path, run: Run, tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """From another folder too; and what was refined with it is made again behind it."""
    work = changeable / "work"
    monkeypatch.chdir(tmp_path)
    assert run("refine", "--cams", "text", "--method", "ssr", "--mask", "none", "--out",
               work / "cams/both/train", work=work).code == 0
    assert run("status", "--stale", work=work).out.strip() == "no result is stale"
    torch.save(dino.random_state(patch=4, scaled=True, seed=9), changeable / "dino.pth")
    said = run("status", "--stale", work=work).out
    assert "../dino.pth has changed" in said
    assert "extract --encoder world/dino.pth --store fp32 --update" in said
    assert "features-second/train is not up to date" in said
    assert "--second" not in said
    before = cams(work / "cams/both/train")
    result = run("update", work=work)
    assert result.code == 0, result.err
    assert run("status", "--stale", work=work).out.strip() == "no result is stale"
    assert any(not torch.equal(cam, before[key])
               for key, cam in cams(work / "cams/both/train").items())


def test_another_clip_of_the_workspace_is_no_matter(changeable: Path, run: Run) -> None:
    work = changeable / "work"
    save_clip(changeable / "other", seed=4)
    assert run("prepare", "folder", changeable / "photos", "--labels", changeable / "tags.csv",
               "--pretrained", changeable / "other", "--overwrite", work=work).code == 0
    stale = [line.split()[1] for line in run("status", "--stale", work=work).out.splitlines()
             if line.startswith("stale")]
    assert "features/train" in stale and "features-second/train" not in stale


def test_a_clip_as_second_encoder(root: Path, run: Run, tmp_path: Path) -> None:
    """The workspace's own, by its folder: patches of the width, not of the joint space."""
    result = run("extract", "--encoder", root / "clip", "--keep", "patches", "--limit", 1,
                 "--workers", 0, "--out", tmp_path / "out", work=root / "work")
    assert result.code == 0, result.err
    tensors = read_tensors(tmp_path / "out/scene0.safetensors", "features")[1]
    assert set(tensors) == {"grid", "patches"} and tensors["patches"].shape[1] == 32


@pytest.mark.parametrize(("options", "error", "hint"), [
    (("--encoder", "none.pth"), "--encoder none.pth: no such file",
     "--encoder timm:MODEL"),
    (("--encoder", "dino.pth", "--keep", "tokens,patches"),
     "nothing reads tokens of a second encoder", "--keep patches,attention"),
    (("--encoder", "clip/open_clip_model.safetensors"), "does not say which",
     "--encoder MODEL:PRETRAINED")])
def test_refusals(options: tuple[str, ...], error: str, hint: str, root: Path, run: Run,
                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    result = run("extract", *options, "--out", root / "x", work=root / "work")
    assert result.code == 1
    assert error in result.lines("error:")[0] and hint in result.lines("hint:")[0]
    assert not (root / "x").exists()


def test_what_has_no_effect_is_warned_about(root: Path, run: Run, tmp_path: Path) -> None:
    result = run("extract", "--encoder", root / "dino.pth", "--patches", "value", "--workers", 0,
                 "--limit", 1, "--out", tmp_path / "x", work=root / "work")
    assert result.lines("warning:") == [
        "--patches value has no effect: a second encoder has no joint space, and its layers are "
        "not kept"]


def test_a_tensor_that_was_not_kept(changeable: Path, run: Run) -> None:
    work = changeable / "work"
    assert run("extract", "--encoder", changeable / "dino.pth", "--keep", "patches", "--workers", 0,
               "--overwrite", work=work).code == 0
    result = run("refine", "--cams", "text", "--method", "ssr", "--mask", "none", work=work)
    assert "holds patches, but no attention" in result.lines("error:")[0]
    assert "--encoder ../dino.pth" in result.lines("hint:")[0]


def test_without_a_second_encoder(ready: Path, run: Run, tmp_path: Path) -> None:
    result = run("refine", "--cams", "text", "--method", "ssr", "--out", tmp_path / "x",
                 work=ready / "work")
    assert result.code == 1
    assert "extract" in result.lines("hint:")[0] and "--encoder WEIGHTS" in result.lines("hint:")[0]


def cams(folder: Path) -> dict[str, Any]:
    return {path.stem: read_tensors(path, "cams")[1]["cam"].float()
            for path in sorted(folder.glob("scene*"))}


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_ssr_without_a_mask_is_both_matrices(share: float, root: Path, run: Run, tmp_path: Path
                                             ) -> None:
    """Another grid is resampled to CLIP's; each map is the fused matrix's."""
    work = root / "work"
    result = run("refine", "--cams", "text", "--method", "ssr", "--mask", "none",
                 "--second-share", share, "--store", "fp32", "--out", tmp_path / "x", work=work)
    assert result.code == 0, result.err
    for key, found in cams(tmp_path / "x").items():
        own, other, maps = (read_tensors(work / folder / f"{key}.safetensors", kind)[1]
                            for folder, kind in (("features/train", "features"),
                                                 ("features-second/train", "features"),
                                                 ("cams/text/train", "cams")))
        grid = tuple(own["grid"].tolist())
        second = resample_attention(other["attention"], tuple(other["grid"].tolist()), grid)
        for cam, refined in zip(maps["cam"].float(), found, strict=True):
            wanted = ssr.correct(cam, [own["attention"].float(), second], [1 - share, share],
                                 torch.ones(grid))
            torch.testing.assert_close(refined, wanted.float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("mask", ["box", "none"])
def test_superpixels_without_superpixels_is_attention(mask: str, ready: Path, run: Run,
                                                      tmp_path: Path) -> None:
    """Needs no scikit-image."""
    for method in ("attention", "superpixels"):
        result = run("refine", "--cams", "text", "--method", method, "--mask", mask, "--out",
                     tmp_path / method, work=ready / "work")
        assert result.code == 0, result.err
    wanted = cams(tmp_path / "attention")
    for key, found in cams(tmp_path / "superpixels").items():
        torch.testing.assert_close(found, wanted[key], atol=1e-3, rtol=0)


@needs_skimage
def test_superpixels_mask_the_columns(ready: Path, run: Run, tmp_path: Path) -> None:
    from skimage.segmentation import slic

    work, options = ready / "work", {"confident": 0.3, "share": 0.2, "coverage": 0.5}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    for mask in ("superpixel", "both"):
        result = run("refine", "--cams", "text", "--method", "superpixels", "--mask", mask,
                     "--superpixels", 40, "--colours", 3, "--detail", 5, "--store", "fp32",
                     *words, "--out", tmp_path / mask, work=work)
        assert result.code == 0, result.err
    for key, found in cams(tmp_path / "superpixel").items():
        own = read_tensors(work / f"features/train/{key}.safetensors", "features")[1]
        maps = read_tensors(work / f"cams/text/train/{key}.safetensors", "cams")[1]["cam"].float()
        height, width = own["grid"].tolist()
        photo = Image.open(ready / f"photos/{key}.png").convert("RGB").resize(
            (width * 5, height * 5), Image.Resampling.BOX)
        scaled = np.asarray(photo)
        regions = ssr.regions_of(scaled, slic(scaled, 40, 10.0, 5), 3, in_lab=True)
        for cam, refined in zip(maps, found, strict=True):
            mask = ssr.target_mask(cam, regions, 5, total="map", **options)
            wanted = ssr.correct(cam, [own["attention"].float()], [1.0], mask)
            torch.testing.assert_close(refined, wanted.float(), atol=1e-4, rtol=0)
    assert any(not torch.equal(one, other) for one, other in zip(
        cams(tmp_path / "superpixel").values(), cams(tmp_path / "both").values(), strict=True))


def test_without_scikit_image_nothing_is_begun(ready: Path, run: Run, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec",
                        lambda name, *rest: None if name == "skimage" else find(name, *rest))
    result = run("refine", "--cams", "text", "--method", "superpixels", "--out", tmp_path / "x",
                 work=ready / "work")
    assert result.code == 1
    assert "scikit-image" in result.lines("error:")[0]
    assert result.lines("hint:") == ["pip install 'vpltool[superpixels]', or --mask box"]
    assert not (tmp_path / "x").exists()


@needs_skimage
def test_settings_are_recorded(root: Path, run: Run, tmp_path: Path) -> None:
    result = run("refine", "--cams", "text", "--method", "ssr", "--colours", 5, "--second",
                 root / "work/features-second/train", "--out", tmp_path / "x", work=root / "work")
    assert result.code == 0, result.err
    header = open_input(tmp_path / "x", ("cams",)).header
    assert header.options["colours"] == 5 and header.options["second_share"] == 0.6
    assert "lambda" not in header.options, "there are no boxes"
    assert "second" in header.inputs and header.model["name"] == "clip"


def test_what_a_preset_keeps_of_clip_is_not_asked_for(root: Path, run: Run, tmp_path: Path
                                                      ) -> None:
    """Only what is typed is refused."""
    preset = tmp_path / "mine.toml"
    preset.write_text('[extract]\nkeep = "tokens,patches,attention,layers"\n')
    result = run("--preset", preset, "extract", "--encoder", root / "dino.pth", "--workers", 0,
                 "--limit", 1, "--out", tmp_path / "x", work=root / "work")
    assert result.code == 0, result.err
    assert open_input(tmp_path / "x", ("features",)).header.options["keep"] == [
        "patches", "attention"]
