"""Encoders that run by timm's own code: each family against the original model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from vpltool.clip.catalogue import import_library
from vpltool.clip.encoders import Encoder, find_encoder, load_encoder
from vpltool.clip.models import licence_of
from vpltool.clip.stored_towers import tower_config, tower_from_config
from vpltool.clip.timm_towers import TimmTower
from vpltool.core.tower import AdaptedTower
from vpltool.core.vit import VisionTower
from vpltool.errors import VplError

CPU = torch.device("cpu")
VIT: dict[str, Any] = {"depth": 3, "embed_dim": 48, "num_heads": 3, "img_size": 64}
STAGES: dict[str, Any] = {"depths": (1, 1, 1, 1)}

TOKENS: dict[str, dict[str, Any]] = {
    "vit_small_patch14_dinov2": VIT | {"img_size": 56},
    "vit_base_patch14_reg4_dinov2": VIT | {"img_size": 56},
    "vit_giant_patch14_dinov2": VIT | {"img_size": 56},
    "vit_giant_patch14_reg4_dinov2": VIT | {"img_size": 56},
    "vit_small_patch16_dinov3": VIT,
    "vit_small_patch16_dinov3_qkvb": VIT,
    "vit_small_plus_patch16_dinov3": VIT,
    "vit_large_patch16_dinov3": VIT,
    "vit_huge_plus_patch16_dinov3": VIT,
    "vit_7b_patch16_dinov3": VIT,
    "vit_small_patch16_lingbot": VIT,
    "vit_giant_patch16_lingbot": VIT,
    "vit_base_patch14_reg1_tipsv2": VIT | {"img_size": 56},
    "vit_giant_patch14_reg1_tipsv2": VIT | {"img_size": 56},
    "vit_pe_spatial_base_patch16_512": VIT,
    "vit_pe_core_base_patch16_224": VIT,
    "vit_base_patch16_radio_v3": VIT,
    "vit_so400m_patch16_radio_v4": VIT,
    "eva02_tiny_patch14_224": VIT | {"img_size": 56},
    "aimv2_large_patch14_224": VIT | {"img_size": 56},
    "vit_base_patch16_siglip_512": VIT,
    "xcit_nano_12_p16_224": {"depth": 2, "embed_dim": 48, "num_heads": 3},
}
"""Small models of the families whose features are tokens."""

MAPS: dict[str, dict[str, Any]] = {
    "samvit_base_patch16_224": VIT,
    "sam2_hiera_tiny": {"embed_dim": 24, "stages": (1, 1, 1, 1)},
    "swin_tiny_patch4_window7_224": STAGES | {"embed_dim": 24, "num_heads": (1, 1, 2, 2)},
    "swinv2_tiny_window8_256": STAGES | {"embed_dim": 24, "num_heads": (1, 1, 2, 2)},
    "convnext_tiny": STAGES | {"dims": (16, 24, 32, 40)},
    "resnet18": {},
}
"""Of those whose features are maps, on one grid or several."""

REFUSED = ("hiera_tiny_224", "beit_base_patch16_224", "vit_relpos_small_patch16_224",
           "cait_xxs24_224")
"""Models that take photos of one size only."""


def pixels(height: int, width: int) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(3))


def original(name: str, options: dict[str, Any]) -> Any:
    """A random model of timm, whose biases and scales are all away from 0 and 1."""
    model = None
    for size in ({"dynamic_img_size": True}, {}):
        try:
            model = import_library("timm").create_model(name, num_classes=0, **options, **size)
        except TypeError:
            continue
        break
    assert model is not None
    torch.manual_seed(7)
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def load(name: str, options: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch,
         state: dict[str, Tensor] | None = None) -> tuple[Encoder, Any]:
    """Load a small model as users load one: by its name and a file; also the original."""
    model = original(name, options)
    timm = import_library("timm")
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda model, **kwargs: create(
        model, **{**options, **kwargs}))
    state = state or {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    return load_encoder(find_encoder(f"timm:{name},{folder / 'model.safetensors'}", (Path(),)),
                        CPU), model


def check_rebuilt(tower: AdaptedTower, photo: Tensor, folder: Path) -> None:
    """What a bundle holds gives the same features again."""
    found = tower_from_config(tower_config(tower), tower.state_dict())
    assert torch.equal(found(photo, attention=False).patches,
                       tower(photo, attention=False).patches)


@pytest.mark.parametrize("name", TOKENS)
def test_tokens_are_those_of_the_model(name: str, tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """At its own size and at another one, not square; in float32."""
    encoder, model = load(name, TOKENS[name], tmp_path, monkeypatch)
    tower, prefix = encoder.vision, model.num_prefix_tokens
    assert (encoder.mean, encoder.std) == (tuple(model.pretrained_cfg["mean"]),
                                           tuple(model.pretrained_cfg["std"]))
    assert tower.depth == len(model.blocks) and tower.width == 48
    for rows, columns in (tower.grid, (3, 5)):
        photo = pixels(rows * tower.patch, columns * tower.patch)
        wanted = model.forward_features(photo)[:, prefix:]
        levels = model.forward_intermediates(photo, output_fmt="NLC", intermediates_only=True)
        found = tower(photo, attention=False, layers=[0, tower.depth - 1])
        torch.testing.assert_close(found.patches, F.normalize(wanted, dim=-1), atol=1e-4, rtol=0)
        torch.testing.assert_close(found.layers[0], torch.stack([levels[0], levels[-1]], 1)[0],
                                   atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(tower(photo, attention=False, patches="last").patches,
                                   found.patches)


@pytest.mark.parametrize("name", MAPS)
def test_maps_become_patches(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The level of 16 pixels and the last one; the levels are the model's own."""
    encoder, model = load(name, MAPS[name], tmp_path, monkeypatch)
    tower = encoder.vision
    assert isinstance(tower, TimmTower) and tower.patch == 16
    photo = pixels(64, 96)
    levels = model.forward_intermediates(photo, intermediates_only=True)
    found = tower(photo, attention=False, layers=range(tower.depth))
    assert found.patches.shape == (1, 24, sum(levels[index].shape[1] for index in tower.joins))
    assert found.layers.shape == (1, tower.depth, 24, max(maps.shape[1] for maps in levels))
    middle = next(index for index, maps in reversed(list(enumerate(levels)))
                  if maps.shape[2:] == (4, 6))
    own = levels[middle].flatten(2).transpose(1, 2)
    torch.testing.assert_close(found.layers[:, middle, :, :own.shape[2]], own, atol=1e-4,
                               rtol=1e-4)
    assert not found.layers[:, middle, :, own.shape[2]:].any()
    torch.testing.assert_close(found.patches.norm(dim=-1), torch.ones(1, 24))
    check_rebuilt(tower, photo, tmp_path)


