"""Encoders that run by a library's own code: from photos to a segmenter, a bundle and ONNX."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import draw_scenes, run_in_process, write_scenes
from PIL import Image

from vpltool.clip.catalogue import import_library

pytest.importorskip("transformers")

SMALL: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3,
                         "intermediate_size": 64, "image_size": 64, "patch_size": 16}
STAGES: dict[str, Any] = {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1],
                          "image_size": 64}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "tokens": ("DINOv3ViT", SMALL | {"num_register_tokens": 4}),
    "maps": ("DINOv3ConvNext", STAGES),
    "fixed": ("Tipsv2Vision", SMALL | {"num_hidden_layers": 1}),
}
"""Tokens, maps of several levels, and one whose positions are resampled for a size only."""

CHAIN: tuple[tuple[object, ...], ...] = (
    ("extract", "--keep", "patches,layers", "--layers", "spread", "--workers", 0),
    ("extract", "--keep", "patches,layers", "--layers", "spread", "--workers", 0, "--split",
     "val"),
    ("tag-prototypes",),
    ("cam", "--prototypes", "tags", "--method", "salient"),
    ("seed-prototypes", "--cams", "tags-salient", "--start", "tags", "--method", "discriminant"),
    ("cam", "--prototypes", "seeds", "--method", "discriminant", "--name", "seeds"),
    ("refine", "--cams", "seeds", "--method", "patches", "--mask", "none", "--keep-scale"),
    ("crf", "--what", "seeds-refined", "--workers", 0),
    ("train-decoder", "--masks", "seeds-refined", "--prototypes", "seeds", "--name", "segmenter",
     "--method", "discriminant"),
    ("predict", "--split", "val", "--decoder", "segmenter"),
    ("export", "bundle", "--what", "segmenter"),
)


def write_model(folder: Path, name: str, values: dict[str, Any]) -> None:
    transformers = import_library("transformers")
    torch.manual_seed(7)
    model = getattr(transformers, f"{name}Model")(
        getattr(transformers, f"{name}Config")(**values))
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, an encoder of a family, and work/ with a segmenter and its bundle."""
    base = tmp_path_factory.mktemp(request.param)
    write_scenes(base, draw_scenes())
    write_model(base / "encoder", *FAMILIES[request.param])
    for line in (("prepare", "folder", base / "photos", "--labels", base / "tags.csv",
                  "--encoder", base / "encoder"), *CHAIN):
        result = run_in_process(*line, work=base / "work")
        assert result.code == 0, result.err
    return base


def labels_in(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]


def test_a_bundle_predicts_without_its_workspace(base: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "segmenter.safetensors"
    shutil.copy(base / "work/exports/segmenter.safetensors", bundle)
    shutil.copytree(base / "photos", tmp_path / "photos")
    found = run_in_process("predict", tmp_path / "photos", "--segmenter", bundle, "--out",
                           tmp_path / "found", "--workers", 0, "--max-side", 64, work=tmp_path)
    own = run_in_process("predict", base / "photos", "--decoder", "segmenter", "--out",
                         tmp_path / "own", "--workers", 0, "--max-side", 64, work=base / "work")
    assert found.code == own.code == 0, found.err + own.err
    pairs = zip(labels_in(tmp_path / "found"), labels_in(tmp_path / "own"), strict=True)
    assert all((one == other).all() for one, other in pairs)


def test_onnx_is_right_at_any_size_or_refused(base: Path) -> None:
    """Code that fixes a size writes no file that is wrong at others."""
    pytest.importorskip("onnxscript")
    ort = pytest.importorskip("onnxruntime")
    result = run_in_process("export", "onnx", "--what", "segmenter", work=base / "work")
    path = base / "work/exports/segmenter.onnx"
    if base.name.startswith("fixed"):
        assert result.code == 1
        assert "fixes the size that it was traced at" in result.lines("error:")[0]
        assert not path.exists()
        return
    assert result.code == 0, result.err
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for rows, columns in ((4, 4), (1, 1), (2, 9)):
        pixels = np.zeros((1, 3, 16 * rows, 16 * columns), np.float32)
        assert session.run(["labels"], {"pixels": pixels})[0].shape == (1, 16 * rows, 16 * columns)


def test_dinov3_of_timm_is_not_written_with_the_positions_of_one_size(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rotary positions are numbers of the traced grid: on others they are wrong in silence."""
    pytest.importorskip("onnxscript")
    from safetensors.torch import save_file

    timm = import_library("timm")
    options = {"depth": 3, "embed_dim": 48, "num_heads": 3, "img_size": 64}
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda model, **kwargs: create(
        model, **{**options, **kwargs}))
    torch.manual_seed(7)
    model = timm.create_model("vit_small_patch16_dinov3", num_classes=0, dynamic_img_size=True)
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()},
              tmp_path / "dinov3.safetensors")
    write_scenes(tmp_path, draw_scenes())
    encoder = f"timm:vit_small_patch16_dinov3,{tmp_path / 'dinov3.safetensors'}"
    for line in (("prepare", "folder", tmp_path / "photos", "--labels", tmp_path / "tags.csv",
                  "--encoder", encoder), *CHAIN[:-2]):
        result = run_in_process(*line, work=tmp_path / "work")
        assert result.code == 0, result.err
    result = run_in_process("export", "onnx", "--what", "segmenter", work=tmp_path / "work")
    assert result.code == 1
    assert "fixes the size that it was traced at (it gives other values there)" in result.err
