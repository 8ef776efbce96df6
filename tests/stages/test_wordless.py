"""A workspace whose photos an encoder without words encodes: `prepare --encoder`."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from conftest import Result, Run, copy_workspace, draw_scenes, save_clip, write_scenes
from launching import Forked, environment
from PIL import Image
from reference import dino

from vpltool import Segmenter, VplError
from vpltool.clip.encoders import find_encoder
from vpltool.core.photos import to_pixels
from vpltool.engine.models import load_main, with_weights
from vpltool.formats import (
    Header,
    expect_header,
    open_input,
    open_workspace,
    read_tensors,
    write_tensors,
)
from vpltool.next_step import next_step
from vpltool.papers.comparison.methods import BUNDLED, read_methods
from vpltool.recipes.parse import commands_of
from vpltool.stages.push import model_card
from vpltool.state import read_state

TIMM = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    """Photos, masks, tags, a CLIP, weights of DINO's, and work/ with features of train.

    Leave these as they are.
    """
    from conftest import run_in_process

    base = tmp_path_factory.mktemp("wordless") / "base"
    base.mkdir()
    (base / "clip").symlink_to(tiny_clip)
    write_scenes(base, draw_scenes())
    torch.save(dino.random_state(patch=4, scaled=True), base / "dino.pth")
    for result in (prepare(base, run_in_process, "--encoder", base / "dino.pth", "--masks",
                           base / "masks"),
                   run_in_process("extract", "--workers", 0, "--store", "fp32",
                                  work=base / "work")):
        assert result.code == 0, result.err
    return base


@pytest.fixture
def changeable(base: Path, tmp_path: Path, tiny_clip: Path) -> Path:
    """A copy of `base` that a test may change."""
    return copy_of(base, tmp_path / "copy", tiny_clip)


def copy_of(base: Path, path: Path, clip: Path) -> Path:
    copied = copy_workspace(base, path, clip)
    # It names the CLIP of the copy, and here is none.
    content = json.loads((base / "work/workspace.json").read_text())
    (copied / "work/workspace.json").write_text(json.dumps(content))
    return copied


def prepare(base: Path, run: Run, *options: object) -> Result:
    return run("prepare", "folder", base / "photos", "--labels", base / "tags.csv", *options,
               work=base / "work")


def description(base: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((base / "work/workspace.json").read_text())
    return content


def test_the_workspace_names_its_encoder(base: Path) -> None:
    found = description(base)
    assert found["encoder"] == "../dino.pth" and found["model"] == found["pretrained"] == ""
    workspace = open_workspace(base / "work")
    assert not workspace.has_words and workspace.main_encoder == "dino.pth"


def test_features_are_the_plain_forwards_with_tokens_and_head(base: Path) -> None:
    """As of a CLIP: what later stages read of the encoder is all there."""
    folder = base / "work/features/train"
    photo = Image.open(base / "photos/scene1.png").convert("RGB")
    mean, std = (torch.tensor(row).view(3, 1, 1) for row in (
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = torch.tensor(list(photo.getdata()), dtype=torch.float32).view(
        photo.height, photo.width, 3).permute(2, 0, 1) / 255
    patches, attention = dino.encode(torch.load(base / "dino.pth"), (pixels - mean) / std)
    _, found = read_tensors(folder / "scene1.safetensors", "features")
    assert set(found) == {"grid", "patches", "attention", "tokens"}
    torch.testing.assert_close(found["patches"], patches, atol=1e-4, rtol=0)
    torch.testing.assert_close(found["attention"], attention, atol=1e-5, rtol=0)
    assert (folder.parent / "train.head.safetensors").exists()
    assert open_input(folder, ("features",)).header.model["encoder"] == "dino.pth"


def test_status_knows_the_encoder(base: Path, run: Run) -> None:
    said = run("status", "--stale", work=base / "work")
    assert said.out.strip() == "no result is stale"


def test_prepare_again_keeps_the_encoder(changeable: Path, run: Run) -> None:
    before = description(changeable)
    for options in ((), ("--overwrite",), ("--encoder", changeable / "dino.pth")):
        result = prepare(changeable, run, *options)
        assert result.code == 0, result.err
        assert description(changeable) == before


def test_another_encoder_is_a_change_of_settings(changeable: Path, run: Run) -> None:
    torch.save(dino.random_state(patch=4, scaled=True, seed=9), changeable / "other.pth")
    for option, value, now in (("--encoder", "other.pth", "../other.pth"),
                               ("--pretrained", "clip", "clip (../clip)")):
        result = prepare(changeable, run, option, changeable / value)
        assert result.code == 1
        assert "the encoder was ../dino.pth, now " in result.lines("error:")[0]
        assert now.split()[0] in result.lines("error:")[0]
        assert f"{option} " in result.lines("hint:")[0] and "--overwrite" in result.err
    assert description(changeable)["encoder"] == "../dino.pth"
    result = prepare(changeable, run, "--encoder", changeable / "other.pth", "--overwrite")
    assert result.code == 0, result.err
    assert description(changeable)["encoder"] == "../other.pth"
    said = run("status", "--stale", work=changeable / "work").out
    assert "the workspace's encoder is other.pth, no longer dino.pth" in said


def test_a_workspace_of_a_clip_gets_an_encoder(copied: Path, run: Run) -> None:
    """Only if it is overwritten; then what the CLIP made is stale, and there are no words."""
    torch.save(dino.random_state(patch=4, scaled=True), copied / "dino.pth")
    result = prepare(copied, run, "--encoder", copied / "dino.pth")
    assert "the encoder was clip (" in result.lines("error:")[0]
    assert prepare(copied, run, "--encoder", copied / "dino.pth", "--overwrite").code == 0
    found = description(copied)
    assert (found["model"], found["encoder"]) == ("", "../dino.pth")
    said = run("status", "--stale", work=copied / "work").out
    assert "the workspace's encoder is dino.pth, no longer clip" in said


@pytest.mark.parametrize(("options", "error", "hint"), [
    (("--encoder", "dino.pth", "--pretrained", "clip"), "--encoder dino.pth another model",
     "--words"),
    (("--encoder", "dino.pth", "--model", "ViT-B-16"), "--model ViT-B-16 names the CLIP",
     "--words"),
    (("--words", "clip"), "there is none", "--encoder timm:MODEL"),
    (("--encoder", "dino.pth", "--words", "dino.pth"), "is not a CLIP", "MODEL:PRETRAINED"),
    (("--encoder", "none.pth"), "no such file", "timm:MODEL"),
    (("--encoder", "timm:vit_smal_patch14_dinov2"), "no model `vit_smal_patch14_dinov2`",
     "--encoder timm:vit_small_patch14_dinov2"),
    (("--encoder", "timm:nonsense"), "no model `nonsense`", "--encoder timm:vit_small_patch14"),
    (("--encoder", "tags.csv"), "tags.csv", ""),
])
def test_refusals(options: tuple[str, ...], error: str, hint: str, changeable: Path, run: Run,
                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(changeable)
    result = run("prepare", "folder", "photos", "--labels", "tags.csv", *options,
                 work=changeable / "new")
    assert result.code == 1
    assert error in result.lines("error:")[0]
    assert hint in "".join(result.lines("hint:"))
    assert not (changeable / "new").exists()


def test_a_model_of_timm_from_a_file_offline(changeable: Path, run: Run) -> None:
    from safetensors.torch import save_file

    from vpltool.clip.catalogue import import_library

    torch.manual_seed(0)
    model = import_library("timm").create_model(TIMM, pretrained=False, num_classes=0)
    save_file(model.state_dict(), changeable / "vit.safetensors")
    encoder = f"timm:{TIMM},{changeable / 'vit.safetensors'}"
    assert prepare(changeable, run, "--encoder", encoder, "--overwrite").code == 0
    assert description(changeable)["encoder"] == f"timm:{TIMM},../vit.safetensors"
    workspace = open_workspace(changeable / "work")
    assert workspace.main_encoder == f"timm:{TIMM},vit.safetensors"
    encoder = load_main(workspace, torch.device("cpu"))
    pixels = to_pixels(torch.zeros(224, 224, 3, dtype=torch.uint8).numpy(), (224, 224),
                       encoder.mean, encoder.std)[None]
    wanted = torch.nn.functional.normalize(model.eval().forward_features(pixels)[:, 1:], dim=-1)
    found = encoder.vision(pixels, attention=False).patches
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_imagenets_normalisation(changeable: Path, run: Run) -> None:
    from vpltool.clip.catalogue import import_library

    model = import_library("timm").create_model(TIMM, pretrained=False, num_classes=0)
    torch.save(model.state_dict(), changeable / "vit.pth")
    assert prepare(changeable, run, "--encoder", f"timm:{TIMM},{changeable / 'vit.pth'}",
                   "--normalise", "imagenet", "--overwrite").code == 0
    encoder = load_main(open_workspace(changeable / "work"), torch.device("cpu"))
    assert encoder.mean == (0.485, 0.456, 0.406) and encoder.identity["normalise"] == "imagenet"


@pytest.mark.parametrize(("encoder", "found"), [
    ("timm:vit", "timm:vit,new"), ("timm:vit,old", "timm:vit,new"), ("old.pth", "new"),
    ("ViT-B-16:openai", "ViT-B-16:new"), ("hf:org/name", "new"), ("", "")])
def test_the_same_encoder_with_other_weights(encoder: str, found: str) -> None:
    assert with_weights(encoder, "new") == found
    assert with_weights(encoder, "timm:vit,new") == (encoder and "timm:vit,new")


def test_weights_are_no_folder(tmp_path: Path) -> None:
    for form in ("timm:vit,", "dino:"):
        with pytest.raises(VplError, match="is a folder"):
            find_encoder(form + str(tmp_path), (Path(),))


@pytest.mark.parametrize(("encoder", "name"), [
    ("../../w/vit.pth", "vit.pth"), ("timm:vit,../w/x.safetensors", "timm:vit,x.safetensors"),
    ("timm:vit", "timm:vit"), ("ViT-B-16:../w/x.pt", "ViT-B-16:x.pt"),
    ("hf:org/name", "hf:org/name"), ("../folder", "folder")])
def test_headers_name_an_encoder_without_folders(encoder: str, name: str, base: Path) -> None:
    from dataclasses import replace

    assert replace(open_workspace(base / "work"), encoder=encoder).main_encoder == name


def class_means(work: Path) -> None:
    """Write prototypes/tags.safetensors: of each class the mean patch of photos of it alone."""
    workspace = open_workspace(work)
    features = open_input(work / "features/train", ("features",))
    rows = torch.stack([torch.cat([
        features.read_tensors(photo.id, "patches")["patches"].float()
        for photo in workspace.photos("train") if photo.tags == (name,)]).mean(0)
        for name in workspace.classes])
    write_tensors(work / "prototypes/tags.safetensors", Header(
        kind="prototypes", command="tag-prototypes", model=features.header.model,
        facts={"space": "vision", "rows": list(workspace.classes)}), {
            "prototypes": torch.nn.functional.normalize(rows, dim=-1),
            "class_index": torch.arange(1, len(rows) + 1)})


CHAIN: tuple[tuple[object, ...], ...] = (
    ("extract", "--workers", 0, "--keep", "tokens,patches,attention,layers", "--overwrite"),
    ("extract", "--split", "val", "--workers", 0, "--keep", "tokens,patches,attention,layers"),
    ("cam", "--method", "salient"),
    ("cam", "--method", "dense"),
    ("cam",),
    ("refine", "--cams", "tags", "--mask", "none"),
    ("refine", "--cams", "tags-salient", "--method", "patches", "--mask", "none"),
    ("seed-prototypes", "--phi", "0.5", "--phi-background", "0.4", "--background", "clusters"),
    ("seed-prototypes", "--start", "tags", "--cams", "tags-salient", "--phi", "0.5", "--method",
     "bank", "--out", "prototypes/bank.safetensors"),
    ("cam", "--prototypes", "prototypes/bank.safetensors", "--method", "knn"),
    ("cam", "--prototypes", "seeds", "--method", "dense"),
    ("crf", "--what", "seeds-dense", "--workers", 0),
    ("train-decoder", "--masks", "seeds-dense", "--method", "discriminant", "--name", "segmenter"),
    ("train-decoder", "--masks", "seeds-dense", "--method", "linear", "--lambda-rsc", 0,
     "--iters", 3, "--crop", 3, "--batch-size", 2, "--name", "line", "--workers", 0),
    ("train-decoder", "--masks", "seeds-dense", "--iters", 3, "--crop", 3, "--batch-size", 2,
     "--width", 16, "--prototypes", "seeds", "--name", "weclip", "--source", "photos", "--workers",
     0),
    ("estimate", "--iters", 2),
    ("predict", "--split", "val", "--decoder", "segmenter"),
    ("predict", "--split", "val", "--decoder", "weclip", "--source", "photos", "--workers", 0),
    ("eval", "--split", "val", "--what", "predictions/segmenter"),
    ("show", "cams/tags-salient", "--limit", 2, "--out", "sheet.png"),
    ("export", "bundle", "--what", "segmenter"),
    ("report", "--workers", 0),
    ("inspect", "."),
    ("doctor",),
    ("status",),
)
"""Every stage that needs no words, from the folder of the workspace."""


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    """A copy of `base` with all that the chain makes, in one process. Leave it as it is."""
    copied = copy_of(base, tmp_path_factory.mktemp("whole") / "base", tiny_clip)
    work = copied / "work"
    lines = [[str(word) for word in line] for line in CHAIN]
    code = ("import contextlib, os, sys; from pathlib import Path\n"
            "sys.path.insert(0, sys.argv[1]); os.chdir(sys.argv[2])\n"
            "from vpltool import cli; from stages import test_wordless\n"
            "for module in [name for name in sys.modules if name.startswith('open_clip')]:\n"
            "    del sys.modules[module]\n"
            f"for line in {lines!r}:\n"
            "    if line == ['cam', '--method', 'salient']:\n"
            "        test_wordless.class_means(Path('.'))\n"
            "    sys.argv = ['vpltool', *line]\n"
            "    try: cli.main()\n"
            "    except SystemExit as stop: assert not stop.code, line\n"
            "assert 'open_clip' not in sys.modules\n")
    done = Forked(["-c", code, Path(__file__).parents[1], work], environment())
    said = done.communicate()[1]
    assert done.returncode == 0, said[-3000:]
    return copied


def test_the_whole_chain_without_text(whole: Path, run: Run) -> None:
    """Nothing of open_clip is imported on the way, and nothing is stale at the end."""
    work = whole / "work"
    said = run("status", "--stale", work=work).out.strip()
    assert said == "no result is stale"
    header = expect_header(work / "decoder/segmenter.safetensors", "decoder")
    assert header.model["encoder"] == "dino.pth" and header.options["prototypes"] == "tags"
    assert (work / "predictions/segmenter/val/scene6.png").exists()
    page = (work / "report/index.html").read_text()
    assert "dino.pth" in page


def test_the_bundle_holds_the_encoder(whole: Path, tmp_path: Path) -> None:
    """It needs no workspace; without its weights, it names the encoder to be had."""
    bundle = whole / "work/exports/segmenter.safetensors"
    photo = whole / "photos/scene6.png"
    own = Segmenter.load(whole / "work/decoder/segmenter.safetensors")(photo).labels
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(bundle.read_bytes())
    assert (Segmenter.load(moved)(photo).labels == own).all()
    (tmp_path / "decoder.safetensors").write_bytes(
        (whole / "work/decoder/segmenter.safetensors").read_bytes())
    found = Segmenter.load(tmp_path / "decoder.safetensors", pretrained=whole / "dino.pth")
    assert (found(photo).labels == own).all()
    card = model_card(expect_header(bundle, "bundle"), "me/mine")
    assert "frozen encoder | dino (dino.pth), in the file" in card and "- clip" not in card


def test_update_names_the_rows(whole: Path, tmp_path: Path, tiny_clip: Path, run: Run) -> None:
    """In a workspace with words too, where the default is not the text."""
    copied = copy_of(whole, tmp_path / "copy", tiny_clip)
    state = read_state(open_workspace(copied / "work"))
    line = state.artifacts["cams/tags-salient/train"].line()
    assert "--prototypes tags" in line
    (copied / "work/cams/tags-salient/train/scene0.safetensors").unlink()
    assert run("update", work=copied / "work").code == 0
    assert (copied / "work/cams/tags-salient/train/scene0.safetensors").exists()


@pytest.mark.parametrize("line", [
    ("text-prototypes",), ("tag",), ("learn-prototypes",), ("gap",), ("align",), ("shift-gap",),
    ("train-groups",), ("extract", "--encoder", "words"), ("cam", "--prototypes", "text")])
def test_what_needs_words_says_so_in_one_line(line: tuple[str, ...], whole: Path, run: Run
                                              ) -> None:
    result = run(*line, work=whole / "work")
    assert result.code == 1
    (error,) = result.lines("error:")
    assert error == ("this workspace has no words: its encoder, dino.pth, was trained without text")
    assert "--words MODEL:PRETRAINED" in result.lines("hint:")[0]


def test_a_classifier_of_prototypes_needs_some_of_the_background(whole: Path, run: Run) -> None:
    result = run("train-decoder", "--masks", "seeds-dense", "--iters", 3, "--name", "x",
                 work=whole / "work")
    assert result.code == 1
    assert "tags.safetensors has none of the background" in result.lines("error:")[0]
    assert "--method discriminant needs none" in result.lines("hint:")[0]


def test_the_next_steps(base: Path, tmp_path: Path, tiny_clip: Path, run: Run) -> None:
    """Features come first, then the prototypes of tags, then salient maps."""
    copied = copy_of(base, tmp_path / "copy", tiny_clip)
    work, found = copied / "work", []
    for step in (None, lambda: class_means(work)):
        if step:
            step()
        found.append(next_step(open_workspace(work), read_state(open_workspace(work))))
    assert found[0].why == "features exist, but no prototypes"
    assert found[0].line.endswith(" tag-prototypes")
    assert found[1].line.endswith("cam --method salient")


@pytest.mark.parametrize(("name", "hint"), [
    ("visoin", "did you mean `vision`? It needs words; there are "), ("vision", "there are ")])
def test_no_hint_names_a_call_that_needs_words(name: str, hint: str, whole: Path, run: Run) -> None:
    result = run("cam", "--prototypes", name, "--method", "dense", work=whole / "work")
    (found,) = result.lines("hint:")
    assert found.startswith(hint) and found.endswith(", tags")


def test_the_comparison_leaves_out_what_needs_words() -> None:
    begin, methods = read_methods(BUNDLED, {"words": "", "salient": "tags-salient"}, (0,), Path())
    kept = {method.name for method in methods}
    every = {method.name for method in read_methods(BUNDLED, {"encoder": "FILE"}, (0,), Path())[1]}
    assert {"seeds", "k-means", "LPCAM", "CPAL", "k-nearest labels"} <= kept
    assert {"CLIP-ES", "MaskCLIP", "VPL, phase 1", "SSR, aligned"} <= every - kept
    lines = [shlex.join(step.words) for step in commands_of(begin)]
    assert [line.split()[0] for line in lines] == ["extract", "extract", "tag-prototypes"]
    lines += [shlex.join(step.words) for method in methods
              for step in commands_of(method.steps[0])]
    assert not any(re.search(r"\btext", line) for line in lines)


def test_the_example_of_the_page_runs(base: Path, tmp_path: Path, tiny_clip: Path, run: Run,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """Phase 1 on the CLIP beside the encoder; the segmenter is the encoder's."""
    page = (Path(__file__).parents[2] / "docs/own-data.md").read_text("utf-8")
    part = page.split("\n## An encoder without words\n")[1].split("\n## ")[0]
    lines = part.split("```sh\n")[1].split("```")[0].splitlines()
    assert [line.split()[1] for line in lines] == [
        "prepare", "text-prototypes", "extract", "cam", "learn-prototypes", "cam", "crf",
        "train-decoder"]
    copied = copy_of(base, tmp_path / "copy", tiny_clip)
    # The page's lines are typed where the photos are, with WORK in the environment.
    work = copied / "work"
    for name in ("photos", "tags.csv", "dino.pth"):
        (work / name).symlink_to(copied / name)
    monkeypatch.chdir(work)
    monkeypatch.setattr("vpltool.parallel.device.default_workers", lambda: 0)
    for line in lines:
        quick = line.replace("ViT-B-16-quickgelu:openai", str(tiny_clip)).replace("3000", "3")
        result = run(*quick.split()[1:], work=work)
        assert result.code == 0, f"{line}: {result.err}"
    header = expect_header(work / "decoder/vision.safetensors", "decoder")
    assert header.model["name"] == "dino" and header.options["prototypes"] == "vision"
    assert expect_header(work / "prototypes/vision.safetensors",
                         "prototypes").model["name"] == "clip"
    said = run("status", "--stale", work=work).out.strip()
    assert said == "no result is stale"
    line = read_state(open_workspace(work)).artifacts["cams/text/train"].line()
    assert "--prototypes text" in line and "--features features-second/train" in line


