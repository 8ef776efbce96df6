"""A real dual encoder on real photos, where they lie beside the repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run

from vpltool.clip.load import import_open_clip, load_clip
from vpltool.core.photos import read_photo, to_pixels
from vpltool.formats import Workspace, open_workspace, read_tensors

REALDATA = Path(__file__).parents[2] / "shared" / "realdata"

pytestmark = pytest.mark.skipif(not (REALDATA / "vlm-s14").exists(),
                                reason="../shared/realdata does not exist")

LIMIT = ("--limit", 4)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    """Features of four photos, small ones to save time."""
    folder = tmp_path_factory.mktemp("real")
    for command in (
        ("prepare", "voc", REALDATA / "photos20", "--pretrained", REALDATA / "vlm-s14"),
        ("text-prototypes", "--prompts", "single"),
        ("extract", *LIMIT, "--max-side", 280, "--workers", 0),
        *(("cam", *LIMIT, "--method", method) for method in ("gradcam", "dense", "salient")),
        ("refine", "--cams", "text", *LIMIT),
        ("refine", "--cams", "text-dense", "--affinity", "patches", "--keep-scale", *LIMIT),
    ):
        result = run(*command, work=folder)
        assert result.code == 0, f"{command}: {result.err}"
    return folder


def test_one_pass_is_open_clips() -> None:
    """At the model's own 518 pixels; this tower averages its patches."""
    clip = load_clip("vlm-s14", str(REALDATA / "vlm-s14"), torch.device("cpu"))
    model: Any = import_open_clip().create_model(f"local-dir:{REALDATA / 'vlm-s14'}").eval()
    photo = next(iter(sorted((REALDATA / "photos20/JPEGImages").glob("*.jpg"))))
    pixels = to_pixels(read_photo(photo), (518, 518), clip.mean, clip.std)[None]
    with torch.no_grad():
        wanted = model.encode_image(pixels, normalize=True)
        tokens = clip.vision(pixels, attention=False).tokens
        found = clip.vision.head.pooled(clip.vision.head.block(tokens))
        words = ["a photo of a dog.", "a photo of a bus."]
        text = import_open_clip().get_tokenizer(f"local-dir:{REALDATA / 'vlm-s14'}")(words)
        wanted_text = model.encode_text(text, normalize=True)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(clip.encode_text(words), wanted_text, atol=1e-5, rtol=1e-4)


def test_text_prototypes_tell_classes_apart(work: Path) -> None:
    _, tensors = read_tensors(work / "prototypes/text.safetensors", "prototypes")
    rows = tensors["prototypes"][tensors["class_index"] > 0]
    assert tuple(rows.shape) == (20, 256)
    cosines = rows @ rows.T - torch.eye(20)
    assert float(cosines.max()) < 0.95


@pytest.mark.parametrize("name", ["text", "text-refined", "text-dense", "text-dense-refined",
                                  "text-salient"])
def test_maps_are_finite_and_of_the_tagged_classes(name: str, work: Path) -> None:
    workspace: Workspace = open_workspace(work)
    for photo in workspace.photos("train", 4):
        _, features = read_tensors(work / f"features/train/{photo.id}.safetensors", "features")
        _, tensors = read_tensors(work / f"cams/{name}/train/{photo.id}.safetensors", "cams")
        maps = tensors["cam"].float()
        assert tensors["classes"].tolist() == workspace.indices_of(photo)
        assert tuple(maps.shape) == (len(photo.tags), *features["grid"].tolist())
        assert maps.isfinite().all()
        assert float(maps.min()) >= 0
        assert float(maps.max()) <= 1
        assert float(maps.flatten(1).std(dim=1).min()) > 0, "a map without any contrast"


def test_maps_can_be_scored(work: Path, run: Run) -> None:
    result = run("eval", "--what", "cams/text-refined", "--split", "train", *LIMIT, "--json",
                 work=work)
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert report["photos"] == 4
    assert report["accuracy"] > 0.2
