"""A second encoder: DINO's and DINOv2's files, timm's ViT, and CLIPs, without their joint space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import dino
from safetensors.torch import save_file
from torch import Tensor

from vpltool.clip.catalogue import import_library
from vpltool.clip.encoders import Encoder, find_encoder, load_encoder
from vpltool.errors import VplError

CPU = torch.device("cpu")
CASES: list[tuple[dict[str, Any], tuple[int, int]]] = [
    *((shape, grid) for shape in ({}, {"scaled": True}, {"depth": 1, "patch": 7})
      for grid in ((4, 4), (3, 6), (1, 1), (7, 5))),
    # On another grid, positions with registers are smoothed: see below.
    ({"registers": 4, "scaled": True}, (4, 4))]


def pixels(height: int, width: int) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(3))


def load(path: Path | str) -> Encoder:
    return load_encoder(find_encoder(str(path), (Path(),)), CPU)


@pytest.mark.parametrize(("shape", "grid"), CASES, ids=str)
def test_a_state_dict_gives_what_the_plain_forward_gives(
        shape: dict[str, Any], grid: tuple[int, int], tmp_path: Path) -> None:
    state = dino.random_state(**shape)
    torch.save(state, tmp_path / "dino.pth")
    encoder = load(tmp_path / "dino.pth")
    patch = shape.get("patch", 8)
    photo = pixels(grid[0] * patch, grid[1] * patch).double()
    exact = {name: tensor.double() for name, tensor in state.items()}
    for blocks in (2, 8):
        found = encoder.vision.double()(photo, patches="last", attention_blocks=blocks)
        patches, attention = dino.encode(exact, photo[0], last_blocks=blocks)
        assert found.patches is not None and found.attention is not None
        torch.testing.assert_close(found.patches[0], patches, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.attention[0], attention.float(), atol=5e-6, rtol=0)


def test_positions_with_registers_are_smoothed_as_in_dinov2(tmp_path: Path) -> None:
    state = dino.random_state(registers=4)
    torch.save(state, tmp_path / "reg4.pth")
    tower = load(tmp_path / "reg4.pth").vision
    table = state["pos_embed"][0, 1:].T.reshape(1, -1, 4, 4)
    wanted = F.interpolate(table, (3, 2), mode="bicubic", antialias=True).flatten(2)[0].T
    found = tower.positions_for((3, 2))
    torch.testing.assert_close(found[5:], wanted + state["patch_embed.proj.bias"])
    torch.testing.assert_close(found[0], state["pos_embed"][0, 0])
    assert not found[1:5].any()


def test_what_headers_and_normalisation_say(tmp_path: Path) -> None:
    for seed in (0, 1):
        torch.save(dino.random_state(seed=seed), tmp_path / f"dino{seed}.pth")
    save_file(dino.random_state(), tmp_path / "dino-same.safetensors")
    first, second, same = (load(tmp_path / name)
                           for name in ("dino0.pth", "dino1.pth", "dino-same.safetensors"))
    assert first.identity["name"] == "dino0" and first.identity["pretrained"] == "dino0.pth"
    assert first.identity["fingerprint"] != second.identity["fingerprint"]
    assert first.identity["fingerprint"] == same.identity["fingerprint"]
    assert first.mean == (0.485, 0.456, 0.406) and first.std == (0.229, 0.224, 0.225)


def with_extra(state: dict[str, Tensor], **extra: Tensor) -> dict[str, Tensor]:
    return {**state, **extra}


REFUSED: dict[str, tuple[Any, str]] = {
    "rope": (lambda s: with_extra(s, **{"rope_embed.periods": torch.ones(3)}), "rope_embed"),
    "swiglu": (lambda s: {n.replace("fc1", "w12"): t for n, t in s.items()}, "mlp.fc1.weight"),
    "without a norm": (lambda s: {n: t for n, t in s.items() if n != "norm.bias"}, "norm.bias"),
    "not square": (lambda s: with_extra(s, pos_embed=s["pos_embed"][:, :-2]), "15 positions"),
    "of another width": (lambda s: with_extra(s, **{
        "blocks.1.attn.proj.weight": torch.zeros(64, 128)}), "do not fit together"),
    "of 100 channels": (lambda s: dino.random_state(width=100, depth=1), "100 channels"),
    "a CLIP": (lambda s: {"visual.conv1.weight": torch.zeros(2)}, "does not say which"),
    "transformers": (lambda s: {"encoder.layer.0.x": torch.zeros(2)}, "transformers"),
    "else": (lambda s: {"layer1.0.conv1.weight": torch.zeros(2)}, "layer1.0.conv1.weight"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_files_are_refused_with_words(name: str, tmp_path: Path) -> None:
    change, words = REFUSED[name]
    torch.save(change(dino.random_state()), tmp_path / "x.pth")
    with pytest.raises(VplError) as caught:
        load(tmp_path / "x.pth")
    assert words in caught.value.message and caught.value.hint


@pytest.mark.parametrize(("extra", "words"), [
    ({}, "may be DINO's or a model of timm"),
    ({"head.weight": torch.zeros(3, 128)}, "is a model of timm: it has `head.weight`"),
    ({"reg_token": torch.zeros(1, 4, 128)}, "is a model of timm: it has `reg_token`")])
def test_a_file_of_timm_is_not_taken_for_dinos(extra: dict[str, Tensor], words: str,
                                               tmp_path: Path) -> None:
    """The names of its tensors are DINO's; its colours need not be."""
    path = tmp_path / ("dino.pth" if extra else "model.pth")
    torch.save(with_extra(dino.random_state(), **extra), path)
    with pytest.raises(VplError) as caught:
        load(path)
    assert words in caught.value.message
    assert f"encoder='timm:MODEL,{path}'" in caught.value.hint
    assert f"encoder='dino:{path}'" in caught.value.hint