def test_a_clip_beside_the_encoder(changeable: Path, run: Run) -> None:
    """`--words` later, for text prototypes; its features are the second ones, with a head."""
    result = prepare(changeable, run, "--words", changeable / "clip")
    assert result.code == 0, result.err
    found = description(changeable)
    assert (found["model"], found["encoder"]) == ("clip", "../dino.pth")
    work = changeable / "work"
    assert run("text-prototypes", "--prompts", "single", work=work).code == 0
    assert run("extract", "--encoder", "words", "--workers", 0, work=work).code == 0
    folder = work / "features-second/train"
    assert (folder.parent / "train.head.safetensors").exists()
    assert read_tensors(folder / "scene0.safetensors", "features")[1]["patches"].shape[1] == 16
    assert run("status", "--stale", work=work).out.strip() == "no result is stale"
    save_clip(changeable / "other", seed=4)
    result = prepare(changeable, run, "--words", changeable / "other")
    assert "the CLIP was clip (" in result.lines("error:")[0]
    assert prepare(changeable, run, "--words", changeable / "other", "--overwrite").code == 0
    stale = {line.split()[1] for line in run("status", "--stale", work=work).out.splitlines()
             if line.startswith("stale")}
    assert stale == {"prototypes/text.safetensors", "features-second/train"}