def test_the_last_level_of_convnext_is_normed_and_enlarged(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, model = load("convnext_tiny", MAPS["convnext_tiny"], tmp_path, monkeypatch)
    photo = pixels(64, 96)
    *_, middle, last = model.forward_intermediates(photo, intermediates_only=True)
    parts = [F.normalize(middle, dim=1), F.interpolate(
        F.normalize(model.head.norm(last), dim=1), (4, 6), mode="bilinear")]
    wanted = F.normalize(torch.cat(parts, dim=1), dim=1).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder.vision(photo, attention=False).patches, wanted, atol=1e-5,
                               rtol=0)
    # A side of an odd number of patches is continued at its edge.
    odd = encoder.vision(photo[:, :, :48, :80], attention=False).patches
    whole = encoder.vision(F.pad(photo[:, :, :48, :80], (0, 16, 0, 16), mode="replicate"),
                           attention=False).patches
    torch.testing.assert_close(odd.view(1, 3, 5, -1), whole.view(1, 4, 6, -1)[:, :3, :5])


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_giant_patch14_reg4_dinov2"])
def test_the_attention_of_the_models_own_code(name: str, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """Its product with the values is what the block's attention gives."""
    encoder, model = load(name, TOKENS[name], tmp_path, monkeypatch)
    tower = encoder.vision
    assert isinstance(tower, TimmTower)
    photo = pixels(2 * tower.patch, 3 * tower.patch)
    found = tower(photo, attentions=True, attention_blocks=2)
    assert found.attentions.shape == (1, 2, 6, 6)
    torch.testing.assert_close(found.attention, found.attentions.mean(dim=1))
    assert (found.attention.sum(dim=-1) < 1).all() and (found.attention > 0).all()
    plain = tower(photo, attention=False)
    torch.testing.assert_close(plain.patches, found.patches, atol=1e-5, rtol=0)
    assert all(block.attn.fused_attn for block in tower.model.blocks)


def test_a_plain_vit_runs_by_our_own_blocks(tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it has tokens and a head, for GradCAM: its patches are its own tokens, normed."""
    name = "vit_base_patch14_reg4_dinov2"
    encoder, model = load(name, TOKENS[name], tmp_path, monkeypatch)
    tower = encoder.vision
    assert isinstance(tower, VisionTower) and {"tokens", "attention"} <= tower.able
    found = tower(pixels(28, 42))
    output = tower.head.block(found.tokens)
    wanted = F.normalize(model.norm(output)[:, 5:], dim=-1)
    torch.testing.assert_close(found.patches, wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(tower.head.pooled(output), F.normalize(
        model.norm(output)[:, 5:].mean(dim=1), dim=-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", REFUSED)
def test_models_of_one_size_are_refused_by_name(name: str, monkeypatch: pytest.MonkeyPatch
                                                ) -> None:
    timm = import_library("timm")
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda model, pretrained, **kwargs: create(
        model, **kwargs))
    with pytest.raises(VplError, match=f"{name} takes only photos of 224×224") as caught:
        load_encoder(find_encoder(f"timm:{name}", ()), CPU)
    assert caught.value.hint


def test_what_its_code_does_not_give_is_one_line(tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    tower = load("convnext_tiny", MAPS["convnext_tiny"], tmp_path, monkeypatch)[0].vision
    for wanted, words in (({"attention": True}, "gives no attention"),
                          ({"patches": "value", "attention": False}, "no value patches")):
        with pytest.raises(VplError, match=words) as caught:
            tower(pixels(32, 32), **wanted)
        assert "timm:convnext_tiny" in caught.value.message and caught.value.hint


@pytest.mark.parametrize("change", [
    {"model": "vit_small_patch16_224"}, {"model": "hf-hub:someone/else"}, {"model": 3},
    {"options": {"depth": 10**9, "embed_dim": 10**9}}, {"options": {"pretrained": True}},
    {"options": {"checkpoint_path": "x.pth"}}, {"options": {"depth": "x"}}, {"options": 3},
    {"model": None, "options": {}}], ids=str)
def test_a_file_with_another_model_is_refused(change: dict[str, Any], tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    tower = load("vit_small_patch16_dinov3", VIT | {"depth": 1}, tmp_path, monkeypatch)[0].vision
    with pytest.raises(ValueError, match="."):
        tower_from_config({**tower_config(tower), **change}, tower.state_dict())


def facebook_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of timm's DINOv3 by the names of the authors' own files."""
    renamed = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
    found = {}
    for name, tensor in state.items():
        for ours, theirs in renamed.items():
            name = name.replace(ours, theirs)
        found[name] = tensor.contiguous()
    return {**found, "rope_embed.periods": torch.ones(4), "mask_token": torch.zeros(1, 48)}


def test_dinov3_by_its_own_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "vit_small_patch16_dinov3"
    model = original(name, VIT)
    state = facebook_names(model.state_dict())
    encoder, _ = load(name, VIT, tmp_path, monkeypatch, state)
    photo = pixels(48, 80)
    torch.testing.assert_close(encoder.vision(photo, attention=False).patches,
                               F.normalize(model.forward_features(photo)[:, 5:], dim=-1))
    biased = {**state, "blocks.0.attn.qkv.bias": torch.ones(144)}
    with pytest.raises(VplError, match="has biases") as caught:
        load(name, VIT, tmp_path, monkeypatch, biased)
    assert "timm:vit_small_patch16_dinov3_qkvb" in caught.value.hint


@pytest.mark.parametrize(("name", "pretrained", "licence"), [
    ("timm:vit_small_patch16_dinov3.lvd1689m", "timm", "DINOv3 License (Meta)"),
    ("timm:vit_base_patch14_reg4_dinov2.lvd142m", "timm", "Apache-2.0 (Meta)"),
    ("timm:convnext_tiny.eupe_lvd1689m", "timm", "FAIR Noncommercial"),
    ("timm:vit_base_patch16_dinov3_qkvb.eupe_lvd1689m", "timm", "FAIR Noncommercial"),
    ("hf:google/tipsv2-b14", "transformers", "Apache-2.0 (Google)"),
    ("timm:vit_base_patch14_dinov2", "mine.safetensors", "if mine.safetensors is the published"),
    ("timm:resnet18", "timm", ""), ("ViT-B-16", "openai", "MIT (OpenAI)")])
def test_licences(name: str, pretrained: str, licence: str) -> None:
    found = licence_of({"name": name, "pretrained": pretrained})
    assert licence in found and bool(found) == bool(licence)


def test_half_precision_is_near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tower = load("vit_small_patch16_dinov3", VIT, tmp_path, monkeypatch)[0].vision
    photo = pixels(48, 80)
    wanted = tower(photo, attention=False).patches
    found = tower.to(torch.bfloat16)(photo.bfloat16(), attention=False).patches
    assert found.dtype == torch.bfloat16
    assert F.cosine_similarity(found.float(), wanted, dim=-1).min() > 0.99


def test_weights_of_a_vit_are_no_resnets(tmp_path: Path) -> None:
    """Their names are looked at before shapes that a network without patches lacks."""
    path = tmp_path / "vit.safetensors"
    save_file({"patch_embed.proj.weight": torch.zeros(8, 3, 4, 4)}, path)
    with pytest.raises(VplError, match="does not hold timm's resnet10t: its `.*` is missing"):
        load_encoder(find_encoder(f"timm:resnet10t,{path}", (tmp_path,)), CPU)