def test_a_file_of_dino_is_known_by_its_tensors_or_asked_for(tmp_path: Path) -> None:
    state = dino.random_state(scaled=True)
    torch.save(state, tmp_path / "model.pth")
    torch.save(with_extra(state, mask_token=torch.zeros(1, 128)), tmp_path / "own.pth")
    own, asked = load(tmp_path / "own.pth"), load(f"dino:{tmp_path / 'model.pth'}")
    assert asked.identity["fingerprint"] == own.identity["fingerprint"]
    assert asked.identity["name"] == "model" and asked.mean == own.mean
    source = find_encoder("dino:model.pth", (tmp_path,))
    assert source.setting("../model.pth") == "dino:../model.pth"
    with pytest.raises(VplError, match="there is no none.pth") as missing:
        load("dino:none.pth")
    assert "if the workspace was moved, `doctor()`" in missing.value.hint


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"teacher": dino.random_state(depth=1), "args": Path("x")}, tmp_path / "full.pth")
    with pytest.raises(VplError, match="Python objects"):
        load(tmp_path / "full.pth")


def test_a_clip_has_no_joint_space_here(tiny_clip: Path) -> None:
    """Its patches are the last block's, normed by ln_post; width, not dim."""
    encoder = load(tiny_clip)
    photo = pixels(32, 48)
    found = encoder.vision(photo, patches="last")
    head = encoder.vision.head
    wanted = F.normalize(head.ln_post(head.block(found.tokens)[:, 1:]), dim=-1)
    assert found.patches is not None and found.patches.shape == (1, 24, 32)
    torch.testing.assert_close(found.patches, wanted, atol=1e-6, rtol=0)
    assert encoder.mean == (0.48, 0.46, 0.41)


@pytest.mark.parametrize(("given", "words"), [
    ("nothing.pth", "no such file"), ("ViT-B-16:", "no such file"),
    ("timm:vit_tiny_patch16_224,missing.pth", "missing.pth"),
    ("ViT-B-17:openai", "ViT-B-17"), ("timm:vit_tiny_patch17", "vit_tiny_patch17")])
def test_names_that_are_none(given: str, words: str) -> None:
    with pytest.raises(VplError) as caught:
        load(given)
    assert words in caught.value.message and caught.value.hint


@pytest.mark.parametrize("sizes", [
    {"patch_size": 8, "class_token": True},
    {"patch_size": 8, "reg_tokens": 4, "no_embed_class": True, "init_values": 0.3},
    {"patch_size": 8, "reg_tokens": 2, "num_heads": 3},
    {"patch_size": 8, "class_token": False, "global_pool": "avg", "fc_norm": False}], ids=str)
def test_timms_vit(sizes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole forward, on a grid that is not the model's; through a file of weights."""
    timm = import_library("timm")
    create = timm.create_model
    small = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 0,
             **sizes}
    torch.manual_seed(2)
    model = create("vit_tiny_patch16_224", **small).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()},
              tmp_path / "model.safetensors")
    monkeypatch.setattr(timm, "create_model", lambda name, **_: create(name, **small))
    encoder = load(f"timm:vit_tiny_patch16_224,{tmp_path / 'model.safetensors'}")
    larger = create("vit_tiny_patch16_224", **small, dynamic_img_size=True).eval()
    larger.load_state_dict(model.state_dict())
    photo = pixels(24, 40)
    with torch.no_grad():
        wanted = F.normalize(larger.forward_features(photo)[:, model.num_prefix_tokens:], dim=-1)
    found = encoder.vision(photo, patches="last")
    torch.testing.assert_close(found.patches, wanted, atol=1e-5, rtol=1e-4)
    assert encoder.identity["name"] == "timm:vit_tiny_patch16_224"
    assert encoder.mean == tuple(model.pretrained_cfg["mean"])


def test_a_timm_model_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = import_library("timm")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(VplError, match="no network") as caught:
        load("timm:vit_tiny_patch16_224")
    assert "timm:vit_tiny_patch16_224,FILE" in caught.value.hint
