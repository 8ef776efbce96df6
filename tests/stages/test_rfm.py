"""`refine --method rfm`: a decoder and the attention of each block, and a second round from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import TRAIN, Run, copy_workspace, run_chain
from reference import clip_es, weclip

from vpltool.engine.segmenters import open_segmenter
from vpltool.formats import open_input, read_tensors

RFM = ("refine", "--cams", "text", "--method", "rfm", "--decoder", "tiny")


@pytest.fixture(scope="module")
def base(layered: Path, tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    """As `layered`, with the attention of each block."""
    made = copy_workspace(layered, tmp_path_factory.mktemp("rfm") / "base", tiny_clip)
    run_chain(made, (("extract", "--overwrite", "--workers", 0, "--store", "fp32", "--keep",
                      "tokens,patches,attention,attentions,layers"), ("update",)))
    return made


@pytest.mark.parametrize("blocks", [6, 2])
def test_maps_are_the_references(blocks: int, base: Path, tmp_path: Path, run: Run) -> None:
    work = base / "work"
    result = run(*RFM, "--blocks", blocks, "--store", "fp32", "--out", tmp_path / "maps", work=work)
    assert result.code == 0, result.err
    folder = open_input(tmp_path / "maps", ("cams",))
    assert {"decoder", "features", "cams"} <= set(folder.header.inputs)
    assert folder.header.options["blocks"] == blocks
    network = open_segmenter(work / "decoder/tiny.safetensors").network()
    for number in range(6):
        key = f"scene{number}"
        raw = read_tensors(work / f"cams/text/train/{key}.safetensors", "cams")[1]["cam"].float()
        seen = read_tensors(work / f"features/train/{key}.safetensors", "features")[1]
        grid = (raw.shape[1], raw.shape[2])
        fused = network.embeddings_and_fused(seen["layers"][None].float(), None, grid)[1]
        assert fused is not None
        chosen = weclip.refining(fused[0], list(seen["attentions"][-blocks:]))
        matrix = clip_es.transition(chosen)
        for cam, made in zip(raw, folder.read_tensors(key)["cam"], strict=True):
            mask = clip_es.boxes(cam, 0.4, exclusive=False)
            wanted = clip_es.min_max(clip_es.spread(cam.double(), matrix, mask.double()))
            torch.testing.assert_close(made.double(), wanted, atol=1e-4, rtol=1e-3)


def test_a_second_round(base: Path, tmp_path: Path, run: Run, tiny_clip: Path) -> None:
    """Labels made anew from what the decoder has learned, and a decoder that goes on with them."""
    work = copy_workspace(base, tmp_path / "copy", tiny_clip) / "work"
    run_chain(tmp_path / "copy", (
        (*RFM, "--out", work / "cams/again/train"),
        ("crf", "--what", "again", "--method", "par", "--workers", 0),
        (*TRAIN[:1], "--masks", "again", *TRAIN[3:], "--start", "tiny", "--lambda-aff", 0.1)))
    assert (work / "decoder/again.safetensors").exists()
    assert run("status", "--stale", work=work).out.strip() == "no result is stale"
    run_chain(tmp_path / "copy", ((*TRAIN, "--name", "tiny", "--seed", 5, "--overwrite"),))
    stale = run("status", "--stale", work=work).out
    assert "cams/again/train" in stale
    assert "decoder/again.safetensors" in stale
    result = run("update", work=work)
    assert result.code == 0, result.err
    assert run("status", "--stale", work=work).out.strip() == "no result is stale"


@pytest.mark.parametrize(("words", "message", "hint"), [
    (("--blocks", 9), "--blocks 9: the features hold the attention of 8", "--attention-blocks 9"),
    (("--decoder", "none"), "no segmenter called `none`", "tiny"),
])
def test_refused(words: tuple[object, ...], message: str, hint: str, base: Path, tmp_path: Path,
                 run: Run) -> None:
    result = run(*RFM, *words, "--out", tmp_path / "x", work=base / "work")
    assert result.code == 1
    assert message in result.lines("error:")[0]
    assert hint in result.lines("hint:")[0]
    assert not (tmp_path / "x").exists()


def test_features_without_the_attention_of_each_block(layered: Path, tmp_path: Path, run: Run
                                                      ) -> None:
    result = run(*RFM, "--out", tmp_path / "x", work=layered / "work")
    assert result.code == 1
    assert "no attentions" in result.lines("error:")[0]
    assert "attentions" in result.lines("hint:")[0]


def test_features_without_a_layer_of_the_decoder(base: Path, tmp_path: Path, run: Run,
                                                 tiny_clip: Path) -> None:
    made = copy_workspace(base, tmp_path / "copy", tiny_clip)
    run_chain(made, (("extract", "--overwrite", "--workers", 0, "--layers", "0", "--keep",
                      "tokens,patches,attentions,layers"),))
    result = run(*RFM, "--out", tmp_path / "x", work=made / "work")
    assert result.code == 1
    assert "holds the layers [0]" in result.lines("error:")[0]
    assert "--layers 0,1" in result.lines("hint:")[0]
